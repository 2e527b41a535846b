"""Captions by captioning models that were taught to tell a red picture from a blue one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dreambooth.core import project, settings
from dreambooth.core.captions import FILEWORDS
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.engine import captioning as engine_captioning
from dreambooth.service import captioning, launcher
from tests.engine import tiny_captioner


@pytest.fixture(scope="module", params=["blip", "git"])
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_captioner.write(tmp_path_factory.mktemp("captioner") / request.param, request.param)


@pytest.fixture
def stars(tmp_path: Path) -> Project:
    """Two concepts: one with a red and a blue picture, one with a red picture that has a caption."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    tiny_captioner.picture("red", tmp_path / "first" / "1.png")
    tiny_captioner.picture("blue", tmp_path / "first" / "2.png")
    tiny_captioner.picture("red", tmp_path / "second" / "1.png").with_suffix(".txt").write_text("mine")
    flat = {
        "concepts.0.instance_data_dir": str(tmp_path / "first"),
        "concepts.0.instance_prompt": FILEWORDS,
        "concepts.1.instance_data_dir": str(tmp_path / "second"),
        "concepts.1.instance_prompt": "a photo of sks star",
    }
    return project.create(Folders(tmp_path / "models"), "stars", MINIATURE, flat)


def caption(stars: Project, captioner: Path | str, **wanted: Any) -> tuple[dict[str, Any], Job]:
    chosen = settings.parse(stars.settings())
    fields = captioning.fields(chosen, {"with": str(captioner), **wanted})
    job = launcher.new_errand(Folders(stars.folder.parents[1]), stars, "caption", chosen, **fields)
    return engine_captioning.run(job), job


def captions(tmp_path: Path) -> dict[str, str]:
    return {path.relative_to(tmp_path).as_posix(): path.read_text() for path in sorted(tmp_path.glob("*/*.txt"))}


def test_each_picture_without_a_caption_gets_what_the_model_says_of_it(
    stars: Project, captioner: Path, tmp_path: Path
) -> None:
    result, job = caption(stars, captioner)
    assert captions(tmp_path) == {"first/1.txt": "a red star\n", "first/2.txt": "an blue dog\n", "second/1.txt": "mine"}
    assert [one["caption"] for one in result["captions"]] == ["a red star", "an blue dog"]
    assert result["asked"] == 2
    assert job.warnings() == [
        "concepts.1.instance_prompt: no caption is trained on without [filewords] in it. Put it there."
    ]
    assert caption(stars, captioner)[0] == {"captions": [], "asked": 0}


def test_over_replaces_what_is_there_and_a_concept_may_be_chosen(
    stars: Project, captioner: Path, tmp_path: Path
) -> None:
    caption(stars, captioner, over=True, concept=1)
    assert captions(tmp_path) == {"second/1.txt": "a red star\n"}


def test_a_damaged_picture_is_named_and_the_others_are_described(
    stars: Project, captioner: Path, tmp_path: Path
) -> None:
    (tmp_path / "first" / "0.png").write_bytes(b"no picture")
    _, job = caption(stars, captioner, concept=0)
    assert list(captions(tmp_path)) == ["first/1.txt", "first/2.txt", "second/1.txt"]
    assert "first/0.png" in job.warnings()[0] and job.warnings()[0].endswith("It got no caption.")


def test_a_model_that_cannot_be_loaded_is_named(stars: Project, captioner: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "some" / "damaged"
    shutil.copytree(captioner, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match="damaged: this captioning model cannot be loaded"):
        caption(stars, folder)
    assert list(captions(tmp_path)) == ["second/1.txt"]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({}, "with: name a captioning model of the Hugging Face hub, such as Salesforce"),
        ({"with": 3}, "with: name a captioning model"),
        ({"with": "nowhere"}, "with: there is no folder"),
        ({"with": "a/b/c.safetensors"}, "with: there is no folder"),
        ({"with": "a/b", "over": 1}, "over: it must be true or false"),
        ({"with": "a/b", "concept": 2}, r"concept: there is no concept 2 \(there: 0 to 1\)"),
        ({"with": "a/b", "concept": True}, "concept: there is no concept True"),
    ],
)
def test_what_cannot_be_is_refused(stars: Project, wanted: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        captioning.fields(settings.parse(stars.settings()), wanted)
    assert captioning.fields(settings.parse(stars.settings()), {"with": "a/b"})["captioner"] == "a/b"


def test_other_folders_are_no_captioning_models(
    stars: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder = settings.parse(stars.settings()), tmp_path / "other"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no captioning model"):
        captioning.fields(chosen, {"with": str(folder)})
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"cannot describe pictures with this model \('clip' is none of blip, git\)"):
        captioning.fields(chosen, {"with": str(folder)})
    (folder / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(UserError, match="there are no weights"):
        captioning.fields(chosen, {"with": str(folder)})
    monkeypatch.setattr(confinement, "_own", lambda: [tmp_path / "models"])
    with pytest.raises(UserError, match="lies outside of the WebUI's folders"):
        captioning.fields(chosen, {"with": "a/b"})
