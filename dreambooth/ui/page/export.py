"""The Generate tab's section for writing what was learned where it is wanted, and as what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.ui.page import dialect, jobs
from dreambooth.ui.page.fragments import live

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

# What is written, and the mark of the page by which style.css shows the fields that it needs.
AS_IT_IS, MERGED, ONTO, RANK = "As it is", "Merged into its checkpoint", "Merged into another", "A Lora of another rank"
_MARKS = {AS_IT_IS: "plain", MERGED: "merged", ONTO: "onto", RANK: "rank"}


class ExportSection:
    """`weights_of` says which result is chosen, as a job's fields."""

    def __init__(self, page: Page, weights_of: Callable[[Values, Project], dict[str, Any]]) -> None:
        self.page, self.weights_of = page, weights_of

    def lay_out(self) -> None:
        self.to = gr.Textbox(
            label="Export to",
            info="The whole path of a .safetensors or .ckpt file, of a new folder for the Diffusers layout, or of an "
            "embedding's .safetensors or .pt file.",
            elem_id="db_export_to",
        )
        with gr.Row(elem_id="db_export_row", elem_classes=["db-fields"]):
            self.kind = gr.Dropdown(
                list(_MARKS),
                value=AS_IT_IS,
                label="Export as",
                info="The result chosen above; or what it learned, in a checkpoint or as a LoRA.",
                elem_id="db_export_as",
            )
            self.onto = gr.Dropdown(
                [],
                label="Other Checkpoint",
                info="Of the same family, also one for inpainting: one of the list, or the path of a file.",
                allow_custom_value=True,
                elem_id="db_export_onto",
                elem_classes=["db-only-onto", "db-own-words"],
            )
            self.merge = gr.Slider(
                -2, 2, 1, step=0.05, label="Merge Weight", elem_id="db_export_merge", elem_classes=["db-only-merged"]
            )
            self.rank = gr.Slider(
                1, 128, 32, step=1, label="Export Rank", elem_id="db_export_rank", elem_classes=["db-only-rank"]
            )
            self.half = gr.Checkbox(
                False, label="Half Model", info="Half precision, half the size.", elem_id="db_export_half"
            )
        self.button = gr.Button("Export", elem_id="db_export")
        self.message = gr.HTML("", elem_id="db_export_said")
        self.exported = gr.HTML("", elem_id="db_exported")

    def places(self) -> list[Any]:
        return [self.onto, self.exported]

    def show(self, opened: Project | None) -> Shown:
        if opened is None:
            return {self.exported: ""}
        titles = [title for title, _ in self.page.host.checkpoints()]
        return {self.onto: gr.update(choices=titles), self.exported: live("export", opened.name)}

    def bind(self, weights: Any) -> None:
        """`weights` is the control of the result that is exported."""
        self.weights = weights
        inputs = [self.kind, *self._controls().values()]
        self.page.act(self.button.click, self._labelled(self._export), inputs, [], self.message)
        marked = f"dreamboothPage.mark('export', {json.dumps(_MARKS)}[value])"
        js = f"(value) => {{ {marked}; return []; }}"
        dialect.on(self.kind.change, None, [self.kind], js=js)

    def _controls(self) -> dict[str, Any]:
        """By the names that a job's fields have."""
        own = {"to": self.to, "merge": self.merge, "onto": self.onto, "rank": self.rank, "half": self.half}
        return {**own, "base": self.weights}

    def _labelled(self, do: Callable[[Values], Shown]) -> Callable[[Values], Shown]:
        return jobs.labelled(self._controls(), do)

    def _export(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        jobs.export(self.page.host, opened, {**self._wanted(values), **self.weights_of(values, opened)})
        return {}

    def _wanted(self, values: Values) -> dict[str, Any]:
        kind, wanted = values[self.kind], {"to": values[self.to], "half": values[self.half]}
        if kind in (MERGED, ONTO):
            wanted["merge"] = values[self.merge]
        if kind == ONTO:
            wanted["onto"] = self._other(values)
        if kind == RANK:
            wanted["rank"] = jobs.whole(values[self.rank])
        return wanted

    def _other(self, values: Values) -> str:
        chosen = str(values[self.onto] or "").strip()
        if not chosen:
            raise UserError(f"{self.onto.label}: it is empty; choose one of the list, or give the path of a file.")
        return str(dict(self.page.host.checkpoints()).get(chosen, chosen))
