"""The Concepts tab: what is taught, one concept at a time, and the check of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core.errors import UserError
from dreambooth.core.presets import PRESETS
from dreambooth.core.project import Project
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings, parse
from dreambooth.service import settings_lock, uploads
from dreambooth.ui.page import actions, dialect, jobs, windows
from dreambooth.ui.page.fragments import SAVED, good, live, problem_list, undoable
from dreambooth.ui.page.plan_view import preset_view

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

ABOUT_PICTURES = "instance_data_dir"
PROMPTS, COUNTS = ("instance_prompt", "class_prompt"), ("num_class_images_per", "held_out")
TOKENS = ("repeats", "instance_token", "class_token")


class ConceptsTab:
    def __init__(self, page: Page) -> None:
        self.page = page

    def lay_out(self) -> None:
        """Adds the controls of one concept to the page's form, which fills them with the one that is chosen."""
        prefix, form = "concepts.N.", self.page.form
        own = {leaf.key.removeprefix(prefix): leaf for leaf in leaves(Settings) if leaf.key.startswith(prefix)}
        with gr.Row(elem_id="db_concept_row", elem_classes=["db-line"]):
            self.chosen = gr.Radio(
                ["Concept 1"],
                label="Concept",
                value="Concept 1",
                show_label=False,
                elem_id="db_concept",
                container=False,
            )
            self.add = gr.Button("Add a concept", elem_id="db_concept_add", size="sm")
            self.remove = gr.Button("Remove this one", elem_id="db_concept_remove", size="sm")
        with gr.Row(elem_id="db_pictures_row", elem_classes=["db-fields"]):
            form.add(own.pop(ABOUT_PICTURES))
            self.drop = gr.File(
                label="Drop pictures here (and captions: a .txt for each)",
                file_count="multiple",
                elem_id="db_drop",
                height=120,
            )
        with gr.Row(elem_id="db_prompts_row", elem_classes=["db-fields"]):
            form.add_all(own.pop(name) for name in PROMPTS)
        with gr.Row(elem_id="db_counts_row", elem_classes=["db-fields"]):
            form.add_all(own.pop(name) for name in COUNTS)
            with gr.Row(elem_id="db_presets_row", elem_classes=["db-line"]):
                gr.HTML("<span>Start from:</span>", elem_id="db_presets_label")
                self.presets = {
                    preset.name: gr.Button(preset.label, elem_id=f"db_preset_{preset.name}", size="sm")
                    for preset in PRESETS.values()
                }
        self.preset_message = gr.HTML("", elem_id="db_preset_said")
        self.pictures = gr.HTML("", elem_id="db_pictures")
        self.captions_written = gr.HTML("", elem_id="db_captions_written")
        self.check = gr.Button("Check the pictures", elem_id="db_check")
        self.plan = gr.HTML("", elem_id="db_plan")
        with gr.Accordion("Which word?", open=False, elem_id="db_section_words"):
            self.words = gr.Textbox(
                label="Words",
                info="The rare word with what your subject is: sks dog. Without any, the Instance Prompt. The model is "
                "loaded, and says how it reads each word and whether it knows it already.",
                elem_id="db_words",
            )
            self.look_at_words = gr.Button("Look at these words", elem_id="db_words_look", size="sm")
            self.words_message = gr.HTML("", elem_id="db_words_said")
            self.words_known = gr.HTML("", elem_id="db_words_known")
        with (
            gr.Accordion("Repeats and Tokens", open=False, elem_id="db_section_tokens"),
            gr.Row(elem_id="db_fields_tokens", elem_classes=["db-fields"]),
        ):
            form.add_all(own.pop(name) for name in TOKENS)
        with gr.Accordion("Class Pictures", open=False, elem_id="db_section_class"):
            with gr.Row(elem_id="db_fields_class", elem_classes=["db-fields"]):
                form.add_all(own.values())
            self.class_pictures = gr.Button("Generate Class Images", elem_id="db_class_images", size="sm")
            self.class_pictures_made = gr.HTML("", elem_id="db_class_images_made")

    def places(self) -> list[Any]:
        return [self.chosen, *self._views()]

    def _views(self) -> list[Any]:
        jobs_done = [self.captions_written, self.plan, self.words_known, self.class_pictures_made]
        return [self.preset_message, self.pictures, *jobs_done]

    def show(self, opened: Project | None, row: int) -> Shown:
        if opened is None:
            return dict.fromkeys(self._views(), "")
        return {
            **self.names(opened.settings(), row),
            self.preset_message: "",
            self.pictures: live("pictures", opened.name, row=row),
            self.captions_written: live("caption", opened.name),
            self.plan: live("check", opened.name),
            self.words_known: live("tokens", opened.name),
            self.class_pictures_made: live("class-images", opened.name),
        }

    def names(self, flat: Mapping[str, Any], row: int) -> Shown:
        """The concepts to choose among."""
        labels = actions.concept_names(flat)
        return {self.chosen: gr.update(choices=labels, value=labels[row])}

    def bind(self) -> None:
        act, whole, results = self.page.act, self.page.of_model, self.page.generate_tab.chosen()
        act(self.chosen.input, self._choose, [self.chosen, *results], whole)
        act(self.add.click, self._add, results, whole)
        act(self.remove.click, self._remove, results, whole)
        act(self.drop.upload, self._take_pictures, [self.drop, *results], [*whole, self.drop], meanwhile="multiple")
        for name, button in self.presets.items():
            act(button.click, self._preset(name), results, whole)
        act(self.check.click, self._check, [], [])
        act(self.look_at_words.click, self._look_at_words, [self.words], [], self.words_message)
        act(self.class_pictures.click, self._make_class_pictures, [], [])

    def _choose(self, values: Values) -> Shown:
        row = actions.row_of(values[self.chosen])
        if row == int(values[self.page.row]):  # gradio 3 and 4 send this for a new name, too, as after a save
            return {self.page.message: gr.update()}
        opened = self.page.opened(values)
        self.page.keep(opened, values)
        return self.page.show(opened.name, row, values=values)

    def _add(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        self.page.keep(opened, values)
        return self.page.show(opened.name, actions.add_concept(opened), values=values)

    def _remove(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        with settings_lock.changing(opened):
            row = self._shown_row(values)
            name = actions.concept_names(opened.settings())[row]
            row_to_show = actions.remove_concept(opened, row)
        message = undoable(f"{name} was removed; its pictures stay where they are.")
        return self.page.show(opened.name, row_to_show, message, values)

    def _take_pictures(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        with settings_lock.changing(opened):  # others that were dropped just before go to the same folder
            row = self._shown_row(values, dropped=True)
            key, changed = f"concepts.{row}.{ABOUT_PICTURES}", self.page.changed(opened, values)
            before = str({**opened.settings(), **changed}[key])
            try:
                taken = uploads.take_in(opened, before, [Path(file) for file in dialect.uploaded(values[self.drop])])
            except UserError as error:
                return {self.page.message: problem_list(error.problems), self.drop: None}
            actions.save(opened, {**changed, key: taken.folder})
        message = good(f"The pictures are in {taken.folder}.") + _besides(taken, before)
        return {**self.page.show(opened.name, row, message, values), self.drop: None}

    def _preset(self, name: str) -> Callable[[Values], Shown]:
        def apply(values: Values) -> Shown:
            opened, row = self.page.opened(values), self._row(values)
            after, before, wanted = actions.apply_preset(opened, self.page.changed(opened, values), name)
            shown = self.page.show(opened.name, row, problem_list(wanted) if wanted else SAVED, values)
            changes = preset_view(PRESETS[name], before, after)
            return {**shown, **self.page.form.show(after, row), self.preset_message: changes}

        return apply

    def _check(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        flat = self.page.keep(opened, values)
        jobs.check(self.page.host, opened, parse(flat))  # what it found is shown under the button
        return {}

    def _look_at_words(self, values: Values) -> Shown:
        opened, row = self.page.opened(values), self._row(values)
        self.page.keep(opened, values)
        jobs.look_at_words(self.page.host, opened, row, values[self.words] or "")
        return {}

    def _make_class_pictures(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        self.page.keep(opened, values)
        jobs.make_class_pictures(self.page.host, opened)
        return {}

    def _row(self, values: Values) -> int:
        """The concept that is shown. Raises UserError for one that is gone."""
        row = int(values[self.page.row])
        if row >= windows.concepts(self.page.opened(values).settings()):
            raise UserError("This concept was removed in another window; ⟳ shows those there are.")
        return row

    def _shown_row(self, values: Values, *, dropped: bool = False) -> int:
        """The same. Raises UserError also for one that is not as it is shown, but with `dropped` for the folder that
        the first of its dropped pictures have got."""
        row, form, opened = self._row(values), self.page.form, self.page.opened(values)
        newer = form.newer(values, opened.settings())
        before, now = newer.get(f"concepts.{row}.{ABOUT_PICTURES}", ("", ""))
        if dropped and not before and now and uploads.are_in(opened, Path(now)):
            del newer[f"concepts.{row}.{ABOUT_PICTURES}"]
        windows.check_row(row, form.read(values, row), newer)
        return row


def _besides(taken: uploads.Taken, former: str) -> str:
    """What is to be known of dropped files: which were left out, and whether another folder was trained before."""
    sentences = [
        f"Left out, as neither picture nor caption: {', '.join(taken.strange)}." if taken.strange else "",
        f"Left as they were, as their pictures have them already: {', '.join(taken.kept)}." if taken.kept else "",
        f"Those in {former} are not trained any more." if former not in ("", taken.folder) else "",
    ]
    return "".join(f'<p class="db-note">{escape(sentence)}</p>' for sentence in sentences if sentence)
