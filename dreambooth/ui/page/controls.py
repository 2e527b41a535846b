"""Settings as controls: which component shows a setting, and how its value travels between page and settings.

Everything that a control says comes from the setting's declaration. Bounds are checked by `core.settings.parse` alone,
as gradio would answer a wrong number with a sentence of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr

from dreambooth.core.files import paths
from dreambooth.core.schema import Leaf, general
from dreambooth.ui.page import windows

SETTING = "db-setting"
ADVANCED = "db-advanced"  # style.css hides what has this class until somebody asks for it
_MOST_ON_A_SLIDER = 512  # whole numbers; a hand cannot choose among more
_WIDEST_SLIDER = 30.0

Values = dict[str, Any]


def elem_id(key: str) -> str:
    """db_lora_rank for lora.rank."""
    return f"db_{key.replace('.', '_')}"


def make(leaf: Leaf) -> Any:
    """The control of one setting, showing its default."""
    spec = leaf.spec
    about: dict[str, Any] = {
        "value": to_page(leaf, leaf.default),
        "label": spec.label,
        "info": spec.help,
        "elem_id": elem_id(leaf.key),
        "elem_classes": [SETTING, ADVANCED] if spec.advanced else [SETTING],
        "interactive": True,
    }
    if leaf.choices:
        return gr.Dropdown(choices=[str(choice) for choice in leaf.choices], **about)
    if leaf.kind is bool:
        return gr.Checkbox(**about)
    if leaf.kind is str:
        if spec.secret:
            return gr.Textbox(type="password", **about)
        return gr.Textbox(max_lines=4, **about)
    step = _slider_step(leaf)
    if step is None or spec.min is None or spec.max is None:
        return gr.Number(**about)
    return gr.Slider(minimum=spec.min, maximum=spec.max, step=step, **about)


def to_page(leaf: Leaf, value: Any) -> Any:
    """A setting's value as its control takes it."""
    return str(value) if leaf.choices else value


def from_page(leaf: Leaf, value: Any) -> Any:
    """A control's value as `parse` makes it: a path as it is meant; an emptied field is empty text, whatever gradio has
    for it."""
    if leaf.spec.path and isinstance(value, str):
        return paths.meant(value)
    return "" if value is None else value


def _slider_step(leaf: Leaf) -> float | None:
    """The step of a slider that can show every usual value; None where a field for a number is better."""
    low, high = leaf.spec.min, leaf.spec.max
    if low is None or high is None:
        return None
    if leaf.kind is int:
        return 1 if high - low <= _MOST_ON_A_SLIDER else None
    coarse = all(abs(value * 20 - round(value * 20)) < 1e-6 for value in (low, high, leaf.default))
    if not coarse or high - low > _WIDEST_SLIDER:
        return None
    return 0.05 if high - low <= 10 else 0.5


class Form:
    """The controls of some settings, by key."""

    def __init__(self) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.controls: dict[str, Any] = {}
        self.loaded: Any = None

    def lay_out_loaded(self) -> None:
        """The field in which the browser keeps what this window last had of the settings (`windows.note`)."""
        self.loaded = gr.Textbox("", elem_id="db_loaded", label="loaded settings")

    def add(self, leaf: Leaf) -> Any:
        control = make(leaf)
        self.leaves[leaf.key], self.controls[leaf.key] = leaf, control
        return control

    def add_all(self, leaves: Iterable[Leaf]) -> None:
        for leaf in leaves:
            self.add(leaf)

    def read(self, values: Mapping[Any, Any], row: int = 0) -> Values:
        """What the page shows as dotted keys, not yet checked; `row` is the concept that is shown."""
        return {
            key.replace(".N.", f".{row}."): from_page(self.leaves[key], values[control])
            for key, control in self.controls.items()
        }

    def changed(self, values: Mapping[Any, Any], row: int = 0) -> Values:
        """What of that a person has changed in this window since it last had it."""
        before, _ = windows.noted(values.get(self.loaded, ""))
        return {
            key: value for key, value in self.read(values, row).items() if key not in before or before[key] != value
        }

    def newer(self, values: Mapping[Any, Any], flat: Mapping[str, Any]) -> windows.Newer:
        """What of the model's settings is not as this window last had it."""
        before, _ = windows.noted(values.get(self.loaded, ""))
        now = {key: to_page(self.leaves[general(key)], flat[key]) for key in before if key in flat}
        return {key: (before[key], value) for key, value in now.items() if before[key] != value}

    def note(self, flat: Mapping[str, Any], row: int = 0) -> dict[Any, Any]:
        """That this window has the settings as the model's file has them."""
        keys = [key.replace(".N.", f".{row}.") for key in self.controls]
        shown = {key: to_page(self.leaves[general(key)], flat[key]) for key in keys}
        return {self.loaded: windows.note(shown, windows.concepts(flat))}

    def note_saved(self, values: Mapping[Any, Any], saved: Mapping[str, Any]) -> dict[Any, Any]:
        """That this window has written these, and has the others as before."""
        before, count = windows.noted(values.get(self.loaded, ""))
        return {self.loaded: windows.note({**before, **saved}, count)}

    def show(self, flat: Mapping[str, Any], row: int = 0) -> dict[Any, Any]:
        """Checked settings as {control: value}."""
        return {
            control: to_page(self.leaves[key], flat[key.replace(".N.", f".{row}.")])
            for key, control in self.controls.items()
        }

    def watch(self, bind: Callable[[Any], Any]) -> None:
        """Calls `bind` with the event of each control that can be changed without the browser telling of an input. The
        page's script hears the others by itself, as every event makes the page's start longer."""
        for control in self.controls.values():
            if isinstance(control, (gr.Dropdown, gr.Slider)):
                bind(control.input)
