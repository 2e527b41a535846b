"""Whole runs with options of what is minimised and what is trained: exact over a pause, seen in what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, worker
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.training import preview
from dreambooth.service import launcher

SHORT = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "intervals.num_train_epochs": 2,
    "batching.train_batch_size": 2,
    "learning.learning_rate": 1e-4,
    "learning.text_encoder_learning_rate": 1e-4,
    "learning.lora_learning_rate": 1e-2,
    "previews.count": 0,
    "saving.half_model": False,
}
EVERYTHING = {
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 1,
    "concepts.0.class_infer_steps": 2,
    "objective.loss": "huber",
    "objective.weighting": "min_snr",
    "objective.prior_loss_scale": True,
    "objective.prior_loss_target": 2,
    "objective.offset_noise": 0.1,
    "objective.multires_noise_levels": 3,
    "objective.input_perturbation": 0.1,
    "objective.timesteps": "logit_normal",
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project.create(Folders(tmp_path_factory.mktemp("objective")), "star", MINIATURE)


def new_run(star: Project, **changes: Any) -> Job:
    return launcher.new_run(Folders(star.folder.parents[1]), star, settings.parse({**SHORT, **changes}))


def saved(job: Job) -> Path:
    return Path(next(event["path"] for event in job.events()[0] if event["event"] == "saved"))


def train(star: Project, **changes: Any) -> Job:
    job = new_run(star, **changes)
    assert worker.run(job) == "done"
    return job


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_pausing_changes_no_bit_with_every_option_on(star: Project, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**EVERYTHING, "lora.kind": kind, "lora.rank": 2}
    whole, stopped = train(star, **changes), new_run(star, **changes)
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 3 else set())
    assert worker.run(stopped) == "paused"
    monkeypatch.undo()
    assert worker.run(stopped) == "done"
    one, other = load_file(saved(whole)), load_file(saved(stopped))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_the_file_of_each_kind_draws_the_last_preview(star: Project, kind: str, half: bool) -> None:
    shown = {"previews.count": 1, "previews.steps": 3, "previews.prompts": "a photo of sks star"}
    changes = {"lora.kind": kind, "lora.rank": 4, "lora.layers": "convolutions", "saving.half_model": half}
    job = train(star, **shown, **changes)
    first, *_, last = sorted(job.previews.glob("*.png"))
    source = open_model(star)
    model = families.load(source)
    lora.add(saved(job), lora.read(saved(job), source.tensors, "sd1"), source, model.parts, 1.0)
    again = preview.make(model, settings.parse(job.settings()), job.folder / "again", 10, 64)[-1]
    pixels = [np.asarray(Image.open(path), int) for path in (first, last, again)]
    assert np.abs(pixels[1] - pixels[2]).max() <= 3
    assert np.abs(pixels[1] - pixels[0]).max() > 10
    said = checkpoint.read_header(saved(job)).metadata
    assert said["ss_network_module"] == "lycoris.kohya"
    assert f'"algo": "{ {"dora": "lora", "oft": "diag-oft"}.get(kind, kind) }"' in said["ss_network_args"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_train_unet_off_leaves_the_unet_of_the_file_alone(star: Project, method: str) -> None:
    off = {"general.method": method, "tuning.train_unet": False, "tuning.text_encoder_ratio": 1.0}
    after = load_file(saved(train(star, **off)))
    if method == "lora":
        assert {name.split("_")[1] for name in after} == {"te"}
        return
    before = load_file(MINIATURE)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed == {"cond_stage_model"}


def test_frozen_norms_are_those_of_the_source_in_the_checkpoint(star: Project) -> None:
    changes = {"general.method": "full", "tuning.text_encoder_ratio": 1.0, "tuning.freeze_clip_normalization": True}
    before, after = load_file(MINIATURE), load_file(saved(train(star, **changes)))
    text = [name for name in before if name.startswith("cond_stage_model")]
    changed = {name for name in text if not torch.equal(before[name].float(), after[name].float())}
    assert changed
    assert not [name for name in changed if "norm" in name]
    thawed = load_file(saved(train(star, **{**changes, "tuning.freeze_clip_normalization": False})))
    assert [name for name in text if "norm" in name and not torch.equal(before[name].float(), thawed[name].float())]


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_a_run_goes_on_from_a_file_of_each_kind(star: Project, kind: str) -> None:
    first = saved(train(star, **{"lora.kind": kind, "lora.rank": 2}))
    still = {"lora.start_file": str(first), "learning.lora_learning_rate": 0.0}
    second = saved(train(star, **still))
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_file_that_cannot_be_gone_on_from_ends_in_a_sentence(star: Project) -> None:
    first = saved(train(star, **{"lora.kind": "loha", "lora.rank": 2}))
    with pytest.raises(UserError, match=r"lora.start_file: .* has no input to drop; set lora.dropout to 0"):
        worker.run(new_run(star, **{"lora.start_file": str(first), "lora.dropout": 0.1}))
