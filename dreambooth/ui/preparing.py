"""What comes before a run: a model's folder and its settings, those of other trainers, and the words for a subject."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreambooth.core import abilities, focal_point, project, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.memory import footprint, planner
from dreambooth.core.memory.planner import Plan
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.settings import Settings
from dreambooth.service import environment, errands, models, pictures
from dreambooth.ui import commands
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal

_ANY_WORD = "sks"  # for what is counted of words that learn, where none is chosen


def show_presets(options: argparse.Namespace, terminal: Terminal) -> Result:
    return {"presets": models.preset_list()}


def list_models(options: argparse.Namespace, terminal: Terminal) -> Result:
    found = commands.folders(options)
    return {"models": models.listing(found), "folder": str(found.projects)}


def rename(options: argparse.Namespace, terminal: Terminal) -> Result:
    return models.rename(commands.folders(options), options.name, options.new)


def duplicate(options: argparse.Namespace, terminal: Terminal) -> Result:
    return models.duplicate(commands.folders(options), options.name, options.new)


def delete(options: argparse.Namespace, terminal: Terminal) -> Result:
    return models.delete(commands.folders(options), options.name)


def change(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Writes what is given into the model's own settings. The answer has what changed by that."""
    opened = project.open_project(commands.folders(options), options.name)
    before = opened.settings()
    after = models.write_settings(opened, commands.settings_over(before, options))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return {"name": opened.name, "changed": schema.without_secrets(Settings, changed)}


def import_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Another trainer's settings over the model's own; its concepts take the place of the model's."""
    opened = project.open_project(commands.folders(options), options.name)
    file = paths.named(options.file, "FILE")
    kind, flat, report = models.imported(opened, file, lambda: environment.ensure(terminal.show))
    models.write_settings(opened, commands.settings_over(flat, options))
    return {"name": opened.name, "kind": kind, "report": report}


def tokens(options: argparse.Namespace, terminal: Terminal) -> Result:
    """What the words of a prompt are to the model."""
    fields = errands.words(options.prompt, options.candidates, label="--{}")
    chosen = settings.parse(project.open_project(commands.folders(options), options.name).settings())
    return commands.errand(options, terminal, "tokens", chosen, **fields)


def crop(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Chooses what is kept of a picture, leaves that to the settings again, or says what was chosen."""
    place, written = paths.named(options.picture, "PICTURE"), Path(paths.meant(options.picture)).expanduser()
    if written.is_symlink() and place.is_file():  # what is chosen lies beside the link, as in any folder of pictures
        place = written.absolute()
    found = pictures.at(place, "PICTURE")
    _choose_crop(options, place)
    chosen, problems = list[Result](), list[str]()
    for picture in found:
        if options.automatic:
            pictures.write_point(picture, None)
        try:
            point = focal_point.read(picture)
        except UserError as error:
            problems += error.problems
            continue
        if point or not place.is_dir():
            chosen.append({"picture": str(picture), "crop": point.as_json() if point else None})
    return {"crops": chosen, "pictures": len(found), "problems": problems}


def _choose_crop(options: argparse.Namespace, place: Path) -> None:
    """Writes down what the command line chooses."""
    if options.at is None and options.zoom is not None:
        raise UserError("--zoom: it goes with --at, the middle of what is seen larger; give both.")
    if options.at is None:
        return
    if options.automatic:
        raise UserError("--automatic: it forgets what --at chooses; give one of them.")
    if place.is_dir():
        raise UserError(f"--at: it is for one picture, and {place} is a folder; name a picture in it.")
    given = {"x": options.at[0], "y": options.at[1], "zoom": 1 if options.zoom is None else options.zoom}
    pictures.write_point(place, FocalPoint.of(given, {"x": "--at", "y": "--at", "zoom": "--zoom"}))


def performance(options: argparse.Namespace, terminal: Terminal) -> Result:
    """What to set for a card, and why."""
    card = planner.card_size(options.card) if options.card else abilities.card_bytes()
    if options.name:
        if not card:
            raise UserError("--card: no card is known here; say how much memory it has, such as --card 8GB.")
        return _plan_of_model(options, card)
    chosen, plans = settings.parse(commands.settings_over({}, options)), []
    for family in footprint.FAMILIES:
        for method in ("lora", "full", "embedding"):
            some = planner.with_changes(chosen, {"general.method": method})
            some.concepts = [replace(one, instance_token=one.instance_token or _ANY_WORD) for one in some.concepts]
            for size in [card] if card else planner.CARDS:
                made = planner.for_family(some, family, size)
                plans.append({"family": family, "method": method, "card_bytes": size, **_as_json(made)})
    return {"plans": plans}


def _plan_of_model(options: argparse.Namespace, card: int) -> Result:
    opened, chosen = project.open_project(commands.folders(options), options.name), commands.merged_settings(options)
    header, side = checkpoint.read_header(opened.source), chosen.general.resolution or opened.resolution
    made = planner.plan(chosen, anatomy.of(header), opened.about["family"], side**2, card)
    return {"name": opened.name, "card_bytes": card, **_as_json(made)}


def _as_json(made: Plan) -> dict[str, Any]:
    before = {**asdict(made.needed_before), "total": made.needed_before.total}
    return {
        "fits": made.fits,
        "why": made.why,
        "changes": made.changes,
        "flags": [f"--{key} {str(value).lower()}" for key, value in made.changes.items()],
        "needs": {**asdict(made.needs), "total": made.needs.total},
        "needed_before": before,
    }
