"""What a prompt is to the model: its tokens and chunks, which of its words the model knows, and rare words to take."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from dreambooth.core import emphasis, settings
from dreambooth.core.job_folder import Job
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.core.project import open_project
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.model import LATENT_CHANNELS, Model, whole_picture
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.generate import load
from dreambooth.engine.prompts import chunking

MEASURED_WORDS = 20
_RARE = re.compile(r"[bcdfghjklmnpqrstvwxz]{3}</w>")  # no vowels, so hardly a word
_RARE_FROM = 30_000  # CLIP's tokens are in the order of their frequency
_STEPS = (999, 800, 600)  # where the words decide what the picture will be
_NOISES = 2
_KNOWN = 3.0  # times what the middle one of the rare words changes, and a word means something
_SIDE = 32  # latents; enough to see a word's effect, and quick without a GPU


def run(job: Job) -> dict[str, Any]:
    """Looks at the job's prompt with its model. Returns tokens, chunks, each word's strength and rare words."""
    wanted = job.read()
    project = open_project(job.folders(), wanted["model"])
    job.report("stage", name="loading the model", done=0, total=1)
    model = load(project, "")
    chosen = settings.parse(job.settings())
    tuning = chosen.tuning
    prompt = " ".join(emphasis.bare(wanted["prompt"], weighted=chosen.captions.weighted).split())
    words = prompt.split()
    frame = "" if len(words) > 3 else "a photo of a "
    model.configure_prompts(tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens)
    with model.present(*model.text_encoders):  # a few hundred prompts are read
        meter = Meter(model)
        strengths = []
        for number in range(min(len(words), MEASURED_WORDS)):
            job.report("stage", name="measuring words", done=number, total=min(len(words), MEASURED_WORDS))
            without = frame + " ".join([*words[:number], *words[number + 1 :]])
            strengths.append(meter.strength(frame + prompt, without.strip()))
        job.report("stage", name="trying rare words", done=0, total=1)
        rare = rare_words(model, meter, words[-1] if words else "", wanted["candidates"])
    numbers = _numbers(model, prompt)
    return {
        "read_length": tuning.max_token_length,
        "prompt": prompt,
        "measured_in": frame + prompt,
        "tokens": len(numbers),
        "chunks": [tokenizer(model).decode(chunk) for chunk in chunking.split(numbers, comma(model))],
        "words": [
            {"word": word, "tokens": _pieces(model, word), "strength": strength, "known": _is_known(strength, rare)}
            for word, strength in zip(words, [*strengths, *[None] * len(words)])
        ],
        "rare": rare,
    }


def _is_known(strength: float | None, rare: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether a word changes a picture by much more than words that hardly any picture was named with; None where that
    was not measured."""
    if strength is None or not rare:
        return None
    return strength > _KNOWN * statistics.median(one["strength"] for one in rare)


class Meter:
    """How much a word changes what the model draws, at fixed noise."""

    def __init__(self, model: Model) -> None:
        self.model = model
        side = min(_SIDE, model.resolution // LATENT_FACTOR)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(_NOISES, LATENT_CHANNELS, side, side, generator=generator)
        x_t = noise.repeat(len(_STEPS), 1, 1, 1).to(model.device, model.unet.dtype)
        pixels = side * LATENT_FACTOR
        self.x_t = inpainting_inputs.concatenate(x_t, inpainting_inputs.whole_picture_inputs(model, pixels, pixels))
        sizes = whole_picture(pixels, pixels)
        self.sizes = torch.tensor([sizes] * len(self.x_t), device=model.device)
        self.t = torch.tensor(_STEPS, device=model.device).repeat_interleave(_NOISES)
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def predict(self, prompt: str) -> Tensor:
        if prompt not in self.known:
            text = self.model.encode_text([prompt] * len(self.t)).to(self.model.unet.dtype)
            self.known[prompt] = self.model.denoise(self.x_t, self.t, text, self.sizes).float()
        return self.known[prompt]

    def strength(self, prompt: str, without: str) -> float:
        """|prediction with - prediction without| / |prediction without|."""
        one, other = self.predict(prompt), self.predict(without)
        return round(((one - other).norm() / other.norm()).item(), 4)


def rare_words(model: Model, meter: Meter, kind: str, count: int) -> list[dict[str, Any]]:
    """Words of one token that change a picture of `kind` least, the least first.

    Of all candidates, `count` are tried: those whose text embeddings differ least from the text without them.
    """
    if not count:
        return []
    vocabulary = tokenizer(model).get_vocab()
    candidates = [
        token.removesuffix("</w>")
        for token, number in sorted(vocabulary.items(), key=lambda item: item[1])
        if number >= _RARE_FROM and _RARE.fullmatch(token)
    ]
    without = f"a photo of a {kind}"
    frames = {word: f"a photo of a {word} {kind}" for word in candidates}
    with torch.no_grad():
        plain = model.encode_text([without])
        encoded = TextEmbedding.cat(
            [model.encode_text([frames[w] for w in candidates[n : n + 64]]) for n in range(0, len(candidates), 64)]
        )
    distances = (encoded.hidden - plain.hidden).flatten(1).norm(dim=1).tolist()
    nearest = sorted(zip(distances, candidates))[:count]
    tried = [{"word": word, "strength": meter.strength(frames[word], without)} for _, word in nearest]
    return sorted(tried, key=lambda one: one["strength"])


def tokenizer(model: Model) -> CLIPTokenizer:
    """The first text encoder's; all of a model's cut words alike."""
    return next(iter(model.tokenizers.values()))


def comma(model: Model) -> int:
    """The token number of a comma."""
    return int(tokenizer(model).convert_tokens_to_ids(",</w>"))


def _numbers(model: Model, text: str) -> list[int]:
    return list(tokenizer(model)(text, add_special_tokens=False).input_ids)


def _pieces(model: Model, word: str) -> list[str]:
    return [piece.replace("</w>", "") for piece in tokenizer(model).convert_ids_to_tokens(_numbers(model, word))]
