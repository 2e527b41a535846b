"""The WebUI at work on a job: its fields, its story, its files, and what is refused before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import save_file

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, launcher, pictures, runs


class WebUI(Standalone):
    """A WebUI that draws grey pictures, or does what a test says."""

    name = "AUTOMATIC1111"
    samplers = ("Euler a", "DPM++ 2M")

    def __init__(self, data: Path, act: Callable[[Look], None] | None = None) -> None:
        super().__init__(str(data))
        self.asked: list[Drawing] = []
        self.act = act

    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None:
        self.asked.append(wanted)
        for seed in wanted.seeds:
            if self.act:
                self.act(look)
            if look(0.5):
                return
            keep(Image.new("RGB", (wanted.width, wanted.height)), seed, f"{wanted.prompt}\nSeed: {seed}")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


@pytest.fixture
def lora(folders: Folders) -> Path:
    """A file that looks like a LoRA of a run."""
    import numpy

    file = folders.loras / "star_60.safetensors"
    file.parent.mkdir(parents=True)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    sides = {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4)}
    save_file({f"{key}.{side}": numpy.zeros(shape, "float32") for side, shape in sides.items()}, file)
    return file


def client(host: Standalone) -> TestClient:
    app = FastAPI()
    app.include_router(api.router(host))
    return TestClient(app, base_url="http://here")


def ended(folders: Folders, job_number: int = 1) -> job_folder.Job:
    """The errand, once nobody is at work on it."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = job_list.errands(project.open_project(folders, "star"))
        job = next(one for one in found if int(one.folder.name) == job_number)
        if job.status() != "running":
            return job
        time.sleep(0.02)
    raise AssertionError("it does not end")


ASK = {"kind": "generate", "library": "webui", "prompt": "a star", "count": 3, "steps": 10, "seed": 5}
PLACE = "/dreambooth/models/star/errands"


def test_the_webui_draws_with_the_lora_in_the_prompt(folders: Folders, lora: Path) -> None:
    host = WebUI(folders.models)
    asked = client(host)
    assert asked.get("/dreambooth/status").json()["samplers"] == ["Euler a", "DPM++ 2M"]
    body = {**ASK, "weights": str(lora), "lora_weight": 0.5, "sampler": "DPM++ 2M", "negative": "blurry"}
    assert asked.post(PLACE, json=body).json()["kind"] == "txt2img"
    job = ended(folders)
    (wanted,) = host.asked
    assert wanted == Drawing(
        "a star <lora:star_60:0.5>", "blurry", "DPM++ 2M", 10, 7.5, 64, 64, (5, 6, 7), 4, MINIATURE
    )
    result = runs.outcome(job)
    assert result["status"] == "done"
    files = [Path(path) for path in result["result"]["pictures"]]
    assert [file.name for file in files] == ["00000-5.png", "00001-6.png", "00002-7.png"]
    with Image.open(files[1]) as opened:
        assert opened.info["parameters"] == "a star <lora:star_60:0.5>\nSeed: 6"
    stages = [event for event in job.events()[0] if event["event"] == "stage"]
    assert [one["done"] for one in stages] == [0, 15, 20, 25] and stages[0]["name"] == "drawing with AUTOMATIC1111"
    assert asked.post(PLACE, json={**ASK, "weights": str(MINIATURE), "width": 128}).status_code == 200
    ended(folders, 2)
    assert (host.asked[1].prompt, host.asked[1].checkpoint, host.asked[1].width) == ("a star", MINIATURE, 128)


