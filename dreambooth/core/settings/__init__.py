"""Every setting of a training run, each declared once: a file for each part of the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.schema import (
    Object,
    flatten,
    from_flat,
    group,
    is_row,
    leaves,
    table,
    to_flat,
    without_secrets,
)
from dreambooth.core.settings import conflicts
from dreambooth.core.settings.dataset import Captions, Concept, Pictures
from dreambooth.core.settings.method import TEXT_ENCODERS, Embedding, Imagic, Lora, Memory, Tuning
from dreambooth.core.settings.objective import Objective
from dreambooth.core.settings.optimization import Batching, General, Intervals, LearningRate, Optimizer
from dreambooth.core.settings.results import Previews, Reporting, Saving


@dataclass
class Settings:
    general: General = group(General)
    concepts: list[Concept] = table(Concept)
    captions: Captions = group(Captions)
    pictures: Pictures = group(Pictures)
    intervals: Intervals = group(Intervals)
    batching: Batching = group(Batching)
    learning: LearningRate = group(LearningRate)
    optimizer: Optimizer = group(Optimizer)
    tuning: Tuning = group(Tuning)
    objective: Objective = group(Objective)
    memory: Memory = group(Memory)
    lora: Lora = group(Lora)
    embedding: Embedding = group(Embedding)
    imagic: Imagic = group(Imagic)
    previews: Previews = group(Previews)
    saving: Saving = group(Saving)
    reporting: Reporting = group(Reporting)

    @property
    def is_lora(self) -> bool:
        return self.general.method == "lora"

    @property
    def is_full(self) -> bool:
        return self.general.method == "full"

    @property
    def is_embedding(self) -> bool:
        """Whether words learn and nothing else."""
        return self.general.method == "embedding"

    @property
    def result_kind(self) -> str:
        """What a run writes, as what `checkpoint.describe` knows it: lora, checkpoint or embedding."""
        return "checkpoint" if self.is_full else self.general.method

    @property
    def trains_unet(self) -> bool:
        """Whether anything in the UNet is trained, or beside its layers."""
        return self.tuning.train_unet and not self.is_embedding

    @property
    def is_measured(self) -> bool:
        """Whether pictures that are not learned tell when a run is best."""
        return self.intervals.validate_mirrored or any(concept.held_out for concept in self.concepts)

    @property
    def words_learn(self) -> bool:
        return self.embedding.enabled or self.is_embedding

    @property
    def words_share(self) -> float:
        """The share of the run in which words learn."""
        if self.is_embedding:
            return 1.0
        return self.embedding.ratio if self.embedding.enabled else 0.0

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The text encoders that learn, by the names of a model's parts; it may not have all of them."""
        return TEXT_ENCODERS[self.tuning.text_encoders] if self.tuning.text_encoder_learns else ()

    @property
    def text_learns(self) -> bool:
        """Whether prompts are read anew at each step, as something in reading them learns."""
        return self.tuning.text_encoder_learns or self.words_learn

    def reads_anew(self, text_encoder: str) -> bool:
        """Whether a text encoder reads prompts at each step, as something in it learns."""
        return self.words_learn or text_encoder in self.text_parts

    @property
    def words(self) -> list[str]:
        """The words that learn."""
        tokens = [concept.instance_token.strip() for concept in self.concepts]
        return list(dict.fromkeys(filter(None, tokens))) if self.words_learn else []


# Settings that were called otherwise once: {old key: new key}. What was saved under the old ones is still understood.
RENAMED = {
    "tuning.weight_decay": "optimizer.weight_decay",
    "tuning.max_grad_norm": "optimizer.max_grad_norm",
    "memory.base_weights": "memory.unet_weights",
}


def carried_over(flat: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version saved, under today's keys."""
    return {RENAMED.get(key, key): value for key, value in flat.items()}


def whole(flat: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version saved, under today's keys and with the defaults of settings that it did not have yet."""
    given = carried_over(flat)
    rows = {key.split(".")[1] for key in given if key.startswith("concepts.")}
    numbers = sorted((row for row in rows if is_row(row)), key=int) or ["0"]
    defaults = {
        leaf.key.replace(".N.", f".{row}."): leaf.default
        for leaf in leaves(Settings)
        for row in (numbers if ".N." in leaf.key else numbers[:1])
    }
    return {**defaults, **given}


def parse(flat: dict[str, Any]) -> Settings:
    """Checked settings from dotted keys. Raises UserError with every problem at once."""
    settings = from_flat(Settings, flat)
    problems = conflicts.found(settings)
    if problems:
        raise UserError(problems)
    return settings


def read_file(path: Path) -> tuple[dict[str, Any], bool]:
    """A settings file as dotted keys, not yet checked, and whether it lists the concepts, which then are all of them.
    Raises UserError for a file that is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the settings file cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the settings file is no text in UTF-8; save it as that.") from None
    nested = _parsed(text, path)
    if not isinstance(nested, dict):
        raise UserError(f"{path}: the settings file must hold one JSON object.")
    try:
        flat = flatten(nested)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return carried_over(flat), isinstance(nested.get("concepts"), list)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=Object)
    except RecursionError:
        raise UserError(f"{path}: the settings file is nested too deeply; no setting is.") from None
    except ValueError as error:
        if not text.strip():
            raise UserError(f"{path}: the settings file is empty; write settings as JSON into it.") from None
        if path.suffix.lower() == ".toml":
            raise UserError(f"{path}: settings are read from JSON; kohya's .toml files are taken by import.") from None
        raise UserError(f"{path}: the settings file is not JSON ({error}).") from None


def write_json(path: Path, text: str) -> None:
    """Writes settings that are JSON already, by dotted keys; where there is a secret among them, so that nobody but the
    file's owner can read it. Raises OSError."""
    flat = json.loads(text)
    atomic.write_text(path, text, private=without_secrets(Settings, flat) != flat)


def to_json(settings: Settings) -> str:
    return json.dumps(to_flat(settings), indent=1, ensure_ascii=False)


def learning_rate(settings: Settings, part: str) -> float:
    """The learning rate of a part of the model under the chosen method: unet, words, or else a text encoder's."""
    rates = settings.learning
    if part == "words":
        return rates.embedding_learning_rate
    if part == "unet":
        return rates.lora_learning_rate if settings.is_lora else rates.learning_rate
    first = rates.lora_text_encoder_learning_rate if settings.is_lora else rates.text_encoder_learning_rate
    return first * rates.text_encoder_2_ratio if part == "text_encoder_2" else first
