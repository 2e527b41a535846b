"""The Model tab: making a model from a checkpoint, what became of it, and taking settings over from other trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.project import Project
from dreambooth.core.schema import leaves
from dreambooth.host.base import Host
from dreambooth.ui.page import actions, dialect
from dreambooth.ui.page.controls import Form
from dreambooth.ui.page.file_view import SOURCE
from dreambooth.ui.page.fragments import good, live
from dreambooth.ui.page.model_view import import_report

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

_FIRST = "Choose a checkpoint, give the model a name, press Create; then the pictures, in Concepts."


class ModelTab:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.origin = Form()  # how a file is to be read

    def lay_out(self) -> None:
        self.about = gr.HTML("", elem_id="db_model_about")
        self.creation = gr.Accordion("Create a model", open=True, elem_id="db_create_section")
        with self.creation:
            self._lay_out_creation()
        with gr.Accordion("Import settings", open=False, elem_id="db_import_section"):
            self.import_from = gr.Textbox(
                label="File or Folder",
                info="A concepts_list.json or db_config.json of sd_dreambooth_extension, a .toml or folder of "
                "kohya's scripts, a file with a command of theirs or diffusers', or a .json of kohya_ss or OneTrainer.",
                elem_id="db_import_from",
            )
            self.import_button = gr.Button("Import", elem_id="db_import", size="sm")
            self.imported = gr.HTML("", elem_id="db_imported")
        with gr.Accordion("Rename, duplicate, delete", open=False, elem_id="db_change_section"):
            self.new_name = gr.Textbox(
                label="New Name",
                info="For this model, or for a copy with its settings and pictures.",
                elem_id="db_other_name",
            )
            with gr.Row(elem_id="db_change_buttons", elem_classes=["db-line"]):
                self.rename = gr.Button("Rename", elem_id="db_rename", size="sm")
                self.duplicate = gr.Button("Duplicate", elem_id="db_duplicate", size="sm")
                self.delete = gr.Button("Move to the trash", elem_id="db_delete", size="sm")
            self.changed = gr.HTML("", elem_id="db_changed")

    def _lay_out_creation(self) -> None:
        with gr.Row(elem_id="db_create_row", elem_classes=["db-fields"]):
            self.name = gr.Textbox(
                label="Name", info="Of the new model and of what it writes, such as anna-dog.", elem_id="db_new_name"
            )
            self.source = gr.Dropdown(
                [],
                label=SOURCE,
                info="One of the list, the path of a file or Diffusers folder, or owner/name of the hub.",
                allow_custom_value=True,
                elem_id="db_new_source",
                elem_classes=["db-own-words"],
            )
        self.source_about = gr.HTML("", elem_id="db_source_about")
        with (
            gr.Accordion("How to read it", open=False, elem_id="db_origin_section"),
            gr.Row(elem_id="db_fields_origin", elem_classes=["db-fields"]),
        ):
            self.origin.add_all(leaves(Origin, prefix="origin."))
            self.revision = gr.Textbox(
                label="Revision",
                info="Of a model of the hub: a branch, tag or commit; empty takes its newest.",
                elem_id="db_new_revision",
            )
        with gr.Row(elem_id="db_create_buttons", elem_classes=["db-line"]):
            self.create = gr.Button("Create", elem_id="db_create", variant="primary")
            self.refresh = gr.Button("Look for new checkpoints", elem_id="db_refresh_checkpoints", size="sm")
        self.message = gr.HTML("", elem_id="db_create_said")
        self.downloaded = gr.HTML("", elem_id="db_downloaded")

    def places(self) -> list[Any]:
        return [self.about, self.creation]

    def show(self, opened: Project | None, row: int) -> Shown:
        about = live("model", opened.name) if opened else f'<p class="db-quiet">{_FIRST}</p>'
        return {self.about: about, self.creation: gr.update(open=opened is None)}

    def sources(self, *, choose: bool) -> Any:
        """The list of checkpoints; with `choose` the first is chosen."""
        titles = [title for title, _ in self.page.host.checkpoints()]
        return gr.update(choices=titles, value=titles[0] if titles else None) if choose else gr.update(choices=titles)

    def bind(self) -> None:
        act, whole = self.page.act, self.page.of_model
        inputs = [self.name, self.source, self.revision, *self.origin.controls.values()]
        outputs = [*whole, self.name, self.revision, self.downloaded]
        act(self.create.click, self._create, inputs, outputs, self.message)
        told = self.page.telling_problems(self._tell_source, self.source_about)
        for event in (self.source.input, self.name.blur):
            dialect.on(event, told, [self.source], [self.source_about], meanwhile="always_last")
        for button, do in ((self.rename, actions.rename), (self.duplicate, actions.duplicate)):
            act(button.click, self._under_new_name(do), [self.new_name], [*whole, self.new_name], self.changed)
        act(self.delete.click, self._delete, [], whole, self.changed)
        listed = self.page.telling_problems(self._list_checkpoints, self.message)
        dialect.on(self.refresh.click, listed, [self.source], [self.source, self.message])
        act(
            self.import_button.click,
            self._import_settings,
            [self.import_from, *self.page.generate_tab.chosen()],
            whole,
            self.imported,
        )

    def _create(self, values: Values) -> Shown:
        origin = {key.removeprefix("origin."): value for key, value in self.origin.read(values).items()}
        name, source, revision = (str(values[one] or "") for one in (self.name, self.source, self.revision))
        made = actions.create(self.page.host, name, source, origin, revision)
        if made is None:
            return {self.downloaded: live("download", "")}
        return {
            **self.page.show(made.name, message=good(f"Created {made.name}. Next: the pictures, in Concepts.")),
            self.name: "",
            self.revision: "",
            self.downloaded: "",
        }

    def _tell_source(self, chosen: str | None) -> Shown:
        """What the chosen source is. Not before somebody turns to it: no file is opened when the page is."""
        return {self.source_about: actions.source_about(self.page.host, chosen or "")}

    def _under_new_name(self, do: Callable[[Host, Project, str], str]) -> Callable[[Values], Shown]:
        def act(values: Values) -> Shown:
            opened = self.page.opened(values)
            self.page.keep(opened, values)
            name = do(self.page.host, opened, values[self.new_name] or "")
            return {**self.page.show(name, message=good(f"This is {name}.")), self.new_name: ""}

        return act

    def _delete(self, values: Values) -> Shown:
        message = actions.delete(self.page.host, self.page.opened(values))
        return self.page.show_first(good(message))

    def _list_checkpoints(self, chosen: str | None) -> Shown:
        self.page.host.refresh()
        return {self.source: self.sources(choose=not chosen)}

    def _import_settings(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        kind, report = actions.import_settings(opened, values[self.import_from] or "")
        return {**self.page.show(opened.name, values=values), self.imported: import_report(kind, report)}
