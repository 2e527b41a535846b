"""The HTTP API, asked as a script would: models, settings, pictures, who may ask, and what no request may do."""

from __future__ import annotations

import json
import mimetypes
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings
from PIL import Image
from starlette import responses

from dreambooth.core import focal_point, job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse, to_json
from dreambooth.host.base import PAGE_TOKEN
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, environment
from tests.conftest import CAN_LINK

SECRET = "the words of a file that nobody may read"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    return client(tmp_path / "models")


def client(models: Path, host: Any = None) -> TestClient:
    app = FastAPI()
    app.include_router(api.router(host or Standalone(str(models))))
    return TestClient(app, base_url="http://here", raise_server_exceptions=True)


def create(asked: TestClient, name: str = "star", **more: Any) -> Any:
    settings = {"concepts": [{"instance_data_dir": str(SUBJECT_PICTURES), "instance_prompt": "sks star"}], **more}
    return asked.post("/dreambooth/models", json={"name": name, "source": str(MINIATURE), "settings": settings})


def test_a_model_is_made_listed_renamed_and_put_into_the_trash(asked: TestClient, tmp_path: Path) -> None:
    said = create(asked).json()
    assert said["about"]["family"] == "sd1" and said["runs"] == 0
    assert [one["name"] for one in asked.get("/dreambooth/models").json()["models"]] == ["star"]
    assert create(asked).status_code == 400, "the name is taken"
    assert asked.post("/dreambooth/models/star/rename", json={"to": "a b"}).json()["name"] == "a b"
    assert asked.get("/dreambooth/models/star").status_code == 400
    for _ in range(2):
        trash = Path(asked.delete("/dreambooth/models/a%20b").json()["trash"])
        assert (trash / "model.json").exists() and trash.parent == tmp_path / "models" / "dreambooth" / ".trash"
        create(asked, "a b")
    asked.delete("/dreambooth/models/a%20b")
    assert asked.get("/dreambooth/models").json() == {"models": []}


def test_a_field_that_is_unknown_or_missing_is_told_and_nothing_changes(asked: TestClient) -> None:
    create(asked, **{"lora.rank": 7})
    place = "/dreambooth/models/star"
    before = asked.get(f"{place}/settings").json()
    for method, path, body, told in (
        ("PATCH", "/settings", {"lora.rank": 4}, "lora.rank: this request takes no such field (it takes settings)."),
        ("PUT", "/settings", {}, "settings: it is missing."),
        ("PUT", "/concepts/0/caption", {"file": "1.png"}, "text: it is missing."),
        ("POST", "/runs", {"lora.rank": 4}, "lora.rank: this request takes no such field"),
        ("POST", "/errands", {"kind": "generate", "base": True}, "prompt: it is missing; say what to draw."),
        ("POST", "/errands", {"kind": "generate", "prompt": "x", "sed": 3}, "sed: this request takes no such field"),
        ("POST", "/errands", {"kind": "dance", "x": 3}, "kind: 'dance' is none of"),
        ("POST", "/preset", {"preset": "person", "class_prompt": "x"}, "class_prompt: this request takes no such"),
    ):
        said = asked.request(method, f"{place}{path}", json=body)
        assert said.status_code == 400 and any(one.startswith(told) for one in said.json()["problems"]), said.text
    assert asked.get(f"{place}/settings").json() == before
    assert asked.get(f"{place}/runs").json() == {"runs": []}


