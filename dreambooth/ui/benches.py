"""`python -m dreambooth bench`: what is measured, and what each measurement can be asked."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.files.json_file import read_object
from dreambooth.core.memory import planner
from dreambooth.core.models.families import FAMILIES
from dreambooth.service import environment
from dreambooth.ui import commands
from dreambooth.ui.commands import Result
from dreambooth.ui.describe import of_benches
from dreambooth.ui.terminal import Terminal

PARTS = ("training", "drawing", "files", "states", "sweep", "best", "memory", "choices", "operations", "plans", "card")
TABLE = ("families", "drawing", "vae")  # the parts of the table that `memory` counts
PIECES = (  # of `card`
    "ceilings",
    "steps",
    "full",
    "memory",
    "waiting",
    "convolutions",
    "proofs",
    "first",
    "drawing",
    "plans",
)
_OF = {  # each flag's parts
    "large": ("training", "drawing", "choices"),
    "peer": ("training", "drawing", "card"),
    "peer_python": ("training", "card"),
    "family": ("training", "plans"),
    "card": ("plans",),
    "method": ("training", "plans", "choices"),
    "batch": ("training",),
    "resolution": ("training",),
    "steps": ("training",),
    "rank": ("training",),
    "repeats": ("training", "drawing"),
    "only": ("card",),
    "again": ("memory",),
    "minutes": ("plans", "card"),
    "work": ("plans", "card"),
}
_NUMBERS = {
    "batch": "training: pictures of a step, in place of each case's own",
    "resolution": "training: pixels, in place of each case's own",
    "steps": "training: how many, in place of each case's own (from 20 of a shape on they are traced)",
    "rank": "training: of a LoRA (4)",
    "repeats": "training, drawing: how often all take turns (3 beside a peer, else 1)",
}
_PARTS_HELP = (
    "training: steps, memory, time to the first step (the default); drawing: class pictures a second; "
    "files: creating, loading and exporting; "
    "states: what saving one costs; "
    "sweep: what each option does to likeness, prompt following and the class (an hour; goes on where it was); "
    "best: whether a run knows when it is best (half an hour; goes on where it was); "
    "memory: the table that the planner reads, counted on full-size models without a card (half an hour; less "
    "with --again); "
    "choices: what those that save memory cost in time (half an hour); "
    "operations: how many a training step asks of a card, counted likewise; "
    "plans: each plan of `performance` run for real inside the memory of its card, on a larger one; "
    "card: everything worth measuring on a card, the most important first; half an hour or more"
)
_GOES_ON = ("sweep", "best", "plans", "card")  # in the folder that it has left


def add(add: Any) -> None:
    """The command with its flags."""
    sub = add(
        "bench", bench, "Measure speed and memory on this machine, or what each option teaches.", of_benches.bench
    )
    sub.add_argument("part", nargs="?", choices=PARTS, default="training", help=_PARTS_HELP)
    sub.add_argument(
        "--large",
        action="store_true",
        help="training, drawing, choices: full-size models with random weights (a GPU, or one small case of training)",
    )
    sub.add_argument(
        "--peer",
        metavar="DIR",
        action="append",
        help="training, drawing, card: a checkout of diffusers, whose scripts run side by side with us; training and "
        "card take kohya's sd-scripts too, or both (models of full size: with --large, or a card)",
    )
    sub.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help="training, card: the Python that sd-scripts runs with (default: that of the folder venv in its checkout)",
    )
    sub.add_argument("--family", choices=FAMILIES, help="training, plans: of this family alone")
    sub.add_argument("--card", metavar="8GB", help="plans: for this size of a card alone")
    sub.add_argument("--method", choices=("lora", "full"), help="training, plans, choices: of this method alone")
    for name, what in _NUMBERS.items():
        sub.add_argument(f"--{name}", type=int, metavar="N", help=what)
    sub.add_argument("--only", nargs="+", choices=PIECES, metavar="NAME", help=f"card: {', '.join(PIECES)}")
    sub.add_argument(
        "--again",
        choices=TABLE,
        help="memory: count a part of the table that --out names anew: families (training steps), drawing or vae",
    )
    sub.add_argument(
        "--minutes", type=float, metavar="N", help="plans, card: end by then; the same command goes on where it was"
    )
    sub.add_argument(
        "--work", metavar="DIR", help="plans, card: keep the full-size models here for the next time (10 GB)"
    )
    sub.add_argument(
        "--out",
        metavar="DIR",
        help="a new folder to work in, removed at the end; that of sweep, best, plans and card is kept; memory's file",
    )


def bench(options: argparse.Namespace, terminal: Terminal) -> Result:
    default = f"bench-{options.part}{'.json' if options.part == 'memory' else ''}"
    out = paths.named(default if options.out is None else options.out, "--out")
    fields = _fields(options)
    _check_out(options.part, out)
    python = environment.ensure(terminal.show)
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-", ignore_cleanup_errors=True) as place:
        job = job_list.create(Path(place), {"kind": f"bench-{options.part}", "out": str(out), **fields}, "{}")
        return {"part": options.part, **commands.work(job, python, terminal)}


def _check_out(part: str, out: Path) -> None:
    """Raises UserError for a place that the part cannot write to, or that holds what is not its own."""
    if part == "memory":
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder; name a .json file.")
        if out.exists() and not (out.is_file() and _is_table(out)):
            raise UserError(f"--out: {out} is no table that bench memory has written; name another file.")
    elif part not in _GOES_ON and out.exists():
        raise UserError(
            f"{out}: the benchmark fills and removes a folder of its own; name one that does not exist yet."
        )
    if problem := paths.unwritable(out.parent if part == "memory" else out):
        raise UserError(f"--out: {problem}; name another place.")


def _is_table(file: Path) -> bool:
    try:
        return "bench memory" in str(read_object(file).get("made_by"))
    except UserError:
        return False


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """The job's fields, from the flags. Raises UserError for a flag that the part does not take."""
    given = {name: value for name in _OF if not ((value := getattr(options, name)) is None or value is False)}
    for name in given:
        if options.part not in _OF[name]:
            raise UserError(f"--{name.replace('_', '-')}: it belongs to bench {' and bench '.join(_OF[name])}.")
    if "again" in given and not (options.out and paths.named(options.out, "--out").is_file()):
        raise UserError("--again: name the table that is there with --out.")
    for name in _NUMBERS:
        if given.get(name, 1) < 1:
            raise UserError(f"--{name}: it must be at least 1 (it is {given[name]}).")
    if given.get("minutes", 1) <= 0:
        raise UserError(f"--minutes: it must be more than 0 (it is {options.minutes:g}).")
    fields: dict[str, Any] = {"large": False, **given}
    if "peer" in given:
        fields["peer"] = [str(paths.named(one, "--peer")) for one in given["peer"]]
    if "peer_python" in given:
        fields["peer_python"] = _python(given["peer_python"])
    if "work" in given:
        fields["work"] = str(paths.named(given["work"], "--work"))
    if "card" in given:
        fields["card_bytes"] = planner.card_size(fields.pop("card"))
    return fields


def _python(text: str) -> str:
    """The program that is meant, a file or a command. A link stays one: it is how a virtual environment is entered."""
    paths.named(text, "--peer-python")  # refuses what can be no path
    meant = Path(paths.meant(text)).expanduser()
    return str(Path(shutil.which(meant) or meant).absolute())
