"""The Concepts tab: what is taught, one concept at a time, and the check of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.core.presets import PRESETS
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings
from dreambooth.ui.page.controls import Form

ABOUT_PICTURES = "instance_data_dir"
IN_FRONT = ("instance_prompt", "class_prompt", "num_class_images_per")
TOKENS = ("instance_token", "class_token", "repeats")


@dataclass
class Concepts:
    """What the page binds of this tab."""

    chosen: Any
    add: Any
    remove: Any
    drop: Any
    presets: dict[str, Any]
    pictures: Any
    check: Any
    plan: Any
    class_pictures: Any
    class_pictures_made: Any


def build(form: Form) -> Concepts:
    """Adds the controls of one concept to `form`; the page fills them with the one that is chosen."""
    own = {leaf.key.removeprefix("concepts.N."): leaf for leaf in leaves(Settings) if leaf.key.startswith("concepts.")}
    with gr.Row(elem_id="db_concept_row", elem_classes=["db-line"]):
        chosen = gr.Radio(["Concept 1"], value="Concept 1", show_label=False, elem_id="db_concept", container=False)
        add = gr.Button("Add a concept", elem_id="db_concept_add", size="sm")
        remove = gr.Button("Remove this one", elem_id="db_concept_remove", size="sm")
    with gr.Row(elem_id="db_pictures_row", elem_classes=["db-fields"]):
        form.add(own.pop(ABOUT_PICTURES))
        drop = gr.File(
            label="Drop pictures here (and captions: a .txt for each)",
            file_count="multiple",
            elem_id="db_drop",
            height=140,
        )
    with gr.Row(elem_id="db_prompts_row", elem_classes=["db-fields"]):
        form.add_all(own.pop(name) for name in IN_FRONT)
    with gr.Row(elem_id="db_presets_row", elem_classes=["db-line"]):
        gr.HTML("<span>Start from:</span>", elem_id="db_presets_label")
        buttons = {
            preset.name: gr.Button(preset.label, elem_id=f"db_preset_{preset.name}", size="sm")
            for preset in PRESETS.values()
        }
    with (
        gr.Accordion("Tokens and Repeats", open=False, elem_id="db_section_tokens"),
        gr.Row(elem_id="db_fields_tokens", elem_classes=["db-fields"]),
    ):
        form.add_all(own.pop(name) for name in TOKENS)
    with gr.Accordion("Class Pictures", open=False, elem_id="db_section_class"):
        with gr.Row(elem_id="db_fields_class", elem_classes=["db-fields"]):
            form.add_all(own.values())
        class_pictures = gr.Button("Generate Class Images", elem_id="db_class_images", size="sm")
        class_pictures_made = gr.HTML("", elem_id="db_class_images_made")
    pictures = gr.HTML("", elem_id="db_pictures")
    check = gr.Button("Check the pictures", elem_id="db_check")
    plan = gr.HTML("", elem_id="db_plan")
    return Concepts(chosen, add, remove, drop, buttons, pictures, check, plan, class_pictures, class_pictures_made)
