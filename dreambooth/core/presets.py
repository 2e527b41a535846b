"""Starting points for the usual kinds of subject: some settings, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from dreambooth.core import picture_files, validation
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.settings.dataset import Concept

_EVERY_CONCEPT = "concepts.N."


class Choice(NamedTuple):
    """A value of a preset and why it is that. With `from_pictures` it is taken only in a concept that has so many
    pictures or more, and where nothing is chosen yet; `otherwise` has other values by what is trained."""

    value: Any
    why: str
    from_pictures: int = 0
    otherwise: Mapping[str, Any] = MappingProxyType({})

    def of(self, method: str) -> Any:
        return self.otherwise.get(method, self.value)


@dataclass(frozen=True)
class Preset:
    """Named settings; a key with `concepts.N.` is meant for every concept."""

    name: str
    label: str
    meaning: str
    settings: Mapping[str, Choice]


_HELD_OUT = Choice(
    1, "one of many can be spared: it is only looked at, and tells when the run is best", validation.CAN_SPARE
)
_KEPT = "earlier results stay, as the last is seldom the best; none of a whole model, whose files are large"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "person",
            "Train Person",
            "A person or a pet: a likeness takes longer than an object, and the class must stay varied.",
            {
                "intervals.num_train_epochs": Choice(150, "steps for each picture; a face is judged strictly"),
                "intervals.max_train_steps": Choice(0, "so that the pictures say how long"),
                "intervals.save_model_every": Choice(50, _KEPT, otherwise={"full": 0}),
                "concepts.N.class_mode": Choice("fill", "the base model makes class pictures where they are missing"),
                "concepts.N.num_class_images_per": Choice(
                    5,
                    "without them every person would come to look like yours; none for an embedding, which leaves the "
                    "class as it is",
                    otherwise={"embedding": 0},
                ),
                "concepts.N.held_out": _HELD_OUT,
            },
        ),
        Preset(
            "object",
            "Train Object/Style",
            "A thing or a style: learned sooner, and everything of its kind may take after it.",
            {
                "intervals.num_train_epochs": Choice(100, "steps for each picture"),
                "intervals.max_train_steps": Choice(0, "so that the pictures say how long"),
                "intervals.save_model_every": Choice(50, _KEPT, otherwise={"full": 0}),
                "concepts.N.class_mode": Choice("fill", "class pictures are made where the next setting asks for them"),
                "concepts.N.num_class_images_per": Choice(0, "no class pictures: a style is meant to reach everything"),
                "concepts.N.held_out": _HELD_OUT,
            },
        ),
        Preset(
            "native",
            "Native",
            "Many captioned pictures: trained on their own words alone, without a class.",
            {
                "intervals.max_train_steps": Choice(3000, "enough for a few dozen pictures and for hundreds alike"),
                "intervals.save_model_every_steps": Choice(1000, _KEPT, otherwise={"full": 0}),
                "concepts.N.instance_prompt": Choice(
                    "[filewords]", "each picture is trained on the text file beside it"
                ),
                "concepts.N.class_mode": Choice("off", "all pictures are trained; none is there to hold a class"),
                "concepts.N.held_out": _HELD_OUT,
            },
        ),
    )
}


def find(name: str) -> Preset:
    """The preset called `name`. Raises UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"preset: there is none called {name!r} (there: {', '.join(PRESETS)}).")
    return PRESETS[name]


def apply(preset: Preset, flat: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted settings with the preset's over them, in every concept that is there.

    `over` are settings that are still to come; their concepts get the preset's settings too. Looks into the folders of
    pictures, to count them.
    """
    coming = {**flat, **(over or {})}
    rows = {key.split(".")[1] for key in coming if key.startswith("concepts.")} or {"0"}
    applied, method = dict(flat), str(coming.get("general.method"))
    for key, choice in preset.settings.items():
        if not key.startswith(_EVERY_CONCEPT):
            applied[key] = choice.of(method)
            continue
        for row in sorted(rows):
            own = f"concepts.{row}.{key.removeprefix(_EVERY_CONCEPT)}"
            if not choice.from_pictures or (not coming.get(own) and _pictures(coming, row) >= choice.from_pictures):
                applied[own] = choice.of(method)
    return applied


def _pictures(flat: Mapping[str, Any], row: str) -> int:
    """How many pictures a concept has; none where its folder is not named as one."""
    folder = flat.get(f"concepts.{row}.instance_data_dir", "")
    if not isinstance(folder, str) or paths.problem(folder := paths.meant(folder)):
        return 0
    return len(picture_files.of_concept(Concept(instance_data_dir=folder)))
