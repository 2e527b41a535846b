"""What somebody may try who can name things, send requests, or hand over files: names that lead elsewhere, secrets that
are asked for, code that is to be run.
"""

# ruff: noqa: E501
from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import captions, job_list, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, confinement, file_names
from dreambooth.core.install_paths import MINIATURE, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.schema import HIDDEN
from dreambooth.host.base import PAGE_TOKEN
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, models, resume_run
from tests.conftest import needs_links

WEBHOOK = "https://hooks.example.com/services/T0/k3y-that-nobody-sees"
WEBHOOK_KEY = "reporting.webhook_url"
CONCEPT = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "sks star"}
ELSEWHERE = [
    "..", ".", "../star", "../../star", "/etc/star", "a/b", "a\\b", "C:star", "C:\\star", "\\\\host\\share", "star\x00.png", "\x00",
    "con", "CON", "nul.txt", "com1", "LPT9.json", "aux .x", " star", "star ", "star.", "", "a\nb", "a|b", "a?b", "a*b", "\ud800", "a" * 300,
]  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    """A models folder; afterwards nothing lies beside it."""
    made = Folders(tmp_path / "inside" / "models")
    project.create(made, "star", MINIATURE, {**CONCEPT, WEBHOOK_KEY: WEBHOOK})
    yield made
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["models"]


def client(folders: Folders) -> TestClient:
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    return TestClient(app, base_url="http://here")


@pytest.mark.parametrize("name", ELSEWHERE, ids=repr)
def test_no_name_leads_elsewhere(folders: Folders, name: str) -> None:
    asked, before = client(folders), sorted(folders.projects.iterdir())
    assert not file_names.is_sound(name) or len(name) > project.LONGEST_NAME
    for do in (
        lambda: project.create(folders, name, MINIATURE),
        lambda: models.rename(folders, "star", name),
        lambda: models.duplicate(folders, "star", name),
        lambda: models.delete(folders, name),
        lambda: job_list.find(folders, name),
        lambda: job_list.find(folders, f"{name}/1"),
    ):
        with pytest.raises(UserError):
            do()
    if name:
        with pytest.raises(UserError, match=r"saving\.custom_model_name"):
            settings.parse({"saving.custom_model_name": name})
    quoted = quote(name, safe="", errors="surrogatepass")
    for method, place, body in (
        ("POST", "models", {"name": name, "source": str(MINIATURE)}),
        ("POST", "models/star/rename", {"to": name}),
        ("POST", "models/star/duplicate", {"to": name}),
        ("DELETE", f"models/{quoted}", None),
        ("GET", f"models/{quoted}/runs", None),
        ("GET", f"models/{quoted}/report?run=1", None),
    ):
        said = asked.request(method, f"/dreambooth/{place}", content=None if body is None else json.dumps(body))
        assert said.status_code in (307, 400, 404, 405) or name in (".", ".."), (
            place,
            said.text,
        )  # which a client takes out
    assert sorted(folders.projects.iterdir()) == before


@pytest.mark.parametrize("name", ["star", "Anna's dog 2.1", "猫", "a-b_c.d", "console", "c" * 80])
def test_ordinary_names_are_taken(name: str) -> None:
    assert file_names.is_sound(name)


@needs_links
def test_a_link_in_a_dataset_leads_nowhere(folders: Folders, tmp_path: Path) -> None:
    pictures = folders.models / "pictures"
    pictures.mkdir()
    (folders.models / "secret.png").write_bytes(b"secret")
    (pictures / "link.png").symlink_to(folders.models / "secret.png")
    (pictures / "linked").symlink_to(folders.models)
    asked = client(folders)
    asked.patch("/dreambooth/models/star/settings", json={"settings": {"concepts.0.instance_data_dir": str(pictures)}})
    place = "/dreambooth/models/star/concepts/0"
    for file in ("link.png", "linked/secret.png", "../secret.png", str(folders.models / "secret.png")):
        assert asked.get(f"{place}/picture", params={"file": file}).status_code == 400, file
        assert asked.put(f"{place}/caption", json={"file": file, "text": "x"}).status_code == 400, file
        assert asked.put(f"{place}/crop", json={"file": file, "x": 0, "y": 0}).status_code == 400, file
        assert asked.delete(f"{place}/crop", params={"file": file}).status_code == 400, file
    assert not [one for one in (folders.models).iterdir() if one.stem == "secret" and one.suffix != ".png"]


