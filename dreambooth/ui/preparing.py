"""What comes before a run: presets, the settings of other trainers, and the words for a subject."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.presets import PRESETS
from dreambooth.service import environment, foreign
from dreambooth.ui import commands
from dreambooth.ui.commands import Result
from dreambooth.ui.terminal import Terminal


def show_presets(options: argparse.Namespace, terminal: Terminal) -> Result:
    return {
        "presets": [
            {
                "name": preset.name,
                "label": preset.label,
                "meaning": preset.meaning,
                "settings": [
                    {"setting": key, "value": value, "reason": why} for key, (value, why) in preset.settings.items()
                ],
            }
            for preset in PRESETS.values()
        ]
    }


def import_settings(options: argparse.Namespace, terminal: Terminal) -> Result:
    """Another trainer's settings over the model's own; its concepts take the place of the model's."""
    opened = project.open_project(commands.folders(options), options.name)
    path = Path(options.file).expanduser().resolve()
    kind, migration = foreign.read(path, environment.ensure(terminal.show))
    own = opened.settings()
    if any(key.startswith("concepts.") for key in migration.settings):
        own = {key: value for key, value in own.items() if not key.startswith("concepts.")}
    project.write_settings(opened, commands.settings_over({**own, **migration.settings}, options))
    return {"name": opened.name, "kind": kind, "report": [asdict(line) for line in migration.lines]}


def tokens(options: argparse.Namespace, terminal: Terminal) -> Result:
    """What the words of a prompt are to the model."""
    if not options.prompt.strip():
        raise UserError("PROMPT: it is empty; give the words that you mean to use, such as 'sks dog'.")
    if not 0 <= options.candidates <= 400:
        raise UserError(f"--candidates: it must be from 0 to 400 (it is {options.candidates}).")
    chosen = settings.parse(project.open_project(commands.folders(options), options.name).settings())
    return commands.errand(options, terminal, "tokens", chosen, prompt=options.prompt, candidates=options.candidates)