def test_stopping_keeps_what_is_finished(folders: Folders) -> None:
    host = WebUI(folders.models)
    asked = client(host)

    def stop(look: Look) -> None:
        errand = job_list.errands(project.open_project(folders, "star"))[-1]
        if list((errand.folder.parents[1] / "generated").glob("*.png")):
            asked.post(f"{PLACE}/1/stop", json={})

    host.act = stop
    asked.post(PLACE, json={**ASK, "base": True})
    job = ended(folders)
    assert job.status() == "stopped" and len(job.story().pictures) == 1
    with pytest.raises(UserError, match="what was finished is kept"):
        launcher.result(job)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("The WebUI cannot draw this: CUDA out of memory."), "CUDA out of memory."),
        (ZeroDivisionError("division by zero"), "broke off: division by zero. Look at the WebUI's console"),
    ],
)
def test_what_goes_wrong_is_the_jobs_end(folders: Folders, error: Exception, said: str) -> None:
    def fail(look: Look) -> None:
        raise error

    client(WebUI(folders.models, fail)).post(PLACE, json={**ASK, "base": True})
    (problem,) = runs.outcome(ended(folders))["problems"]
    assert said in problem


def test_a_webui_that_is_closed_meanwhile_is_the_cause(folders: Folders) -> None:
    opened = project.open_project(folders, "star")
    job = job_list.create(opened.errands, {"kind": job_folder.TXT2IMG, "model": "star"}, "{}")
    job.report("started", kind=job_folder.TXT2IMG)
    told = "The WebUI was closed or started anew while it was at work. Start it again."
    assert runs.outcome(job)["problems"] == [told]


def test_what_cannot_be_drawn_so_is_refused_at_once(folders: Folders, lora: Path, tmp_path: Path) -> None:
    def refused(host: Standalone, **more: Any) -> str:
        answer = client(host).post(PLACE, json={**ASK, **more})
        assert answer.status_code == 400
        return str(answer.json()["problems"][0])

    webui = WebUI(folders.models)
    assert "here is no WebUI" in refused(Standalone(str(folders.models)), base=True)
    assert "none of diffusers, webui" in refused(webui, library="a1111")
    assert "'LMS' is none of AUTOMATIC1111's: Euler a, DPM++ 2M." in refused(webui, sampler="LMS")
    assert "a sheet is drawn with diffusers" in refused(webui, sheet={"weights": [""]})
    assert "steps: it must be from 1" in refused(webui, steps=0, base=True)
    elsewhere = tmp_path / "lora.safetensors"
    elsewhere.write_bytes(lora.read_bytes())
    assert "put it there, or draw with diffusers" in refused(webui, weights=str(elsewhere))
    fitted = project.open_project(folders, "star").embedding(lora)
    fitted.parent.mkdir(parents=True, exist_ok=True)
    fitted.touch()
    assert "only diffusers can do" in refused(webui, weights=str(lora))
    assert webui.asked == [] and job_list.errands(project.open_project(folders, "star")) == []


def test_an_embedding_is_named_in_the_prompt_as_the_webui_knows_it(folders: Folders, tmp_path: Path) -> None:
    import numpy

    file, webui = folders.embeddings / "star" / "star_60.safetensors", WebUI(folders.models)
    file.parent.mkdir(parents=True)
    vectors, own = {"emb_params": numpy.zeros((1, 768), "float32")}, {"dreambooth.words": '{"sks": null}'}
    save_file(vectors, file, own)
    save_file(vectors, tmp_path / "star_60.safetensors", own)
    client(webui).post(PLACE, json={**ASK, "weights": str(file), "prompt": "a photo of SKS star"})
    ended(folders)
    assert [(asked.prompt, asked.checkpoint) for asked in webui.asked] == [("a photo of star_60 star", MINIATURE)]
    answer = client(webui).post(PLACE, json={**ASK, "weights": str(tmp_path / "star_60.safetensors")})
    assert f"the WebUI looks for embeddings in {folders.embeddings}; put it there" in answer.json()["problems"][0]


def test_no_picture_is_written_over_where_some_were_removed(tmp_path: Path) -> None:
    drawn = [pictures.keep(Image.new("RGB", (8, 8)), tmp_path, 5, "") for _ in range(3)]
    assert [path.name for path in drawn] == ["00000-5.png", "00001-5.png", "00002-5.png"]
    drawn[0].unlink()
    assert pictures.keep(Image.new("RGB", (8, 8)), tmp_path, 5, "").name == "00003-5.png"


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        pictures.keep(Image.new("RGB", (8, 8)), tmp_path / "file", 1, "")
