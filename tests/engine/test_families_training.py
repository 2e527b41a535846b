"""A run with each family: what it writes, and that it changes what it should and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import project, settings
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, worker
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import open_model, open_source
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.training import objective, preview
from dreambooth.service import launcher
from tests.engine import tiny

SHORT = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 1,
    "concepts.0.class_infer_steps": 2,
    "intervals.num_train_epochs": 2,
    "batching.train_batch_size": 2,
    "learning.learning_rate": 1e-4,
    "learning.text_encoder_learning_rate": 1e-4,
    "tuning.text_encoder_ratio": 1.0,
    "optimizer.weight_decay": 0.0,
    "previews.steps": 2,
    "saving.half_model": False,
}


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A model from a file, and for SD 2 and SDXL one from a Diffusers folder."""
    kind = str(request.param)
    folder = tmp_path_factory.mktemp(kind)
    if kind in ("sd2", "sdxl"):
        source = tiny.write_folder(folder / "source", kind)
    else:
        source = tiny.write_original(folder / "source.safetensors", kind)
    return project.create(Folders(folder / "models"), kind, source)


def train(made: Project, **changes: Any) -> tuple[Job, Path]:
    folders = Folders(made.folder.parents[1])
    job = launcher.new_run(folders, made, settings.parse({**made.settings(), **SHORT, **changes}))
    assert worker.run(job) == "done"
    return job, Path(next(event["path"] for event in job.events()[0] if event["event"] == "saved"))


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_full_fine_tuning_changes_unet_and_text_and_nothing_else(made: Project, form: str) -> None:
    job, path = train(made, **{"general.method": "full", "saving.checkpoint_format": form})
    before, after = open_model(made), open_model(made, path)
    assert path.suffix == f".{form}"
    assert before.tensors.keys() <= after.tensors.keys()
    changed = {name for name in before.tensors if not torch.equal(before.read(name), after.read(name))}
    assert {name.split("/")[0] for name in changed} >= {"unet", "text_encoder"}
    assert not [name for name in changed if name.startswith("vae/")]
    assert path.with_suffix(".yaml").exists() == (made.about["family"] == "sd2" or made.name.endswith("-v"))
    assert Image.open(job.folder / "previews.png").size[0] > 100
    if form == "safetensors":  # what the file says of itself is what the model is
        about = checkpoint.describe(checkpoint.read_header(path))
        assert (about.family, about.prediction_type) == (made.about["family"], made.about["prediction_type"])
        assert about.resolution == 64


def test_a_lora_is_written_and_draws_like_the_last_preview(made: Project) -> None:
    layers = "convolutions"
    job, path = train(
        made, **{"lora.layers": layers, "learning.lora_learning_rate": 1e-2, "previews.prompts": "a photo of sks star"}
    )
    last = sorted(job.previews.glob("*.png"))[-1]
    model = families.load(open_model(made))
    own = open_model(made)
    lora.add(path, lora.read(path, own.tensors, made.about["family"]), own, model.parts, 1.0)
    shown = settings.parse(job.settings())
    again = preview.make(model, shown, job.folder / "again", 10, 64)
    assert np.abs(np.asarray(Image.open(last), int) - np.asarray(Image.open(again[-1]), int)).max() <= 2
    first = sorted(job.previews.glob("*.png"))[0]
    assert np.abs(np.asarray(Image.open(last), int) - np.asarray(Image.open(first), int)).max() > 2
    metadata = checkpoint.read_header(path).metadata
    versions = {
        "sd1": "sd_v1",
        "sd2": "sd_v2",
        "sd2-v": "sd_v2_v",
        "sdxl": "sdxl_base_v1-0",
        "sdxl-v": "sdxl_base_v1-0",
    }
    assert metadata["ss_base_model_version"] == versions[made.name]


def test_the_loss_is_diffusers_own(made: Project) -> None:
    """Noise, target and prediction of one batch against diffusers' scheduler and pipeline parts."""
    model = families.load(open_model(made))
    scheduler = make_scheduler("ddim", model)
    alpha_bar = scheduler.alphas_cumprod
    torch.manual_seed(1)
    x_0, eps, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 999])
    noisy = objective.add_noise(x_0, eps, alpha_bar[t])
    assert torch.allclose(noisy, scheduler.add_noise(x_0, eps, t), atol=1e-6)
    wanted = objective.target(model.prediction_type, x_0, eps, alpha_bar[t])
    theirs = scheduler.get_velocity(x_0, eps, t) if model.prediction_type == "v_prediction" else eps
    assert torch.allclose(wanted, theirs, atol=1e-6)
    if model.zero_terminal_snr:
        assert alpha_bar[-1] == 0
        assert torch.allclose(noisy[2], eps[2])


def test_going_on_from_a_lora_file_starts_from_what_it_knows(made: Project) -> None:
    changes = {"learning.lora_learning_rate": 1e-2, "previews.count": 0, "lora.rank": 3, "lora.alpha": 3.0}
    _, first = train(made, **changes)
    still = {**changes, "lora.rank": 16, "learning.lora_learning_rate": 0.0, "optimizer.max_grad_norm": 0}
    _, second = train(made, **still, **{"lora.start_file": str(first), "learning.lora_text_encoder_learning_rate": 0.0})
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_text_encoders_rest_where_not_asked(made: Project) -> None:
    _, path = train(made, **{"general.method": "full", "tuning.text_encoder_ratio": 0.0, "previews.count": 0})
    before, after = open_model(made), open_source(path, made.reading)
    changed = {name for name in before.tensors if not torch.equal(before.read(name), after.read(name))}
    assert {name.split("/")[0] for name in changed} == {"unet"}
