"""Sets up what the tests need and runs them all: `python -m tests`, with pytest's options if wanted.

python -m tests                 lint, types, tests
python -m tests -m thorough     other rows of tests of which some always run, whole proofs of learning (an hour)
python -m tests -m large        the full-size proofs (16 GB of memory)
python -m tests -m faults       a run killed two hundred times (a quarter of an hour)
python -m tests -m fuzz         13,000 damaged files, events, requests and command lines (ten minutes)
python -m tests -m gpu           what only an NVIDIA card can prove (three minutes)
python -m tests -m pairs        every two values of two settings in a real run (an hour)
python -m tests -m rows         whether each setting's test fails where the setting is ignored (half an hour)
python -m tests tests/core      one part
python -m tests tests/host --webui DIR      in a real WebUI's folder, with a browser (five minutes)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
_BESIDE = 2  # that work beside the first
_SHARES = 10  # of the engine's tests, so that no core waits for the last of them
sys.path.insert(0, str(ROOT))

from dreambooth.core.errors import UserError  # noqa: E402
from dreambooth.service import environment, page_environment  # noqa: E402
from dreambooth.ui.terminal import Terminal  # noqa: E402


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
    of_page = {**variables, environment.VARIABLE: python}
    if options and (options[0].startswith("tests/ui/page") or _names_webui(options)):
        return _run(str(_page_python()), ["pytest", *options], of_page)
    if options:
        return _run(python, ["pytest", *options], variables)
    return _run_all([(python, variables), (str(_page_python()), of_page)])


def _run_all(pythons: list[tuple[str, dict[str, str]]]) -> int:
    """Everything, in parts that are taken one after the other by whoever is free, the longest first; three at once on
    two cores, as tests wait for a browser or another process a quarter of their time. What the first of them says is
    shown as it comes, what the others say at the end."""
    ours, page = pythons
    engine = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "engine").glob("test_*.py"))
    share = -(-len(engine) // _SHARES)
    parts = deque(
        [
            (*ours, ["ruff", "check", "."]),
            (*ours, ["ruff", "format", "--check", "."]),
            (*ours, ["mypy"]),
            (*page, ["pytest", "tests/ui/page"]),
            (*ours, ["pytest", "--ignore=tests/engine"]),
            *((*ours, ["pytest", *engine[first : first + share]]) for first in range(0, len(engine), share)),
        ]
    )

    def work(said: IO[bytes] | None = None) -> int:
        code = 0
        while parts:
            python, variables, check = parts.popleft()
            code = _run(python, check, variables, said) or code
        return code

    with contextlib.ExitStack() as opened, ThreadPoolExecutor(_BESIDE) as beside:
        said = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(_BESIDE)]
        running = [beside.submit(work, file) for file in said]
        code = work()
        for file, other in zip(said, running):
            code = other.result() or code
            file.seek(0)
            print(file.read().decode(errors="replace"))
    print("Something failed." if code else "All is well.", file=sys.stderr)
    return code


def _names_webui(options: list[str]) -> bool:
    """A real WebUI is looked at with a browser, which only the page's environment can drive."""
    return any(option.split("=")[0] == "--webui" for option in options)


def _page_python() -> Path:
    """The page's tests run with gradio, which the engine's environment does not have."""
    terminal = Terminal()
    python = page_environment.ensure(terminal.show, tests=True)
    terminal.end()
    return python


def _run(python: str, check: list[str], variables: dict[str, str], said: IO[bytes] | None = None) -> int:
    code = subprocess.run([python, "-m", *check], cwd=ROOT, env=variables, stdout=said, stderr=said).returncode
    if code:
        print("failed:", *check, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
