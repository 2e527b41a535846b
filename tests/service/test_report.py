"""The report on a run that went wrong holds what helps, and nothing that is nobody's business."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, strategies

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.privacy import Cleaner
from dreambooth.core.project import Folders
from dreambooth.core.schema import HIDDEN
from dreambooth.core.settings import parse
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, report
from tests.conftest import Run

WEBHOOK = "https://hooks.slack.com/services/T0AAAA/B0BBBB/k3yk3yk3y"
OLD_WEBHOOK = "https://discord.com/api/webhooks/123456/oldoldold"
SECRETS = {
    "webhook": WEBHOOK,
    "a webhook's path": "k3yk3yk3y",
    "a webhook that was replaced": "oldoldold",
    "a hub token": "hf_AbCdEfGhIjKlMnOp",
    "an environment variable": "s3cret-of-the-environment",
    "a login in an address": "bob:pa55w0rd",
    "a key in an address": "sig=5igned",
    "a password in the log": "hunter2!",
    "a page token": "pAgEtOkEn",
    "an authorization": "QWxhZGRpbjpvcGVu",
    "a person": "bob-the-person",
    "a home": "/home/bob-the-person",
}
LOG = """starting in /home/bob-the-person/webui
GET https://bob:pa55w0rd@example.com/models?sig=5igned 200
token=hf_AbCdEfGhIjKlMnOp password: "hunter2!"
"GET /dreambooth/models/x/picture?file=a.png&token=pAgEtOkEn HTTP/1.1" 200
Authorization: Basic QWxhZGRpbjpvcGVu
MY_API_KEY='s3cret-of-the-environment' and s3cret-of-the-environment alone
posted to https://hooks.slack.com/services/T0AAAA/B0BBBB/k3yk3yk3y
C:\\Users\\bob-the-person\\Pictures\\a.png
concepts.0.class_token: dog, a false alarm
IndexError: list index out of range
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A failed run that has been careless in every file it has."""
    monkeypatch.setenv("SOME_TOKEN", SECRETS["an environment variable"])
    monkeypatch.setenv("HOME", "/home/bob-the-person")
    folders = Folders(tmp_path / "models")
    made = project.create(folders, "star", MINIATURE, {"reporting.webhook_url": OLD_WEBHOOK})
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    settings = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "lora.rank": 7}
    settings["concepts.0.instance_token"] = "sks"
    job = job_list.new_run(folders, made, parse({**settings, "reporting.webhook_url": OLD_WEBHOOK}))
    job.change({"reporting.webhook_url": WEBHOOK, "previews.count": 2})
    job.log.write_text(LOG)
    job.report("started", pid=1, python="/home/bob-the-person/.venv/bin/python")
    for step in range(2000):
        job.report("step", step=step, steps=2000, loss=0.5, rate=1e-4, steps_per_second=2.0, seconds_left=9)
    job.report("warning", text=f"could not post to {WEBHOOK}", token="pAgEtOkEn")
    job.report("failed", problems=["/home/bob-the-person/a.png: it cannot be read."], refused=False)
    (job.state / "000000100").mkdir(parents=True)
    (job.state / "000000100" / "manifest.json").write_text('{"step": 100, "bytes": 5, "sha256": "00"}')
    (job.folder / "previews").mkdir()
    (job.folder / "previews" / "0-0-0.png").write_bytes(b"a picture")
    return job


def texts(data: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_no_secret_is_in_it(broken: Job) -> None:
    everything = "\n".join(texts(report.build(broken)).values())
    for what, secret in SECRETS.items():
        assert secret not in everything, what
    assert str(SUBJECT_PICTURES) not in everything
    assert "a picture" not in everything


def test_what_helps_is_in_it(broken: Job) -> None:
    files = texts(report.build(broken))
    assert sorted(files) == ["about.json", "events.jsonl", "log.txt", "settings.json", "states.json"]
    about, settings = json.loads(files["about.json"]), json.loads(files["settings.json"])
    assert about["run"]["status"] == "failed"
    assert about["run"]["errors"][0]["what"] == "~/a.png: it cannot be read."
    assert about["model"]["source"] == MINIATURE.name
    assert about["model"]["about"]["family"] == "sd1"
    assert about["machine"]["cpus"] > 0
    assert settings["settings"]["lora.rank"] == 7
    assert settings["settings"]["concepts.0.instance_token"] == "sks"
    assert "concepts.0.class_token: dog" in files["log.txt"]
    assert "a false alarm" in files["log.txt"]
    assert settings["changed_since"] == {"previews.count": 2}
    assert json.loads(files["states.json"]) == [{"name": "000000100", "step": 100, "bytes": 5, "sha256": "00"}]
    assert "IndexError: list index out of range" in files["log.txt"]
    events = [json.loads(line) for line in files["events.jsonl"].splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("started", "failed")
    assert len(events) < 600
    assert len(report.build(broken)) < 100_000


def test_a_run_whose_files_are_damaged_is_still_told_of(broken: Job) -> None:
    for file in ("settings.json", "changes.json"):
        (broken.folder / file).write_text("{")
    (broken.folder.parents[1] / "model.json").write_bytes(b"\xff\xfe")
    (broken.state / "000000100" / "manifest.json").unlink()
    files = texts(report.build(broken))
    assert "damaged" in files["settings.json"]
    assert json.loads(files["states.json"]) == [{"name": "000000100", "damaged": True}]
    assert "k3yk3yk3y" not in "".join(files.values())


def test_the_command_writes_it_and_overwrites_nothing(broken: Job, dreambooth: Run, tmp_path: Path) -> None:
    models = broken.folder.parents[3]
    said = dreambooth("report", "star/1", "--data", models, "--to", tmp_path / "r.zip")
    assert said.code == 0, said.errors
    assert "log.txt" in texts(Path(said.answer["path"]).read_bytes())
    with pytest.raises(UserError, match="exists already"):
        report.write(broken, tmp_path / "r.zip")
    with pytest.raises(UserError, match="cannot be written"):
        report.write(broken, tmp_path / "nowhere" / "r.zip")


def test_the_api_offers_it(broken: Job) -> None:
    app = FastAPI()
    models = broken.folder.parents[3]
    app.include_router(api.router(Standalone(str(models))))
    asked = TestClient(app, base_url="http://here")
    said = asked.get("/dreambooth/models/star/report", params={"run": 1})
    assert said.headers["content-disposition"].endswith("star-1-report.zip")
    assert "log.txt" in texts(said.content)
    assert asked.get("/dreambooth/models/star/report", params={"run": 2}).status_code == 400


@given(strategies.text(max_size=80), strategies.text(max_size=80))
def test_a_known_secret_is_hidden_wherever_it_stands(before: str, after: str) -> None:
    clean = Cleaner(["the-secret-of-all"], {"A_TOKEN": "another-one", "PATH": "kept-as-it-is"})
    said = clean.text(f"{before}the-secret-of-all{after} another-one kept-as-it-is")
    assert "the-secret-of-all" not in said
    assert "another-one" not in said
    assert clean.value({"api_key": "x", "n": [1, None, "the-secret-of-all"]}) == {
        "api_key": HIDDEN,
        "n": [1, None, HIDDEN],
    }
