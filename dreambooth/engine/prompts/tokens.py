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
from dreambooth.engine.prompts import chunking, textual_inversion

MEASURED_WORDS = 20
_RARE_TOKEN = re.compile(r"[bcdfghjklmnpqrstvwxz]{3}</w>")  # no vowels, so hardly a word
_FIRST_RARE_ID = 30_000  # CLIP's tokens are in the order of their frequency
_TIMESTEPS = (999, 800, 600)  # at which the words decide what the picture will be
_NOISES_PER_TIMESTEP = 2
_KNOWN_RATIO = 3.0  # of a word's strength to the rare words' median, above which the model knows the word
_LATENT_SIDE = 32  # enough to see a word's effect, and quick without a GPU


def run(job: Job) -> dict[str, Any]:
    """Looks at the job's prompt with its model. Returns tokens, chunks, each word's strength and rare words."""
    request = job.read()
    project = open_project(job.folders(), request["model"])
    job.report("stage", name="loading the model", done=0, total=1)
    model = load(project, "")
    parsed = settings.parse(job.settings())
    tuning = parsed.tuning
    prompt = " ".join(emphasis.bare(request["prompt"], weighted=parsed.captions.weighted).split())
    words = prompt.split()
    prefix = "" if len(words) > 3 else "a photo of a "  # by itself a word or two is an unusual prompt
    model.configure_prompts(tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens)
    with model.present(*model.text_encoders):  # a few hundred prompts are read
        meter = Meter(model)
        strengths = []
        for number in range(min(len(words), MEASURED_WORDS)):
            job.report("stage", name="measuring words", done=number, total=min(len(words), MEASURED_WORDS))
            without = prefix + " ".join([*words[:number], *words[number + 1 :]])
            strengths.append(meter.strength(prefix + prompt, without.strip()))
        job.report("stage", name="trying rare words", done=0, total=1)
        rare = rare_words(model, meter, words[-1] if words else "", request["candidates"])
    token_ids = textual_inversion.token_ids(tokenizer(model), prompt)
    return {
        "read_length": tuning.max_token_length,
        "prompt": prompt,
        "measured_in": prefix + prompt,
        "tokens": len(token_ids),
        "chunks": [tokenizer(model).decode(chunk) for chunk in chunking.split(token_ids, comma_id(model))],
        "words": [
            {
                "word": word,
                "tokens": _token_texts(model, word),
                "strength": strength,
                "known": _is_known(strength, rare),
            }
            for word, strength in zip(words, [*strengths, *[None] * len(words)])
        ],
        "rare": rare,
    }


def _is_known(strength: float | None, rare: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether a word changes a picture by much more than words that hardly any picture was named with; None where that
    was not measured."""
    if strength is None or not rare:
        return None
    return strength > _KNOWN_RATIO * statistics.median(row["strength"] for row in rare)


class Meter:
    """How much a word changes what the model draws, at fixed noise."""

    def __init__(self, model: Model) -> None:
        self.model = model
        side = min(_LATENT_SIDE, model.resolution // LATENT_FACTOR)
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(_NOISES_PER_TIMESTEP, LATENT_CHANNELS, side, side, generator=generator)
        x_t = eps.repeat(len(_TIMESTEPS), 1, 1, 1).to(model.device, model.unet.dtype)
        pixels = side * LATENT_FACTOR
        self.x_t = inpainting_inputs.concatenate(x_t, inpainting_inputs.whole_picture_inputs(model, pixels, pixels))
        sizes = whole_picture(pixels, pixels)
        self.sizes = torch.tensor([sizes] * len(self.x_t), device=model.device)
        self.t = torch.tensor(_TIMESTEPS, device=model.device).repeat_interleave(_NOISES_PER_TIMESTEP)
        self._predictions: dict[str, Tensor] = {}  # by prompt

    @torch.no_grad()
    def predict(self, prompt: str) -> Tensor:
        """The UNet's prediction for each timestep and noise, (timesteps x noises, 4, h, w) in float32."""
        if prompt not in self._predictions:
            text = self.model.encode_text([prompt] * len(self.t)).to(self.model.unet.dtype)
            self._predictions[prompt] = self.model.denoise(self.x_t, self.t, text, self.sizes).float()
        return self._predictions[prompt]

    def strength(self, prompt: str, without: str) -> float:
        """|prediction with - prediction without| / |prediction without|."""
        with_word, without_word = self.predict(prompt), self.predict(without)
        return round(((with_word - without_word).norm() / without_word.norm()).item(), 4)


def rare_words(model: Model, meter: Meter, kind: str, count: int) -> list[dict[str, Any]]:
    """Words of one token that change a picture of `kind` least, the least first.

    Of all candidates, `count` are tried: those whose text embeddings differ least from the text without them.
    """
    if not count:
        return []
    vocabulary = tokenizer(model).get_vocab()
    candidates = [
        token.removesuffix("</w>")
        for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1])
        if token_id >= _FIRST_RARE_ID and _RARE_TOKEN.fullmatch(token)
    ]
    without = f"a photo of a {kind}"
    prompts = {word: f"a photo of a {word} {kind}" for word in candidates}
    with torch.no_grad():
        without_word = model.encode_text([without])
        with_word = TextEmbedding.cat(
            [model.encode_text([prompts[w] for w in candidates[n : n + 64]]) for n in range(0, len(candidates), 64)]
        )
    distances = (with_word.hidden - without_word.hidden).flatten(1).norm(dim=1).tolist()
    nearest = sorted(zip(distances, candidates))[:count]
    measured = [{"word": word, "strength": meter.strength(prompts[word], without)} for _, word in nearest]
    return sorted(measured, key=lambda row: row["strength"])


def tokenizer(model: Model) -> CLIPTokenizer:
    """The first text encoder's; all of a model's cut words alike."""
    return next(iter(model.tokenizers.values()))


def comma_id(model: Model) -> int:
    """The token id of a comma."""
    return int(tokenizer(model).convert_tokens_to_ids(",</w>"))


def _token_texts(model: Model, word: str) -> list[str]:
    """The tokens that a word is split into, as text."""
    token_ids = textual_inversion.token_ids(tokenizer(model), word)
    return [token.replace("</w>", "") for token in tokenizer(model).convert_ids_to_tokens(token_ids)]
