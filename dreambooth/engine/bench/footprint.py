"""What a training step of each kind holds, on full-size models without a card: every tensor of it (live_tensors.py).

Attention is counted as it is on a card, where its matrix is never held; norms in half precision are widened there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth.core import settings
from dreambooth.core.settings import Settings
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.live_tensors import Live, norms_as_on_a_card
from dreambooth.engine.layers import lora_layer
from dreambooth.engine.layers.lora_layer import cast_at_once
from dreambooth.engine.prompts import textual_inversion
from dreambooth.engine.training import adapters, attention, checkpointing
from dreambooth.engine.training.precision import is_plain

SIDES = {"sd1": 64, "sd2": 96, "sdxl": 128}  # of a picture's latents
PRECISIONS = {"mixed": (torch.float32, True), "bf16": (torch.bfloat16, True), "no": (torch.float32, False)}
MOMENTS = 12  # of the backward pass
_POOLED = 1280  # of SDXL's second text encoder
_VECTORS = 2  # of a word; they take nothing beside the layers that read them
_READING = [
    *(("full", precision) for precision in ("mixed", "bf16", "no")),
    *((method, precision) for method in ("lora", "embedding") for precision in ("mixed", "no")),
]


@dataclass(frozen=True)
class Step:
    """One kind of step. `kind` is full, a kind of LoRA on some layers, or embedding, where the UNet rests."""

    family: str
    kind: str
    layers: str
    precision: str
    checkpointed: bool

    @property
    def name(self) -> str:
        return "/".join([self.kind, self.layers, self.precision, "checkpointed" if self.checkpointed else "whole"])

    @property
    def computed(self) -> torch.dtype:
        return torch.bfloat16 if PRECISIONS[self.precision][1] else torch.float32

    @property
    def is_plain(self) -> bool:
        """Whether it is done without autocast."""
        held = PRECISIONS[self.precision][0] if self.kind == "full" else self.computed
        return is_plain(self.computed, held)


@dataclass(frozen=True)
class Point:
    """Where a kind of step is counted."""

    batch: int
    side: int
    rank: int = 0

    @property
    def features(self) -> list[float]:
        pixels = self.batch * self.side**2
        return [1, self.batch, pixels, *([self.rank, pixels * self.rank] if self.rank else [])]


def count(step: Step, point: Point, *, fake: bool = True, share: float = 1.0) -> Live:
    """One step of the UNet at a point. Not `fake`, it is really done. Checkpointed, so is this share of the blocks."""
    with laid(step, point, fake=fake, share=share) as (unet, forward):
        return _counted(unet, forward, mixed=PRECISIONS[step.precision][1], plain=step.is_plain)


@contextlib.contextmanager
def laid(
    step: Step, point: Point, *, fake: bool = True, share: float = 1.0
) -> Iterator[tuple[nn.Module, Callable[[], Tensor]]]:
    """The UNet of a step, and what gives its loss."""
    unet, flat = random_model.modules(step.family)["unet"].requires_grad_(False), {"general.method": "full"}
    if step.kind not in ("full", "embedding"):
        alpha = float(point.rank)
        flat = {"lora.kind": step.kind, "lora.layers": step.layers, "lora.rank": point.rank, "lora.alpha": alpha}
    if step.kind != "embedding":
        _prepare(settings.parse(flat), unet=unet)
    attention.use(unet, "sdpa")
    if step.checkpointed:
        checkpointing.enable(unet, share)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.random.fork_rng():
        # As while learning: there is no dropout, and in that mode peft asks for random numbers, which are not there.
        fill(unet.eval(), step.precision, trains_all=step.kind == "full")
        given = inputs(unet, step.family, point)
        target = torch.randn(point.batch, 4, point.side, point.side)
        if step.is_plain:
            given |= {name: given[name].to(step.computed) for name in ("sample", "encoder_hidden_states")}
        if step.kind == "embedding":  # its gradients go through the UNet to what has read the word
            given["encoder_hidden_states"].requires_grad_(True)
            if "added_cond_kwargs" in given:
                given["added_cond_kwargs"]["text_embeds"].requires_grad_(True)
        yield unet, lambda: (unet(**given).sample.float() - target).square().mean()


def _prepare(chosen: Settings, **parts: Any) -> None:
    """Marks what is trained, in parts that have no weights yet."""
    model: Any = SimpleNamespace(**{"text_encoders": {}, "device": torch.device("meta"), **parts})
    adapters.make_trainable(model, chosen)


def _counted(module: nn.Module, forward: Any, *, mixed: bool, plain: bool = False) -> Live:
    held = [*module.parameters(), *module.buffers()]
    undo, cast = norms_as_on_a_card(), torch.bfloat16 if mixed else torch.float32
    try:
        with (
            Live(module.parameters(), held, parts=MOMENTS) as live,
            cast_at_once(lora_layer.adapter_layers([module]), cast),
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed and not plain):
                loss = forward()
            live.is_backward = True
            loss.backward()
    finally:
        undo()
    return live


def fill(module: nn.Module, precision: str, *, trains_all: bool) -> None:
    """Gives a module of no weights such that lie in memory; a LoRA's in full precision, what is around it in half."""
    dtype, mixed = PRECISIONS[precision]
    rests = dtype if trains_all or not mixed else torch.bfloat16
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                kept = dtype if weight.requires_grad else rests
                values = torch.randn(weight.shape).to(kept) * 0.02
                part._parameters[name] = nn.Parameter(values, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def inputs(unet: nn.Module, family: str, point: Point) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": torch.randn(point.batch, 4, point.side, point.side),
        "timestep": torch.zeros(point.batch, dtype=torch.long),
        "encoder_hidden_states": torch.randn(point.batch, 77, unet.config.cross_attention_dim),
    }
    if family == "sdxl":
        pooled, sizes = torch.randn(point.batch, _POOLED), torch.ones(point.batch, 6)
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return inputs


