"""Sets up what the tests need and runs them all: `python -m tests`, with pytest's options if wanted.

python -m tests                 lint, types, tests
python -m tests -m large        the full-size proofs (8 to 16 GB of memory)
python -m tests -m faults       a run killed two hundred times (a quarter of an hour)
python -m tests -m fuzz         13,000 damaged files, events, requests and command lines (ten minutes)
python -m tests -m rows         whether each setting's test fails where the setting is ignored (half an hour)
python -m tests tests/core      one part
python -m tests tests/host --webui DIR      in a real WebUI's folder, with a browser (five minutes)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dreambooth.core.errors import UserError  # noqa: E402
from dreambooth.service import environment, page_environment  # noqa: E402
from dreambooth.ui.terminal import Terminal  # noqa: E402

Check = subprocess.Popen[bytes]


def main(options: list[str]) -> int:
    terminal = Terminal()
    try:
        python = str(environment.ensure(terminal.show, development=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    terminal.end()
    # One thread: small models gain nothing from a second, and lose everything when a core is busy.
    variables = {**environment.engine_variables(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if options and (options[0].startswith("tests/ui/page") or _names_webui(options)):
        return _ended(_page_tests(variables, options))
    if options:
        return _ended(_start(python, ["pytest", *options], variables))
    with tempfile.TemporaryFile() as said:  # the page's tests take the other core meanwhile
        page = _page_tests(variables, ["tests/ui/page"], said)
        try:
            checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest"])
            code = next((code for check in checks if (code := _ended(_start(python, check, variables)))), 0)
            page.wait()
        finally:
            page.kill()
        said.seek(0)
        print(said.read().decode(errors="replace"))
        return code or _ended(page)


def _names_webui(options: list[str]) -> bool:
    """A real WebUI is looked at with a browser, which only the page's environment can drive."""
    return any(option.split("=")[0] == "--webui" for option in options)


def _page_tests(variables: dict[str, str], options: list[str], said: IO[bytes] | None = None) -> Check:
    """The page's tests run with gradio, which the engine's environment does not have."""
    terminal = Terminal()
    python = page_environment.ensure(terminal.show, tests=True)
    terminal.end()
    variables = {**variables, environment.VARIABLE: str(environment.python())}
    return _start(str(python), ["pytest", *options], variables, said)


def _start(python: str, check: list[str], variables: dict[str, str], said: IO[bytes] | None = None) -> Check:
    return subprocess.Popen([python, "-m", *check], cwd=ROOT, env=variables, stdout=said, stderr=said)


def _ended(check: Check) -> int:
    code = check.wait()
    if code:
        print("failed:", *cast("list[str]", check.args)[2:], file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
