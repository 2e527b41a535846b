"""The Model tab: making a model from a checkpoint, and taking settings over from other trainers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.core.origin import Origin
from dreambooth.core.schema import leaves
from dreambooth.ui.page.controls import Form


@dataclass
class Model:
    """What the page binds of this tab."""

    name: Any
    source: Any
    refresh: Any
    create: Any
    said: Any
    about: Any
    import_from: Any
    import_button: Any
    imported: Any
    downloaded: Any
    new_name: Any
    rename: Any
    duplicate: Any
    delete: Any
    changed: Any


def build(origin: Form) -> Model:
    """Adds the controls of how a file is to be read to `origin`."""
    about = gr.HTML("", elem_id="db_model_about")
    with gr.Accordion("Create a model", open=True, elem_id="db_create_section"):
        with gr.Row(elem_id="db_create_row", elem_classes=["db-fields"]):
            name = gr.Textbox(
                label="Name", info="Of the new model and of what it writes, such as anna-dog.", elem_id="db_new_name"
            )
            source = gr.Dropdown(
                [],
                label="Source Checkpoint",
                info="One of the list, the path of a file or Diffusers folder, or owner/name of the hub.",
                allow_custom_value=True,
                elem_id="db_new_source",
            )
        with (
            gr.Accordion("How to read it", open=False, elem_id="db_origin_section"),
            gr.Row(elem_id="db_fields_origin", elem_classes=["db-fields"]),
        ):
            origin.add_all(leaves(Origin, prefix="origin."))
        with gr.Row(elem_id="db_create_buttons", elem_classes=["db-line"]):
            create = gr.Button("Create", elem_id="db_create", variant="primary")
            refresh = gr.Button("Look for new checkpoints", elem_id="db_refresh_checkpoints", size="sm")
        said = gr.HTML("", elem_id="db_create_said")
        downloaded = gr.HTML("", elem_id="db_downloaded")
    with gr.Accordion("Import settings", open=False, elem_id="db_import_section"):
        import_from = gr.Textbox(
            label="File or Folder",
            info="A concepts_list.json or db_config.json of the predecessor, kohya's dataset .toml, or its folder.",
            elem_id="db_import_from",
        )
        import_button = gr.Button("Import", elem_id="db_import", size="sm")
        imported = gr.HTML("", elem_id="db_imported")
    with gr.Accordion("Rename, duplicate, delete", open=False, elem_id="db_change_section"):
        new_name = gr.Textbox(
            label="New Name",
            info="For this model, or for a copy with its settings and pictures.",
            elem_id="db_other_name",
        )
        with gr.Row(elem_id="db_change_buttons", elem_classes=["db-line"]):
            rename = gr.Button("Rename", elem_id="db_rename", size="sm")
            duplicate = gr.Button("Duplicate", elem_id="db_duplicate", size="sm")
            delete = gr.Button("Move to the trash", elem_id="db_delete", size="sm")
        changed = gr.HTML("", elem_id="db_changed")
    return Model(
        name, source, refresh, create, said, about, import_from, import_button, imported, downloaded, new_name, rename,
        duplicate, delete, changed,
    )  # fmt: skip
