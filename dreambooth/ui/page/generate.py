"""The Generate tab: pictures with what was learned, and writing it where it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings

_SCHEDULER = next(leaf for leaf in leaves(Settings) if leaf.key == "previews.scheduler")
BASE = "The model before training"


@dataclass
class Generate:
    """What the page binds of this tab; `fields` are the job's fields by name."""

    weights: Any
    fields: dict[str, Any]
    draw: Any
    said: Any
    drawn: Any
    export_to: Any
    export_merge: Any
    export_half: Any
    export: Any
    export_said: Any
    exported: Any


def build() -> Generate:
    weights = gr.Dropdown(
        [BASE],
        value=BASE,
        label="Draw with",
        info="A result of this model's runs, the newest first.",
        elem_id="db_weights",
    )
    prompt = gr.Textbox(label="Sample Prompt", info="What to draw.", lines=2, elem_id="db_prompt")
    negative = gr.Textbox(label="Sample Negative Prompt", info="What not to draw.", elem_id="db_negative")
    with gr.Row(elem_id="db_sampling_row", elem_classes=["db-fields"]):
        fields = {
            "prompt": prompt,
            "negative": negative,
            "count": gr.Slider(1, 64, 4, step=1, label="Number of Samples to Generate", elem_id="db_count"),
            "steps": gr.Slider(1, 150, 20, step=1, label="Sample Steps", elem_id="db_steps"),
            "cfg": gr.Slider(1, 30, 7.5, step=0.5, label="Sample CFG Scale", elem_id="db_cfg"),
            "lora_weight": gr.Slider(-2, 2, 1, step=0.05, label="Lora Weight", elem_id="db_lora_weight"),
            "eta": gr.Slider(
                0, 1.5, 0.7, step=0.05, label="Imagic: from the picture (0) to the prompt (1)", elem_id="db_eta"
            ),
            "seed": gr.Number(420420, label="Sample Seed", elem_id="db_seed"),
            "scheduler": gr.Dropdown(
                list(_SCHEDULER.choices),
                value=_SCHEDULER.default,
                label="Image Generation Scheduler",
                elem_id="db_scheduler",
            ),
            "width": gr.Slider(0, 2048, 0, step=8, label="Sample Width (0: the model's)", elem_id="db_width"),
            "height": gr.Slider(0, 2048, 0, step=8, label="Sample Height (0: the model's)", elem_id="db_height"),
            "batch": gr.Slider(1, 64, 4, step=1, label="Sample Batch Size", elem_id="db_batch"),
        }
    draw = gr.Button("Generate", elem_id="db_draw")
    said = gr.HTML("", elem_id="db_draw_said")
    drawn = gr.HTML("", elem_id="db_drawn")
    with gr.Accordion("Export", open=False, elem_id="db_export_section"):
        to = gr.Textbox(
            label="Export to",
            info="A .safetensors or .ckpt file, or a new folder for the Diffusers layout.",
            elem_id="db_export_to",
        )
        with gr.Row(elem_id="db_export_row", elem_classes=["db-fields"]):
            merge = gr.Checkbox(
                False,
                label="Merge the Lora",
                info="Into its checkpoint, at the weight above.",
                elem_id="db_export_merge",
            )
            half = gr.Checkbox(
                False, label="Half Model", info="Half precision, half the size.", elem_id="db_export_half"
            )
        export = gr.Button("Generate Ckpt", elem_id="db_export")
        export_said = gr.HTML("", elem_id="db_export_said")
        exported = gr.HTML("", elem_id="db_exported")
    return Generate(weights, fields, draw, said, drawn, to, merge, half, export, export_said, exported)
