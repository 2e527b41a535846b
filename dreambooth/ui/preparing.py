"""What comes before a run: presets, the settings of other trainers, and the words for a subject."""

from __future__ import annotations

import argparse

from dreambooth.core.presets import PRESETS
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