def test_a_renamed_model_keeps_its_pictures_and_what_was_drawn(asked: TestClient, tmp_path: Path) -> None:
    create(asked, "Ännchen")
    models = tmp_path / "models" / "dreambooth"
    own = models / "Ännchen" / "pictures" / "1"
    shutil.copytree(SUBJECT_PICTURES, own)
    changes = {"settings": {"concepts.0.instance_data_dir": str(own)}}
    assert asked.patch("/dreambooth/models/Ännchen/settings", json=changes).status_code == 200
    opened = project.open_project(Folders(tmp_path / "models"), "Ännchen")
    job = job_list.create(opened.runs, {"kind": "train", "model": opened.name}, to_json(parse(opened.settings())))
    job.previews.mkdir()
    preview = shutil.copy(next(own.glob("*.png")), job.previews / "00000005-00-00.png")
    elsewhere = f"{opened.folder} 2/a.png"
    job.report("preview", images=5, paths=[str(preview)], sheet=elsewhere)
    assert asked.post("/dreambooth/models/Ännchen/rename", json={"to": "b"}).status_code == 200
    (shown,) = job_list.runs(project.open_project(Folders(tmp_path / "models"), "b"))
    assert shown.name == "b/1" and Path(shown.story().previews[5][0]).is_relative_to(models / "b")
    assert shown.events()[0][0]["sheet"] == elsewhere, "another folder with the same beginning"
    assert shown.settings()["concepts.0.instance_data_dir"] == str(models / "b" / "pictures" / "1")
    said = asked.get("/dreambooth/models/b/concepts/0/pictures").json()
    assert said["total"] == 5 and str(models / "b") in said["folder"]


class Describing(Standalone):
    """A host with captioners, of which one says nothing of c.png."""

    captioners = ("BLIP", "DeepDanbooru")

    def describe(self, picture: Path, captioner: str) -> str:
        if picture.stem == "c" and captioner != "BLIP":
            raise UserError("it cannot")
        return f"{picture.stem} by {captioner}"


def described(tmp_path: Path, host: type[Standalone], pictures: str) -> Callable[..., dict[str, Any]]:
    """Has a model's pictures of these names described, and returns what came of it."""
    folder = tmp_path / "pictures"
    folder.mkdir(exist_ok=True)
    for name in pictures:
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
    asked = client(tmp_path / "models", host(str(tmp_path / "models")))
    create(asked, concepts=[{"instance_data_dir": str(folder), "instance_prompt": "[filewords]"}])

    def describe(**wanted: Any) -> dict[str, Any]:
        begun = asked.post("/dreambooth/models/star/errands", json={"kind": "caption", "concept": 0, **wanted})
        if begun.status_code != 200:
            return begun.json()  # type: ignore[no-any-return]
        errand = f"/dreambooth/models/star/errands/{begun.json()['number']}"
        while (said := asked.get(errand).json())["status"] == "running":
            time.sleep(0.02)
        return said  # type: ignore[no-any-return]

    return describe


def test_pictures_without_a_caption_are_described_and_the_others_kept(tmp_path: Path) -> None:
    describe, folder = described(tmp_path, Describing, "abc"), tmp_path / "pictures"
    (folder / "a.txt").write_text("mine")
    said = describe(**{"with": "DeepDanbooru"})
    assert (said["status"], said["problems"]) == ("failed", ["it cannot"])
    assert (folder / "b.txt").read_text() == "b by DeepDanbooru\n", "what was said before is kept"
    assert describe(**{"with": "BLIP"})["status"] == "done"
    assert [(folder / f"{name}.txt").read_text().strip() for name in "abc"] == [
        "mine",
        "b by DeepDanbooru",
        "c by BLIP",
    ]
    assert len(describe(**{"with": "BLIP", "over": True})["result"]["captions"]) == 3
    assert (folder / "a.txt").read_text() == "a by BLIP\n"
    assert "over: it must be true or false" in describe(**{"with": "BLIP", "over": "false"})["problems"][0]
    assert "with: there is no folder" in describe(**{"with": "CLIP"})["problems"][0]


def test_describing_is_stopped_after_the_picture_at_hand(tmp_path: Path) -> None:
    class Stopped(Describing):
        def describe(self, picture: Path, captioner: str) -> str:
            (job,) = job_list.errands(project.open_project(Folders(tmp_path / "models"), "star"))
            job.request("stop")
            return "a star"

    said = described(tmp_path, Stopped, "abc")(**{"with": "BLIP"})
    assert said["status"] == "stopped"
    assert sorted(path.name for path in (tmp_path / "pictures").glob("*.txt")) == ["a.txt"]


