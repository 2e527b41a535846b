"""The small parts of training, each against its definition."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.settings.objective import Objective
from dreambooth.engine import families, worker
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.training import objective
from dreambooth.engine.training.ema import Ema
from tests.engine import runs


def test_noise_is_added_as_diffusers_adds_it() -> None:
    scheduler = make_scheduler("ddim", families.skeleton(open_source(MINIATURE)))
    x_0, eps, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    ours = objective.add_noise(x_0, eps, scheduler.alphas_cumprod[t])
    assert torch.allclose(ours, scheduler.add_noise(x_0, eps, t), atol=1e-6)


def test_the_prior_counts_by_its_weight_and_rows_stay_apart() -> None:
    each = torch.tensor([1.0, 3.0, 20.0, 40.0])
    loss, subject, prior = objective.dreambooth_loss(each, 2, 0.5)
    assert (subject.item(), prior.item(), loss.item()) == (2.0, 30.0, 17.0)
    loss, subject, prior = objective.dreambooth_loss(each[:2], 2, 0.5)
    assert (loss.item(), subject.item(), prior.item()) == (2.0, 2.0, 0.0)


def test_a_class_image_counts_the_same_beside_images_of_a_concept_without_any() -> None:
    """In a batch of two as in two batches that are added up, which is the same step."""
    with_class, without = torch.tensor([1.0, 20.0]), torch.tensor([3.0])
    together = objective.dreambooth_loss(torch.tensor([1.0, 3.0, 20.0]), 2, 0.5)
    apart = [objective.dreambooth_loss(each, 1, 0.5) for each in (with_class, without)]
    assert [one.item() for one in together] == [sum(parts).item() / 2 for parts in zip(*apart)]


def test_the_loss_is_the_mean_square_of_each_picture() -> None:
    a, b, nothing = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.zeros(2)
    each = objective.image_means(objective.error(a, b, Objective(), nothing, nothing), None, 0.1)
    assert torch.allclose(each.mean(), torch.nn.functional.mse_loss(a, b))


def test_ema_starts_short_and_keeps_to_its_decay() -> None:
    weights = {"w": torch.zeros(1)}
    ema = Ema(weights, decay=0.9)
    expected = 0.0
    for n in range(1, 200):
        weights["w"].fill_(float(n))
        ema.update(weights)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-4)


def test_the_pace_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews before the first step take as long as many steps, and would have a run seem to last for hours."""
    draw = worker.RunHooks.preview

    def slowly(hooks: worker.RunHooks, images: int, check: Callable[[], None]) -> None:
        time.sleep(0 if images else 5)
        draw(hooks, images, check)

    monkeypatch.setattr(worker.RunHooks, "preview", slowly)
    job = runs.train(runs.tiny_project(tmp_path), **{"intervals.max_train_steps": 2})
    assert runs.told(job, "step")[-1]["steps_per_second"] > 2 / 5