def texts(family: str) -> dict[str, list[float]]:
    """What the text encoders hold while they learn, (a, b): a + b for each 75 tokens of a prompt of the batch."""
    found = {}
    for method, precision in _READING:
        for checkpointed in (False, True):
            first, eighth = (_text_peak(family, method, precision, checkpointed, batch) for batch in (1, 8))
            each = (eighth - first) / 7
            name = "/".join([method, precision, "checkpointed" if checkpointed else "whole"])
            found[name] = [float(round(first - each)), float(round(each))]
    return found


def _text_peak(family: str, method: str, precision: str, checkpointed: bool, batch: int) -> int:
    parts, peak = random_model.modules(family), 0
    encoders: Any = {name: part.requires_grad_(False) for name, part in parts.items() if name.startswith("text")}
    if method != "embedding":
        chosen = settings.parse({"general.method": method, "tuning.text_encoder_ratio": 1.0})
        _prepare(chosen, unet=parts["unet"], text_encoders=encoders)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for encoder in encoders.values():
            fill(encoder.train(), precision, trains_all=method == "full")
            if checkpointed:
                encoder.gradient_checkpointing_enable()
            tokens = torch.zeros(batch, 77, dtype=torch.long)
            if method == "embedding":
                table = encoder.get_input_embeddings()
                textual_inversion.set_vectors(encoder, [torch.zeros(_VECTORS, table.embedding_dim)])
                textual_inversion.learned_vectors(encoder).requires_grad_(True)
                tokens += table.num_embeddings

            def forward(encoder: Any = encoder, tokens: Tensor = tokens) -> Tensor:
                read = encoder(tokens, output_hidden_states=True)
                return torch.stack([state.float().sum() for state in read.hidden_states]).sum()

            peak += max(_counted(encoder, forward, mixed=PRECISIONS[precision][1]).moments)
    return peak