def test_a_caption_that_is_typed_while_its_picture_is_described_stays(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"

    class Slow(Describing):
        def describe(self, picture: Path, captioner: str) -> str:
            (folder / "a.txt").write_text("typed meanwhile")
            return "by the model"

    assert len(described(tmp_path, Slow, "ab")(**{"with": "BLIP"})["result"]["captions"]) == 1
    assert [(folder / f"{name}.txt").read_text() for name in "ab"] == ["typed meanwhile", "by the model\n"]


def test_settings_are_read_changed_and_refused_whole(asked: TestClient) -> None:
    create(asked)
    place = "/dreambooth/models/star/settings"
    changed = asked.patch(place, json={"settings": {"lora": {"rank": 7}}}).json()["settings"]
    assert changed["lora.rank"] == 7 and changed["concepts.0.instance_prompt"] == "sks star"
    refused = asked.patch(place, json={"settings": {"lora.rank": 0, "lora.rnak": 1}})
    assert refused.status_code == 400 and len(refused.json()["problems"]) == 2
    assert asked.get(place).json()["settings"] == changed, "nothing of it was written"
    two = {"concepts": [{"instance_prompt": "a"}, {"instance_prompt": "b"}]}
    assert asked.patch(place, json={"settings": two}).json()["settings"]["concepts.1.instance_prompt"] == "b"
    one = asked.patch(place, json={"settings": {"concepts": [{"instance_prompt": "c"}]}}).json()["settings"]
    assert one["concepts.0.instance_prompt"] == "c" and "concepts.1.instance_prompt" not in one
    assert asked.put(place, json={"settings": {"lora.rank": 3}}).json()["settings"]["concepts.0.instance_prompt"] == ""
    person = {"preset": "person", "settings": {"concepts.0.class_prompt": "a star"}}
    preset = asked.post("/dreambooth/models/star/preset", json=person).json()["settings"]
    assert preset["intervals.num_train_epochs"] == 150 and preset["lora.rank"] == 3
    problems = asked.post("/dreambooth/settings/check", json={"settings": {"lora.rank": "many"}}).json()["problems"]
    assert problems == ["lora.rank: 'many' is not a whole number."]
    assert asked.get("/dreambooth/settings").json()["settings"]["properties"]["lora.rank"]["type"] == "integer"


def test_what_fits_a_card_is_told_and_set(asked: TestClient) -> None:
    create(asked, **{"batching.gradient_checkpointing": True})
    place = "/dreambooth/models/star"
    wanted = {"card": "8GB", "settings": {"lora.rank": 5}}
    said = asked.post(f"{place}/performance", json=wanted).json()
    assert said["fits"] and said["changes"] == {"batching.gradient_checkpointing": False} and said["why"]
    before = asked.get(f"{place}/settings").json()["settings"]
    assert before["batching.gradient_checkpointing"] and before["lora.rank"] != 5, "nothing was written"
    assert asked.post(f"{place}/performance", json={**wanted, "apply": True}).json()["applied"]
    after = asked.get(f"{place}/settings").json()["settings"]
    assert (after["batching.gradient_checkpointing"], after["lora.rank"]) == (False, 5)
    plans = asked.post("/dreambooth/performance", json={"card": "8"}).json()["plans"]
    assert {one["family"] for one in plans} == {"sd1", "sd2", "sdxl"}
    for body, told in (
        ({"card": "large"}, "card: 'large' is no size of a card"),
        ({"card": "8", "apply": "no"}, "apply: it must be true or false"),
        ({"cart": "8"}, "cart: this request takes no such field"),
    ):
        assert asked.post(f"{place}/performance", json=body).json()["problems"][0].startswith(told)


def test_an_import_is_taken_back_and_a_webhook_is_tried(asked: TestClient, tmp_path: Path) -> None:
    create(asked)
    place, file = "/dreambooth/models/star", tmp_path / "concepts_list.json"
    before = asked.get(f"{place}/settings").json()
    file.write_text(json.dumps([{"instance_prompt": "a dog", "class_prompt": "", "instance_data_dir": str(tmp_path)}]))
    imported = asked.post(f"{place}/import", json={"path": str(file)}).json()["settings"]
    assert imported["concepts.0.instance_prompt"] == "a dog"
    assert asked.post(f"{place}/undo").json() == before == asked.get(f"{place}/settings").json()
    assert asked.post(f"{place}/undo").json()["problems"] == ["There is nothing to undo."]
    assert "it is empty" in asked.post(f"{place}/notice").json()["problems"][0]


def test_a_dropped_picture_goes_to_the_trash_and_none_of_a_persons_own_folder(
    asked: TestClient, tmp_path: Path
) -> None:
    create(asked)
    model, folders = "/dreambooth/models/star", Folders(tmp_path / "models")
    opened = project.open_project(folders, "star")
    own, theirs = opened.folder / "pictures" / "1", tmp_path / "theirs"
    for folder in (own, theirs):
        folder.mkdir(parents=True)
        for name in ("a.png", "a.txt", "a.focus", "a-mask.png", "b.png", "b.txt"):
            (folder / name).write_text(name)
    for folder, left in (
        (own, ["b.png", "b.txt"]),
        (theirs, ["a-mask.png", "a.focus", "a.png", "a.txt", "b.png", "b.txt"]),
    ):
        asked.patch(f"{model}/settings", json={"settings": {"concepts.0.instance_data_dir": str(folder)}})
        answer = asked.post(f"{model}/concepts/0/remove", json={"file": "a.png"})
        assert sorted(path.name for path in folder.iterdir()) == left
        assert (answer.status_code == 200) == (folder == own)
    assert "is not the model's own; remove it there yourself" in answer.json()["problems"][0]
    trash = folders.trash / "star a.png"
    assert sorted(path.name for path in trash.iterdir()) == ["a-mask.png", "a.focus", "a.png", "a.txt"]
    asked.patch(f"{model}/settings", json={"settings": {"concepts.0.instance_data_dir": str(own)}})
    for file in ("a.png", "../../model.json", "../1/b.txt", "", "b.txt"):
        assert asked.post(f"{model}/concepts/0/remove", json={"file": file}).status_code == 400
    (own / "a.png").write_text("anew")
    asked.post(f"{model}/concepts/0/remove", json={"file": "a.png"})
    assert (folders.trash / "star a.png 2" / "a.png").read_text() == "anew"


def test_a_picture_of_a_concept_that_has_another_number_by_now_is_left_alone(asked: TestClient, tmp_path: Path) -> None:
    model = "/dreambooth/models/star"
    create(asked)
    pictures = project.open_project(Folders(tmp_path / "models"), "star").folder / "pictures"
    folders = [pictures / "1", pictures / "2"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(SUBJECT_PICTURES / "1.png", folder / "a.png")
    concepts = [{"instance_data_dir": str(folder), "instance_prompt": "sks star"} for folder in folders]
    asked.patch(f"{model}/settings", json={"settings": {"concepts": concepts[1:]}})  # the first was removed meanwhile
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "caption", {"text": "a star"}),
        ("PUT", "crop", {"x": 0.5, "y": 0.5}),
        ("POST", "remove", {}),
    ]
    for folder in folders:
        said = asked.delete(f"{model}/concepts/0/crop", params={"file": "a.png", "folder": str(folder)})
        assert (said.status_code == 200) == (folder == folders[1]), said.text
        for method, what, body in requests:
            body = {**body, "file": "a.png", "folder": str(folder)}
            said = asked.request(method, f"{model}/concepts/0/{what}", json=body)
            moved = "folder: the pictures of concept 0 lie in" in said.text
            assert said.status_code == (400 if moved else 200)
            assert moved == (folder == folders[0])
    wanted = {"kind": "caption", "with": "a/b", "concept": 0, "folder": str(folders[0])}
    said = asked.post(f"{model}/errands", json=wanted)
    assert said.status_code == 400 and "folder: the pictures of concept 0 lie in" in said.text
    assert [path.name for path in folders[0].iterdir()] == ["a.png"] and not (folders[1] / "a.png").exists()


