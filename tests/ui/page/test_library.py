"""Who draws on the Generate tab: the engine, or a WebUI around us."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
import pytest
from PIL import Image

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import TXT2IMG
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings
from dreambooth.host.standalone import Standalone
from dreambooth.service import queue
from dreambooth.ui.page.export import AS_IT_IS
from dreambooth.ui.page.generate import BASE
from dreambooth.ui.page.page import Page
from dreambooth.ui.page.short_job_view import errand_view


class WebUI(Standalone):
    name = "AUTOMATIC1111"
    samplers = ("Euler a", "DPM++ 2M")
    asked: ClassVar[list[Drawing]] = []

    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None:
        self.asked.append(wanted)
        for seed in wanted.seeds:
            keep(Image.new("RGB", (8, 8)), seed, "")


def page(host: Standalone) -> Page:
    made = Page(host)
    with gr.Blocks() as blocks:
        made.lay_out()
        made.bind(blocks)
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    made = Folders(tmp_path / "models")
    source = made.checkpoints / "miniature.safetensors"
    source.parent.mkdir(parents=True)
    source.write_bytes(MINIATURE.read_bytes())
    project.create(made, "star", source)
    WebUI.asked.clear()
    yield made


def values(made: Page, **changes: Any) -> dict[Any, Any]:
    tab = made.generate_tab
    shown = {control: control.value for control in (tab.weights, tab.library, tab.sampler, *tab.fields.values())}
    return {**shown, made.model: "star", **{getattr(tab, name, tab.fields.get(name)): v for name, v in changes.items()}}


def test_standing_alone_there_is_no_choice(folders: Folders) -> None:
    made = page(Standalone(str(folders.models)))
    row = made.generate_tab.library.parent
    while row.elem_id != "db_library_row":
        row = row.parent
    assert not row.visible


def test_a_webui_is_asked_with_its_own_sampler(folders: Folders) -> None:
    made = page(WebUI(str(folders.models)))
    tab = made.generate_tab
    choice = values(made, library="AUTOMATIC1111", sampler="DPM++ 2M")
    choice |= {tab.fields["prompt"]: "a star", tab.fields["negative"]: "", tab.fields["count"]: 2}
    assert tab._draw(choice) == {}
    opened = project.open_project(folders, "star")
    until = time.monotonic() + 20
    while job_list.errands(opened)[-1].status() != "done":
        assert time.monotonic() < until
        time.sleep(0.05)
    (wanted,) = WebUI.asked
    assert (wanted.prompt, wanted.sampler, wanted.seeds, wanted.steps) == ("a star", "DPM++ 2M", (420420, 420421), 20)
    shown = errand_view(folders, "star", "generate")
    assert shown.count("<img") == shown.count("data-db-use") == 2
    assert "Seed: 420421, Size: 64x64" in shown and 'data-db-checkpoint="miniature.safetensors"' in shown


def test_what_is_at_work_shows_its_steps_and_can_be_stopped(folders: Folders) -> None:
    job = job_list.create(
        project.open_project(folders, "star").errands, {"kind": TXT2IMG, "model": "star", "out": ""}, "{}"
    )
    with job.hold():  # type: ignore[union-attr]
        job.report("started", kind=TXT2IMG)
        job.report("stage", name="drawing with AUTOMATIC1111", done=12, total=36, unit="steps")
        shown = errand_view(folders, "star", "generate")
    assert "12 of 36 steps" in shown
    assert 'data-db-send="dreambooth/models/star/errands/1/stop"' in shown


def test_a_state_of_a_run_that_rests_is_drawn_with_like_a_result(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = project.open_project(folders, "star")
    paused = job_list.new_run(folders, opened, Settings())
    for step in (1200, 2400):
        (paused.state / f"{step:09}").mkdir(parents=True)
    paused.report("started")
    paused.report("paused")
    submitted: list[job_folder.Job] = []
    monkeypatch.setattr(queue, "submit", submitted.append)
    made = page(Standalone(str(folders.models)))
    tab = made.generate_tab
    shown = tab.show(opened, 0)[tab.weights]
    assert shown["choices"] == ["state after step 2,400 (run 1)", "state after step 1,200 (run 1)", BASE]
    assert shown["value"] == shown["choices"][0]
    choice = values(made) | {tab.fields["prompt"]: "a star", tab.fields["negative"]: ""}
    tab._draw({**choice, tab.weights: shown["choices"][1]})
    (drawing,) = submitted
    asked = drawing.read()
    assert (asked["run"], asked["from_step"], asked["weights"]) == (1, 1200, "")
    drawing.report("started")
    drawing.report("done", pictures=[])
    tab._draw_sheet({**choice, tab.sheet_rows: [shown["choices"][0], BASE], tab.sheet_columns: "0.5, 1"})
    rows = submitted[1].read()["rows"]
    assert [(row["label"], row.get("from_step")) for row in rows] == [("run 1, step 2400", 2400), ("before", None)]
    assert "data-db-use" not in errand_view(folders, "star", "generate"), "no WebUI can load a state"
    export = {tab.export.to: "", tab.export.half: False, tab.export.kind: AS_IT_IS}
    tab.export._export({**choice, **export, tab.weights: shown["choices"][0]})
    assert (submitted[2].read()["from_step"], submitted[2].read()["to"]) == (2400, "")
