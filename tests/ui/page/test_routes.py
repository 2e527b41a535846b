"""What the browser asks for: guarded like the API, read from the folders, free of what a name could smuggle in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dreambooth.core import project, run
from dreambooth.core.layout import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings, to_json
from dreambooth.host.standalone import Standalone
from dreambooth.ui.page import alone, routes


class Locked(Standalone):
    """A host with a login that nobody has passed."""

    def admits(self, headers: object, cookies: object) -> bool:
        return False


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


def client(folders: Folders, host: type[Standalone] = Standalone) -> TestClient:
    app = FastAPI()
    app.include_router(routes.router(host(str(folders.models))))
    return TestClient(app)


def job(folders: Folders, *events: dict[str, object]) -> run.Job:
    made = run.create(
        project.open_project(folders, "star").runs, {"kind": "train", "model": "star"}, to_json(Settings())
    )
    with open(made.folder / "events.jsonl", "w") as file:
        file.writelines(json.dumps({"time": 0, **event}) + "\n" for event in events)
    return made


STEP = {"event": "step", "step": 5, "steps": 10, "images": 5, "loss": 0.5, "rate": 1e-4, "steps_per_second": 2.0,
        "seconds_left": 2.5, "memory_bytes": 0}  # fmt: skip


def test_without_the_login_or_the_pages_token_nothing_is_told(folders: Folders) -> None:
    asked = client(folders, Locked)
    assert asked.get("/dreambooth/page/live?view=run&model=star").status_code == 401
    with_token = {"X-Dreambooth-Token": Locked.token}
    assert asked.get("/dreambooth/page/live?view=run&model=star", headers=with_token).status_code == 200


def test_a_view_or_model_that_does_not_exist(folders: Folders) -> None:
    assert client(folders).get("/dreambooth/page/live?view=walk&model=star").status_code == 400
    answer = client(folders).get("/dreambooth/page/live?view=run&model=sun")
    assert answer.status_code == 400
    assert "no model named 'sun'" in answer.json()["problems"][0]


def test_a_run_without_an_engine_is_shown_as_lost_not_as_done(folders: Folders) -> None:
    made = job(folders, {"event": "started"}, STEP, {**STEP, "step": 6})
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert 'data-db-state="failed"' in shown
    assert "lost its engine" in shown
    assert "step 6 of 10" in shown
    (made.state / "0001").mkdir(parents=True)
    assert 'data-db-state="resumable"' in client(folders).get("/dreambooth/page/live?view=run&model=star").text


def test_what_a_run_says_is_text_not_html(folders: Folders) -> None:
    job(folders, {"event": "started"}, {"event": "warning", "text": "<script>alert(1)</script>"},
        {"event": "failed", "problems": ["<b>no</b>"], "refused": True})  # fmt: skip
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "<script>" not in shown
    assert "&lt;b&gt;no" in shown


def test_a_thousand_steps_make_a_short_curve(folders: Folders) -> None:
    job(folders, {"event": "started"}, *({**STEP, "step": n, "steps": 1000} for n in range(1, 1001)), {"event": "done"})
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert 'data-db-state="done"' in shown
    assert len(shown) < 10_000


def test_a_run_that_failed_shows_why_with_its_log_and_a_report(folders: Folders) -> None:
    failed = {"event": "failed", "problems": ["It broke."], "refused": False}
    made = job(folders, {"event": "started"}, failed)
    made.log.write_text("the <last> line\n")
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "It broke." in shown
    assert "the &lt;last&gt; line" in shown
    assert "dreambooth/models/star/report?run=1" in shown
    with open(made.folder / "events.jsonl", "a") as file:
        file.write('{"event": "paused"}\n')
    assert "report?run" not in client(folders).get("/dreambooth/page/live?view=run&model=star").text


def test_a_name_of_somebodys_own_that_leads_here_is_refused(folders: Folders) -> None:
    """Else a page at that name could read and ask everything (DNS rebinding)."""
    app = alone.application(Standalone(str(folders.models)))
    for name, code in (
        ("127.0.0.1:7870", 200),
        ("localhost", 200),
        ("evil.example:7870", 400),
        ("127.0.0.1.evil", 400),
    ):
        asked = TestClient(app, base_url=f"http://{name}")
        assert asked.get("/dreambooth/models").status_code == code, name
