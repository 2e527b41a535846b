"""The run, always in view: its buttons, and what its folder says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from dreambooth.core import engine_capabilities
from dreambooth.core.job_folder import Request
from dreambooth.core.project import Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import parse
from dreambooth.host.base import Host
from dreambooth.service import installation
from dreambooth.ui.page import actions, dialect, jobs
from dreambooth.ui.page.fragments import SAVED, live
from dreambooth.ui.page.plan_view import plan_view

if TYPE_CHECKING:
    from dreambooth.ui.page.page import Page, Shown, Values

# (id, label, what the engine is asked for). style.css shows those that fit the state of the run.
REQUESTS: tuple[tuple[str, str, Request], ...] = (
    ("db_pause", "Pause", "pause"),
    ("db_stop", "Stop and keep", "stop"),
    ("db_discard", "Stop and discard", "discard"),
    ("db_save", "Save now", "save"),
    ("db_preview", "Preview now", "preview"),
)
# What a button does that its label does not say; the browser puts it there, as gradio's buttons have no titles.
TITLES = {
    "db_train": "Checks the pictures, then begins a run with exactly what the page shows.",
    "db_resume": "Goes on from the last state with the run's own settings.",
    "db_resume_with_page": "Goes on from the last state with what the page shows, as far as it may change then.",
    "db_train_anew": "Begins a new run with what the page shows; this one stays as it is.",
    "db_performance": "Sets what fits this machine's card, and says what it changed and why.",
    "db_set_up": "Fetches the engine's packages, or repairs them, in the background.",
    "db_pause": "Saves the state and frees the GPU; Resume goes on from it.",
    "db_stop": "Ends the run and writes its result; this run cannot be resumed.",
    "db_discard": "Ends the run without a result; this run cannot be resumed. "
    "Results and previews that it has written already stay.",
    "db_save": "Writes a result as it is now; the run goes on.",
    "db_preview": "Draws the previews as it is now; the run goes on.",
}


class RunColumn:
    def __init__(self, page: Page) -> None:
        self.page = page

    def lay_out(self) -> None:
        with gr.Row(elem_id="db_run_buttons", elem_classes=["db-line"]):
            self.train = gr.Button("Train", elem_id="db_train", variant="primary")
            self.resume = gr.Button("Resume", elem_id="db_resume", variant="primary")
            self.resume_with_page = gr.Button("Resume with the page's settings", elem_id="db_resume_with_page")
            self.requests = {what: gr.Button(label, elem_id=name) for name, label, what in REQUESTS}
            self.performance = gr.Button("Performance", elem_id="db_performance")
            self.set_up = gr.Button("Set Up", elem_id="db_set_up", variant="primary")
            self.train_anew = gr.Button("Train anew", elem_id="db_train_anew")
        self.message = gr.HTML("", elem_id="db_run_said")
        self.run = gr.HTML("", elem_id="db_run")

    def places(self) -> list[Any]:
        return [self.run, self.message]

    def show(self, opened: Project | None, row: int) -> Shown:
        return {self.message: "", self.run: live("run", opened.name if opened else "")}

    def bind(self) -> None:
        page, results = self.page, self.page.generate_tab.chosen()
        dialect.on(self.set_up.click, page.telling_problems(self._set_up, self.message), None, [self.message])
        page.act(self.performance.click, self._performance, results, page.of_model, self.message)
        for button in (self.train, self.train_anew):
            page.act(button.click, self._train, results, page.of_model, self.message)
        page.act(self.resume.click, self._on_run(jobs.resume), [], [], self.message)
        page.act(self.resume_with_page.click, self._resume_with_page, results, page.of_model, self.message)
        for what, button in self.requests.items():
            page.act(button.click, self._on_run(partial(jobs.ask, what=what)), [], [], self.message)

    def _set_up(self) -> Shown:
        installation.begin()
        return {}

    def _train(self, values: Values) -> Shown:
        """Freezes exactly what the page shows."""
        opened = self.page.opened(values)
        self.page.keep(opened, values)
        if unseen := self.page.unseen(opened, values):
            return unseen
        jobs.train(self.page.host, opened)
        about = self.page.moving(opened, opened.settings())[self.page.about]  # it has a run more
        return {self.page.message: SAVED, self.page.about: about}

    def _resume_with_page(self, values: Values) -> Shown:
        opened = self.page.opened(values)
        self.page.keep(opened, values)
        if unseen := self.page.unseen(opened, values):
            return unseen
        jobs.resume_with_page(self.page.host, opened)
        return {self.page.message: SAVED}

    def _performance(self, values: Values) -> Shown:
        """Sets what fits this machine's card, and says what it changed and why."""
        page = self.page
        opened, row = page.opened(values), int(values[page.row])
        before = to_flat(parse({**opened.settings(), **page.changed(opened, values)}))
        plan = actions.performance(opened, before, engine_capabilities.card_bytes())
        return {**page.show(opened.name, row, values=values), self.message: plan_view(plan, before)}

    def _on_run(self, do: Callable[[Host, str], Any]) -> Callable[[Values], Shown]:
        def act(values: Values) -> Shown:
            do(self.page.host, self.page.opened(values).name)
            return {}

        return act
