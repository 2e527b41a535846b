"""The Settings tab: every setting of a run but the concepts, in the sections of the settings file."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.schema import Leaf, leaves, to_flat
from dreambooth.core.settings import Settings
from dreambooth.service import notice
from dreambooth.service.cost import Cost
from dreambooth.ui.page import dialect
from dreambooth.ui.page.controls import ADVANCED, Form, to_page
from dreambooth.ui.page.file_view import STARTS
from dreambooth.ui.page.finding import OWN, changed_view, search_field
from dreambooth.ui.page.fragments import good, live
from dreambooth.ui.page.help_page import help_link
from dreambooth.ui.page.schedule_view import schedule_view

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

# What people call a section; the sections that stand open.
TITLES = {
    "general": "General",
    "intervals": "Intervals",
    "batching": "Batching",
    "learning": "Learning Rate",
    "optimizer": "Optimizer",
    "lora": "Lora",
    "embedding": "Embedding",
    "captions": "Captions",
    "pictures": "Image Processing",
    "tuning": "Tuning",
    "imagic": "Imagic",
    "objective": "Objective",
    "memory": "Memory",
    "previews": "Previews",
    "saving": "Saving",
    "reporting": "Reporting",
}
OPEN = {"general", "intervals"}

# What means nothing under a method, by how its key begins: style.css hides it then.
_OF_THE_UNET = ("tuning.train_unet", "tuning.freeze_clip_normalization", "optimizer.weight_decay")
_OF_GRADIENTS = ("optimizer.text_encoder_weight_decay", "optimizer.max_grad_norm")  # but those of words
_OF_FULL = ("learning.learning_rate", "learning.text_encoder_learning_rate", "saving.checkpoint_format")
_OF_LORA = ("lora.", "learning.lora_")
MEANS_NOTHING = {
    "full": (*_OF_LORA, "embedding.", "learning.embedding_"),
    "lora": _OF_FULL,
    "embedding": (
        *(*_OF_LORA, *_OF_FULL, *_OF_THE_UNET, *_OF_GRADIENTS),
        *("tuning.text_encoders", "learning.text_encoder_2_ratio", "tuning.prior_loss_weight"),
        *("embedding.enabled", "embedding.ratio", "saving.half_model"),
        *("objective.prior_loss_scale", "objective.prior_loss_target", "objective.prior_loss_weight_min"),
    ),
}


class SettingsTab:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.starts: dict[str, Any] = {}

    def lay_out(self) -> None:
        """Adds the controls of all settings but the concepts to the page's form."""
        with gr.Row(elem_id="db_settings_head"):
            self.advanced = gr.Checkbox(
                False, label="Show advanced settings", elem_id="db_show_advanced", container=False
            )
            gr.HTML(search_field(TITLES), elem_id="db_search")
            self.changed = gr.HTML("", elem_id="db_defaults")
        with gr.Row(elem_id="db_hidden_settings"):
            self.reset_key = gr.Textbox("", elem_id="db_reset_key", label="setting to reset")
            self.reset = gr.Button("reset", elem_id="db_reset")
        own = [leaf for leaf in leaves(Settings) if not leaf.key.startswith("concepts.")]
        by_section = {name: list(some) for name, some in groupby(own, key=lambda leaf: leaf.key.split(".")[0])}
        for name in sorted(by_section, key=_place):
            title = TITLES.get(name, name.title())
            with gr.Accordion(title, open=name in OPEN, elem_id=f"db_section_{name}", elem_classes=_hidden(f"{name}.")):
                _section(self.page.form, by_section[name])
                if name == "learning":
                    self.schedule = gr.HTML("", elem_id="db_schedule")
                if (key := f"{name}.start_file") in STARTS:
                    self.starts[key] = gr.HTML("", elem_id=f"db_{name}_start")
                if name == "reporting":
                    self.test_notice = gr.Button(
                        "Send a test notice", elem_id="db_test_notice", elem_classes=[ADVANCED], size="sm"
                    )  # shown with the address
                    self.noticed = gr.HTML("", elem_id="db_noticed")
                gr.HTML(help_link(name, title), elem_id=f"db_help_{name}")

    def places(self) -> list[Any]:
        return [*self.starts.values(), *self.moving_places()]

    def show(self, opened: Project | None, row: int) -> Shown:
        starts = {place: live(key, opened.name) if opened else "" for key, place in self.starts.items()}
        return starts if opened else {**starts, self.schedule: "", self.changed: "", self.noticed: ""}

    def moving_places(self) -> list[Any]:
        return [self.schedule, self.changed, self.noticed]

    def moving(self, own: Settings, costs: Cost) -> Shown:
        """What moves with the controls: the rates over the whole run."""
        changed = changed_view(to_flat(own))
        return {self.schedule: schedule_view(own, costs.length), self.changed: changed, self.noticed: ""}

    def bind(self) -> None:
        marks = ((self.advanced, "advanced"), (self.page.form.controls["general.method"], "method"))
        for control, word in marks:
            js = f"(value) => {{ dreamboothPage.mark('{word}', value); return []; }}"
            dialect.on(control.change, None, [control], js=js)
        controls = [control for key, control in self.page.form.controls.items() if key in OWN]
        places = [*controls, *self.page.saving_places()]
        self.page.act(self.reset.click, self._reset, [self.reset_key], places, button=self.reset.elem_id)
        self.page.act(self.test_notice.click, self._test_notice, [], [], self.noticed)

    def _test_notice(self, values: Values) -> Shown:
        address = str(values[self.page.form.controls[notice.WEBHOOK]] or "")
        return {self.noticed: good(notice.send(address))}

    def _reset(self, values: Values) -> Shown:
        """One setting back to its default: called by the browser with its key."""
        leaf = OWN.get(values[self.reset_key])
        if leaf is None:
            raise UserError(f"{values[self.reset_key]!r} is no setting.")
        control = self.page.form.controls[leaf.key]
        shown = to_page(leaf, leaf.default)
        return {**self.page.save({**values, control: shown}), control: shown}


def _section(form: Form, own: list[Leaf]) -> None:
    with gr.Row(elem_id=f"db_fields_{own[0].key.split('.')[0]}", elem_classes=["db-fields"]):
        for leaf in own:
            control = form.add(leaf)
            control.elem_classes = [*control.elem_classes, *_hidden(leaf.key)]


def _hidden(key: str) -> list[str]:
    """The classes by which style.css hides a setting, or a section of them."""
    return [f"db-not-{method}" for method, keys in MEANS_NOTHING.items() if key.startswith(keys)]


def _place(name: str) -> int:
    return list(TITLES).index(name) if name in TITLES else len(TITLES)
