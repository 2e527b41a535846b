"""What the WebUI is given to draw with a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import run
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse, to_json
from dreambooth.service import hot_use


def job(folder: Path, **settings: Any) -> run.Job:
    made = run.create(folder / "runs", {"kind": "train", "models": str(folder)}, to_json(parse(settings)))
    assert isinstance(made, run.Job)
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_a_lora_goes_into_the_prompt_and_leaves_the_checkpoint(folders: Folders, tmp_path: Path) -> None:
    trained = job(tmp_path, **{"previews.prompts": " a sks dog ; a dog"})
    said = hot_use.use(folders, trained, folders.loras / "deep" / "anna dog_40.safetensors")
    assert said == hot_use.Use("a sks dog <lora:anna dog_40:1>", "")


def test_a_checkpoint_is_named_as_the_webuis_list_names_it(folders: Folders, tmp_path: Path) -> None:
    trained = job(tmp_path, **{"previews.prompts": "a sks dog"})
    said = hot_use.use(folders, trained, folders.checkpoints / "mine" / "anna.safetensors")
    assert said == hot_use.Use("a sks dog", str(Path("mine") / "anna.safetensors"))


def test_what_the_webui_does_not_see_is_not_offered(folders: Folders, tmp_path: Path) -> None:
    assert hot_use.use(folders, job(tmp_path), tmp_path / "elsewhere.safetensors") is None


def test_without_previews_it_is_what_the_first_picture_was_called(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("b.png", "a.png"):
        (pictures / name).touch()
    (pictures / "a.txt").write_text("a sks star, on a table")
    concept = {"concepts.0.instance_data_dir": str(pictures), "concepts.0.instance_prompt": "a photo of [filewords]"}
    assert hot_use.taught(parse(concept)) == "a photo of a sks star, on a table"
    assert hot_use.taught(parse({"concepts.0.instance_prompt": "a photo of sks star"})) == "a photo of sks star"
    (pictures / "a.txt").unlink()
    (pictures / "a.png").unlink()
    assert hot_use.taught(parse(concept)).startswith("a photo of"), "the file's name where there is no caption"
    (pictures / "b.png").unlink()
    hot_use.taught(parse(concept))  # no picture any more: no matter
