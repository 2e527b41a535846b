"""The command line: how it is read, and how a command ends. Which commands there are is in arguments.py."""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

from dreambooth import __version__
from dreambooth.core import schema
from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings
from dreambooth.ui import arguments
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal

_ALONE = ("-h", "--help", "--version")  # without a command
DONE, REFUSED, UNFINISHED, INTERRUPTED, UNREAD = 0, 2, 3, 130, 141  # the last two as a shell calls SIGINT and SIGPIPE


def main(given: Sequence[str]) -> int:
    """Runs one command. Returns the exit code: 0 only if it did what it was asked, 2 for bad input, 3 where a job was
    paused or ended without a result."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be what the terminal can show
    parser, names = _parser()
    if not given:
        parser.print_help()
        return REFUSED
    if (wanted := given[0]) not in (*names, *_ALONE):
        print(_no_command(wanted, names), file=sys.stderr)
        return REFUSED
    options, extra = parser.parse_known_args(_joined(given))
    terminal = Terminal()
    try:
        options.overrides = _overrides(extra, allowed=options.takes_settings)
        result = options.command(options, terminal)
        terminal.end()
        if options.json:
            print(json.dumps(result, indent=1))  # in ASCII, as the terminal need not know more
        elif text := options.describe(result):
            print(text)
        problems = result.get("problems", [])
        for problem in problems:
            print(problem, file=sys.stderr)
        if sys.stdout:  # none where it was closed
            sys.stdout.flush()
        if problems:
            return REFUSED
        return UNFINISHED if result.get("unfinished") else DONE
    except (UserError, OSError) as found:
        if _is_unread(found):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain at its end
            return UNREAD
        terminal.end()
        error = found if isinstance(found, UserError) else _of_the_disk(found)
        if options.json:
            print(json.dumps(error.as_json(), indent=1))
        for problem in error.errors:
            print(problem.sentence, file=sys.stderr)
        for log in dict.fromkeys(problem.log for problem in error.errors if problem.log):
            print("\n".join(["The log ends with:", *(f"    {line}" for line in log.splitlines())]), file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        terminal.say("Interrupted.")
        return INTERRUPTED


def _no_command(wanted: str, names: Sequence[str]) -> str:
    if wanted.startswith("-"):
        return f"{wanted.partition('=')[0][:40]}: put it behind the command, as in models {wanted[:80]}"
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists them."
    return f"{wanted[:40]!r} is no command; {hint}"


def _is_unread(error: Exception) -> bool:
    """Whether who reads has seen enough, as `| head` does. Windows has no name for that."""
    of_windows = os.name == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL and not error.filename
    return isinstance(error, BrokenPipeError) or of_windows


def _of_the_disk(error: OSError) -> UserError:
    """What the system refused, such as writing into a folder that may only be read."""
    place = f"{error.filename2 or error.filename}: " if error.filename else ""
    return UserError(f"{place}the system refused it ({error.strerror or error}); mend that and try again.")


def _joined(given: Sequence[str]) -> list[str]:
    """A setting's flag and its value as one word, so that no value is taken for a name that may be left out."""
    words: list[str] = []
    for word in given:
        is_value = words and not word.startswith("--")
        if is_value and words[-1].startswith("--") and "." in words[-1] and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _overrides(extra: list[str], *, allowed: bool) -> dict[str, Any]:
    """--a.b VALUE and --a.b=VALUE -> {a.b: VALUE}; without a value it means on, where it can be on or off."""
    found: dict[str, Any] = {}
    words, missing = list(extra), list[str]()
    kinds = {leaf.key: leaf.kind for leaf in schema.leaves(Settings)}
    while words:
        word = words.pop(0)
        if not word.startswith("--") or not allowed:
            raise UserError(f"{word}: this command takes no such argument; see --help.")
        key, equals, value = word[2:].partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        elif not equals and kinds.get(schema.general(key), bool) is bool:  # one that is not there is told as that
            value = "true"
        elif not equals:
            missing.append(f"--{key}: its value is missing.")
        found[key] = value
    if missing:
        raise UserError(missing)
    return found


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """What reads a command line, and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m dreambooth", description="Teach Stable Diffusion a subject from a few pictures."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        command: Callable[..., Result],
        help: str,
        show: Callable[[Result], str],
        *,
        takes_settings: bool = False,
        presets: bool = True,
    ) -> Any:
        sub = subparsers.add_parser(name, help=help, description=help, allow_abbrev=False)
        where = "the models folder (default: the WebUI's, or `models` in this project's folder)"
        sub.add_argument("--data", metavar="DIR", help=where)
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")
        if takes_settings and presets:
            sub.add_argument("--preset", metavar="NAME", help="person, object or native; see presets")
        if takes_settings:
            sub.add_argument(
                "--settings", metavar="FILE", help="a JSON file of settings; flags such as --lora.rank 8 win over it"
            )
        sub.set_defaults(command=command, describe=show, takes_settings=takes_settings)
        return sub

    for group in arguments.GROUPS:
        group(add)
    return parser, list(subparsers.choices)