def test_pictures_are_listed_with_captions_and_small(asked: TestClient) -> None:
    create(asked)
    place = "/dreambooth/models/star/concepts/0"
    said = asked.get(f"{place}/pictures", params={"offset": 1, "limit": 2}).json()
    assert said["total"] == 5 and [one["name"] for one in said["pictures"]] == ["2.png", "3.png"]
    assert said["pictures"][0]["caption"].startswith("sks star")
    small = asked.get(f"{place}/picture", params={"file": "1.png", "side": 32})
    assert small.headers["content-type"] == "image/jpeg" and len(small.content) < 3000
    assert asked.get(f"{place}/picture", params={"file": "1.png"}).content == (SUBJECT_PICTURES / "1.png").read_bytes()
    assert asked.get("/dreambooth/models/star/concepts/1/pictures").status_code == 400


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_a_caption_that_is_written_is_listed_wherever_it_lies(asked: TestClient, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a").with_suffix(suffix).write_text("before", encoding="utf-8-sig")
    create(asked)
    asked.patch("/dreambooth/models/star/settings", json={"settings": {"concepts.0.instance_data_dir": str(folder)}})
    place = "/dreambooth/models/star/concepts/0"
    for words in ("before", "a star"):
        assert [one["caption"].strip() for one in asked.get(f"{place}/pictures").json()["pictures"]] == [words]
        asked.put(f"{place}/caption", json={"file": "a.png", "text": "a star"})
    assert {path.name for path in folder.iterdir()} == {"a.png", f"a{suffix}"}


@pytest.mark.parametrize("ending", ["webp", "png", "jpg"])
def test_a_picture_is_called_one_where_the_system_knows_no_kinds(
    asked: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """As on a Windows without programs for them: a browser would show the link behind a picture as text."""
    monkeypatch.setattr(mimetypes, "guess_type", mimetypes.MimeTypes(filenames=()).guess_type)
    monkeypatch.setattr(responses, "guess_type", mimetypes.guess_type)
    create(asked)
    drawn = tmp_path / "models" / "dreambooth" / "star" / f"drawn.{ending}"
    Image.new("RGB", (8, 8)).save(drawn)
    said = asked.get("/dreambooth/models/star/picture", params={"file": drawn.name})
    assert said.headers["content-type"] == f"image/{ending.replace('jpg', 'jpeg')}" and said.content


def test_a_crop_is_chosen_listed_and_forgotten_and_the_picture_stays(asked: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (128, 64)).save(folder / "below" / "a.png")
    before = (folder / "below" / "a.png").read_bytes()
    create(asked, concepts=[{"instance_data_dir": str(folder), "instance_prompt": "x"}])
    place = "/dreambooth/models/star/concepts/0"
    (listed,) = asked.get(f"{place}/pictures").json()["pictures"]
    assert listed["crop"] is None
    chosen = {"file": "below/a.png", "x": 0.25, "y": 1}
    said = asked.put(f"{place}/crop", json=chosen).json()
    assert said == {"file": "below/a.png", "crop": {"x": 0.25, "y": 1, "zoom": 1}}
    (listed,) = asked.get(f"{place}/pictures").json()["pictures"]
    assert listed["crop"] == said["crop"]
    for body, problems in (
        ({"x": 0.5, "y": 0.5}, ["file: it is missing."]),
        ({**chosen, "x": "left"}, ["x: it must be a number from 0 (the left edge) to 1 (the right one)."]),
        ({**chosen, "zoom": 0}, ["zoom: it must be a number from 1 (as much as there is) to 100."]),
        ({"file": "below/a.png"}, ["x", "y"]),
        ({**chosen, "why": 1}, ["why: this request takes no such field (it takes file, x, y, zoom, folder)."]),
        ({**chosen, "file": "../a.png"}, ["'../a.png' is no picture in"]),
    ):
        refused = asked.put(f"{place}/crop", json=body)
        assert refused.status_code == 400
        assert all(one.startswith(told) for one, told in zip(refused.json()["problems"], problems, strict=True))
    assert focal_point.read(folder / "below" / "a.png") == FocalPoint(0.25, 1), "what was refused changed nothing"
    (folder / "below" / "a.focus").write_text("a word")
    (listed,) = asked.get(f"{place}/pictures").json()["pictures"]
    assert listed["crop"] is None and "it holds no crop" in listed["problem"]
    for _ in range(2):
        assert asked.delete(f"{place}/crop", params={"file": "below/a.png"}).json()["crop"] is None
    assert [path.name for path in (folder / "below").iterdir()] == ["a.png"]
    assert (folder / "below" / "a.png").read_bytes() == before


def test_odd_pictures_are_thumbnails_or_sentences(asked: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for mode in ("RGBA", "P", "L", "CMYK", "1", "LA", "I;16"):
        Image.new(mode, (300, 40)).save(folder / f"{mode[0:2]}{len(mode)}.{'jpg' if mode == 'CMYK' else 'png'}")
    (folder / "broken.png").write_bytes((folder / "L1.png").read_bytes()[:40])
    (folder / "empty.jpg").touch()
    create(asked)
    asked.patch("/dreambooth/models/star/settings", json={"settings": {"concepts.0.instance_data_dir": str(folder)}})
    place = "/dreambooth/models/star/concepts/0"
    for one in asked.get(f"{place}/pictures").json()["pictures"]:
        said = asked.get(f"{place}/picture", params={"file": one["name"], "side": 64})
        if one["name"] in ("broken.png", "empty.jpg"):
            assert said.status_code == 400 and "cannot be read" in said.json()["problems"][0]
        else:
            assert said.content[:2] == b"\xff\xd8", one["name"]


def test_no_engine_no_run_and_nothing_left_behind(
    asked: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(asked)
    monkeypatch.delenv("DREAMBOOTH_ENGINE_PYTHON")
    monkeypatch.setattr("dreambooth.service.environment.STAMP", tmp_path / "none")
    refused = asked.post("/dreambooth/models/star/runs")
    assert refused.status_code == 400 and "engine is not set up" in refused.json()["problems"][0]
    assert asked.get("/dreambooth/runs").json()["runs"] == []


def test_what_would_end_a_run_at_once_is_told_when_it_is_queued(asked: TestClient, tmp_path: Path) -> None:
    create(asked)
    (tmp_path / "empty").mkdir()
    for folder, said in (("nowhere", "there is no folder"), ("empty", "there are no pictures in")):
        body = {"settings": {"concepts.0.instance_data_dir": str(tmp_path / folder)}}
        for place, more in (("runs", {}), ("errands", {"kind": "class-images"})):
            refused = asked.post(f"/dreambooth/models/star/{place}", json={**more, **body})
            assert refused.status_code == 400
            assert refused.json()["problems"][0].startswith(f"concepts.0.instance_data_dir: {said}")
    refused = asked.post(
        "/dreambooth/models/star/runs", json={"settings": {"lora.start_file": str(tmp_path / "x.safetensors")}}
    )
    assert refused.json()["problems"] == [f"{tmp_path / 'x.safetensors'}: there is no such file."]
    assert asked.get("/dreambooth/runs").json()["runs"] == [], "nothing is left behind"
    assert asked.post("/dreambooth/models/star/runs").json()["status"] == "queued"


def test_other_sites_are_refused(asked: TestClient) -> None:
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert asked.get("/dreambooth/models", headers=headers).status_code == 403, headers
    for headers in ({"origin": "http://here"}, {"sec-fetch-site": "same-origin"}, {}):
        assert asked.get("/dreambooth/models", headers=headers).status_code == 200, headers


def test_without_the_login_only_the_page_may_ask(tmp_path: Path) -> None:
    class Closed(Standalone):
        def admits(self, headers: Any, cookies: Any) -> bool:
            return False

    asked = client(tmp_path, Closed(str(tmp_path)))
    every = [
        (method.upper(), path.replace("{number}", "1").replace("{concept}", "0").replace("{name}", "x"))
        for path, methods in asked.get("/openapi.json").json()["paths"].items()
        for method in methods
    ]
    assert len(every) > 30
    for method, path in every:
        assert asked.request(method, path).status_code == 401, path
        assert asked.request(method, path, params={"token": "é"}).status_code == 401, path
    assert asked.get("/dreambooth/models", headers={"X-Dreambooth-Token": PAGE_TOKEN}).status_code == 200
    assert asked.get("/dreambooth/models", params={"token": PAGE_TOKEN}).status_code == 401


@pytest.mark.parametrize("has_accounts", [True, False])
def test_a_browser_asks_for_a_password_only_where_one_would_be_admitted(tmp_path: Path, has_accounts: bool) -> None:
    """And never for a page that was left open while the WebUI started anew."""

    class Closed(Standalone):
        def admits(self, headers: Any, cookies: Any) -> bool:
            return False

    host = Closed(str(tmp_path))
    host.has_accounts = has_accounts
    asked = client(tmp_path, host)
    by_hand = asked.get("/dreambooth/models")
    assert by_hand.headers.get("www-authenticate") == ("Basic" if has_accounts else None)
    assert "Log in first" in by_hand.json()["problems"][0]
    for of_a_page in (
        asked.get("/dreambooth/models", headers={"X-Dreambooth-Token": "of before"}),
        asked.get("/dreambooth/models/star/picture", params={"file": "a.png", "seal": "of before"}),
    ):
        assert of_a_page.status_code == 401 and "www-authenticate" not in of_a_page.headers
        assert of_a_page.json()["problems"] == ["The WebUI was started anew; reload this page."]


def test_a_large_answer_is_made_outside_of_the_loop_in_which_all_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: list[threading.Thread] = []
    encode, render = api.jsonable_encoder, api._Json.render
    monkeypatch.setattr(
        api, "jsonable_encoder", lambda found: (made_in.append(threading.current_thread()), encode(found))[1]
    )
    monkeypatch.setattr(
        api._Json, "render", lambda own, found: (made_in.append(threading.current_thread()), render(own, found))[1]
    )
    asked = client(tmp_path)
    loops: list[threading.Thread] = []

    async def loop() -> None:
        loops.append(threading.current_thread())

    asked.app.add_api_route("/loop", loop)  # type: ignore[attr-defined]
    with asked:
        assert asked.get("/loop").status_code == 200
        assert asked.get("/dreambooth/settings").json()["settings"]
    assert len(made_in) == 2 and loops[0] not in made_in


def test_the_engine_is_checked_once_at_a_time_and_by_no_link(
    asked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts a process, and another site's page may well have a browser get an address."""
    meanwhile = []

    def check() -> dict[str, Any]:
        meanwhile.append(asked.post("/dreambooth/engine/check"))
        return {"device": "cpu"}

    monkeypatch.setattr(environment, "check", check)
    assert asked.get("/dreambooth/engine/check").status_code == 405
    for _ in range(2):
        assert asked.post("/dreambooth/engine/check").json() == {"device": "cpu"}
    assert [one.status_code for one in meanwhile] == [400, 400]
    assert "being checked already" in meanwhile[0].json()["problems"][0]


def test_a_large_body_is_refused_before_it_is_read(asked: TestClient) -> None:
    said = asked.post("/dreambooth/settings/check", content=b'{"settings": "' + b"x" * 5_000_000 + b'"}')
    assert said.status_code == 413 and "larger than" in said.json()["problems"][0]


def test_an_offset_beyond_every_file_is_a_sentence(asked: TestClient, tmp_path: Path) -> None:
    create(asked)
    opened = project.open_project(Folders(tmp_path / "models"), "star")
    job = job_list.create(opened.runs, {"kind": "train", "model": "star"}, "{}")
    job.report("started")
    place = "/dreambooth/models/star/runs/1/events"
    for offset in (10**30, 2**63, 2**62, 10**400):
        said = asked.get(place, params={"offset": offset})
        assert said.status_code == 400 and said.json()["problems"][0].startswith("offset: "), said.text
    assert asked.get(place, params={"offset": 2**40}).json()["events"] == []
    assert len(asked.get(place, params={"offset": -5}).json()["events"]) == 1


def test_a_loss_that_is_no_number_is_null(asked: TestClient, tmp_path: Path) -> None:
    create(asked)
    run = tmp_path / "models" / "dreambooth" / "star" / "runs" / "0001"
    run.mkdir(parents=True)
    (run / "job.json").write_text('{"kind": "train"}')
    (run / "events.jsonl").write_text('{"event": "step", "step": 1, "steps": 2, "loss": NaN}\n')
    assert asked.get("/dreambooth/runs").json()["runs"][0]["loss"] is None


NAMES = strategies.one_of(
    strategies.just("star"),
    strategies.sampled_from(
        ["star", "..", ".", "", ".trash", "%2e%2e", "..%2f..", "a\x00b", "con", "~", "/etc", "\udcff"]
    ),
    strategies.text(max_size=12),
)
PATHS = strategies.one_of(
    strategies.sampled_from(
        ["secret.png", "../secret.png", "../../secret.txt", "runs/../../secret.png", "link.png", "linked/secret.png",
         "/etc/passwd", "..\\secret.png", "model.json", "a\x00.png", "\udcff.png", "~/secret.png", "./"]
    ),
    strategies.text(max_size=30),
)  # fmt: skip
VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=8),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=6), inner),
    max_leaves=6,
)
KEYS = strategies.sampled_from(
    ["name", "source", "settings", "origin", "preset", "path", "to", "kind", "request", "prompt", "weights", "count",
     "seed", "merge", "candidates", "revision", "base", "out"]
)  # fmt: skip


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """A model with secrets beside its folder, and links in it that lead out."""
    base = tmp_path_factory.mktemp("besieged")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DREAMBOOTH_ENGINE_PYTHON", raising=False)  # no job may start
        patch.setattr("dreambooth.service.environment.STAMP", base / "none")
        yield from _besieged(base)


def _besieged(base: Path) -> Iterator[tuple[TestClient, Path]]:
    asked = client(base / "models")
    create(asked)
    projects = base / "models" / "dreambooth"
    for place in (base, base / "models", projects):
        Image.new("RGB", (4, 4)).save(place / "secret.png", pnginfo=None)
        with open(place / "secret.png", "ab") as file:
            file.write(SECRET.encode())
        (place / "secret.txt").write_text(SECRET)
    if CAN_LINK:
        (projects / "star" / "link.png").symlink_to(projects / "secret.png")
        (projects / "star" / "linked").symlink_to(projects)
    yield asked, base


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, path=PATHS, side=strategies.sampled_from([0, 64, -1, 10**9]))
def test_no_picture_outside_is_served(besieged: tuple[TestClient, Path], name: str, path: str, side: int) -> None:
    asked, _ = besieged
    for place, params in (
        (f"/dreambooth/models/{_quoted(name)}/picture", {"side": side}),
        (f"/dreambooth/models/{_quoted(name)}/concepts/0/picture", {"side": side, "kind": "class"}),
    ):
        said = asked.get(place + f"?file={_quoted(path)}", params=params)
        assert said.status_code in (307, 400, 404, 405), said.content[:80]
        assert SECRET.encode() not in said.content


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=strategies.integers(0, 10_000),
    name=NAMES,
    number=strategies.sampled_from(["1", "0", "-1", "x", "99999999999999999999"]),
    body=strategies.dictionaries(KEYS, VALUES, max_size=4) | VALUES,
)
def test_no_request_ends_in_a_traceback(
    besieged: tuple[TestClient, Path], route: int, name: str, number: str, body: Any
) -> None:
    asked, base = besieged
    every = sorted(
        (path, method.upper())
        for path, methods in asked.get("/openapi.json").json()["paths"].items()
        for method in methods
        if not path.startswith("/dreambooth/engine")  # these start processes
    )
    path, method = every[route % len(every)]
    if method == "DELETE" or path.endswith("rename"):
        name = "other"
    place = path.replace("{number}", number).replace("{concept}", number).replace("{name}", _quoted(name))
    content = json.dumps(body).encode() if method != "GET" else None
    said = asked.request(method, place, content=content, headers={"content-type": "application/json"})
    assert said.status_code < 500, said.content
    if said.status_code == 400:
        assert all(one.strip() for one in said.json()["problems"])
    assert SECRET not in said.text
    assert (base / "models" / "dreambooth" / "star" / "model.json").exists()


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")
