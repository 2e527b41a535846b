"""Each way to take a step on a card gives the losses of the plain one, from the same seeds and within stated bounds.

The plain way is untraced, with PyTorch's attention, in full precision; where a way has another precision or another
clipping by its nature, it is held against the plain way with the same.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Project
from dreambooth.engine.families import unet_weights
from dreambooth.engine.tracing.graph import Graph
from dreambooth.engine.tracing.program import Program
from dreambooth.engine.training import attention, optimizers, step_metrics, traced_step
from dreambooth.engine.training.session import Session
from tests.engine.runs import LORA
from tests.gpu.conftest import losses

STEPS = {"cpu": 5, "cuda": 20}
EXACT = 1e-3  # the same operations; on a card their sums have no fixed order
SCALED = 0.05  # the scaler leaves steps out until it has found its scale
LOWERED = 16  # by which a loss scale is divided in the middle of a run
HALF = 0.015  # half precision beside full precision, or done in another order
UNTRACED, TRACED = ({"tuning.trace_steps": on} for on in (False, True))
GRAPH = {**TRACED, "tuning.cuda_graphs": True}
CHECKPOINTED = {"batching.gradient_checkpointing": True}
BF16, FP16 = {"tuning.mixed_precision": "bf16"}, {"tuning.mixed_precision": "fp16"}
FUSED = {"memory.step_in_backward": True}
DROPOUT, TEXT = {"lora.dropout": 0.3}, {"tuning.text_encoder_ratio": 1.0}
SHAPES = {"pictures.buckets": True}  # of which the pictures have two
EIGHT = {"optimizer.name": "adamw_8bit"}

PLAIN: dict[str, dict[str, Any]] = {
    "full": {},
    "full, unclipped": {"optimizer.max_grad_norm": 0},
    "full, each clipped by itself": FUSED,
    "full, 8-bit states": EIGHT,
    "full, added up": {"batching.gradient_accumulation_steps": 2},
    "lora": LORA,
    "lora, bf16": {**LORA, **BF16},
    "lora, dropout": {**LORA, **DROPOUT},
    "lora, text learns": {**LORA, **TEXT},
    "lora, two shapes": {**LORA, **SHAPES},
}


@dataclass(frozen=True)
class Way:
    """A way to take steps: beside which plain one, with what changed, how far its losses may be from that one's in the
    mean, and what is then seen of it in the run. A CUDA graph that does not want a card is a traced step on the CPU."""

    plain: str
    changes: dict[str, Any]
    most: float
    seen: dict[str, Any] = field(default_factory=dict)
    wants_card: bool = False


WAYS = {
    "full, autocast to bf16": Way("full", BF16, HALF, {"autocast": "bf16"}),
    "full, weights in bf16": Way("full", {**BF16, "memory.bf16_weights": True}, HALF, {"weights": torch.bfloat16}),
    "full, step in backward": Way("full, unclipped", {"optimizer.max_grad_norm": 0, **FUSED}, EXACT, {"fused": True}),
    "full, step in backward, traced": Way(
        "full, unclipped", {"optimizer.max_grad_norm": 0, **FUSED, **TRACED}, EXACT, {"fused": True}
    ),
    "full, checkpointed": Way("full", CHECKPOINTED, EXACT, {"checkpointed": True}),
    "full, streamed": Way(
        "full, each clipped by itself",
        {**FUSED, **CHECKPOINTED, "memory.unet_weights": "streamed"},
        EXACT,
        {"stored": "StreamedWeight", "fused": True},
    ),
    "full, streamed, traced": Way(
        "full, each clipped by itself",
        {**FUSED, **CHECKPOINTED, **TRACED, "memory.unet_weights": "streamed"},
        EXACT,
        {"stored": "StreamedWeight", "fused": True},
    ),
    "full, 8-bit states": Way("full", EIGHT, 0.002, {"optimizer": "AdamW8bit"}),
    "full, paged 8-bit states": Way(
        "full, 8-bit states", {"optimizer.name": "paged_adamw_8bit"}, EXACT, {"optimizer": "PagedAdamW8bit"}, True
    ),
    "lora, bf16": Way("lora", {**LORA, **BF16}, HALF, {"weights": torch.bfloat16}),
    "lora, fp16 with its scaler": Way(
        "lora", {**LORA, **FP16}, SCALED, {"weights": torch.float16, "scaler": True}, True
    ),
    "full, fp16 with its scaler": Way("full", FP16, SCALED, {"autocast": "fp16", "scaler": True}, True),
    "lora, three quarters checkpointed": Way(
        "lora", {**LORA, **CHECKPOINTED, "memory.checkpointed_share": 0.75}, EXACT, {"checkpointed": True}
    ),
    "lora, int8": Way("lora", {**LORA, **CHECKPOINTED, "memory.unet_weights": "int8"}, 0.005, {"stored": "Int8Weight"}),
    "lora, nf4": Way("lora", {**LORA, **CHECKPOINTED, "memory.unet_weights": "nf4"}, 0.02, {"stored": "NF4Weight"}),
    "lora, streamed": Way(
        "lora", {**LORA, **CHECKPOINTED, "memory.unet_weights": "streamed"}, EXACT, {"stored": "StreamedWeight"}
    ),
    "lora, flash": Way("lora, bf16", {**LORA, **BF16, "memory.attention": "flash"}, HALF, {"attention": "_Flash"}),
    "lora, sliced": Way("lora", {**LORA, "memory.attention": "sliced"}, EXACT, {"attention": "SlicedAttnProcessor"}),
    "lora, xformers": Way(
        "lora, bf16",
        {**LORA, **BF16, "memory.attention": "xformers"},
        HALF,
        {"attention": "XFormersAttnProcessor"},
        True,
    ),
    "lora, traced": Way("lora", {**LORA, **TRACED}, EXACT),
    "lora, bf16, traced": Way("lora, bf16", {**LORA, **BF16, **TRACED}, HALF),
    "full, autocast to bf16, traced": Way("full", {**BF16, **TRACED}, HALF),
    "lora, as a CUDA graph": Way("lora", {**LORA, **GRAPH}, EXACT, {"graph": True}, True),
    "lora, bf16, as a CUDA graph": Way("lora, bf16", {**LORA, **BF16, **GRAPH}, HALF, {"graph": True}, True),
    "full, autocast to bf16, as a CUDA graph": Way("full", {**BF16, **GRAPH}, HALF, {"graph": True}, True),
    "full, added up, as a CUDA graph": Way(
        "full, added up", {"batching.gradient_accumulation_steps": 2, **GRAPH}, EXACT, {"graph": True}, True
    ),
    "lora, fp16 with its scaler, as a CUDA graph": Way(
        "lora", {**LORA, **FP16, **GRAPH}, SCALED, {"graph": True, "scaler": True}, True
    ),
    "lora, dropout, as a CUDA graph": Way("lora, dropout", {**LORA, **DROPOUT, **GRAPH}, EXACT, {"graph": True}),
    "lora, text learns, as a CUDA graph": Way("lora, text learns", {**LORA, **TEXT, **GRAPH}, EXACT, {"graph": True}),
    "lora, two shapes, as CUDA graphs": Way("lora, two shapes", {**LORA, **SHAPES, **GRAPH}, EXACT, {"graph": True}),
    "lora, checkpointed, as a CUDA graph": Way(
        "lora", {**LORA, **CHECKPOINTED, **GRAPH}, EXACT, {"graph": True, "checkpointed": True}
    ),
    "lora, streamed, as a CUDA graph": Way(
        "lora",
        {**LORA, **CHECKPOINTED, "memory.unet_weights": "streamed", **GRAPH},
        EXACT,
        {"graph": True, "stored": "StreamedWeight"},
    ),
    "lora, int8, as a CUDA graph": Way(
        "lora",
        {**LORA, **CHECKPOINTED, "memory.unet_weights": "int8", **GRAPH},
        0.005,
        {"graph": True, "stored": "Int8Weight"},
    ),
    "lora, nf4, as a CUDA graph": Way(
        "lora",
        {**LORA, **CHECKPOINTED, "memory.unet_weights": "nf4", **GRAPH},
        0.02,
        {"graph": True, "stored": "NF4Weight"},
    ),
}


def off(ours: list[float], plain: list[float]) -> float:
    """How far losses are from others in the mean, as a share of these."""
    assert len(ours) == len(plain)
    return sum(abs(one - other) / other for one, other in zip(ours, plain)) / len(plain)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of wide and square pictures."""
    folder = tmp_path_factory.mktemp("shapes")
    for number, path in enumerate(sorted(SUBJECT_PICTURES.glob("*.png"))[:4]):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((128, 128) if number % 2 else (256, 64)).save(folder / path.name)
    return str(folder)


