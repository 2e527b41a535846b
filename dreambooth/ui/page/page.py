"""The page as a whole: where the tabs and the run stand, and how an event reaches what is done about it.

The page holds nothing of its own. What it shows comes from the models' folders; the hidden fields `model` and `row` say
in the browser whose settings the controls show, so that nothing is ever written to another model or concept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from dreambooth.core import engine_capabilities, project
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project, open_project
from dreambooth.core.settings import parse
from dreambooth.host.base import Host
from dreambooth.service import cost, settings_lock, settings_undo
from dreambooth.ui.page import actions, dialect
from dreambooth.ui.page.concepts import ConceptsTab
from dreambooth.ui.page.controls import Form
from dreambooth.ui.page.cost_view import cost_view
from dreambooth.ui.page.fragments import SAVED, good, problem_list
from dreambooth.ui.page.generate import GenerateTab
from dreambooth.ui.page.model import ModelTab
from dreambooth.ui.page.run_column import TITLES, RunColumn
from dreambooth.ui.page.settings import SettingsTab
from dreambooth.ui.page.windows import check_concepts, concepts, newer_view

Values = Mapping[Any, Any]
Shown = dict[Any, Any]

_REFRESH = "Show models and settings as they are now"
_CHANGED = "() => { dreamboothPage.changed(); return []; }"
_ANSWERED = "() => {{ dreamboothPage.answered('{}'); return []; }}"  # of a button that the script presses, or of none


def build(host: Host) -> Any:
    """The page. The WebUI puts it into a tab; standing alone it is all there is."""
    with gr.Blocks(title="Dreambooth", analytics_enabled=False) as blocks, gr.Column(elem_id="db_page"):
        page = Page(host)
        page.lay_out()
        page.bind(blocks)
    for block in blocks.blocks.values():
        block.do_not_save_to_config = True  # or ui-config.json would become a second home of every default
    return blocks


class Page:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.form = Form()
        self.model_tab, self.settings_tab = ModelTab(self), SettingsTab(self)
        self.concepts_tab, self.generate_tab = ConceptsTab(self), GenerateTab(self)
        self.run_column = RunColumn(self)
        self.parts = (self.model_tab, self.settings_tab, self.concepts_tab, self.generate_tab, self.run_column)

    def lay_out(self) -> None:
        titles = escape(json.dumps({"db_refresh": _REFRESH, **TITLES}))
        known = f'<div data-db-token="{self.host.token}" data-db-titles="{titles}"></div>'
        gr.HTML(known, elem_id="db_token", visible=True)
        gr.HTML('<p role="status"></p>', elem_id="db_told")  # what the browser says to who does not see the page
        with gr.Row(elem_id="db_head"):
            self.choice = gr.Dropdown([], label="Model", elem_id="db_model")
            self.refresh = gr.Button("⟳", elem_id="db_refresh")
            self.about = gr.HTML("", elem_id="db_about")
        with gr.Row(elem_id="db_columns"):
            with gr.Column(scale=3, elem_id="db_tabs_column"):
                self._tabs()
            with gr.Column(scale=2, elem_id="db_run_column"):
                self.run_column.lay_out()
        with gr.Row(elem_id="db_hidden"):
            self.model = gr.Textbox("", elem_id="db_shown_model", label="shown model")
            self.row = gr.Number(0, elem_id="db_shown_row", label="shown concept")
            self.form.lay_out_loaded()
            self.draft = gr.Button("save", elem_id="db_save_draft")
            self.compare = gr.Button("compare", elem_id="db_compare")
            self.look_again = gr.Button("look", elem_id="db_look_again")
            self.take_back = gr.Button("undo", elem_id="db_undo")

    def _tabs(self) -> None:
        self.elsewhere = gr.HTML("", elem_id="db_elsewhere")
        self.message = gr.HTML("", elem_id="db_said")
        with gr.Tabs(elem_id="db_tabs"):
            with gr.Tab("Model", elem_id="db_model_tab", id="model"):
                self.model_tab.lay_out()
            with gr.Tab("Settings", elem_id="db_settings_tab", id="settings"):
                self.settings_tab.lay_out()
            with gr.Tab("Concepts", elem_id="db_concepts_tab", id="concepts"):
                self.concepts_tab.lay_out()
            with gr.Tab("Generate", elem_id="db_generate_tab", id="generate"):
                self.generate_tab.lay_out()

    def bind(self, blocks: gr.Blocks) -> None:
        self.noted = [self.form.loaded, self.elsewhere]
        own = [self.choice, self.model, self.row, self.about, self.message]
        self.of_model = [*own, *self.noted, *self.form.controls.values()]
        for part in self.parts:
            self.of_model += part.places()
        self.everything = {self.model, self.row, self.form.loaded, *self.form.controls.values()}

        on = dialect.on
        on(blocks.load, self.telling_problems(self.open), None, [*self.of_model, self.model_tab.source])
        on(self.refresh.click, None, None, [self.message, self.run_column.message], js="() => ['', '']")
        looked = on(self.refresh.click, self.telling_problems(self.open), None, [*self.of_model, self.model_tab.source])
        on(looked.then, None, js=_ANSWERED.format(""))
        self.act(self.choice.input, self.select, [self.choice], self.of_model)
        self.form.watch(lambda event: on(event, None, js=_CHANGED))
        self.act(self.draft.click, self.save, [], self.saving_places(), button=self.draft.elem_id)
        self.act(self.compare.click, self.tell_newer, [], [], self.elsewhere, button=self.compare.elem_id)
        for part in self.parts:
            part.bind()
        undone = [*self.of_model, self.model_tab.imported]
        self.act(self.take_back.click, self.undo, self.generate_tab.chosen(), undone, button=self.take_back.elem_id)
        changed = [self.about, self.run_column.message, *self.generate_tab.places()]
        self.act(self.look_again.click, self.look, self.generate_tab.chosen(), changed, button=self.look_again.elem_id)

    def act(
        self,
        event: Any,
        do: Callable[..., Shown],
        more: list[Any],
        outputs: list[Any],
        at: Any = None,
        *,
        button: str = "",
        meanwhile: str = "once",
    ) -> None:
        """Binds a handler that reads the whole page by name; what is wrong is told at `at`. `button` is the one that
        the page's script asks with; `meanwhile` is of `dialect.on`."""
        at = at or self.message
        places = list({id(one): one for one in [*outputs, at]}.values())
        done = dialect.on(event, self.telling_problems(do, at), {*self.everything, *more}, places, meanwhile=meanwhile)
        dialect.on(done.then, None, js=_ANSWERED.format(button))

    def telling_problems(self, do: Callable[..., Shown], at: Any = None) -> Callable[..., Shown]:
        """The handler with what a person can mend told on the page."""
        place = at or self.message

        def tell(*values: Any) -> Shown:
            try:
                return {place: "", **do(*values)}
            except UserError as error:
                return {place: problem_list(error.problems)}
            except OSError as error:
                return {place: problem_list([f"That cannot be done: {error}."])}

        return tell

    # What is shown

    def open(self) -> Shown:
        """A page that was just loaded, by whichever browser, or looks anew: what it says was emptied when that was
        asked for, and what other buttons were answered meanwhile stays."""
        shown = {**self.show_first(), self.model_tab.source: self.model_tab.sources(choose=True)}
        said = (self.message, self.run_column.message)
        return {**shown, **{place: gr.update() for place in said if not shown[place]}}

    def show_first(self, message: str = "") -> Shown:
        """The model that comes first; one that is damaged is told of, and the next one is shown."""
        problems: list[str] = []
        for name in actions.models_to_show(self.host.folders()):
            try:
                return self.show(name, message=message + problem_list(problems) if problems else message)
            except UserError as error:
                problems += error.problems
        return self.show("", message=message + problem_list(problems) if problems else message)

    def opened(self, values: Values) -> Project:
        """The model whose settings the controls show."""
        if not values[self.model]:
            raise UserError("There is no model yet; create one in the Model tab.")
        return open_project(self.host.folders(), values[self.model])

    def show(self, name: str, row: int = 0, message: str = "", values: Values | None = None) -> Shown:
        """A model with everything that belongs to it; without a name, none. With the page's `values` what was chosen
        beside the settings stays where it is the same model's."""
        names = project.names(self.host.folders())
        opened = open_project(self.host.folders(), name) if name else None
        flat = opened.settings() if opened else {}
        row = min(row, max(0, concepts(flat) - 1))  # another window may have removed some
        shown: Shown = {
            self.choice: gr.update(choices=names, value=name or None),
            self.model: name,
            self.row: row,
            self.message: message,
            self.about: '<p class="db-quiet">No model yet.</p>',
            self.elsewhere: "",
        }
        for part in self.parts:
            shown |= part.show(opened, row)
        if opened is None:
            return shown
        if values and values[self.model] == name:
            shown |= self.generate_tab.show(opened, row, values)
        return {**shown, **self.moving(opened, flat), **self.form.show(flat, row), **self.form.note(flat, row)}

    def moving(self, opened: Project, flat: Mapping[str, Any]) -> Shown:
        """What moves with every control."""
        own = parse(dict(flat))
        costs = cost.estimate(self.host.folders(), opened, own)
        problems = problem_list([*filter(None, [opened.problem]), *engine_capabilities.problems(own)])
        costs_shown = cost_view(costs, engine_capabilities.card_bytes())
        about = f'<p class="db-about">{escape(actions.about(opened))}</p>{costs_shown}{problems}'
        return {self.about: about, **self.settings_tab.moving(own, costs)}

    def saving_places(self) -> list[Any]:
        moving = [self.about, self.concepts_tab.chosen, *self.settings_tab.moving_places()]
        return [self.message, self.run_column.message, *self.noted, *moving]

    # What a person does

    def save(self, values: Values) -> Shown:
        """Drafts save themselves: called by the browser soon after each change."""
        if not values[self.model]:
            return {}
        opened, problems = self.opened(values), list[str]()
        with settings_lock.changing(opened):
            changed = self.changed(opened, values)
            try:
                flat = actions.save_draft(opened, changed)
            except UserError as error:
                problems, flat = error.problems, opened.settings()
        if problems:
            changed = {key: value for key, value in changed.items() if flat.get(key) == value}
        after = self.form.note_saved(values, changed)
        shown: Shown = {
            self.message: problem_list(problems) or SAVED,
            self.run_column.message: "",  # what Train said is older
            self.elsewhere: newer_view(self.form.newer(after, flat)),
            **after,
        }
        if any(key.startswith("concepts.") for key in changed):  # they may be called otherwise now
            shown |= self.concepts_tab.names(flat, int(values[self.row]))
        return shown if problems else {**shown, **self.moving(opened, flat)}

    def changed(self, opened: Project, values: Values) -> dict[str, Any]:
        """What was changed in this window and is not saved yet; what it shows besides may be older than the file."""
        found, flat = self.form.changed(values, int(values[self.row])), opened.settings()
        check_concepts(values.get(self.form.loaded, ""), found, flat, self.form.newer(values, flat))
        return found

    def keep(self, opened: Project, values: Values) -> dict[str, Any]:
        """Writes what was changed on the page into the model's settings, and returns all of them."""
        with settings_lock.changing(opened):
            return actions.save(opened, self.changed(opened, values))

    def unseen(self, opened: Project, values: Values) -> Shown:
        """What another window has changed, shown before a run takes it: a run has exactly what its page showed. Empty
        where there is nothing."""
        row, flat = int(values[self.row]), opened.settings()
        newer = self.form.newer(self.form.note_saved(values, self.form.changed(values, row)), flat)
        if not newer:
            return {}
        message = newer_view(newer, "The page shows it now; press again if it is meant.")
        return {**self.show(opened.name, row, values=values), self.run_column.message: message}

    def tell_newer(self, values: Values) -> Shown:
        """What another window has changed meanwhile: called by the browser when the model's file has changed."""
        if not values[self.model]:
            return {}
        return {self.elsewhere: newer_view(self.form.newer(values, self.opened(values).settings()))}

    def undo(self, values: Values) -> Shown:
        """The settings from before the last change that offered it: called by the browser."""
        opened = self.opened(values)
        settings_undo.undo(opened)
        shown = self.show(opened.name, int(values[self.row]), good("The settings are as they were before."), values)
        return {**shown, self.model_tab.imported: ""}

    def select(self, values: Values) -> Shown:
        """Another model; where that cannot be shown, or what was changed of this one cannot be kept, this one stays."""
        try:
            problems = self._leave(values)
            return self.show(values[self.choice] or "", message=problem_list(problems))
        except UserError as error:
            names = project.names(self.host.folders())
            choice = gr.update(choices=names, value=values[self.model] or None)
            return {self.choice: choice, self.message: problem_list(error.problems)}

    def _leave(self, values: Values) -> list[str]:
        """Keeps what was changed of the model that is shown. Returns why nothing can be kept of one that is gone or
        damaged."""
        if not values[self.model]:
            return []
        try:
            opened = self.opened(values)
            opened.settings()
        except UserError as error:
            return error.problems
        self.keep(opened, values)
        return []

    def look(self, values: Values) -> Shown:
        """What a run that ended, or a picture or result that was taken away, has changed beside the controls: called by
        the browser."""
        if not values[self.model]:
            return {}
        opened = self.opened(values)
        about = self.moving(opened, opened.settings())[self.about]
        told = {self.about: about, self.run_column.message: ""}  # what Train said is older
        return {**told, **self.generate_tab.show(opened, int(values[self.row]), values)}
