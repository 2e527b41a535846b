"""Starting points for the usual kinds of subject: some settings, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.core.errors import UserError

_EVERY_CONCEPT = "concepts.N."


@dataclass(frozen=True)
class Preset:
    """Named settings; a key with `concepts.N.` is meant for every concept. `settings` is {key: (value, why)}."""

    name: str
    label: str
    meaning: str
    settings: Mapping[str, tuple[Any, str]]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "person",
            "Train Person",
            "A person or a pet: a likeness takes longer than an object, and the class must stay varied.",
            {
                "intervals.num_train_epochs": (
                    150,
                    "steps for each picture; a face is judged strictly",
                ),
                "intervals.max_train_steps": (0, "so that the pictures say how long"),
                "concepts.N.class_mode": ("fill", "class pictures are made by the base model where they are missing"),
                "concepts.N.num_class_images_per": (5, "without them every person would come to look like yours"),
            },
        ),
        Preset(
            "object",
            "Train Object/Style",
            "A thing or a style: learned sooner, and everything of its kind may take after it.",
            {
                "intervals.num_train_epochs": (100, "steps for each picture"),
                "intervals.max_train_steps": (0, "so that the pictures say how long"),
                "concepts.N.class_mode": ("fill", "class pictures are made where the next setting asks for them"),
                "concepts.N.num_class_images_per": (0, "no class pictures: a style is meant to reach everything"),
            },
        ),
        Preset(
            "native",
            "Native",
            "Many captioned pictures: trained on their own words alone, without a class.",
            {
                "concepts.N.instance_prompt": ("[filewords]", "every picture is trained on the text file beside it"),
                "concepts.N.class_mode": ("off", "all pictures are training pictures; none is there to hold a class"),
            },
        ),
    )
}


def find(name: str) -> Preset:
    """The preset called `name`. Raises UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"preset: there is none called {name!r} (there: {', '.join(PRESETS)}).")
    return PRESETS[name]


def apply(preset: Preset, flat: Mapping[str, Any], over: Iterable[str] = ()) -> dict[str, Any]:
    """Dotted settings with the preset's over them, in every concept that is there.

    `over` are keys of settings that are still to come; their concepts get the preset's settings too.
    """
    rows = {key.split(".")[1] for key in (*flat, *over) if key.startswith("concepts.")} or {"0"}
    applied = dict(flat)
    for key, (value, _) in preset.settings.items():
        if key.startswith(_EVERY_CONCEPT):
            applied.update({f"concepts.{row}.{key.removeprefix(_EVERY_CONCEPT)}": value for row in sorted(rows)})
        else:
            applied[key] = value
    return applied
