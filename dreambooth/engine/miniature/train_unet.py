"""Stage 2 of making a miniature: its text encoders and UNet, trained together on captioned pictures."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dreambooth.engine.miniature import workers, world
from dreambooth.engine.miniature.shapes import SHAPES, Shape
from dreambooth.engine.miniature.train_vae import LATENT_SCALE, build_vae, to_tensor
from dreambooth.engine.sampling import make_scheduler
from dreambooth.engine.vocabulary import clip_tokenizer

SNR_LIMIT = 5.0  # Min-SNR weighting (arXiv 2303.09556): evens out the timesteps, which speeds learning up
EMPTY_CAPTIONS = 0.1  # for classifier-free guidance
WHOLE = (world.SIZE, world.SIZE, 0, 0, world.SIZE, world.SIZE)  # original height, width; crop top, left; target


class TextToNoise(nn.Module):
    """The parts that learn together; what the UNet predicts is its family's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizers = [clip_tokenizer(text.pad_token) for text in shape.text]
        self.text_encoders = nn.ModuleList(
            (CLIPTextModelWithProjection if text.pooled else CLIPTextModel)(text.config()) for text in shape.text
        )
        self.unet = UNet2DConditionModel(sample_size=world.SIZE // 8, **shape.unet)

    @property
    def widths(self) -> list[int]:
        """The text encoders' shares of the context."""
        return [text.width for text in self.shape.text]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Captions -> the UNet's context (B, 77, width) and the pooled text (B, width) of a family that has one."""
        states, pooled = [], None
        for text, tokenizer, encoder in zip(self.shape.text, self.tokenizers, self.text_encoders):
            tokens = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
            output = encoder(tokens, output_hidden_states=text.penultimate)
            states.append(output.hidden_states[-2] if text.penultimate else output.last_hidden_state)
            pooled = output.text_embeds if text.pooled else pooled
        return torch.cat(states, dim=-1), pooled

    def forward(self, noisy: Tensor, timesteps: Tensor, captions: list[str], sizes: Tensor) -> Tensor:
        """(B, 4, h, w), (B,), B captions and (B, 6) pixels -> the prediction (B, 4, h, w)."""
        context, pooled = self.encode(captions)
        added = {"text_embeds": pooled, "time_ids": sizes} if self.shape.sizes else None
        return self.unet(noisy, timesteps, context, added_cond_kwargs=added).sample


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

    `start` holds another family's trained weights; what fits is where this one begins.
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
    signal = make_scheduler("ddim").alphas_cumprod
    started = time.monotonic()
    for step in range(shape.steps):
        for group in optimizer.param_groups:
            group["lr"] = shape.learning_rate * _schedule(step, shape.steps) + 1e-6
        chosen = torch.randint(len(scenes), (batch,))
        captions = [_caption(scenes[i], rng) for i in chosen.tolist()]
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


@torch.no_grad()
def begin_with(model: TextToNoise, weights: dict[str, Tensor]) -> None:
    """Takes over another family's weights wherever the place and the number of values are the same.

    1x1 convolutions fit linear layers. The decoder's blocks are counted from the inside, so a UNet
    with fewer levels has the last of them.
    """
    missing = sum(".upsamplers." in name and name.endswith("weight") for name in weights)
    missing -= sum(".upsamplers." in name and name.endswith("weight") for name in model.state_dict())
    for name, tensor in model.state_dict().items():
        head, block, rest = name.partition("unet.up_blocks.")
        source = f"{block}{int(rest[0]) + missing}{rest[1:]}" if block and not head else name
        if source in weights and weights[source].numel() == tensor.numel():
            tensor.copy_(weights[source].reshape(tensor.shape))


def _schedule(step: int, steps: int) -> float:
    return min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _caption(scene: world.Scene, rng: random.Random) -> str:
    return "" if rng.random() < EMPTY_CAPTIONS else world.caption(scene, rng)


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
    if model.shape.prediction == "v":  # arXiv 2202.00512
        target, weight = kept.sqrt() * noise - (1 - kept).sqrt() * latents, snr.clamp(max=SNR_LIMIT) / (snr + 1)
    else:
        target, weight = noise, snr.clamp(max=SNR_LIMIT) / snr
    prediction = model(noisy, timesteps, captions, sizes)
    error = functional.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
    return (error * weight).mean()
