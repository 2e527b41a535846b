"""What a card works out is what the CPU does: a training from the same noise, previews, class pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import class_images
from dreambooth.service import launcher
from tests.engine.runs import LORA, told, train
from tests.gpu.conftest import losses, pixels, without_card
from tests.gpu.test_parity import UNTRACED, off

STEPS = {"cpu": 4, "cuda": 20}
ROUNDING = 2  # of 255, in the mean of the worst picture; at single pixels a little may add up to more


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision is full precision: a card's convolutions would take TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """All noise is drawn by the CPU, whose generator gives other numbers than a card's from the same seed."""
    for name in ("randn_like", "randn", "rand", "randint"):
        monkeypatch.setattr(torch, name, _drawn_by_the_cpu(getattr(torch, name), like=name.endswith("like")))


def _drawn_by_the_cpu(draw: Callable[..., torch.Tensor], *, like: bool) -> Callable[..., torch.Tensor]:
    @functools.wraps(draw)
    def drawn(*arguments: Any, **more: Any) -> torch.Tensor:
        device = more.pop("device", arguments[0].device if like else None)
        given = (arguments[0].cpu(), *arguments[1:]) if like else arguments
        return draw(*given, **more).to(device or "cpu")

    return drawn


@pytest.mark.usefixtures("exact", "same_noise")
@pytest.mark.parametrize(("family", "kind"), [("sd1", {}), ("sd1", LORA), ("sdxl", LORA)], ids=["full", "lora", "sdxl"])
def test_a_training_is_the_same(
    family: str, kind: dict[str, Any], device: torch.device, projects: dict[str, Project]
) -> None:
    """On the CPU the other run has its blocks worked out twice, so that there is another to compare with."""
    changes = {**kind, **UNTRACED, "intervals.max_train_steps": STEPS[device.type]}
    twice = {"batching.gradient_checkpointing": device.type == "cpu"}
    ours = losses(projects[family], **changes, **twice)
    with pytest.MonkeyPatch.context() as patch:
        without_card(patch)
        theirs = losses(projects[family], **changes)
        other = losses(projects[family], **changes, **{"general.seed": 4})
    print(f"{family} on {device.type}: {off(ours, theirs):.6f}, another seed {off(other, theirs):.3f}")
    assert off(ours, theirs) < 2e-3
    assert off(other, theirs) > 0.02


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature, which draws what it is asked for."""
    return project.create(Folders(tmp_path_factory.mktemp("star") / "models"), "star", MINIATURE)


DRAWN = {
    "tuning.mixed_precision": "no",
    "previews.count": 2,
    "previews.steps": 6,
    "previews.prompts": "a photo of a red star on a blue background",
    "intervals.max_train_steps": 1,
    "general.resolution": 64,
    "learning.learning_rate": 1e-9,
}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("precision", "most"), [("no", ROUNDING), ("bf16", 8)])
def test_previews_are_the_same(precision: str, most: int, device: torch.device, star: Project) -> None:
    """On the CPU they are drawn one by one, and held against those drawn together."""
    changes = {**DRAWN, "tuning.mixed_precision": precision}
    ours = drawn(train(star, **changes, **{"batching.class_batch_size": 1 if device.type == "cpu" else 4}))
    with pytest.MonkeyPatch.context() as patch:
        without_card(patch)
        theirs = drawn(train(star, **DRAWN))
        other = drawn(train(star, **DRAWN, **{"previews.seed": 7}))
    assert worst(ours, theirs) <= most
    assert worst(ours, other) > 2 * most


@pytest.mark.usefixtures("exact")
def test_class_pictures_are_the_same(device: torch.device, star: Project, tmp_path: Path) -> None:
    batch = 1 if device.type == "cpu" else 5
    ours = class_pictures(star, tmp_path / "ours", batch)
    with pytest.MonkeyPatch.context() as patch:
        without_card(patch)
        theirs = class_pictures(star, tmp_path / "theirs", 5)
        other = class_pictures(star, tmp_path / "other", 5, seed=5)
    assert worst(ours, theirs) <= ROUNDING
    assert worst(ours, other) > 2 * ROUNDING


def drawn(job: Job) -> Any:
    """The pictures before the first step."""
    return pixels([Path(path) for path in told(job, "preview")[0]["paths"]])


def class_pictures(star: Project, folder: Path, batch: int, seed: int = 0) -> Any:
    folder.mkdir()
    settings = parse(
        {
            "concepts.0.instance_data_dir": train_pictures(),
            "concepts.0.instance_prompt": "a photo of sks star",
            "concepts.0.class_prompt": "a photo of a star",
            "concepts.0.class_data_dir": str(folder),
            "concepts.0.num_class_images_per": 1,
            "concepts.0.class_infer_steps": 6,
            "batching.class_batch_size": batch,
            "tuning.mixed_precision": "no",
            "general.resolution": 64,
            "general.seed": seed,
        }
    )
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "class-images", settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert class_images.run(job)[0] == "done"
    return pixels(sorted(path for path in folder.rglob("*.png")))


def train_pictures() -> str:
    from dreambooth.core.install_paths import SUBJECT_PICTURES

    return str(SUBJECT_PICTURES)


def worst(ours: Any, theirs: Any) -> float:
    """The mean difference of pixels in the picture where it is greatest."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).mean((1, 2, 3)).max())
