"""Every scheduler really draws: the exact ones the same picture, the random ones their own, none with a wrong model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.core.settings.results import Previews
from dreambooth.engine import families, worker
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.drawing import sampling_choice
from dreambooth.engine.drawing.sampling import SCHEDULERS, Known, draw
from dreambooth.engine.drawing.sampling_choice import NO_ZERO_TERMINAL_SNR, Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import setup
from dreambooth.engine.training import preview
from dreambooth.engine.work import Work
from dreambooth.service import launcher
from tests.engine import tiny

RANDOM = ("dpm++_sde", "dpm++_sde_karras", "ddpm", "euler_a", "kdpm2_a", "sa")  # noise is added on the way
STEPS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.load_file(tiny.write_original(tmp_path_factory.mktemp("sd1") / "sd1.safetensors", "sd1"))


@pytest.fixture(scope="module")
def zero_snr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_original(tmp_path_factory.mktemp("xl") / "xl.safetensors", "sdxl-v")


def drawn(model: Model, name: str, steps: int = STEPS, seeds: tuple[int, ...] = (7,)) -> np.ndarray:
    pictures = draw(model, ["a red star"] * len(seeds), list(seeds), Sampling(64, 64, steps, 3.0, "", name))
    return np.stack([np.asarray(picture, float) for picture in pictures])


@pytest.fixture(scope="module")
def exact(model: Model) -> np.ndarray:
    return drawn(model, "ddim", 60)


def test_the_setting_offers_what_there_is() -> None:
    assert get_args(get_type_hints(Previews)["scheduler"]) == tuple(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_draws(model: Model, exact: np.ndarray, name: str) -> None:
    """All that solve the same equation come to the same picture; what adds noise to another, and follows its seed."""
    one = drawn(model, name)
    away = np.abs(one - exact).mean()
    assert away > 5 if name in RANDOM else away < 5, away
    assert one.std() > 10
    both = drawn(model, name, seeds=(8, 7))
    assert np.abs(both[1] - one[0]).max() <= 2  # a batch changes nothing
    assert np.abs(both[0] - one[0]).mean() > 5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_which_cannot_do_zero_terminal_snr(zero_snr: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Those that are refused do fail when they are tried; the others draw."""
    model = families.load_file(zero_snr)
    assert model.zero_terminal_snr
    if name not in NO_ZERO_TERMINAL_SNR:
        picture = drawn(model, name)
        assert np.isfinite(picture).all()
        assert name in RANDOM or np.abs(picture - drawn(model, "ddim", 60)).mean() < 10
        return
    with pytest.raises(UserError, match="zero terminal SNR; choose"):
        drawn(model, name)
    monkeypatch.setattr(sampling_choice, "NO_ZERO_TERMINAL_SNR", ())
    try:
        drawn(model, name, 40)
    except (TypeError, IndexError):
        return
    assert np.abs(drawn(model, name) - drawn(model, "ddim", 60)).mean() > 10


def test_a_run_is_refused_before_it_starts(zero_snr: Path, tmp_path: Path) -> None:
    made = project.create(Folders(tmp_path), "xl", zero_snr)
    chosen = parse({"previews.scheduler": "heun", "concepts.0.instance_data_dir": str(tmp_path)})
    job = launcher.new_run(Folders(tmp_path), made, chosen)
    with pytest.raises(UserError, match=r"^previews.scheduler: heun cannot draw"):
        worker.run(job)
    assert not job.events()[0]


def test_previews_have_their_own_sampling(model: Model, tmp_path: Path) -> None:
    """Scheduler, steps, scale, negative prompt, seed, width and height each change the picture."""
    base = {"previews.prompts": "a red star", "previews.steps": 4, "concepts.0.instance_prompt": "a star"}

    def made(**changes: object) -> np.ndarray:
        chosen = settings.parse({**base, **{f"previews.{key}": value for key, value in changes.items()}})
        from PIL import Image

        path = preview.make(model, chosen, tmp_path, 0, 64)[0]
        with Image.open(path) as picture:
            return np.asarray(picture, float)

    plain = made()
    assert np.array_equal(plain, made())
    changes = {"scheduler": "euler_a", "steps": 5, "guidance_scale": 2.0, "negative_prompt": "a blue circle", "seed": 1}
    for key, value in changes.items():
        assert not np.array_equal(plain, made(**{key: value})), key
    assert made(width=128, height=72).shape == (72, 128, 3)
    assert np.abs(made(count=2) - plain).max() <= 2


def test_a_prompt_is_read_once_and_alone(model: Model) -> None:
    """However many pictures are drawn of it, in however many batches; and a picture does not hang on its neighbours."""
    sampling, batches = Sampling(64, 64, 2, 3.0, "blue", "ddim"), []
    handle = model.text_encoders["text_encoder"].register_forward_hook(lambda *io: batches.append(len(io[1][0])))
    known = Known(model)
    try:
        both = draw(model, ["a red star", "a moon"], [1, 2], sampling, known=known)
        alone = draw(model, ["a moon", "a moon"], [2, 3], sampling, known=known)[0]
    finally:
        handle.remove()
    assert batches == [1, 1, 1], "two prompts and what is not wanted"
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone, int)).max() <= 2


def test_the_unet_draws_in_the_precision_of_the_training(model: Model, tmp_path: Path) -> None:
    """Also where its weights are whole, as those of a model that is taught itself."""
    inside: list[torch.dtype] = []
    handle = model.unet.mid_block.register_forward_hook(lambda *io: inside.append(io[2].dtype))
    try:
        whole = drawn(model, "ddim", 4)
        model.drawn_in = torch.bfloat16
        half = drawn(model, "ddim", 4)
    finally:
        model.drawn_in = None
        handle.remove()
    assert inside == [torch.float32] * 4 + [torch.bfloat16] * 4
    assert model.unet.dtype == torch.float32
    assert 0 < np.abs(whole - half).mean() < 3
    made = project.create(Folders(tmp_path), "m", tiny.write_original(tmp_path / "m.safetensors", "sd1"))
    job = launcher.new_run(Folders(tmp_path), made, parse({"general.method": "full", "tuning.mixed_precision": "bf16"}))
    work = Work.open(job)
    assert setup.load(work, open_model(made))[0].drawn_in == torch.bfloat16
