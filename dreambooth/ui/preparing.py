"""What comes before a run: presets, the settings of other trainers, and the words for a subject."""

from __future__ import annotations

import argparse
from pathlib import Path

from dreambooth.core import project, settings
from dreambooth.service import environment, errands, models
from dreambooth.ui import commands
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal


def show_presets(options: argparse.Namespace, terminal: Terminal) -> Result:
    return {"presets": models.preset_list()}


def import_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Another trainer's settings over the model's own; its concepts take the place of the model's."""
    opened = project.open_project(commands.folders(options), options.name)
    kind, flat, report = models.imported(opened, Path(options.file), environment.ensure(terminal.show))
    models.write_settings(opened, commands.settings_over(flat, options))
    return {"name": opened.name, "kind": kind, "report": report}


def tokens(options: argparse.Namespace, terminal: Terminal) -> Result:
    """What the words of a prompt are to the model."""
    fields = errands.words(options.prompt, options.candidates, label="--{}")
    chosen = settings.parse(project.open_project(commands.folders(options), options.name).settings())
    return commands.errand(options, terminal, "tokens", chosen, **fields)