@needs_links
def test_a_link_to_another_picture_of_the_folder_has_a_caption_of_its_own(folders: Folders) -> None:
    pictures, outside = folders.models / "pictures", folders.models / "outside"
    (pictures / "originals").mkdir(parents=True)
    outside.mkdir()
    (pictures / "originals" / "1.png").write_bytes((SUBJECT_PICTURES / "1.png").read_bytes())
    (pictures / "a.png").symlink_to("originals/1.png")
    (pictures / "out").symlink_to(outside)
    (outside / "back.png").symlink_to(pictures / "originals" / "1.png")
    asked = client(folders)
    asked.patch("/dreambooth/models/star/settings", json={"settings": {"concepts.0.instance_data_dir": str(pictures)}})
    place = "/dreambooth/models/star/concepts/0"
    assert asked.put(f"{place}/caption", json={"file": "a.png", "text": "a star"}).status_code == 200
    assert captions.file_words(pictures / "a.png") == "a star"
    assert [one.name for one in (pictures / "originals").iterdir()] == ["1.png"]
    assert asked.get(f"{place}/picture", params={"file": "a.png"}).status_code == 200
    assert asked.put(f"{place}/caption", json={"file": "out/back.png", "text": "a star"}).status_code == 400
    assert [one.name for one in outside.iterdir()] == ["back.png"]


