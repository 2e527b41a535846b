"""Stage 2 of making the miniature: its text encoder and UNet, trained together on captioned pictures."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.engine.families.model import BETAS
from dreambooth.engine.miniature import workers, world
from dreambooth.engine.miniature.train_vae import LATENT_SCALE, build_vae, to_tensor
from dreambooth.engine.vocabulary import clip_tokenizer

LEARNING_RATE = 1e-3
SNR_LIMIT = 5.0  # Min-SNR weighting (arXiv 2303.09556): evens out the timesteps, which speeds learning up
EMPTY_CAPTIONS = 0.1  # for classifier-free guidance


class TextToNoise(nn.Module):
    """The two parts that learn together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=4,
                num_attention_heads=1,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=49407,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(64, 64, 64, 64), cross_attention_dim=32, attention_head_dim=8
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample


def train_unet(
    worker: workers.Worker, vae_file: Path, out: Path, *, steps: int, batch: int = 16, pictures: int = 5000
) -> None:
    """Trains on `pictures` drawn pictures and writes the averaged weights to `out`; `batch` is each worker's."""
    torch.manual_seed(1)
    model = TextToNoise()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    torch.manual_seed(100 + worker.rank)
    rng = random.Random(2000 + worker.rank)
    scenes, latents = _encode_world(vae_file, rng, pictures)
    tokenizer = clip_tokenizer()
    signal = DDIMScheduler(**BETAS).alphas_cumprod
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
            )
        chosen = torch.randint(len(scenes), (batch,))
        captions = [_caption(scenes[i], rng) for i in chosen.tolist()]
        tokens = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
        loss = _loss(model, latents[chosen], tokens, signal)
        loss.backward()
        worker.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if worker.rank == 0 and (step % 100 == 0 or step == steps - 1):
            print(f"unet {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
            torch.save(average.module.state_dict(), out)


def _caption(scene: world.Scene, rng: random.Random) -> str:
    return "" if rng.random() < EMPTY_CAPTIONS else world.caption(scene, rng)


@torch.no_grad()
def _encode_world(vae_file: Path, rng: random.Random, count: int) -> tuple[list[world.Scene], Tensor]:
    vae: AutoencoderKL = build_vae()
    vae.load_state_dict(torch.load(vae_file))
    scenes = [world.random_scene(rng) for _ in range(count)]
    latents = []
    for start in range(0, count, 25):
        pixels = to_tensor([world.draw(scene) for scene in scenes[start : start + 25]])
        latents.append(vae.encode(pixels).latent_dist.mean * LATENT_SCALE)
    return scenes, torch.cat(latents)


def _loss(model: TextToNoise, latents: Tensor, tokens: Tensor, signal: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    timesteps = torch.randint(len(signal), (len(latents),))
    kept = signal[timesteps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    error = functional.mse_loss(model(noisy, timesteps, tokens), noise, reduction="none").mean((1, 2, 3))
    snr = (kept / (1 - kept)).flatten()
    return (error * snr.clamp(max=SNR_LIMIT) / snr).mean()
