"""Max norm: what a LoRA adds to a weight is kept from growing, as the whole product says in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, PeftConfig
from torch import Tensor, nn

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.engine.bench.operations import Operations
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.layers import lora_layer
from dreambooth.engine.layers.lora_layer import ADAPTER, AdapterLayer
from dreambooth.engine.run import hooks
from dreambooth.engine.training import adapters, fused_backward
from dreambooth.engine.training.max_norm import MaxNorm
from tests.engine import tiny
from tests.engine.runs import LORA, new_run, output, same, saved, tiny_project, train

MOST = "lora.max_norm"
SHORT = {**LORA, MOST: 0.05, "intervals.max_train_steps": 4, "batching.train_batch_size": 1}
FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"lora.kind": "dora"},
    "loha": {"lora.kind": "loha"},
    "lokr": {"lora.kind": "lokr", "lora.lokr_factor": 4},
    "lokr, whole": {"lora.kind": "lokr", "lora.rank": 64},
}
APART = {"loha, kernels apart": LoHaConfig, "lokr, kernels apart": LoKrConfig}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("norm"))


def adapted(form: str) -> nn.Module:
    """A module with layers of a form, each as long as chance has it."""
    torch.manual_seed(0)
    if form in APART:
        made: nn.Module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 16, 3))
        config: PeftConfig = APART[form](r=2, alpha=1, target_modules=["0", "1", "2"], use_effective_conv2d=True)
        adapters._inject_peft_layers(made, form[:4], config)
    else:
        made = tiny.pipeline("sd1").unet
        flat = {"lora.rank": 3, "lora.alpha": 2.0, "lora.layers": "convolutions", **FORMS[form]}
        settings = parse(flat)
        adapters._inject_adapters(made, settings, settings.lora.kind, adapters.LORA_LAYERS["convolutions"])
    for layer in lora_layer.adapter_layers([made]):
        size = 0.5 * torch.rand(())
        for matrix in layer.matrices():
            matrix.data = torch.randn_like(matrix) * size
    return made


def length(layer: Any) -> float:
    """Of what it adds, made as a whole in double precision."""
    if not isinstance(layer, lora_layer.LoraMatrices):
        of = {name: getattr(layer, name)[ADAPTER].double() for name in layer._names()}
        sides = {}
        for side in ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2"):
            core = of.get(side.replace("w", "t"))
            if f"{side}_a" in of:
                a, b = of[f"{side}_a"], of[f"{side}_b"]
                sides[side] = a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b)
            elif side in of:
                sides[side] = of[side]
        one, other = sides.values()
        product = one * other if "hada_w1" in sides else torch.kron(one.flatten(), other.flatten())
    else:
        down, up = (matrix.double().flatten(1) for matrix in layer.matrices())
        product = up @ down
    return float(product.detach().norm() * layer.scaling[ADAPTER])


@pytest.mark.parametrize("form", [*FORMS, *APART])
def test_what_is_longer_than_the_limit_becomes_as_long_by_equal_shares(form: str) -> None:
    layers = lora_layer.adapter_layers([adapted(form)])
    before = [(length(layer), [matrix.detach().clone() for matrix in layer.matrices()]) for layer in layers]
    most = sorted(size for size, _ in before)[len(before) // 2]
    MaxNorm(layers, most * 1.0001).apply()
    shortened = 0
    for layer, (size, matrices) in zip(layers, before):
        if size <= most:
            assert all(torch.equal(one, other) for one, other in zip(layer.matrices(), matrices))
            continue
        shortened += 1
        assert length(layer) == pytest.approx(most * 1.0001, rel=1e-5)
        share = (most * 1.0001 / size) ** (1 / len(matrices))
        for one, other in zip(layer.matrices(), matrices):
            assert torch.allclose(one.double(), other.double() * share, rtol=1e-5, atol=0)
    assert 0 < shortened < len(layers)


def test_layers_of_one_form_are_done_together_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same numbers, and without the products."""
    layers, alone = (lora_layer.adapter_layers([adapted("lora")]) for _ in range(2))
    counted = Operations()
    together = MaxNorm(layers, 0.1)
    assert len(together.stacks) < len(layers) / 3
    with counted:
        together.apply()
    assert counted.count < 20 * len(together.stacks)
    monkeypatch.setattr("dreambooth.engine.training.max_norm.VALUES_AT_ONCE", 1)
    one_by_one = MaxNorm(alone, 0.1)
    assert len(one_by_one.stacks) == len(layers)
    one_by_one.apply()
    pairs = zip(matrices(layers), matrices(alone))
    assert all(torch.allclose(one, other, rtol=1e-6, atol=0) for one, other in pairs)


def matrices(layers: list[AdapterLayer]) -> list[Tensor]:
    return [matrix for layer in layers for matrix in layer.matrices()]


def lengths(made: Project, file: Path) -> list[float]:
    """Of what each layer of a file adds, as WebUIs read it."""
    family = str(made.about["family"])
    found = lora.read(file, open_model(made).tensors, family)
    return [float(layer.difference().norm()) for layer in found.values()]


def test_no_layer_adds_more_than_it_may(star: Project) -> None:
    text = {"tuning.text_encoder_ratio": 1.0, "learning.lora_text_encoder_learning_rate": 1e-2}
    free, kept = (saved(train(star, **{**SHORT, **text, MOST: most}))[-1] for most in (0.0, 0.05))
    assert max(lengths(star, free)) > 0.1
    assert max(lengths(star, kept)) == pytest.approx(0.05, rel=1e-5)
    kept_apart = [one for one in lengths(star, kept) if one]  # a single latent attends to itself: no gradient for q, k
    assert len(kept_apart) >= len(lengths(star, kept)) - 2


AVERAGE = {"tuning.use_ema": True, "batching.gradient_accumulation_steps": 2}
LOHA = {"lora.kind": "loha", "optimizer.name": "lion"}


@pytest.mark.parametrize("more", [AVERAGE, pytest.param(LOHA, marks=pytest.mark.thorough)])
def test_a_pause_changes_no_bit(more: dict[str, Any], star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {**SHORT, **more, "intervals.max_train_steps": 6}
    whole, job = output(train(star, **flat)), new_run(star, **flat)
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == 3 else set())
        assert worker.run(job) == "paused"
    assert worker.run(job) == "done"
    assert same(output(job), whole)


def test_in_the_backward_pass_it_comes_to_the_same(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 10_000)
    unclipped = {**SHORT, "optimizer.max_grad_norm": 0.0}
    plain, fused = (output(train(star, **unclipped, **{"memory.step_in_backward": on})) for on in (False, True))
    assert same(plain, fused)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.kind": "oft", "lora.rank": 8}, r"lora\.max_norm: oft turns what the layers say"),
        ({"optimizer.name": "adamw_schedule_free"}, r"lora\.max_norm: adamw_schedule_free goes by an average"),
        ({MOST: -1.0}, r"lora\.max_norm: -1 is below the minimum"),
    ],
)
def test_what_has_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({MOST: 1.0, **changes})


def test_a_file_of_another_kind_is_refused(star: Project) -> None:
    start = saved(train(star, **{**LORA, "lora.kind": "oft", "lora.rank": 8}))[-1]
    with pytest.raises(UserError, match=r"is an OFT, which adds nothing to the weights; set lora\.max_norm to 0"):
        train(star, **SHORT, **{"lora.start_file": str(start)})
