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
        "The side in pixels of the square that pictures are cut to, or whose area their buckets have; 0 takes the "
        "model's own size.",
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
    class_prompt: str = setting(
        "",
        "Class Prompt",
        "What the subject is one of: a photo of a dog. [filewords] draws class pictures from your captions.",
    )
    instance_token: str = setting(
        "",
        "Instance Token",
        "The rare word for the subject: sks. A caption without it gets it, before the class token where that stands.",
    )
    class_token: str = setting(
        "", "Class Token", "The word for what the subject is: dog. It takes the subject's place in class prompts."
    )
    repeats: int = setting(
        1, "Repeats", "How often each epoch sees these pictures; balances concepts of unlike size.", min=1, max=10_000
    )
    class_mode: Literal["fill", "folder", "off"] = setting(
        "fill",
        "Class Pictures",
        "fill has the base model make what is missing, folder takes the class folder as it is, off goes without.",
    )
    class_data_dir: str = setting(
        "",
        "Classification Dataset Directory",
        "The folder of class pictures; empty keeps them with the model.",
        path=True,
    )
    num_class_images_per: int = setting(
        0,
        "Class Images Per Instance Image",
        "In the mode fill: so many class pictures for each of yours; 0 turns prior preservation off.",
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
class Captions:
    """What varies in the words of your pictures from step to step."""

    shuffle_tags: bool = setting(
        False, "Shuffle Tags", "The parts between commas change places from step to step, so that no order is learned."
    )
    keep_tags: int = setting(
        1, "Tags Kept in Front", "So many parts of a caption stay first when tags are shuffled.", min=0, max=100
    )
    variants: int = setting(
        8,
        "Variants of a Caption",
        "At most so many texts for each picture, from shuffled tags, {red|blue} and captions of several lines.",
        min=1,
        max=256,
        advanced=True,
    )
    dropout: float = setting(
        0.0,
        "Caption Dropout",
        "The share of your pictures that is read without a caption; more teaches style, less the words.",
        min=0,
        max=1,
    )
    prefix: str = setting("", "Caption Prefix", "Words before each of your captions; they are never shuffled.")
    suffix: str = setting("", "Caption Suffix", "Words after each of your captions; they are never shuffled.")


@dataclass
class Pictures:
    crop: Literal["centre", "random", "smart"] = setting(
        "centre",
        "Crop",
        "Which part is kept where a picture is too wide or too high: the middle, any part, or the part that stands "
        "out from the rest.",
    )
    buckets: bool = setting(
        True,
        "Aspect Ratio Buckets",
        "Wide and high pictures keep nearly all of themselves in shapes of their own; off cuts every picture square.",
    )
    bucket_step: Literal[64, 32, 16, 8] = setting(
        64, "Bucket Steps", "Sides are multiples of this: smaller cuts off less and makes more shapes.", advanced=True
    )
    bucket_min_side: int = setting(
        0, "Smallest Bucket Side", "In pixels; 0 is half the resolution.", min=0, max=2048, advanced=True
    )
    bucket_max_side: int = setting(
        0, "Largest Bucket Side", "In pixels; 0 is twice the resolution.", min=0, max=4096, advanced=True
    )
    no_upscale: bool = setting(
        False, "Never Enlarge", "Small pictures are trained at their own size, in smaller shapes.", advanced=True
    )
    cache_on_disk: bool = setting(
        True,
        "Cache Latents on Disk",
        "Encoded pictures are kept with the model, so that the next run on them starts at once; one that has changed "
        "is encoded anew.",
    )
    variants: int = setting(
        4,
        "Variants of a Picture",
        "Each picture is trained in so many versions in turn, the first unchanged, where a crop is random or one of "
        "the next five is on.",
        min=2,
        max=64,
        advanced=True,
    )
    hflip: bool = setting(
        False,
        "Apply Horizontal Flip",
        "Every second variant is mirrored; not for faces, writing or anything one-sided.",
    )
    crop_jitter: float = setting(
        0.0, "Crop Jitter", "Variants are cut up to this share tighter, anywhere in the crop.", min=0, max=0.5
    )
    rotation: float = setting(
        0.0, "Rotation", "Variants are turned by up to so many degrees, either way.", min=0, max=30, advanced=True
    )
    brightness: float = setting(
        0.0, "Brightness Jitter", "Variants are up to this share lighter or darker.", min=0, max=0.9, advanced=True
    )
    colour: float = setting(
        0.0, "Colour Jitter", "Variants are up to this share more or less colourful.", min=0, max=1, advanced=True
    )


@dataclass
class Intervals:
    num_train_epochs: int = setting(
        100, "Training Steps Per Image (Epochs)", "How often each of your pictures is seen.", min=1, max=100_000
    )
    max_train_steps: int = setting(
        0,
        "Total Steps",
        "Updates of the weights in all, in place of the epochs; 0 goes by the epochs.",
        min=0,
        max=10_000_000,
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
    max_token_length: Literal[75, 150, 225] = setting(
        75,
        "Max Token Length",
        "Longer prompts are read in two or three pieces of 75 tokens, as the WebUI does; what is still longer is cut.",
    )
    clip_skip: int = setting(
        1,
        "Clip Skip",
        "As in the WebUI: 2 reads the last block but one of SD 1's text encoder. Draw with the same.",
        min=1,
        max=12,
    )
    pad_tokens: bool = setting(
        True,
        "Pad Tokens",
        "Short prompts are filled up as WebUIs fill them; off reads their words alone, which no WebUI does.",
        advanced=True,
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
    captions: Captions = group(Captions)
    pictures: Pictures = group(Pictures)
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
    step = settings.pictures.bucket_step
    for name in ("bucket_min_side", "bucket_max_side"):
        if getattr(settings.pictures, name) % step:
            problems.append(f"pictures.{name}: {getattr(settings.pictures, name)} is not a multiple of {step} (or 0).")
    for number, concept in enumerate(settings.concepts):
        key = f"concepts.{number}"
        if concept.class_mode == "fill" and concept.num_class_images_per and not concept.class_prompt.strip():
            problems.append(
                f"{key}.class_prompt: it is empty, but num_class_images_per asks for class pictures; "
                "say what they show or set num_class_images_per to 0."
            )
        if concept.class_mode == "folder" and not concept.class_prompt.strip():
            problems.append(f"{key}.class_prompt: it is empty; say what the pictures of the class folder show.")
        if concept.class_mode == "folder" and not concept.class_data_dir.strip():
            problems.append(f"{key}.class_data_dir: it is empty; class_mode folder needs a folder, or choose fill.")
    name = settings.saving.custom_model_name
    if name and (name.strip(" .") != name or any(c in '<>:"/\\|?*' or ord(c) < 32 for c in name)):
        problems.append(f"saving.custom_model_name: {name!r} cannot be a file's name.")
    return problems
