"""The page as a whole: where the tabs and the run stand, and what happens when a person does something.

The page holds nothing of its own. What it shows comes from the models' folders; the hidden fields `model` and `row` say
in the browser whose settings the controls show, so that nothing is ever written to another model or concept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project, open_project
from dreambooth.core.settings import parse
from dreambooth.host.base import Host
from dreambooth.service import installation
from dreambooth.ui.page import actions, concepts, cost, dialect, generate, model, run_column, settings
from dreambooth.ui.page.controls import Form
from dreambooth.ui.page.fragments import SAVED, good, live, problem_list
from dreambooth.ui.page.model_view import import_report, model_view

Values = Mapping[Any, Any]
Shown = dict[Any, Any]

_CHANGED = "() => { dreamboothPage.changed(); return []; }"
_ANSWERED = "() => { dreamboothPage.answered(); return []; }"


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
        self.form, self.origin = Form(), Form()

    def lay_out(self) -> None:
        gr.HTML(f'<div data-db-token="{self.host.token}"></div>', elem_id="db_token", visible=True)
        with gr.Row(elem_id="db_head"):
            self.choice = gr.Dropdown([], label="Model", elem_id="db_model")
            self.refresh = gr.Button("⟳", elem_id="db_refresh")
            self.about = gr.HTML("", elem_id="db_about")
        with gr.Row(elem_id="db_columns"):
            with gr.Column(scale=3, elem_id="db_tabs_column"):
                self._tabs()
            with gr.Column(scale=2, elem_id="db_run_column"):
                self.run = run_column.build()
        with gr.Row(elem_id="db_hidden"):
            self.model = gr.Textbox("", elem_id="db_shown_model", label="shown model")
            self.row = gr.Number(0, elem_id="db_shown_row", label="shown concept")
            self.draft = gr.Button("save", elem_id="db_save_draft")
            self.look_again = gr.Button("look", elem_id="db_look_again")

    def _tabs(self) -> None:
        self.said = gr.HTML("", elem_id="db_said")
        with gr.Tabs(elem_id="db_tabs"):
            with gr.Tab("Model", elem_id="db_model_tab", id="model"):
                self.model_tab = model.build(self.origin)
            with gr.Tab("Settings", elem_id="db_settings_tab", id="settings"):
                settings.build(self.form)
            with gr.Tab("Concepts", elem_id="db_concepts_tab", id="concepts"):
                self.concepts = concepts.build(self.form)
            with gr.Tab("Generate", elem_id="db_generate_tab", id="generate"):
                self.generate = generate.build()

    def bind(self, blocks: gr.Blocks) -> None:
        tab, spots, on = self.model_tab, self.concepts, dialect.on
        self.of_model = [self.choice, self.model, self.row, self.about, self.said, self.run.run, self.run.said]
        self.of_model += [
            spots.chosen,
            spots.pictures,
            spots.plan,
            spots.class_pictures_made,
            tab.about,
            self.generate.weights,
        ]
        self.of_model += [self.generate.drawn, self.generate.exported, *self.form.controls.values()]
        self.everything = {self.model, self.row, *self.form.controls.values()}

        on(blocks.load, self.told(self.open), None, [*self.of_model, tab.source])
        on(self.refresh.click, self.told(self.open), None, [*self.of_model, tab.source])
        self.act(self.choice.input, self.select, [self.choice], self.of_model)
        self.form.watch(lambda event: on(event, None, js=_CHANGED))
        self.act(self.draft.click, self.save, [], [self.said, self.about, self.run.said])
        self._bind_model(tab)
        self._bind_concepts(spots)
        self._bind_run()
        self._bind_generate()

    def act(self, event: Any, do: Callable[..., Shown], more: list[Any], outputs: list[Any], at: Any = None) -> None:
        """Binds a handler that reads the whole page by name; what is wrong is told at `at`."""
        at = at or self.said
        places = list({id(one): one for one in [*outputs, at]}.values())
        done = dialect.on(event, self.told(do, at), {*self.everything, *more}, places)
        dialect.on(done.then, None, js=_ANSWERED)

    def told(self, do: Callable[..., Shown], at: Any = None) -> Callable[..., Shown]:
        """The handler with what a person can mend told on the page."""
        place = at or self.said

        def tell(*values: Any) -> Shown:
            try:
                return {place: "", **do(*values)}
            except UserError as error:
                return {place: problem_list(error.problems)}

        return tell

    # What is shown

    def open(self) -> Shown:
        """A page that was just loaded, by whichever browser."""
        sources = [title for title, _ in self.host.checkpoints()]
        return {
            **self.show(actions.model_to_show(self.host.folders())),
            self.model_tab.source: gr.update(choices=sources, value=sources[0] if sources else None),
        }

    def opened(self, values: Values) -> Project:
        """The model whose settings the controls show."""
        if not values[self.model]:
            raise UserError("There is no model yet; create one in the Model tab.")
        return open_project(self.host.folders(), values[self.model])

    def show(self, name: str, row: int = 0, said: str = "") -> Shown:
        """A model with everything that belongs to it; without a name, none."""
        names = project.names(self.host.folders())
        shown: Shown = {
            self.choice: gr.update(choices=names, value=name or None),
            self.model: name,
            self.row: row,
            self.said: said,
            self.run.said: "",
            self.run.run: live("run", name),
        }
        for place, view in (
            (self.concepts.plan, "check"),
            (self.concepts.class_pictures_made, "class-images"),
            (self.generate.drawn, "generate"),
            (self.generate.exported, "export"),
        ):
            shown[place] = live(view, name) if name else ""
        shown[self.concepts.pictures] = live("pictures", name, row=row) if name else ""
        if not name:
            first = "Choose a checkpoint, give the model a name, press Create; then the pictures, in Concepts."
            shown[self.about] = '<p class="db-quiet">No model yet.</p>'
            shown[self.model_tab.about] = f'<p class="db-quiet">{first}</p>'
            return shown
        opened = open_project(self.host.folders(), name)
        flat = opened.settings()
        labels = actions.concept_names(flat)
        results = [*actions.results(opened), (generate.BASE, "")]
        return {
            **shown,
            self.about: self._about(opened, flat),
            self.model_tab.about: model_view(opened),
            self.concepts.chosen: gr.update(choices=labels, value=labels[row]),
            self.generate.weights: gr.update(choices=[label for label, _ in results], value=results[0][0]),
            **self.form.show(flat, row),
        }

    def _about(self, opened: Project, flat: Mapping[str, Any]) -> str:
        costs = cost.estimate(opened, parse(dict(flat))).words()
        problem = problem_list([opened.problem]) if opened.problem else ""
        return (
            f'<p class="db-about">{escape(actions.about(opened))}</p>'
            f'<p class="db-cost">{" · ".join(map(escape, costs))}</p>{problem}'
        )

    # What a person does

    def save(self, values: Values) -> Shown:
        """Drafts save themselves: called by the browser soon after each change."""
        if not values[self.model]:
            return {}
        opened = self.opened(values)
        flat = self._save(opened, values)
        return {self.said: SAVED, self.about: self._about(opened, flat), self.run.said: ""}

    def _save(self, opened: Project, values: Values) -> dict[str, Any]:
        return actions.save(opened, self.form.read(values, int(values[self.row])))

    def select(self, values: Values) -> Shown:
        if values[self.model]:
            try:
                self._save(self.opened(values), values)
            except UserError as error:
                return {self.choice: values[self.model], self.said: problem_list(error.problems)}
        return self.show(values[self.choice] or "")

    def _bind_model(self, tab: model.Model) -> None:
        inputs = [tab.name, tab.source, *self.origin.controls.values()]
        self.act(tab.create.click, self.create, inputs, [*self.of_model, tab.name, tab.downloaded], tab.said)
        for button, do in ((tab.rename, actions.rename), (tab.duplicate, actions.duplicate)):
            self.act(
                button.click, self._under_new_name(do), [tab.new_name], [*self.of_model, tab.new_name], tab.changed
            )
        self.act(tab.delete.click, self.delete, [], self.of_model, tab.changed)
        dialect.on(tab.refresh.click, self.told(self.list_checkpoints, tab.said), None, [tab.source, tab.said])
        self.act(tab.import_button.click, self.import_settings, [tab.import_from], self.of_model, tab.imported)

    def create(self, values: Values) -> Shown:
        tab = self.model_tab
        origin = {key.removeprefix("origin."): value for key, value in self.origin.read(values).items()}
        made = actions.create(self.host, values[tab.name] or "", str(values[tab.source] or ""), origin)
        if made is None:
            return {tab.downloaded: live("download", "")}
        return {
            **self.show(made.name, said=good(f"Created {made.name}. Next: the pictures, in Concepts.")),
            tab.name: "",
            tab.downloaded: "",
        }

    def _under_new_name(self, do: Callable[[Host, Project, str], str]) -> Callable[[Values], Shown]:
        def act(values: Values) -> Shown:
            opened = self.opened(values)
            self._save(opened, values)
            name = do(self.host, opened, values[self.model_tab.new_name] or "")
            return {**self.show(name, said=good(f"This is {name}.")), self.model_tab.new_name: ""}

        return act

    def delete(self, values: Values) -> Shown:
        said = actions.delete(self.host, self.opened(values))
        return self.show(actions.model_to_show(self.host.folders()), said=good(said))

    def list_checkpoints(self) -> Shown:
        self.host.refresh()
        return {self.model_tab.source: gr.update(choices=[title for title, _ in self.host.checkpoints()])}

    def import_settings(self, values: Values) -> Shown:
        opened = self.opened(values)
        kind, report = actions.import_settings(opened, values[self.model_tab.import_from] or "")
        return {**self.show(opened.name), self.model_tab.imported: import_report(kind, report)}

    def _bind_concepts(self, spots: concepts.Concepts) -> None:
        whole = self.of_model
        self.act(spots.chosen.input, self.choose_concept, [spots.chosen], whole)
        self.act(spots.add.click, self.add_concept, [], whole)
        self.act(spots.remove.click, self.remove_concept, [], whole)
        self.act(spots.drop.upload, self.take_pictures, [spots.drop], [*whole, spots.drop])
        for name, button in spots.presets.items():
            self.act(button.click, self._preset(name), [], whole)
        self.act(spots.check.click, self.check, [], [])
        self.act(spots.class_pictures.click, self.make_class_pictures, [], [])

    def choose_concept(self, values: Values) -> Shown:
        opened = self.opened(values)
        flat = self._save(opened, values)
        return self.show(opened.name, actions.concept_names(flat).index(values[self.concepts.chosen]))

    def add_concept(self, values: Values) -> Shown:
        opened = self.opened(values)
        self._save(opened, values)
        return self.show(opened.name, actions.add_concept(opened))

    def remove_concept(self, values: Values) -> Shown:
        opened = self.opened(values)
        return self.show(opened.name, actions.remove_concept(opened, int(values[self.row])))

    def take_pictures(self, values: Values) -> Shown:
        opened, row = self.opened(values), int(values[self.row])
        folder = actions.take_pictures(opened, row, dialect.uploaded(values[self.concepts.drop]))
        actions.save(opened, {**self.form.read(values, row), f"concepts.{row}.instance_data_dir": folder})
        return {**self.show(opened.name, row, good(f"The pictures are in {folder}.")), self.concepts.drop: None}

    def _preset(self, name: str) -> Callable[[Values], Shown]:
        def apply(values: Values) -> Shown:
            opened, row = self.opened(values), int(values[self.row])
            said = actions.apply_preset(opened, self.form.read(values, row), name)
            return self.show(opened.name, row, good(said))

        return apply

    def check(self, values: Values) -> Shown:
        opened = self.opened(values)
        self._save(opened, values)
        if problems := actions.check(self.host, opened):
            raise UserError(problems)
        return {}

    def make_class_pictures(self, values: Values) -> Shown:
        opened = self.opened(values)
        self._save(opened, values)
        actions.make_class_pictures(self.host, opened)
        return {}

    def _bind_run(self) -> None:
        run = self.run
        dialect.on(run.set_up.click, self.told(self.set_up, run.said), None, [run.said])
        for button in (run.train, run.train_anew):
            self.act(button.click, self.train, [], [self.said], run.said)
        self.act(run.resume.click, self._on_run(actions.resume), [], [], run.said)
        for what, button in run.requests.items():
            self.act(button.click, self._on_run(partial(actions.ask, what=what)), [], [], run.said)
        self.act(self.look_again.click, self.look, [], [self.about, self.generate.weights, self.model_tab.about])

    def set_up(self) -> Shown:
        installation.begin()
        return {}

    def train(self, values: Values) -> Shown:
        """Freezes exactly what the page shows."""
        opened = self.opened(values)
        self._save(opened, values)
        actions.train(self.host, opened)
        return {self.said: SAVED}

    def _on_run(self, do: Callable[[Host, str], Any]) -> Callable[[Values], Shown]:
        def act(values: Values) -> Shown:
            do(self.host, self.opened(values).name)
            return {}

        return act

    def look(self, values: Values) -> Shown:
        """What a run that ended has changed beside the controls: called by the browser."""
        if not values[self.model]:
            return {}
        opened = self.opened(values)
        labels = [*(label for label, _ in actions.results(opened)), generate.BASE]
        return {
            self.about: self._about(opened, opened.settings()),
            self.model_tab.about: model_view(opened),
            self.generate.weights: gr.update(choices=labels, value=labels[0]),
        }

    def _bind_generate(self) -> None:
        tab = self.generate
        self.act(tab.draw.click, self.draw, [tab.weights, *tab.fields.values()], [], tab.said)
        export = [tab.weights, tab.export_to, tab.export_merge, tab.export_half, tab.fields["lora_weight"]]
        self.act(tab.export.click, self.export, export, [], tab.export_said)

    def _weights(self, values: Values, opened: Project) -> dict[str, Any]:
        file = dict(actions.results(opened)).get(values[self.generate.weights], "")
        return {"weights": file} if file else {"base": True}

    def draw(self, values: Values) -> Shown:
        opened = self.opened(values)
        wanted = {name: values[field] for name, field in self.generate.fields.items()}
        weights = self._weights(values, opened)
        if not opened.embedding(Path(weights.get("weights", "none"))).exists():
            wanted.pop("eta")  # only results of Imagic are drawn with it
        actions.generate(self.host, opened, {**wanted, **weights})
        return {}

    def export(self, values: Values) -> Shown:
        opened, tab = self.opened(values), self.generate
        wanted = {
            "to": values[tab.export_to],
            "half": values[tab.export_half],
            "merge": values[tab.fields["lora_weight"]] if values[tab.export_merge] else None,
        }
        actions.export(self.host, opened, {**wanted, **self._weights(values, opened)})
        return {}
