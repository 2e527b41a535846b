"""What comes before a run: a model's folder and its settings, those of other trainers, and the words for a subject."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from dreambooth.core import focal_point, project, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.settings import Settings
from dreambooth.service import (
    captioning,
    continue_from,
    environment,
    models,
    notice,
    pictures,
    runs,
    settings_lock,
    settings_undo,
    short_jobs,
)
from dreambooth.service import performance as fitting
from dreambooth.service.import_settings import take_over
from dreambooth.ui import commands, results
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal


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
    if not options.overrides and options.settings is None and options.preset is None:
        raise UserError("set: it says nothing to change; add a setting and its value, such as --lora.rank 8.")
    with settings_lock.changing(opened):
        before = opened.settings()
        after = models.write_settings(opened, commands.settings_over(before, options))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return {"name": opened.name, "changed": schema.without_secrets(Settings, changed)}


def import_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Another trainer's settings over the model's own; its concepts take the place of the model's."""
    opened = project.open_project(commands.folders(options), options.name)
    file = paths.named(options.file, "FILE")
    python, over = partial(environment.ensure, terminal.show), partial(commands.settings_over, options=options)
    kind, _, report = take_over(opened, file, python, over)
    return {"name": opened.name, "kind": kind, "report": report}


def undo(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(commands.folders(options), options.name)
    settings_undo.undo(opened)
    return models.summary(opened)


def send_notice(options: argparse.Namespace, terminal: Terminal) -> Result:
    opened = project.open_project(commands.folders(options), options.name)
    return {"name": opened.name, "done": notice.send(opened.settings()[notice.WEBHOOK])}


def learn_on(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Has the next run begin with a result; with the newest where none is named."""
    found = commands.folders(options)
    opened = project.open_project(found, options.name)
    written = [one["path"] for one in runs.outputs(opened)]
    if options.file is None and not written:
        raise UserError(f"{opened.name} has no result yet; train it first.")
    if options.file is None:
        return continue_from.learn_on(found, opened, written[0])
    return continue_from.learn_on(found, opened, results.result_named(opened, options.file))


def tokens(options: argparse.Namespace, terminal: Terminal) -> Result:
    """What the words of a prompt are to the model."""
    fields = short_jobs.words(options.prompt, options.candidates, label="--{}")
    chosen = settings.parse(project.open_project(commands.folders(options), options.name).settings())
    return commands.errand(options, terminal, "tokens", chosen, **fields)


def caption(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Has a captioning model describe the pictures."""
    chosen = settings.parse(project.open_project(commands.folders(options), options.name).settings())
    wanted = {"with": options.captioner, "concept": options.concept, "over": options.over}
    fields = captioning.fields(chosen, wanted, label="--{}")
    return commands.errand(options, terminal, "caption", chosen, **fields)


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
    """What to set for a card, and why; with --apply it is set."""
    card = fitting.card_bytes(options.card or "", label="--card")
    if not options.name:
        if options.apply:
            raise UserError("--apply: it is for a model's own settings; name the model.")
        return {"plans": fitting.of_every_family(settings.parse(commands.settings_over({}, options)), card)}
    opened = project.open_project(commands.folders(options), options.name)
    over = partial(commands.settings_over, options=options)
    plan = fitting.for_model(opened, over, card, label="--card", to_apply=options.apply)
    return fitting.answer(opened, plan, card, applied=options.apply)