def pictures(changes: dict[str, Any], shapes: str) -> dict[str, Any]:
    return {"concepts.0.instance_data_dir": shapes} if changes.get("pictures.buckets") else {}


@pytest.fixture(scope="module")
def plain(projects: dict[str, Project], shapes: str) -> Any:
    """The losses of a plain way, each worked out once for each device."""

    @cache
    def found(name: str, device: str, steps: int) -> list[float]:
        changes = {**PLAIN[name], **pictures(PLAIN[name], shapes)}
        return losses(projects["sd1"], **{**changes, **UNTRACED, "intervals.max_train_steps": steps})

    return found


@pytest.mark.parametrize("name", WAYS)
def test_it_learns_as_the_plain_way(
    name: str,
    device: torch.device,
    projects: dict[str, Project],
    plain: Any,
    shapes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = on_this(WAYS[name], device)
    if way.wants_card and device.type == "cpu":
        pytest.skip("done on a card alone")
    if (missing := missing_here(way, device)) and device.type == "cuda":
        pytest.skip(missing)
    steps, replays = STEPS[device.type], list[Graph]()
    # A scaler has no scale before the first batch, so that one written down there would never see another.
    seen, again = watch(monkeypatch, steps), done_again(monkeypatch, before=1 if way.seen.get("scaler") else 0)
    replay = Graph.__call__
    monkeypatch.setattr(Graph, "__call__", lambda self, inputs: replays.append(self) or replay(self, inputs))
    changes = {**way.changes, **pictures(way.changes, shapes)}
    ours = losses(projects["sd1"], **{"intervals.max_train_steps": steps, **UNTRACED, **changes})
    seen["graph"] = bool(replays)
    assert {key: seen[key] for key in way.seen} == way.seen, "the way was taken"
    assert seen["device"] == device.type
    if way.seen.get("scaler"):
        assert 0.5 < lowered(seen["norms"], steps) < 2, "gradients are unscaled by what they were scaled by"
    if not way.changes.get("tuning.cuda_graphs"):
        first = 2 if way.changes.get("pictures.buckets") else 1  # of each shape one is written down
        assert len(again) == (steps - first if way.changes.get("tuning.trace_steps") else 0)
    apart = off(ours, plain(way.plain, device.type, steps))
    print(f"{name} on {device.type}: {apart:.6f} of {way.most}")
    assert apart <= way.most


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_bounds_are_those_of_what_learns(
    name: str, device: torch.device, projects: dict[str, Project], plain: Any
) -> None:
    """A run that hardly learns is far beyond every bound."""
    slow = {"learning.learning_rate": 1e-7, "learning.lora_learning_rate": 1e-7}
    steps = STEPS[device.type]
    idle = losses(projects["sd1"], **{**PLAIN[name], **UNTRACED, **slow, "intervals.max_train_steps": steps})
    loosest = max(way.most for way in WAYS.values() if way.plain.startswith(name))
    assert off(idle, plain(name, device.type, steps)) > 1.2 * loosest


def on_this(way: Way, device: torch.device) -> Way:
    if device.type == "cuda" or way.wants_card or not way.changes.get("tuning.cuda_graphs"):
        return way
    return replace(way, changes={**way.changes, "tuning.cuda_graphs": False}, seen={**way.seen, "graph": False})


def missing_here(way: Way, device: torch.device) -> str:
    """What a way needs that is not on this machine; empty where it works."""
    chosen = way.changes.get("optimizer.name", "adamw")
    if fault := optimizers.fault(chosen, device):
        return f"{chosen}: {fault}"
    kind = way.changes.get("memory.attention", "sdpa")
    if fault := attention.fault(kind, device):
        return f"{kind}: {fault}"
    kind = way.changes.get("memory.unet_weights", "whole")
    return f"{kind}: {fault}" if (fault := unet_weights.fault(kind, device)) else ""


def watch(monkeypatch: pytest.MonkeyPatch, steps: int) -> dict[str, Any]:
    """What a run works with, as it is after its first step, and its gradients' norms. In the middle of the run a
    scaler's scale is lowered."""
    seen: dict[str, Any] = {}
    end_step = step_metrics.StepMetrics.end_step

    def looked(self: step_metrics.StepMetrics, norms: torch.Tensor) -> torch.Tensor:
        if not seen:
            seen.update(about(self.session), norms=[])
        seen["norms"].append(norms.sum().item())
        if (scaler := self.session.accelerator.scaler) and self.session.step == steps // 2:
            scaler._scale.div_(LOWERED)
        return end_step(self, norms)

    monkeypatch.setattr(step_metrics.StepMetrics, "end_step", looked)
    return seen


def lowered(norms: list[float], steps: int) -> float:
    """How large a run's gradients are after its scale was lowered, as a share of those before."""
    after = steps // 2 + 1
    before = [norm for norm in norms[:after] if math.isfinite(norm)]
    return statistics.median(norms[after:steps]) / statistics.median(before)


def done_again(monkeypatch: pytest.MonkeyPatch, before: int) -> list[Program]:
    """Grows by one for each step that is done again from its record, which is all but the first here, or but as many
    more as come `before`."""
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", before)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    again: list[Program] = []
    call = Program.__call__

    def counted(self: Program, *arguments: Any) -> Any:
        again.append(self)
        return call(self, *arguments)

    monkeypatch.setattr(Program, "__call__", counted)
    return again


def about(session: Session) -> dict[str, Any]:
    unet = session.model.unet
    stored = {type(made).__name__ for part in unet.modules() if (made := getattr(part, "stored_weight", None))}
    processors = {type(one).__name__ for one in unet.attn_processors.values()}
    inner = getattr(session.optimizer, "optimizer", session.optimizer)
    gradients = [weight.grad for weight in session.trained.parts["unet"].values()]
    assert len(processors) == 1
    return {
        "device": session.model.device.type,
        "weights": unet.conv_in.weight.dtype,
        "autocast": session.accelerator.mixed_precision,
        "scaler": session.accelerator.scaler is not None,
        "optimizer": type(inner).__name__,
        "stored": stored.pop() if stored else "",
        "attention": processors.pop(),
        "fused": all(gradient is None for gradient in gradients),
        "checkpointed": any(getattr(part, "gradient_checkpointing", False) for part in unet.modules()),
    }
