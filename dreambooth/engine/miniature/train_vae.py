"""Stage 1 of making the miniature: its VAE, trained on drawn pictures.

Sharp edges matter more than exact shades here, so the loss is on pixels and on
their differences. At the end the latents are scaled so that SD 1's factor (0.18215)
brings them to unit variance: the miniature then needs no configuration of its own.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth.engine.miniature import workers, world

LATENT_SCALE = 0.18215  # SD 1's scaling factor
EPSILON = 1e-6  # of the VAE's group normalisation, fixed by the format
LEARNING_RATE = 1.5e-3


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(64, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=world.SIZE,
    )


def to_tensor(pictures: list) -> Tensor:
    """RGB pictures -> (N, 3, H, W) float tensor in [-1, 1]."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(
    worker: workers.Worker, out: Path, *, steps: int, seed: int = 0, decoder_only: bool = False, batch: int = 4
) -> None:
    """Trains the VAE and writes its weights to `out`, going on from what is there; `batch` is each worker's.

    `decoder_only` leaves the latents as they are, so that it can be done after the UNet has learned them.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    _open_residual_paths(vae)
    if out.exists():
        vae.load_state_dict(torch.load(out))
        _fold_epsilon(vae, back=True)
    else:
        _set_epsilon(vae, 1.0)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    learning = [p for p in vae.parameters() if p.requires_grad]
    rng = random.Random(1000 * (seed + 1) + worker.rank)
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
            )
        loss = _loss(vae, _pictures(rng, count=batch))
        loss.backward()
        worker.average_gradients(learning)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(vae)
        if worker.rank == 0 and (step % 25 == 0 or step == steps - 1):
            print(f"vae {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    if worker.rank == 0:
        vae.load_state_dict(average.module.state_dict())
        _fold_epsilon(vae)
        if not decoder_only:
            _scale_latents(vae, rng)
        torch.save(vae.state_dict(), out)


def _pictures(rng: random.Random, *, count: int) -> Tensor:
    return to_tensor(
        [world.draw(world.random_scene(rng)) if rng.random() < 0.6 else world.draw_anything(rng) for _ in range(count)]
    )


@torch.no_grad()
def _open_residual_paths(vae: AutoencoderKL) -> None:
    """Starts with the straight way through at full strength, the residual branches at zero and hardly any noise."""
    for name, module in vae.named_modules():
        if not isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            continue
        torch.nn.init.zeros_(module.bias)
        if name.endswith(("conv2", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
        else:
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    half = len(vae.quant_conv.bias) // 2
    torch.nn.init.zeros_(vae.quant_conv.weight[half:])
    torch.nn.init.constant_(vae.quant_conv.bias[half:], -5.0)  # log variance


def _loss(vae: AutoencoderKL, x: Tensor) -> Tensor:
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    pixels = (y - x).abs().mean() + (y - x).square().mean()
    edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
    return pixels + 0.5 * edges + 1e-7 * posterior.kl().mean()


def _set_epsilon(vae: AutoencoderKL, epsilon: float) -> None:
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = epsilon


@torch.no_grad()
def _fold_epsilon(vae: AutoencoderKL, *, back: bool = False) -> None:
    """Goes from the epsilon of training to the format's own, exactly; `back` undoes it.

    The format fixes 32 groups. In so narrow a network a group is two channels, and normalising
    them wipes out how bright a plain picture is. With epsilon 1 instead of 1e-6 it is kept, and
    (h - mean) / sqrt(var + 1) stays the same when h shrinks by 1e-3 and epsilon by 1e-6.
    """
    epsilon, shrink = (1.0, 1 / math.sqrt(EPSILON)) if back else (EPSILON, math.sqrt(EPSILON))
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = epsilon
        elif name.endswith(("conv_in", "conv1", "conv2", "to_out.0")):
            module.weight *= shrink
            module.bias *= shrink
        elif name.endswith(("samplers.0.conv", "conv_shortcut")):
            module.bias *= shrink


@torch.no_grad()
def _scale_latents(vae: AutoencoderKL, rng: random.Random) -> None:
    """Folds a per-channel shift and scale into the 1x1 convolutions around the latents (exact)."""
    pictures = to_tensor([world.draw(world.random_scene(rng)) for _ in range(128)])
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(16)])
    shift, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * LATENT_SCALE
    half = len(shift)
    vae.quant_conv.weight[:half] /= scale[:, None, None, None]
    vae.quant_conv.bias[:half] = (vae.quant_conv.bias[:half] - shift) / scale
    vae.quant_conv.bias[half:] -= 2 * scale.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.post_quant_conv.weight *= scale[None, :, None, None]
