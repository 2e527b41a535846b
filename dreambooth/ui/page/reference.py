"""What is written out of the page and the API themselves, with the page's Python:

    python -m dreambooth.ui.page.reference api > docs/api.md     every route of the HTTP API
    python -m dreambooth.ui.page.reference texts > MINE.json     a WebUI's localisation file to fill in

A translation is a file of the WebUI's `localizations` folder: {"a text of the page": "the same in your language"}; #
stands for a number or a name.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from typing import Any

import gradio as gr

from dreambooth.host.base import Host
from dreambooth.host.standalone import Standalone
from dreambooth.service import api
from dreambooth.ui.page.finding import elsewhere
from dreambooth.ui.page.page import build
from dreambooth.ui.page.run_view import WORDS
from dreambooth.ui.page.wording import drawn_words

_HEAD = """# The HTTP API

Under `/dreambooth` of the WebUI (listed in its `/docs`), or of `python -m dreambooth ui`, where the whole schema is at
`/dreambooth/openapi.json`. It asks for the same login as the WebUI. Bodies and answers are JSON. The answer to
a wrong request has status 400 and is `{"problems": ["a sentence", ...], "errors": [{"what", "where", "do", "log"},
...]}`, where `errors` has the same sentences in parts; `errors` and `warnings` of runs and short jobs have that form
too. Settings are dotted keys ([all of them](settings.md)) or nested objects. A field that a request does not know is
refused.

    curl http://127.0.0.1:7860/dreambooth/models/anna-dog/runs -H "Content-Type: application/json" \\
        -d '{"settings": {"lora.rank": 8}}'

| request | does |
|---|---|
"""


def api_reference(host: Host) -> str:
    """docs/api.md, from the routes' own docstrings."""
    rows = []
    for route in api.router(host).routes:
        found: Any = route
        words = " ".join(inspect.cleandoc(found.endpoint.__doc__ or "").split())
        rows.append(f"| `{min(found.methods)} {found.path}` | {words} |")
    return _HEAD + "\n".join(rows) + "\n"


def texts(host: Host) -> list[str]:
    """Every text of the page that is always the same but for numbers and names, each once: of its controls in the order
    of the page, then of what is drawn besides."""
    found: list[str] = []
    for block in build(host).blocks.values():
        hidden = (getattr(block, "elem_id", None) or "") in _HIDDEN
        for name in () if hidden else ("label", "info", "placeholder"):
            found.append(getattr(block, name, None) or "")
        if isinstance(block, gr.Button) and not hidden:
            found.append(block.value)
        found += [str(choice[0]) if isinstance(choice, tuple) else str(choice) for choice in _choices(block)]
    found += [*WORDS.values(), *drawn_words(), *(sentence for _, sentence in elsewhere()), *_OF_GRADIO]
    return list(dict.fromkeys(text for text in found if text and not text.isnumeric()))


_OF_GRADIO = ("number input for #", "range slider for #", "file upload")  # what it tells a screen reader
_HIDDEN = ("db_shown_model", "db_shown_row", "db_loaded", "db_proposed", "db_reset_key", "db_reset", "db_save_draft",
           "db_compare", "db_look_again", "db_undo")  # fmt: skip


def _choices(block: Any) -> list[Any]:
    return list(getattr(block, "choices", None) or [])


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        host = Standalone(place)
        if arguments == ["api"]:
            print(api_reference(host), end="")
        elif arguments == ["texts"]:
            print(json.dumps(dict.fromkeys(texts(host), ""), ensure_ascii=False, indent=1))
        else:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
