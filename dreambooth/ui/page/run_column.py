"""The run, always in view: its buttons, and what its folder says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.core.run import Request

# (id, label, what the engine is asked for). style.css shows those that fit the state of the run.
REQUESTS: tuple[tuple[str, str, Request], ...] = (
    ("db_pause", "Pause", "pause"),
    ("db_stop", "Stop and keep", "stop"),
    ("db_discard", "Stop and discard", "discard"),
    ("db_save", "Save now", "save"),
    ("db_preview", "Preview now", "preview"),
)


@dataclass
class RunColumn:
    """What the page binds of this column."""

    train: Any
    train_anew: Any
    resume: Any
    requests: dict[Request, Any]
    said: Any
    run: Any
    set_up: Any


def build() -> RunColumn:
    with gr.Row(elem_id="db_run_buttons", elem_classes=["db-line"]):
        train = gr.Button("Train", elem_id="db_train", variant="primary")
        resume = gr.Button("Resume", elem_id="db_resume", variant="primary")
        requests = {what: gr.Button(label, elem_id=name) for name, label, what in REQUESTS}
        set_up = gr.Button("Set Up", elem_id="db_set_up", variant="primary")
        train_anew = gr.Button("Train anew", elem_id="db_train_anew")
    said = gr.HTML("", elem_id="db_run_said")
    run = gr.HTML("", elem_id="db_run")
    return RunColumn(train, train_anew, resume, requests, said, run, set_up)
