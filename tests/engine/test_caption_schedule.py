"""What pictures are read with while training: known beforehand, following from the position, and really trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import project, settings
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings.dataset import Captions
from dreambooth.engine import worker
from dreambooth.engine.data.caption_schedule import CaptionSchedule
from dreambooth.engine.training import preview
from dreambooth.service import launcher

TAGS = "a star, red, large, alone"


def read(schedule: CaptionSchedule, caption: int, places: range) -> list[str]:
    return [schedule.texts[schedule.of_instances(torch.tensor([caption]), place)[0]] for place in places]


def test_without_options_a_caption_is_read_as_it_is() -> None:
    schedule = CaptionSchedule(["a star", "a heart", "a star"], ["a star", "a moon"], Captions(), 1)
    assert schedule.captions == schedule.texts == ["a star", "a heart", "a moon"]
    assert schedule.of_instances(torch.tensor([1, 0]), 5).tolist() == [1, 0]
    assert schedule.of_class(torch.tensor([2, 0])).tolist() == [2, 0]


def test_only_your_captions_vary() -> None:
    schedule = CaptionSchedule([TAGS], [TAGS], Captions(shuffle_tags=True, prefix="sks"), 1)
    seen = read(schedule, 0, range(200))
    assert set(seen) == set(schedule.texts) - {TAGS}
    assert len(set(seen)) == 6
    assert all(text.startswith("sks, a star, ") for text in seen)
    assert schedule.texts[schedule.of_class(torch.tensor([0]))[0]] == TAGS


def test_a_batch_reads_what_its_places_read_alone() -> None:
    schedule = CaptionSchedule([TAGS, "a heart, blue, small"], [], Captions(shuffle_tags=True, dropout=0.3), 1)
    chosen = torch.tensor([0, 1, 1, 0, 0, 1])
    together = schedule.of_instances(chosen, 40).tolist()
    alone = [int(schedule.of_instances(chosen[n : n + 1], 40 + n)[0]) for n in range(len(chosen))]
    assert together == alone


def test_a_share_is_read_without_a_caption() -> None:
    schedule = CaptionSchedule([TAGS], [], Captions(dropout=0.25), 1)
    assert read(schedule, 0, range(400)).count("") == pytest.approx(100, abs=25)


def test_every_so_many_epochs_nothing_is_read() -> None:
    schedule = CaptionSchedule([TAGS], [], Captions(dropout_every=3), 1, epoch=5)
    assert ["" if text == "" else "a" for text in read(schedule, 0, range(35))] == ([*"a" * 10, *[""] * 5] * 3)[:35]


def test_what_is_left_out_follows_from_the_seed_and_stays_in_few_texts() -> None:
    """However long a run is, so many texts are read in all, and the same of them twice."""
    options = Captions(tag_dropout=0.5, variants=3, keep_marker="|||")
    schedule, again = (CaptionSchedule(["a star ||| red, large, alone"], [], options, 1) for _ in range(2))
    seen = read(schedule, 0, range(300))
    assert seen == read(again, 0, range(300))
    assert set(seen) == set(schedule.texts) and 1 < len(set(seen)) <= 3
    assert all(text.startswith("a star") and "|" not in text for text in seen)


def test_previews_show_what_the_first_picture_is_read_with(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a star on {red|blue}")
    flat = {"instance_data_dir": str(tmp_path), "instance_prompt": "photo of [filewords]", "instance_token": "sks"}
    flat |= {"class_prompt": "[filewords]", "class_token": "star"}
    chosen = settings.parse({f"concepts.0.{key}": value for key, value in flat.items()})
    own, of_class = preview.prompts(chosen)
    assert own in ("photo of a sks star on red", "photo of a sks star on blue")
    assert of_class in ("a star on red", "a star on blue")
    chosen.previews.prompts = "one; two"
    assert preview.prompts(chosen) == ["one", "two"]
    chosen.previews.prompts = "[filewords], in snow; a dog"
    with_caption, plain = preview.prompts(chosen)
    assert with_caption in ("a sks star on red, in snow", "a sks star on blue, in snow")
    assert plain == "a dog"


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project.create(Folders(tmp_path_factory.mktemp("readings")), "star", MINIATURE)


def run(star: Project, pictures: Path, **changes: Any) -> Job:
    short = {
        "concepts.0.instance_data_dir": str(pictures),
        "concepts.0.instance_prompt": "a red star, large, on white, alone",
        "general.method": "full",
        "learning.learning_rate": 1e-4,
        "intervals.num_train_epochs": 2,
        "previews.count": 0,
    }
    job = launcher.new_run(Folders(star.folder.parents[1]), star, settings.parse({**short, **changes}))
    assert worker.run(job) == "done"
    return job


def train(star: Project, pictures: Path, **changes: Any) -> tuple[int, torch.Tensor]:
    """The steps of a short run, and a part of what it made."""
    job = run(star, pictures, **changes)
    out = next(event["path"] for event in job.events()[0] if event["event"] == "saved")
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return job.progress()["steps"], load_file(out)[name]


def test_how_captions_are_read_changes_what_is_learned(star: Project, tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    steps, plain = train(star, tmp_path)
    assert (steps, torch.equal(train(star, tmp_path)[1], plain)) == (4, True)
    for key, value in {"captions.shuffle_tags": True, "captions.tag_dropout": 0.9, "captions.suffix": "blue"}.items():
        again, other = train(star, tmp_path, **{key: value})
        assert again == steps
        assert not torch.equal(other, plain), key


def test_captions_that_are_cut_off_are_told(star: Project, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    long = {"concepts.0.instance_prompt": "a red star " * 30, "intervals.num_train_epochs": 1}

    def warnings(**more: Any) -> list[str]:
        return [e["text"] for e in run(star, tmp_path, **long, **more).events()[0] if e["event"] == "warning"]

    assert "1 of 1 captions are cut off after 75 tokens, such as: a red star" in warnings()[0]
    assert warnings(**{"tuning.max_token_length": 150}) == []
