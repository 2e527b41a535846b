"""The words of what the page draws besides gradio's components, found in the source of what says them, for a
translation.

A number is written as # in them: `# pictures` is "12 pictures" on the page (javascript/words.js puts it back).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from dreambooth.core.install_paths import PROJECT
from dreambooth.core.presets import PRESETS
from dreambooth.ui.page.fragments import labelled

_HERE = Path(__file__).parent
_SCRIPTS = PROJECT / "javascript"
_NO_VIEWS = ("reference.py", "wording.py", "alone.py", "routes.py", "dialect.py")
_HOLE = "\x00"  # where a value stands
_TAG = re.compile(r"<[^>]*>?|^[^<>]*>")
_NAMED = re.compile(r'(?:title|aria-label|placeholder|alt)="([^"]*)"')
_IN_SCRIPT = re.compile(r"""(?:"([^"\\\n]+)"|`([^`\n]+)`)""")
_STAGE = re.compile(r"""(?:report\("stage", name=|stage\(|stage, |"name": )"([a-z ]+)\"""")
_STAGES_OF = ("dreambooth/engine", "dreambooth/core/job_history.py")
_SENTENCES_OF = ("dreambooth/core", "dreambooth/service", "dreambooth/engine/data/pictures.py")
_ABOUT = re.compile(
    rf"^(?:{_HOLE}|[a-z_]+)(?:\.(?:{_HOLE}|[a-z0-9_]+))*: "
)  # the setting, which the page calls by its label


def drawn_words() -> list[str]:
    """Every text that is a text of its own on the page, each once."""
    found: dict[str, None] = {}
    for file in sorted(_HERE.glob("*.py")):
        if file.name not in _NO_VIEWS:
            for literal in _literals(ast.parse(file.read_text(encoding="utf-8"))):
                found.update(dict.fromkeys(_texts(literal)))
    for file in sorted(_SCRIPTS.glob("dreambooth*.js")):
        for plain, holed in _IN_SCRIPT.findall(file.read_text(encoding="utf-8")):
            found.update(dict.fromkeys(_texts(plain or re.sub(r"\$\{[^}]*\}", _HOLE, holed))))
    for place in _STAGES_OF:
        for file in sorted((PROJECT / place).rglob("*.py")) or [PROJECT / place]:
            found.update(dict.fromkeys(_STAGE.findall(file.read_text(encoding="utf-8"))))
    for place in _SENTENCES_OF:
        for file in sorted((PROJECT / place).rglob("*.py")) or [PROJECT / place]:
            for literal in _literals(ast.parse(file.read_text(encoding="utf-8"))):
                found.update(dict.fromkeys(_sentence(literal)))
    found.update(dict.fromkeys(choice.why for preset in PRESETS.values() for choice in preset.settings.values()))
    return list(found)


def _sentence(literal: str) -> Iterator[str]:
    """What is said of a setting or a file, which is a whole sentence."""
    text = labelled(_ABOUT.sub("", literal).strip().replace(_HOLE, "#"))
    if text.endswith(".") and text.count(" ") > 2 and not re.search(r"\n|--|Ctrl-C", text):
        yield text


def _literals(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, without those that are only its documentation."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else _HOLE for one in node.values)
            inside |= {id(one) for one in node.values}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def _texts(literal: str) -> Iterator[str]:
    """The texts between the tags of a literal, and those that its attributes say."""
    marked = bool(re.search(r"</?\w", literal))
    for text in (*_NAMED.findall(literal), *_TAG.sub("\n", literal).split("\n")):
        for part in unescape(text).split(" · "):
            said = part.strip().replace(_HOLE, "#")
            if _is_shown(said, marked):
                yield said


def _is_shown(text: str, marked: bool) -> bool:
    """Whether a text is for people: words, and not a name of the program's."""
    if not re.search(r"[A-Za-z]{2}", text) or re.search(r"[{}=_\\]|db-|[^\W\d]\.\w|://|--|^\W*$", text):
        return False
    sentence = text[0].isupper() or text[0] in "#●≈"
    phrase = "#" in text and re.fullmatch(r"[a-z#][a-z# ,]+", text) and " " in text
    words = text.count(" ") + 1
    return bool(marked or phrase or words > 4 or (sentence and words > 1) or (text.istitle() and text.isalpha()))
