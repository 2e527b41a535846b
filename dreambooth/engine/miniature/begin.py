"""How another family's miniature begins: with the first miniature's weights, and listening as it listens."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreambooth.engine.miniature import world
from dreambooth.engine.miniature.model import TextToNoise
from dreambooth.engine.miniature.shapes import SHAPES

TEXT_STEPS = 1200
LEARNING_RATE = 2e-3
_BATCH = 32


def begin_with(model: TextToNoise, weights: dict[str, Tensor], *, text_steps: int = TEXT_STEPS) -> None:
    """Takes over the UNet's weights where the place and the number of values are the same (a 1x1 convolution fits a
    linear layer), and teaches the text encoders to say what the first one says."""
    sources = {name: _source(name, model) for name in model.state_dict() if name.startswith("unet.")}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if (source := weights.get(sources.get(name))) is not None and source.numel() == tensor.numel():
                tensor.copy_(source.reshape(tensor.shape))
    first = TextToNoise(SHAPES["sd1"])
    first.load_state_dict(weights)
    translation = _teach_text(model, first, text_steps)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) and sources[name] in weights:
                tensor.copy_(weights[sources[name]] @ translation)


def _source(name: str, model: TextToNoise) -> str:
    """The first miniature's name of a weight. The decoder's blocks are counted from the inside, so a UNet with fewer
    levels has the last of them."""
    missing = len(SHAPES["sd1"].unet["block_out_channels"]) - len(model.shape.unet["block_out_channels"])
    head, block, rest = name.partition("unet.up_blocks.")
    return f"{block}{int(rest[0]) + missing}{rest[1:]}" if block and not head else name


def _teach_text(model: TextToNoise, first: TextToNoise, steps: int) -> Tensor:
    """Trains the text encoders on captions alone. Returns the matrix (first's width, model's width) that turns what
    they say into what the first one says; the UNet's keys and values are to have it in them."""
    rng = random.Random(1)
    translate = nn.Linear(sum(model.widths), sum(first.widths), bias=False)
    learning = [*model.text_encoders.parameters(), *translate.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    started = time.monotonic()
    for step in range(steps):
        captions = [world.caption_or_none(world.random_scene(rng), rng) for _ in range(_BATCH)]
        with torch.no_grad():
            wanted, _ = first.encode(captions)
        loss = functional.mse_loss(translate(model.encode(captions)[0]), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"text {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    return translate.weight.detach()