@needs_links
def test_a_copy_of_a_model_follows_no_link(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One that leads above itself would never end."""
    star, outside = folders.projects / "star", tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(b"secret")
    (star / "above").symlink_to(folders.projects)
    (star / "pictures").symlink_to(outside)
    (star / "notes").mkdir()
    (star / "notes" / "mine.txt").write_text("mine")
    models.duplicate(folders, "star", "moon")
    moon = folders.projects / "moon"
    assert (moon / "notes" / "mine.txt").read_text() == "mine"
    assert [(moon / name).readlink() for name in ("above", "pictures")] == [folders.projects, outside]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among files")
def test_a_model_that_cannot_be_copied_is_said_with_the_file(folders: Folders) -> None:
    os.mkfifo(folders.projects / "star" / "pipe")
    with pytest.raises(UserError, match=r"moon: the model cannot be copied \(.*pipe.*named pipe"):
        models.duplicate(folders, "star", "moon")
    assert project.names(folders) == ["star"]
    assert not list(folders.projects.glob(".copying*"))


@needs_links
def test_a_caption_or_crop_that_is_written_over_a_link_replaces_the_link(folders: Folders) -> None:
    pictures = folders.models / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes((SUBJECT_PICTURES / "1.png").read_bytes())
    kept = folders.models / "kept.txt"
    kept.write_text("kept")
    for name in ("a.txt", "a.focus"):
        (pictures / name).symlink_to(kept)
    asked = client(folders)
    asked.patch("/dreambooth/models/star/settings", json={"settings": {"concepts.0.instance_data_dir": str(pictures)}})
    said = asked.put("/dreambooth/models/star/concepts/0/caption", json={"file": "a.png", "text": "a star"})
    assert said.status_code == 200
    crop = "/dreambooth/models/star/concepts/0/crop"
    assert asked.put(crop, json={"file": "a.png", "x": 0, "y": 1}).status_code == 200
    assert kept.read_text() == "kept"
    assert (pictures / "a.txt").read_text() == "a star\n"
    assert (pictures / "a.focus").read_text() == '{"x": 0.0, "y": 1.0}\n'
    (pictures / "a.focus").unlink()
    (pictures / "a.focus").symlink_to(kept)
    assert asked.delete(crop, params={"file": "a.png"}).status_code == 200
    assert kept.read_text() == "kept" and not (pictures / "a.focus").is_symlink()


def test_the_secret_of_a_webhook_is_shown_by_no_route_and_lost_by_none(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    opened, asked = project.open_project(folders, "star"), client(folders)
    job = job_list.new_run(folders, opened, settings.parse(opened.settings()))
    job.report("started")
    job.report("paused")
    place = "/dreambooth/models/star"
    shown = asked.get(f"{place}/settings").json()["settings"]
    assert shown[WEBHOOK_KEY] == HIDDEN
    answers = [
        asked.get(f"{place}/runs/1/settings"),
        asked.patch(f"{place}/settings", json={"settings": {"lora.rank": 3}}),
        asked.put(f"{place}/settings", json={"settings": {**shown, "lora.rank": 5}}),
        asked.post(f"{place}/preset", json={"preset": "person"}),
        asked.post("/dreambooth/settings/check", json={"settings": {WEBHOOK_KEY: f"{WEBHOOK}\n"}}),
        asked.patch(f"{place}/settings", json={"settings": {WEBHOOK_KEY: WEBHOOK.replace("https", "http")}}),
        *(asked.get(f"/dreambooth/{path}") for path in ("models", "models/star", "runs", "models/star/runs/1/events")),
        asked.get(f"{place}/report", params={"run": 1}),
    ]
    for said in answers:
        assert b"k3y-that-nobody-sees" not in said.content, said.request.url
    assert opened.settings()[WEBHOOK_KEY] == WEBHOOK, "what was hidden and given back is what it was"
    assert opened.settings()["lora.rank"] == 5
    assert resume_run.prepare(folders, job, {WEBHOOK_KEY: HIDDEN, "previews.count": 2}) == {"previews.count": 2}
    assert asked.patch(f"{place}/settings", json={"settings": {WEBHOOK_KEY: ""}}).json()["settings"][WEBHOOK_KEY] == ""


def test_other_sites_cannot_ask_whatever_they_send_along(folders: Folders) -> None:
    asked = client(folders)
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "http://here.evil.example"}, {"origin": "http://here:81"}, {"origin": "null"},
        {"origin": "http://[broken"}, {"origin": "file://"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example", "referer": "http://here/", "x-forwarded-host": "evil.example"},
    ):  # fmt: skip
        said = asked.delete("/dreambooth/models/star", headers=headers)
        assert said.status_code == 403, headers
        assert said.json()["errors"][0]["what"] == "Requests from other sites are refused."
    assert project.open_project(folders, "star")
    token = {"x-dreambooth-token": PAGE_TOKEN}
    assert asked.get("/dreambooth/models", headers={"origin": "https://behind-a.proxy", **token}).status_code == 200
    wrong = {"origin": "https://behind-a.proxy", "x-dreambooth-token": "guessed"}
    assert asked.get("/dreambooth/models", headers=wrong).status_code == 403


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_in_the_code_runs_what_a_file_says() -> None:
    """No pickle is loaded, no archive unpacked, no shell asked, no text executed."""
    never = {
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "pickle.load",
        "pickle.loads",
        "marshal.loads",
        "shutil.unpack_archive",
        "yaml.load",
    }
    found: list[str] = []
    for path in (PROJECT / "dreambooth").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, call in calls(tree):
            options: dict[str | None, Any] = {one.arg: ast.unparse(one.value) for one in call.keywords}
            of_ours = "miniature" in path.parts  # scripts that load what they have just written
            unsafe = name == "torch.load" and options.get("weights_only") != "True" and not of_ours
            if name in never or unsafe or options.get("shell") == "True" or name.endswith(".extractall"):
                found.append(f"{path.name}: {name}")
    assert found == ["program.py: exec"], "whose text is of numbers and of names that it makes itself"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a person's files by their folder")
def test_nobody_else_on_the_machine_reads_a_secret(folders: Folders) -> None:
    """Neither in a model nor in its runs and copies, nor once they were moved, while they are written too."""
    star = project.open_project(folders, "star")
    job = job_list.new_run(folders, star, settings.parse(star.settings()))
    job.change({WEBHOOK_KEY: f"{WEBHOOK}/2"})
    models.duplicate(folders, "star", "moon")
    models.rename(folders, "star", "sun")
    plain = project.create(folders, "plain", MINIATURE, CONCEPT)
    held = {path: path.stat().st_mode & 0o777 for path in folders.projects.rglob("*.json") if "k3y" in path.read_text()}
    assert sorted(path.name for path in held) == ["changes.json", *["settings.json"] * 3]
    assert set(held.values()) == {0o600}
    assert (plain.folder / "settings.json").stat().st_mode & 0o044, "what holds none is as any other file"
    with pytest.raises(ZeroDivisionError), atomic.staged(next(iter(held))) as staged:
        assert staged.stat().st_mode & 0o777 == 0o600
        raise ZeroDivisionError


@needs_links
def test_where_only_the_webuis_folders_may_be_named_no_request_leads_elsewhere(
    folders: Folders, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WebUI that others use too, started with --hide-ui-dir-config."""
    outside, inside = tmp_path_factory.mktemp("outside"), folders.checkpoints / "a.safetensors"
    folders.checkpoints.mkdir()
    shutil.copy(MINIATURE, inside)
    monkeypatch.setattr(confinement, "_own", lambda: [folders.models])
    asked, there, climbing = (
        client(folders),
        {"settings": {"concepts.0.class_data_dir": str(outside)}},
        inside / "../../..",
    )
    export, generate = {"kind": "export", "base": True}, {"kind": "generate", "prompt": "a star", "base": True}
    for method, place, body in (
        ("POST", "models", {"name": "moon", "source": str(MINIATURE)}),
        ("POST", "models", {"name": "moon", "source": str(inside), **there}),
        ("POST", "models", {"name": "moon", "source": str(inside), "origin": {"vae": str(MINIATURE)}}),
        ("PATCH", "models/star/settings", there),
        ("PUT", "models/star/settings", there),
        ("PATCH", "models/star/settings", {"settings": {"concepts.0.instance_data_dir": f"{climbing}"}}),
        ("POST", "models/star/import", {"path": str(outside)}),
        ("POST", "models/star/runs", there),
        ("POST", "models/star/errands", {**export, "to": str(outside / "x.safetensors")}),
        (
            "POST",
            "models/star/errands",
            {"kind": "export", "weights": str(MINIATURE), "to": str(inside) + "2.safetensors"},
        ),
        ("POST", "models/star/errands", {**generate, "out": str(outside)}),
        ("POST", "inspect", {"path": str(MINIATURE)}),
        ("PUT", "models/star/concepts/0/caption", {"file": "star-1.png", "text": "x"}),
        ("PUT", "models/star/concepts/0/crop", {"file": "star-1.png", "x": 0, "y": 0}),
        ("DELETE", "models/star/concepts/0/crop?file=star-1.png", None),
        ("POST", "models/star/errands", {"kind": "caption", "with": "a/b"}),
        ("POST", "models/star/errands", {"kind": "caption", "with": str(outside)}),
    ):
        said = asked.request(method, f"/dreambooth/{place}", json=body)
        assert said.status_code == 400, (place, body)
        assert [confinement.FLAG in one for one in said.json()["problems"]] == [True], said.json()
    assert not list(outside.iterdir())
    pictures = folders.models / "pictures"
    pictures.symlink_to(outside)
    for wanted in ({"lora.rank": 3}, {"concepts.0.instance_data_dir": str(pictures)}):
        assert asked.patch("/dreambooth/models/star/settings", json={"settings": wanted}).status_code == 200, wanted
    assert asked.post("/dreambooth/inspect", json={"path": str(inside)}).status_code == 200
    assert asked.post("/dreambooth/models", json={"name": "moon", "source": str(inside)}).status_code == 200
