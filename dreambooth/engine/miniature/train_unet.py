"""Stage 2 of making a miniature: its text encoders and UNet, trained together on captioned pictures."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dreambooth.engine.families.model import BETAS
from dreambooth.engine.miniature import workers, world
from dreambooth.engine.miniature.begin import begin_with
from dreambooth.engine.miniature.model import WHOLE, TextToNoise
from dreambooth.engine.miniature.shapes import SHAPES
from dreambooth.engine.miniature.train_vae import LATENT_SCALE, build_vae, to_tensor

SNR_LIMIT = 5.0  # Min-SNR weighting (arXiv 2303.09556): evens out the timesteps, which speeds learning up


def train_unet(
    worker: workers.Worker,
    family: str,
    vae_file: Path,
    out: Path,
    *,
    start: Path | None = None,
    batch: int = 16,
    pictures: int = 5000,
) -> None:
    """Trains on `pictures` drawn pictures and writes the averaged weights to `out`; `batch` is each worker's.

    `start` holds the first miniature's weights; what fits is where another family's begins.
    """
    torch.manual_seed(1)
    shape = SHAPES[family]
    model = TextToNoise(shape)
    if start:
        begin_with(model, torch.load(start))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=shape.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    torch.manual_seed(100 + worker.rank)
    rng = random.Random(2000 + worker.rank)
    scenes, latents, sizes = _encode_world(vae_file, rng, pictures, crops=shape.sizes)
    signal = DDIMScheduler(**BETAS).alphas_cumprod
    started = time.monotonic()
    for step in range(shape.steps):
        for group in optimizer.param_groups:
            group["lr"] = shape.learning_rate * _schedule(step, shape.steps) + 1e-6
        chosen = torch.randint(len(scenes), (batch,))
        captions = [world.caption_or_none(scenes[i], rng) for i in chosen.tolist()]
        loss = _loss(model, latents[chosen], captions, sizes[chosen], signal)
        loss.backward()
        worker.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if worker.rank == 0 and (step % 100 == 0 or step == shape.steps - 1):
            print(f"unet {step}/{shape.steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
            torch.save(average.module.state_dict(), out)


def _schedule(step: int, steps: int) -> float:
    return min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _encode_world(
    vae_file: Path, rng: random.Random, count: int, *, crops: bool
) -> tuple[list[world.Scene], Tensor, Tensor]:
    """Scenes, their latents (N, 4, 8, 8) at unit variance and their sizes (N, 6) in pixels."""
    vae: AutoencoderKL = build_vae()
    vae.load_state_dict(torch.load(vae_file))
    scenes = [world.random_scene(rng) for _ in range(count)]
    latents, sizes = [], []
    for start in range(0, count, 25):
        shots = [_shoot(world.draw(scene), rng, crops=crops) for scene in scenes[start : start + 25]]
        latents.append(vae.encode(to_tensor([picture for picture, _ in shots])).latent_dist.mean * LATENT_SCALE)
        sizes += [size for _, size in shots]
    return scenes, torch.cat(latents), torch.tensor(sizes)


def _shoot(picture: Image.Image, rng: random.Random, *, crops: bool) -> tuple[Image.Image, tuple[int, ...]]:
    """The picture and its sizes as SDXL is told them: half are whole, the others of any original size or cropped."""
    if not crops or rng.random() < 0.5:
        return picture, WHOLE
    original = rng.randint(world.SIZE, 8 * world.SIZE)
    side = rng.choice((world.SIZE, rng.randint(world.SIZE, world.SIZE * 5 // 4)))
    left, top = (rng.randint(0, side - world.SIZE) for _ in range(2))
    enlarged = picture.resize((side, side), Image.Resampling.BICUBIC)
    cropped = enlarged.crop((left, top, left + world.SIZE, top + world.SIZE))
    return cropped, (original, original, top, left, world.SIZE, world.SIZE)


def _loss(model: TextToNoise, latents: Tensor, captions: list[str], sizes: Tensor, signal: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    timesteps = torch.randint(len(signal), (len(latents),))
    kept = signal[timesteps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    snr = (kept / (1 - kept)).flatten()
    weight = (snr + model.shape.least_weight).clamp(max=SNR_LIMIT)  # of the error in terms of the picture
    if model.shape.prediction == "v":  # arXiv 2202.00512
        target, weight = kept.sqrt() * noise - (1 - kept).sqrt() * latents, weight / (snr + 1)
    else:
        target, weight = noise, weight / snr
    prediction = model(noisy, timesteps, captions, sizes)
    error = functional.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
    return (error * weight).mean()
