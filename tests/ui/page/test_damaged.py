"""One file of one model that a crash or a full disk has spoilt: every other model is shown as before, and a sentence
names the file."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings, parse, to_json
from dreambooth.service import api, launcher
from dreambooth.ui import command_line
from dreambooth.ui.page import routes
from dreambooth.ui.page.run_view import run_view
from tests.ui.page.laid_out import laid_out

STEP = {"event": "step", "step": 5, "steps": 10, "images": 5, "loss": 0.5, "rate": 1e-4, "steps_per_second": 2.0,
        "seconds_left": 2.5, "memory_bytes": 0}  # fmt: skip


def paused_run(folders: Folders, model: str) -> None:
    result = folders.loras / f"{model}_5.safetensors"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.touch()
    made = job_list.create(
        project.open_project(folders, model).runs, {"kind": "train", "model": model}, to_json(Settings())
    )
    saved = {"event": "saved", "kind": "lora", "path": str(result), "bytes": 1, "images": 5}
    for event in ({"event": "started"}, STEP, saved, {"event": "paused"}):
        with open(made.folder / "events.jsonl", "a") as file:
            file.write(json.dumps({"time": 0, **event}) + "\n")
    (made.state / "000000005").mkdir(parents=True)


@pytest.mark.parametrize("file", ["model.json", "settings.json", "job.json", "run's settings.json", "changes.json"])
def test_a_damaged_file_of_a_model_spoils_no_other(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = laid_out(tmp_path / "models")
    folders = page.host.folders()
    moon = project.create(folders, "moon", MINIATURE)
    for model in ("moon", "star"):
        paused_run(folders, model)
    in_run = file not in ("model.json", "settings.json")
    damaged = (moon.runs / "0001" if in_run else moon.folder) / file.rpartition(" ")[2]
    damaged.write_text('{"half')
    os.utime(moon.folder / "settings.json", (2e9, 2e9))  # the page opens on what was changed last
    app = FastAPI()
    app.include_router(api.router(page.host))
    app.include_router(routes.router(page.host))
    asked = TestClient(app, base_url="http://here")

    listed = asked.get("/dreambooth/runs").json()
    assert "star/1" in [one["run"] for one in listed["runs"]]
    assert command_line.main(["runs", "--data", str(folders.models)]) == (2 if file == "model.json" else 0)
    said = capsys.readouterr()
    assert "star/1" in said.out and "Traceback" not in said.err
    for view in ("run", "model"):
        assert asked.get(f"/dreambooth/page/live?view={view}&model=star").status_code == 200
    own = [asked.get(f"/dreambooth/page/live?view={view}&model=moon") for view in ("run", "model")]
    assert not in_run or all(answer.status_code == 200 for answer in own), "its other parts are shown"
    shown = page.open()
    assert shown[page.model] == ("moon" if in_run else "star")
    told = [json.dumps(listed), said.err, str(shown[page.message]), *(answer.text for answer in own)]
    sentence = re.compile(rf"{re.escape(str(damaged))}: the file is damaged; ")
    assert any(sentence.search(html.unescape(one)) for one in told)


def test_a_model_without_settings_spoils_no_page(tmp_path: Path) -> None:
    page = laid_out(tmp_path / "models")
    moon = project.create(page.host.folders(), "moon", MINIATURE)
    (moon.folder / "settings.json").unlink()
    assert page.open()[page.model] == "star"
    (page.host.folders().projects / "star" / "model.json").write_text("{}")
    shown = page.open()
    assert shown[page.model] == "" and "model.json" in shown[page.message] and "settings.json" in shown[page.message]


OUT = {"out": "/drawn", "weights": "", "lora_weight": 1, "seed": 1}
FOREIGN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "check"}, {"pictures": [{"crops": [3]}]}),
    ({"kind": "check"}, {"problems": [], "sheet": 3, "pictures": [{"path": "a", "crops": [[1, 2]]}]}),
    ({"kind": "generate"}, {"pictures": []}),
    ({"kind": "generate", **OUT, "rows": [{}], "columns": ["x"]}, {}),
    ({"kind": "txt2img"}, {}),
    ({"kind": "class-images"}, {"class_pictures": [{"pictures": "x"}]}),
    ({"kind": "class-images"}, {}),
    ({"kind": "export"}, {"embeddings": 3}),
    ({"kind": "export"}, {"path": "a", "held": "most"}),
    ({"kind": "tokens"}, {}),
    ({"kind": "tokens"}, {"words": [{"word": "sks", "tokens": 3}], "rare": [], "tokens": 1, "read_length": 75}),
]


@pytest.mark.parametrize(("asked", "done"), FOREIGN, ids=str)
def test_a_short_job_that_says_anything_is_a_sentence_on_the_page(
    tmp_path: Path, asked: dict[str, Any], done: dict[str, Any]
) -> None:
    page = laid_out(tmp_path / "models", concepts__0__instance_data_dir=str(SUBJECT_PICTURES))
    folders = page.host.folders()
    star = project.open_project(folders, "star")
    made = job_list.create(star.errands, {"model": "star", **asked}, to_json(parse(star.settings())))
    made.report("started", pid=1)
    made.report("done", **done)
    app = FastAPI()
    app.include_router(routes.router(page.host))
    view = "generate" if asked["kind"] in ("generate", "txt2img") else asked["kind"]
    answers = [
        TestClient(app, base_url="http://here").get(f"/dreambooth/page/live?view={one}&model=star&row=0")
        for one in (view, "run", "pictures", "model")
    ]
    assert [one.status_code for one in answers] == [200] * 4
    assert f"{made.folder}: what this job says of itself is damaged; start it again." in answers[0].text
    assert "db-tiles" in answers[2].text


def test_a_run_that_says_anything_is_shown_without_that(tmp_path: Path) -> None:
    page = laid_out(tmp_path / "models")
    folders = page.host.folders()
    made = job_list.create(
        project.open_project(folders, "star").runs, {"kind": "train", "model": "star"}, to_json(Settings())
    )
    made.report("started", pid=1)
    for key in ("steps_per_second", "seconds_left", "memory_bytes"):
        made.report(**{**STEP, key: "soon"})
    made.report("failed", problems=["it broke"])
    launcher.tidy(made)
    assert "it broke" in run_view(folders, "star") and made.folder.exists()
