"""Which rows of the table of settings prove nothing: `python -m tests -m rows`, or this module with some keys.

For each setting its test is run with the setting nailed to its default, whatever is asked of it, as in a program that
shows a control and ignores it. A test that passes all the same proves nothing of the setting.
"""

from __future__ import annotations

import contextlib
import os
import sys
import typing
from typing import Any

import pytest

from dreambooth.core import schema
from dreambooth.core.settings import Settings
from tests.conftest import ROOT
from tests.engine.test_options_table import PROOFS


def nail(key: str) -> None:
    """Whoever reads this setting sees its default."""
    *groups, name = key.split(".")
    held: Any = Settings
    for part in (group for group in groups if group != "N"):
        kind = typing.get_type_hints(held)[part]
        held = (typing.get_args(kind) or (kind,))[0]  # of a table its rows
    default = next(leaf.default for leaf in schema.leaves(Settings) if leaf.key == key)
    setattr(held, name, property(lambda _: default, lambda _self, _value: None))


def survives(key: str) -> bool:
    """Whether a setting's test passes without the setting. In a process of its own, with all imports done."""
    child = os.fork()
    if not child:
        nail(key)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", f"{ROOT / 'tests' / PROOFS[key]}"])
        os._exit(int(code))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != pytest.ExitCode.TESTS_FAILED


def main(keys: list[str]) -> int:
    import diffusers  # noqa: F401  (once, for all)

    import dreambooth.engine.worker  # noqa: F401

    missed = 0
    for key in keys or PROOFS:
        ignored = survives(key)
        missed += ignored
        print(f"{'PROVES NOTHING' if ignored else 'proves it':15} {key}  {PROOFS[key]}", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
