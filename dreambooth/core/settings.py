"""Every setting of a training run, each declared once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambooth.core.errors import UserError
from dreambooth.core.schema import flatten, from_flat, group, setting, table, to_flat


@dataclass
class General:
    method: Literal["lora", "full"] = setting(
        "lora", "What to train", "A LoRA is a small add-on file; full fine-tuning writes a whole new checkpoint."
    )
    resolution: int = setting(
        0,
        "Max Resolution",
        "Pictures are cropped to this square, in pixels; 0 takes the model's own size.",
        min=0,
        max=2048,
    )
    seed: int = setting(420420, "Seed", "The same seed and settings give the same weights.", min=0, max=2**31 - 1)


@dataclass
class Concept:
    instance_data_dir: str = setting(
        "", "Dataset Directory", "The folder with the pictures of your subject or style.", path=True
    )
    instance_prompt: str = setting(
        "",
        "Instance Prompt",
        "What the pictures show, with a rare word for the subject: a photo of sks dog. "
        "[filewords] stands for the text file beside each picture.",
    )
    class_prompt: str = setting("", "Class Prompt", "What the subject is one of: a photo of a dog.")
    class_data_dir: str = setting(
        "",
        "Classification Dataset Directory",
        "The folder of class pictures; empty keeps them with the model.",
        path=True,
    )
    num_class_images_per: int = setting(
        0,
        "Class Images Per Instance Image",
        "Class pictures for each of yours, made by the base model where missing; 0 turns prior preservation off.",
        min=0,
        max=1000,
    )
    class_negative_prompt: str = setting("", "Classification Negative Prompt", "What class pictures must not show.")
    class_guidance_scale: float = setting(
        7.5,
        "Classification CFG Scale",
        "How strictly class pictures follow their prompt.",
        min=1,
        max=30,
        advanced=True,
    )
    class_infer_steps: int = setting(
        25, "Classification Steps", "Sampling steps for each class picture.", min=1, max=200, advanced=True
    )


@dataclass
class Intervals:
    num_train_epochs: int = setting(
        100, "Training Steps Per Image (Epochs)", "How often each of your pictures is seen.", min=1, max=100_000
    )
    save_preview_every: int = setting(
        25,
        "Save Preview(s) Frequency (Epochs)",
        "Previews are made this often; 0 makes only the first and the last.",
        min=0,
        max=100_000,
    )
    save_model_every: int = setting(
        0,
        "Save Model Frequency (Epochs)",
        "A usable checkpoint or LoRA is written this often; 0 writes only the last.",
        min=0,
        max=100_000,
    )
    save_state_every: int = setting(
        25,
        "Save State Frequency (Epochs)",
        "A crash costs at most this much; 0 saves only on pause.",
        min=0,
        max=100_000,
    )


@dataclass
class Batching:
    train_batch_size: int = setting(1, "Batch Size", "Pictures of yours in each step.", min=1, max=256)
    gradient_accumulation_steps: int = setting(
        1, "Gradient Accumulation Steps", "Batches that are added up before the weights change.", min=1, max=256
    )
    gradient_checkpointing: bool = setting(
        False, "Gradient Checkpointing", "Much less memory for about a third more time; the result is the same."
    )
    class_batch_size: int = setting(
        4, "Class Batch Size", "Class pictures and previews made at a time.", min=1, max=256
    )


@dataclass
class LearningRate:
    learning_rate: float = setting(2e-6, "Learning Rate", "Of the UNet, in full fine-tuning.", min=0, max=1)
    text_encoder_learning_rate: float = setting(
        1e-6, "Text Encoder Learning Rate", "Of the text encoder, in full fine-tuning.", min=0, max=1
    )
    lora_learning_rate: float = setting(1e-4, "Lora UNET Learning Rate", "Of the UNet's LoRA.", min=0, max=1)
    lora_text_encoder_learning_rate: float = setting(
        5e-5, "Lora Text Encoder Learning Rate", "Of the text encoder's LoRA.", min=0, max=1
    )
    scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Learning Rate Scheduler", "How the rate moves over the run: stays, or falls to zero."
    )
    warmup: float = setting(
        0.0, "Learning Rate Warmup", "The share of the run over which the rate rises from zero.", min=0, max=0.9
    )


@dataclass
class Tuning:
    text_encoder_ratio: float = setting(
        0.0,
        "Step Ratio of Text Encoder Training",
        "The share of the run that trains the text encoder too; 0 leaves it alone, which is quicker and drifts less.",
        min=0,
        max=1,
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto",
        "Mixed Precision",
        "Half precision is quicker on a GPU; auto takes the safest that this device is quick at.",
    )
    use_ema: bool = setting(
        False, "Use EMA", "What is saved and previewed is a running average of the weights: steadier, a little behind."
    )
    ema_decay: float = setting(
        0.99,
        "EMA Decay",
        "How long the average remembers; it starts short and grows to this.",
        min=0,
        max=0.99999,
        advanced=True,
    )
    prior_loss_weight: float = setting(
        0.75, "Prior Loss Weight", "How much the class pictures count beside yours.", min=0, max=10
    )
    weight_decay: float = setting(
        0.01, "Weight Decay", "Pulls the weights gently towards zero.", min=0, max=1, advanced=True
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradient Clip Norm",
        "Longer gradients are shortened to this; 0 leaves them.",
        min=0,
        max=1000,
        advanced=True,
    )


@dataclass
class Lora:
    rank: int = setting(16, "Lora Rank", "Larger learns more and makes a larger file.", min=1, max=512)
    alpha: float = setting(
        16.0,
        "Lora Alpha",
        "The LoRA's strength is alpha divided by rank, in training and in every WebUI.",
        min=0.01,
        max=1024,
    )
    dropout: float = setting(
        0.0,
        "Lora Dropout",
        "The share of the LoRA's input that is left out at random while training.",
        min=0,
        max=0.9,
        advanced=True,
    )
    layers: Literal["attention", "transformer", "convolutions"] = setting(
        "transformer",
        "Lora Layers",
        "Which layers of the UNet get a LoRA: attention only; the whole transformer blocks; or the convolutions too.",
    )
    start_file: str = setting(
        "",
        "Lora Model",
        "A LoRA file to go on from, of any trainer; rank, alpha and layers are then that file's.",
        path=True,
    )


@dataclass
class Previews:
    prompts: str = setting(
        "",
        "Sample Image Prompt",
        "What previews show, separated by semicolons; empty takes the instance and class prompts.",
    )
    negative_prompt: str = setting("", "Sample Negative Prompt", "What previews must not show.")
    count: int = setting(
        1, "Number of Samples to Generate", "Pictures for each prompt; 0 makes no previews.", min=0, max=64
    )
    seed: int = setting(
        420420, "Sample Seed", "Previews keep their seed, so that only the training changes them.", min=0, max=2**31 - 1
    )
    guidance_scale: float = setting(
        7.5, "Sample CFG Scale", "How strictly previews follow their prompt.", min=1, max=30
    )
    steps: int = setting(20, "Sample Steps", "Sampling steps for each preview.", min=1, max=200)


@dataclass
class Saving:
    custom_model_name: str = setting("", "Custom Model Name", "The name of what is written; empty takes the model's.")
    half_model: bool = setting(True, "Half Model", "Half precision: half the size, the same pictures.")
    checkpoint_format: Literal["safetensors", "ckpt"] = setting(
        "safetensors", "Checkpoint Format", "The file that full fine-tuning writes; ckpt is for old programs."
    )


@dataclass
class Settings:
    general: General = group(General)
    concepts: list[Concept] = table(Concept)
    intervals: Intervals = group(Intervals)
    batching: Batching = group(Batching)
    learning: LearningRate = group(LearningRate)
    tuning: Tuning = group(Tuning)
    lora: Lora = group(Lora)
    previews: Previews = group(Previews)
    saving: Saving = group(Saving)

    @property
    def is_lora(self) -> bool:
        return self.general.method == "lora"


def parse(flat: dict[str, Any]) -> Settings:
    """Checked settings from dotted keys. Raises UserError with every problem at once."""
    settings = from_flat(Settings, flat)
    problems = list(_conflicts(settings))
    if problems:
        raise UserError(problems)
    return settings


def read_file(path: Path) -> dict[str, Any]:
    """A settings file as dotted keys, not yet checked. Raises UserError for a file that is none."""
    try:
        nested = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the settings file cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: the settings file is not JSON ({error}).") from None
    if not isinstance(nested, dict):
        raise UserError(f"{path}: the settings file must hold one JSON object.")
    return flatten(nested)


def to_json(settings: Settings) -> str:
    return json.dumps(to_flat(settings), indent=1, ensure_ascii=False)


def learning_rates(settings: Settings) -> tuple[float, float]:
    """The UNet's and the text encoder's learning rate under the chosen method."""
    rates = settings.learning
    if settings.is_lora:
        return rates.lora_learning_rate, rates.lora_text_encoder_learning_rate
    return rates.learning_rate, rates.text_encoder_learning_rate


def _conflicts(settings: Settings) -> list[str]:
    problems = []
    if settings.general.resolution % 64:
        problems.append(f"general.resolution: {settings.general.resolution} is not a multiple of 64 (or 0).")
    for number, concept in enumerate(settings.concepts):
        if concept.num_class_images_per and not concept.class_prompt.strip():
            problems.append(
                f"concepts.{number}.class_prompt: it is empty, but num_class_images_per asks for class pictures; "
                "say what they show or set num_class_images_per to 0."
            )
    name = settings.saving.custom_model_name
    if name and (name.strip(" .") != name or any(c in '<>:"/\\|?*' or ord(c) < 32 for c in name)):
        problems.append(f"saving.custom_model_name: {name!r} cannot be a file's name.")
    return problems
