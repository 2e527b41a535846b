"""The Generate tab: pictures with what was learned, and writing it where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.service import short_jobs
from dreambooth.ui.page import dialect, jobs
from dreambooth.ui.page.export import ExportSection
from dreambooth.ui.page.fragments import live

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

BASE = "The model before training"
DIFFUSERS = "Diffusers"


class GenerateTab:
    """`fields` are the job's fields by name."""

    def __init__(self, page: Page) -> None:
        self.page, self.export = page, ExportSection(page, self._weights)

    def lay_out(self) -> None:
        self.weights = gr.Dropdown(
            [BASE],
            value=BASE,
            label="Draw with",
            info="A result of this model's runs, the newest first, or a state of a run that rests.",
            elem_id="db_weights",
        )
        host = self.page.host
        with gr.Row(elem_id="db_library_row", elem_classes=["db-fields"], visible=bool(host.samplers)):
            self.library = gr.Dropdown(
                [DIFFUSERS, host.name],
                value=DIFFUSERS,
                label="Library",
                info=f"Who draws: our own engine, or {host.name}'s txt2img.",
                elem_id="db_library",
            )
            self.sampler = gr.Dropdown(
                list(host.samplers),
                value=next(iter(host.samplers), None),
                label="Sampling Method",
                info=f"One of {host.name}'s samplers.",
                elem_id="db_sampler",
                elem_classes=["db-only-webui"],
            )
        self.fields = _fields()
        with gr.Accordion("Sheet: results × weights", open=False, elem_id="db_sheet_section"):
            self._lay_out_sheet()
        self.draw = gr.Button("Generate", elem_id="db_draw")
        self.message = gr.HTML("", elem_id="db_draw_said")
        self.drawn = gr.HTML("", elem_id="db_drawn")
        with gr.Accordion("Export", open=False, elem_id="db_export_section"):
            self.export.lay_out()
        self.proposed = gr.Textbox("", elem_id="db_proposed", label="proposed results", elem_classes=["db-hidden"])

    def _lay_out_sheet(self) -> None:
        with gr.Row(elem_id="db_sheet_row", elem_classes=["db-fields"]):
            self.sheet_rows = gr.Dropdown(
                [BASE],
                label="Rows",
                info="Results to set side by side, one picture of each with the prompt and seed above, by Diffusers.",
                multiselect=True,
                elem_id="db_sheet_rows",
            )
            self.sheet_columns = gr.Textbox(
                "0.6, 0.8, 1",
                label="Lora Weights",
                info="The columns, with commas between them; only a LoRA has them.",
                elem_id="db_sheet_columns",
            )
        self.draw_sheet = gr.Button("Generate a sheet", elem_id="db_draw_sheet", size="sm")

    def places(self) -> list[Any]:
        return [*self.chosen(), self.fields["eta"], self.drawn, *self.export.places()]

    def chosen(self) -> list[Any]:
        """What a person chooses among results, and what the page has chosen by itself, which the browser keeps."""
        return [self.weights, self.sheet_rows, self.proposed]

    def show(self, opened: Project | None, row: int, values: Values | None = None) -> Shown:
        """The results there are now. What a person has chosen of the same model, in `values`, stays as long as it is
        there; else it is the newest."""
        if opened is None:
            return {self.drawn: "", **self.export.show(None)}
        results = jobs.results(opened)
        labels = [*results, BASE]
        files = [Path(one["weights"]) for one in results.values() if "weights" in one]
        edited = any(opened.embedding(file).exists() for file in files)  # by Imagic
        proposed = [labels[0], labels[:-1][:4]]
        one, several = self._stays(labels, values) if values else (None, None)
        return {
            self.weights: gr.update(choices=labels, value=one or proposed[0]),
            self.sheet_rows: gr.update(choices=labels, value=proposed[1] if several is None else several),
            self.proposed: json.dumps(proposed),
            self.drawn: live("generate", opened.name),
            self.fields["eta"]: gr.update(visible=edited),
            **self.export.show(opened),
        }

    def _stays(self, labels: list[str], values: Values) -> tuple[str | None, list[str] | None]:
        """What was chosen by hand of one result and of several; None where the page itself had chosen."""
        before: list[Any] = json.loads(values.get(self.proposed) or "[null, null]")
        one, several = values.get(self.weights), values.get(self.sheet_rows)
        by_hand = one if one != before[0] and one in labels else None
        return by_hand, None if several in (None, before[1]) else [label for label in several if label in labels]

    def bind(self) -> None:
        act = self.page.act
        of_library = [self.library, self.sampler]
        act(
            self.draw.click,
            self._labelled(self._draw),
            [self.weights, *of_library, *self.fields.values()],
            [],
            self.message,
        )
        library = f"value === '{DIFFUSERS}' ? 'diffusers' : 'webui'"
        js = f"(value) => {{ dreamboothPage.mark('library', {library}); return []; }}"
        dialect.on(self.library.change, None, [self.library], js=js)
        drawn = [self.sheet_rows, self.sheet_columns, *self.fields.values()]
        act(self.draw_sheet.click, self._labelled(self._draw_sheet), drawn, [], self.message)
        self.export.bind(self.weights)

    def _labelled(self, do: Callable[[Values], Shown]) -> Callable[[Values], Shown]:
        own = {"sampler": self.sampler, "library": self.library}
        sheet = {"sheet.weights": self.sheet_rows, "sheet.lora_weights": self.sheet_columns}
        return jobs.labelled({**self.fields, **own, **sheet}, do)

    def _weights(self, values: Values, opened: Project) -> dict[str, Any]:
        return _result(jobs.results(opened), values[self.weights])

    def _draw(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        wanted = {name: values[field] for name, field in self.fields.items()}
        weights = self._weights(values, opened)
        if not opened.embedding(Path(weights.get("weights", "none"))).exists():
            wanted.pop("eta")  # only results of Imagic are drawn with it
        if values[self.library] != DIFFUSERS:
            wanted |= {"library": "webui", "sampler": values[self.sampler]}
        jobs.generate(self.page.host, opened, {**wanted, **weights})
        return {}

    def _draw_sheet(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        results = jobs.results(opened)
        chosen = [_result(results, label) for label in values[self.sheet_rows] or []]
        sheet = {
            "weights": ["" if "base" in one else one.get("weights", one) for one in chosen],
            "lora_weights": jobs.lora_weights(values[self.sheet_columns] or ""),
        }
        wanted = {name: values[field] for name, field in self.fields.items() if name not in ("eta", "count")}
        jobs.generate(self.page.host, opened, {**wanted, "sheet": sheet})
        return {}


def _result(found: dict[str, dict[str, Any]], label: str | None) -> dict[str, Any]:
    """What a job asks for by what the page calls it; the model before training where nothing is chosen. Raises
    UserError for a result that is gone by now."""
    if label and label != BASE and label not in found:
        raise UserError(f"{label}: it is gone by now; choose another result.")
    return found.get(label or BASE, {"base": True})


def _slider(name: str, step: float, label: str) -> gr.Slider:
    default, low, high = short_jobs.DRAWING[name]
    return gr.Slider(low, high, default, step=step, label=label, elem_id=f"db_{name}")


def _fields() -> dict[str, Any]:
    """The controls of what is drawn, by the names that a job's fields have."""
    prompt = gr.Textbox(label="Sample Prompt", info="What to draw.", lines=2, elem_id="db_prompt")
    negative = gr.Textbox(label="Sample Negative Prompt", info="What not to draw.", elem_id="db_negative")
    with gr.Row(elem_id="db_sampling_row", elem_classes=["db-fields"]):
        return {
            "prompt": prompt,
            "negative": negative,
            "count": gr.Slider(1, 64, 4, step=1, label="Number of Samples to Generate", elem_id="db_count"),
            "steps": _slider("steps", 1, "Sample Steps"),
            "cfg": _slider("cfg", 0.5, "Sample CFG Scale"),
            "lora_weight": _slider("lora_weight", 0.05, "Lora Weight"),
            "eta": gr.Slider(
                0, 1.5, 0.7, step=0.05, label="Imagic: from the picture (0) to the prompt (1)", elem_id="db_eta"
            ),
            "seed": gr.Number(short_jobs.DRAWING["seed"][0], label="Sample Seed (-1: any)", elem_id="db_seed"),
            "scheduler": gr.Dropdown(
                list(short_jobs.SCHEDULER.choices),
                value=short_jobs.SCHEDULER.default,
                label="Image Generation Scheduler",
                elem_id="db_scheduler",
                elem_classes=["db-only-diffusers"],
            ),
            "width": gr.Slider(0, 2048, 0, step=8, label="Sample Width (0: the model's)", elem_id="db_width"),
            "height": gr.Slider(0, 2048, 0, step=8, label="Sample Height (0: the model's)", elem_id="db_height"),
            "batch": _slider("batch", 1, "Sample Batch Size (0: as many as there is room for)"),
        }
