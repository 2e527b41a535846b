"""What the WebUI is given to draw with a result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders, Project
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings, parse, to_json
from dreambooth.service import models, runs, use_in_txt2img
from tests.conftest import needs_links


def job(folder: Path, **settings: Any) -> job_folder.Job:
    made = job_list.create(folder / "runs", {"kind": "train", "models": str(folder)}, to_json(parse(settings)))
    assert isinstance(made, job_folder.Job)
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_a_lora_goes_into_the_prompt_and_leaves_the_checkpoint(folders: Folders, tmp_path: Path) -> None:
    trained = job(tmp_path, **{"previews.prompts": " a sks dog ; a dog"})
    said = use_in_txt2img.use(folders, trained, folders.loras / "deep" / "anna dog_40.safetensors")
    assert said == use_in_txt2img.Use("a sks dog <lora:anna dog_40:1>", "")


def test_a_checkpoint_is_named_as_the_webuis_list_names_it(folders: Folders, tmp_path: Path) -> None:
    trained = job(tmp_path, **{"previews.prompts": "a sks dog"})
    said = use_in_txt2img.use(folders, trained, folders.checkpoints / "mine" / "anna.safetensors")
    assert said == use_in_txt2img.Use("a sks dog", str(Path("mine") / "anna.safetensors"))


def test_what_the_webui_does_not_see_is_not_offered(folders: Folders, tmp_path: Path) -> None:
    assert use_in_txt2img.use(folders, job(tmp_path), tmp_path / "elsewhere.safetensors") is None


def test_without_previews_it_is_what_the_first_picture_was_called(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("b.png", "a.png"):
        (pictures / name).touch()
    (pictures / "a.txt").write_text("a sks star, on a table")
    concept = {"concepts.0.instance_data_dir": str(pictures), "concepts.0.instance_prompt": "a photo of [filewords]"}
    assert use_in_txt2img.taught(parse(concept)) == "a photo of a sks star, on a table"
    assert use_in_txt2img.taught(parse({**concept, "previews.prompts": "[filewords]; one"})) == "a sks star, on a table"
    assert use_in_txt2img.taught(parse({"concepts.0.instance_prompt": "a photo of sks star"})) == "a photo of sks star"
    (pictures / "a.txt").write_text(r"sks ||| tifa (ff7), \(hat\)")
    tagged = {**concept, "captions.keep_marker": "|||", "captions.tag_dropout": 1.0}
    assert use_in_txt2img.taught(parse(tagged)) == r"a photo of sks, tifa \(ff7\), \(hat\)", "all tags, for the WebUI"
    tagged["captions.weighted"] = True
    assert use_in_txt2img.taught(parse(tagged)) == r"a photo of sks, tifa (ff7), \(hat\)"
    (pictures / "a.txt").unlink()
    (pictures / "a.png").unlink()
    assert use_in_txt2img.taught(parse(concept)).startswith("a photo of"), "the file's name where there is no caption"
    (pictures / "b.png").unlink()
    use_in_txt2img.taught(parse(concept))  # no picture any more: no matter


ASKED = {"prompt": "a star", "negative_prompt": "", "steps": 20, "guidance_scale": 7.5, "width": 0, "height": 128}


@pytest.fixture
def opened(folders: Folders) -> Project:
    folders.checkpoints.mkdir(parents=True)
    source = folders.checkpoints / "miniature.safetensors"
    shutil.copyfile(MINIATURE, source)
    return project.create(folders, "star", source)


def test_a_picture_is_told_as_the_webui_reads_it(folders: Folders, opened: Project) -> None:
    lora = str(folders.loras / "star_4.safetensors")
    said = use_in_txt2img.use_picture(folders, opened, {**ASKED, "scheduler": "dpm++_karras"}, 9, lora, 0.8)
    assert said == use_in_txt2img.Use(
        "a star <lora:star_4:0.8>",
        "",
        "a star <lora:star_4:0.8>\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 9, Size: 64x128",
    )
    by_webui = {**ASKED, "sampler": "Euler a", "negative_prompt": "blurry"}
    said = use_in_txt2img.use_picture(folders, opened, by_webui, 9, "", 1.0)
    assert said == use_in_txt2img.Use(
        "a star",
        "miniature.safetensors",
        "a star\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 9, Size: 64x128",
    )
    without = use_in_txt2img.use_picture(folders, opened, {**ASKED, "scheduler": "sa"}, 9, "", 1.0)
    assert without and "Sampler" not in without.parameters, "the WebUI's own stays, as it has none like it"


def test_results_in_a_folder_of_their_own_are_listed_used_and_outlive_their_model(
    folders: Folders, opened: Project
) -> None:
    made = job_list.new_run(folders, opened, parse({"previews.prompts": "a star", "saving.use_subdirectory": True}))
    files = [folders.loras / "star" / "star_5.safetensors", folders.checkpoints / "star" / "star_5.safetensors"]
    made.report("started")
    for kind, path in zip(("lora", "checkpoint"), files):
        path.parent.mkdir(parents=True)
        shutil.copyfile(MINIATURE, path)
        made.report("saved", kind=kind, path=str(path), bytes=1, images=5)
    made.report("done")
    lora, checkpoint = use_in_txt2img.use(folders, made, files[0]), use_in_txt2img.use(folders, made, files[1])
    assert lora and lora.prompt.endswith(" <lora:star_5:1>")
    assert checkpoint and Path(checkpoint.checkpoint) == Path("star/star_5.safetensors")
    models.rename(folders, "star", "moon")
    renamed = project.open_project(folders, "moon")
    assert [one["path"] for one in runs.outputs(renamed)] == [str(path) for path in reversed(files)]
    assert runs.weights(renamed, "", base=False) == files[1]
    assert renamed.results(folders, parse({"saving.use_subdirectory": True})) == folders.loras / "moon"
    models.duplicate(folders, "moon", "sun")
    assert runs.outputs(project.open_project(folders, "sun")) == []
    models.delete(folders, "moon")
    assert all(path.exists() for path in files)


@needs_links
def test_a_checkpoint_that_is_linked_into_the_webuis_folder_is_known_there(folders: Folders) -> None:
    folders.checkpoints.mkdir(parents=True)
    (folders.checkpoints / MINIATURE.name).symlink_to(MINIATURE)
    made = project.create(folders, "star", folders.checkpoints / MINIATURE.name)
    said = use_in_txt2img.use_picture(folders, made, {**ASKED, "scheduler": "ddim"}, 9, "", 1.0)
    assert said and said.checkpoint == MINIATURE.name


@needs_links
def test_a_checkpoint_in_a_folder_that_several_programs_share_is_known_there(folders: Folders, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "of-anna"
    shared.mkdir(parents=True)
    shutil.copyfile(MINIATURE, shared / "star.safetensors")
    folders.checkpoints.parent.mkdir(parents=True, exist_ok=True)
    folders.checkpoints.symlink_to(shared.parent)
    made = project.create(folders, "star", folders.checkpoints / "of-anna" / "star.safetensors")
    said = use_in_txt2img.use_picture(folders, made, {**ASKED, "scheduler": "ddim"}, 9, "", 1.0)
    assert said and said.checkpoint == str(Path("of-anna") / "star.safetensors")


def test_a_picture_that_the_webui_cannot_draw_is_not_offered(folders: Folders, opened: Project, tmp_path: Path) -> None:
    asked = {**ASKED, "scheduler": "ddim"}
    assert use_in_txt2img.use_picture(folders, opened, asked, 9, str(tmp_path / "elsewhere.safetensors"), 1.0) is None
    lora = folders.loras / "star_4.safetensors"
    fitted = opened.embedding(lora)
    fitted.parent.mkdir(parents=True, exist_ok=True)
    fitted.touch()
    assert use_in_txt2img.use_picture(folders, opened, asked, 9, str(lora), 1.0) is None


def test_every_scheduler_is_a_sampler_of_the_webuis_or_none_of_theirs() -> None:
    known = next(leaf for leaf in leaves(Settings) if leaf.key == "previews.scheduler").choices
    assert set(use_in_txt2img.SAMPLERS) == set(known) - {"dpm++_single", "ddpm", "deis", "sa"}
