"""The tests that want a card, whose results are in a file as they come."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from dreambooth.core.install_paths import PROJECT

# Those of CUDA graphs have a process of their own: after some errors a card does nothing more for one that met them.
ON_CARD = (["-m", "gpu", "-k", "not graph"], ["-m", "gpu", "-k", "graph"])
ON_CPU = (["-m", "not gpu", "-k", "int8 or pictures_are"],)
FIRST_SHARE = 0.7  # of the time, for all but CUDA graphs
TO_COUNT_SECONDS = 5
ENDS = (0, 1, 5)  # of pytest: all passed, some failed, there were none


def are_there() -> bool:
    return importlib.util.find_spec("pytest") is not None and (PROJECT / "tests" / "gpu").is_dir()


def proved(file: Path, until: float, *, on_card: bool) -> tuple[list[str], list[str], list[str]]:
    """Until then, by the computer's clock: which tests passed, which failed, and what kept the rest from their end."""
    file.write_text("", encoding="utf-8")
    until, problems = until - TO_COUNT_SECONDS, []
    share = FIRST_SHARE if on_card else 1.0
    for chosen in ON_CARD if on_card else ON_CPU:
        problems += _written(file, chosen, share * (until - time.time()))
        share = 1.0
    return *counted(file.read_text(encoding="utf-8", errors="replace")), problems


def _written(file: Path, chosen: list[str], seconds: float) -> list[str]:
    """Has some tests write what they find. Returns what kept them from their end, if anything did."""
    # The summary of warnings would name tests as the lines of results do.
    command = [sys.executable, "-m", "pytest", "-v", "--disable-warnings", "-p", "no:cacheprovider", *chosen]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(file, "a", encoding="utf-8") as out:
        process = subprocess.Popen([*command, "tests/gpu"], cwd=PROJECT, stdout=out, stderr=out, env=unbuffered)
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return ["the tests did not end in the time"]
        finally:
            out.write("\n")
    return [] if code in ENDS else [f"the tests ended with code {code}"]


def counted(said: str) -> tuple[list[str], list[str]]:
    """The tests that passed; and those that failed, or were under way when their process ended: of what `pytest -v` has
    written. One that fails when it is done, too, is one."""
    passed = dict[str, bool]()
    for line in said.splitlines():
        if known := re.match(r"(tests/\S+?::.+?) +(PASSED|FAILED|ERROR|SKIPPED)\b", line):
            test, how = known.groups()
            if how != "SKIPPED":
                passed[test] = passed.get(test, True) and how == "PASSED"
        elif re.match(r"tests/\S+?::", line):
            passed[line.strip()] = False
    return [test for test, well in passed.items() if well], [test for test, well in passed.items() if not well]
