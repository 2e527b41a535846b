"""Who may import whom. The WebUI's process imports no torch and nothing that the WebUI does not bring."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dreambooth"

# Room -> rooms it may import from. A room may always import from itself.
ROOMS = {
    "core": set(),
    "host": {"core"},
    "service": {"core"},
    "ui": {"core", "service", "host"},
    "engine": {"core"},
}
# Inside the engine: these parts do not know each other; worker.py joins them.
STRANGERS = [("training", "checkpoints")]
# Inside the engine: what a run is made of does not know the run.
BELOW_RUN = ("training", "families", "drawing", "layers", "data", "checkpoints", "prompts", "tracing", "process")
IMPORTS_NOTHING_OF_THE_ENGINE = "out_of_memory.py"  # every other part of the engine may use it
STANDARD_LIBRARY_ONLY = {"core", "host", "service", "ui"}
# What a file of these rooms may import besides; the WebUI brings all of it.
BESIDES = {
    "core/picture_opening.py": {"PIL"},
    "host/describing.py": {"modules", "PIL"},
    "host/drawing.py": {"modules"},
    "host/lending.py": {"gradio", "modules"},
    "host/webui.py": {"modules"},
    "service/api.py": {"fastapi", "starlette"},  # fastapi is made of it
    "service/routes/pictures.py": {"fastapi"},
    "service/routes/runs.py": {"fastapi"},
    "service/pictures.py": {"PIL"},
    "service/thumbnails.py": {"PIL"},
    "ui/page/alone.py": {"fastapi", "uvicorn"},  # only where there is no WebUI, from page-lock.txt
    "ui/page/concepts.py": {"gradio"},
    "ui/page/controls.py": {"gradio"},
    "ui/page/dialect.py": {"gradio"},
    "ui/page/export.py": {"gradio"},
    "ui/page/generate.py": {"gradio"},
    "ui/page/model.py": {"gradio"},
    "ui/page/page.py": {"gradio"},
    "ui/page/reference.py": {"gradio"},
    "ui/page/routes.py": {"fastapi"},
    "ui/page/run_column.py": {"gradio"},
    "ui/page/settings.py": {"gradio"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """The dotted names that a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(parts(path)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = parts(path)[0]
    if room not in ROOMS:
        return  # dreambooth/__init__.py and __main__.py
    for name in imports(path):
        words = name.split(".")
        if words[0] == "dreambooth" and len(words) > 1 and words[1] in ROOMS:
            assert words[1] == room or words[1] in ROOMS[room], f"{room} imports {name}"
        elif words[0] != "dreambooth" and room in STANDARD_LIBRARY_ONLY:
            besides = BESIDES.get("/".join(parts(path)), set())
            assert words[0] in sys.stdlib_module_names or words[0] in besides, f"{room} imports {name}"


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers_in_the_engine_do_not_meet(one: str, other: str) -> None:
    for here, there in ((one, other), (other, one)):
        for path in (PACKAGE / "engine" / here).rglob("*.py"):
            assert not [name for name in imports(path) if name.startswith(f"dreambooth.engine.{there}")], path


def test_what_a_run_is_made_of_does_not_import_the_run() -> None:
    engine = PACKAGE / "engine"
    below = [*engine.glob("hardware.py"), *(path for part in BELOW_RUN for path in (engine / part).rglob("*.py"))]
    found = {"/".join(parts(path)): name for path in below for name in imports(path) if "engine.run." in f"{name}."}
    assert found == {}


def test_a_shortage_of_memory_is_known_without_the_rest_of_the_engine() -> None:
    names = imports(PACKAGE / "engine" / IMPORTS_NOTHING_OF_THE_ENGINE)
    assert [name for name in names if name.startswith("dreambooth")] == []


def test_the_command_line_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import dreambooth.ui.command_line; "
        "print([m for m in set(sys.modules) - before "
        "if m.split('.')[0] not in sys.stdlib_module_names and not m.startswith('dreambooth')])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_no_file_may_import_more_than_it_does() -> None:
    for name, besides in BESIDES.items():
        assert besides <= {imported.split(".")[0] for imported in imports(PACKAGE / name)}, name


def test_only_one_file_knows_the_gradio_releases_apart() -> None:
    said = {"/".join(parts(path)) for path in FILES if "gr.__version__" in path.read_text(encoding="utf-8")}
    assert said == {"ui/page/dialect.py"}


def test_only_one_file_says_what_pictures_are_opened() -> None:
    """Pillow starts Ghostscript for a `cat.png` that is PostScript."""
    said = {"/".join(parts(path)) for path in FILES if "Image.open(" in path.read_text(encoding="utf-8")}
    assert said == {"core/picture_opening.py"}


def test_a_check_loads_no_torch() -> None:
    code = (
        "import sys, dreambooth.engine.__main__, dreambooth.engine.plan; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'accelerate') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_every_room_of_the_rules_exists() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS)
