"""Every setting of a training run, each declared once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambooth.core import conflicts
from dreambooth.core.errors import UserError
from dreambooth.core.schema import flatten, from_flat, group, setting, table, to_flat

TIMESTEPS = 1000  # that a picture becomes noise in


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
    loss_weight: float = setting(
        1.0,
        "Loss Weight",
        "How much each of these pictures counts beside those of other concepts.",
        min=0.01,
        max=100,
        advanced=True,
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
    save_preview_every_steps: int = setting(
        0,
        "Save Preview(s) Frequency (Steps)",
        "Previews also every so many steps.",
        min=0,
        max=10_000_000,
        advanced=True,
    )
    save_model_every_steps: int = setting(
        0,
        "Save Model Frequency (Steps)",
        "A usable result also every so many steps.",
        min=0,
        max=10_000_000,
        advanced=True,
    )
    save_state_every_steps: int = setting(
        0, "Save State Frequency (Steps)", "A state also every so many steps.", min=0, max=10_000_000, advanced=True
    )
    epoch_pause_frequency: int = setting(
        0,
        "Pause After N Epochs",
        "The run rests this often, to let the machine cool down; 0 never rests.",
        min=0,
        max=100_000,
        advanced=True,
    )
    epoch_pause_time: int = setting(
        0,
        "Amount of time to pause between Epochs (s)",
        "How long each rest is, in seconds; pausing and stopping end it at once.",
        min=0,
        max=86_400,
        advanced=True,
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
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "one_cycle"] = (
        setting(
            "constant",
            "Learning Rate Scheduler",
            "How the rate moves over the run: stays, falls, falls and jumps back, or rises and falls.",
        )
    )
    warmup: float = setting(
        0.0,
        "Learning Rate Warmup",
        "The share of the run over which the rate rises from zero; of one_cycle its own rise (0: 0.3 of the run).",
        min=0,
        max=0.9,
    )
    minimum: float = setting(
        0.0, "Min Learning Rate", "The share of the rate at which a falling one ends.", min=0, max=1, advanced=True
    )
    cycles: int = setting(
        2,
        "Number of Hard Resets",
        "How often cosine_with_restarts falls from the full rate.",
        min=1,
        max=1000,
        advanced=True,
    )
    power: float = setting(
        2.0,
        "Polynomial Power",
        "How polynomial falls: 1 evenly, more quickly at first.",
        min=0.1,
        max=10,
        advanced=True,
    )


@dataclass
class Optimizer:
    """What turns gradients into changes of the weights. A number of 0 stands for the optimizer's own."""

    name: Literal[
        "adamw",
        "adamw_8bit",
        "paged_adamw_8bit",
        "lion",
        "lion_8bit",
        "paged_lion_8bit",
        "adafactor",
        "prodigy",
        "adamw_schedule_free",
    ] = setting(
        "adamw",
        "Optimizer",
        "8bit ones take a quarter of AdamW's memory, paged ones lend it from the computer's; Lion wants a rate five "
        "times lower; Prodigy finds the rate, set it to 1; schedule-free needs no schedule.",
    )
    weight_decay: float = setting(
        0.01, "Weight Decay", "Pulls the UNet's weights gently towards zero.", min=0, max=1, advanced=True
    )
    text_encoder_weight_decay: float = setting(
        0.01, "TENC Weight Decay", "Pulls the text encoder's weights gently towards zero.", min=0, max=1, advanced=True
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradient Clip Norm",
        "Longer gradients of the UNet are shortened to this; 0 leaves them.",
        min=0,
        max=1000,
        advanced=True,
    )
    text_encoder_max_grad_norm: float = setting(
        1.0,
        "TENC Gradient Clip Norm",
        "Longer gradients of each text encoder are shortened to this; 0 leaves them.",
        min=0,
        max=1000,
        advanced=True,
    )
    beta1: float = setting(
        0.0, "Beta 1", "How long the mean of the gradients remembers; 0 is 0.9.", min=0, max=0.99999, advanced=True
    )
    beta2: float = setting(
        0.0,
        "Beta 2",
        "How long their spread remembers; 0 is 0.999, of Lion 0.99.",
        min=0,
        max=0.999999,
        advanced=True,
    )
    epsilon: float = setting(
        0.0,
        "Epsilon",
        "Keeps small gradients from large steps; 0 is 1e-8, of Adafactor 1e-30.",
        min=0,
        max=1,
        advanced=True,
    )


@dataclass
class Tuning:
    train_unet: bool = setting(
        True, "Train UNET", "Off leaves the UNet as it is and trains only the text encoder.", advanced=True
    )
    text_encoder_ratio: float = setting(
        0.0,
        "Step Ratio of Text Encoder Training",
        "The share of the run that trains the text encoder too; 0 leaves it alone, which is quicker and drifts less.",
        min=0,
        max=1,
    )
    freeze_clip_normalization: bool = setting(
        False,
        "Freeze CLIP Normalization Layers",
        "Full fine-tuning of the text encoder leaves its normalisation layers alone; a LoRA never trains them.",
        advanced=True,
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
        False, "Use EMA", "A running average of the weights is saved and previewed: steadier, a little behind."
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
    deterministic: bool = setting(
        False,
        "Deterministic",
        "Only computations that repeat bit for bit on a GPU, at some cost of speed; what cannot repeat is refused.",
        advanced=True,
    )


@dataclass
class Memory:
    attention: Literal["sdpa", "sliced", "xformers"] = setting(
        "sdpa",
        "Memory Attention",
        "sdpa is the quickest on nearly every device, sliced takes the least memory, xformers needs that package.",
        advanced=True,
    )
    bf16_weights: bool = setting(
        False,
        "Weights in bf16",
        "Full fine-tuning in half the memory: the weights are held in bf16 and each change is rounded at random, so "
        "that small ones are not lost.",
    )
    vae_decoding: Literal["whole", "sliced", "tiled"] = setting(
        "sliced",
        "Decoding of Pictures",
        "Previews and class pictures are decoded all at once, one at a time, or large ones in overlapping tiles.",
        advanced=True,
    )


@dataclass
class Objective:
    """What training minimises."""

    loss: Literal["mse", "huber"] = setting(
        "mse", "Loss", "The square of the error, or the pseudo-Huber loss, which lets odd pictures count less."
    )
    huber_delta: float = setting(
        0.1,
        "Huber Delta",
        "Errors well above this count by their size only, not by its square.",
        min=0.001,
        max=10,
        advanced=True,
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = setting(
        "snr",
        "Huber Schedule",
        "Whether delta is the same at all timesteps, or 1 at little noise and falling to its value at much.",
        advanced=True,
    )
    weighting: Literal["none", "min_snr", "debiased"] = setting(
        "none",
        "Timestep Weighting",
        "min_snr lets steps of little noise count less, as the paper of that name has it; debiased lets steps of much "
        "noise count more.",
    )
    min_snr_gamma: float = setting(
        5.0,
        "Min SNR Gamma",
        "With min_snr: steps whose signal is more than so many times their noise count less; smaller is stronger.",
        min=0.1,
        max=100,
    )
    prior_loss_scale: bool = setting(
        False, "Scale Prior Loss", "The weight of the class pictures falls evenly to its minimum over the run's epochs."
    )
    prior_loss_target: int = setting(
        100, "Prior Loss Target", "The epoch at which it has fallen to its minimum.", min=1, max=100_000
    )
    prior_loss_weight_min: float = setting(
        0.1, "Minimum Prior Loss Weight", "What the weight of the class pictures falls to.", min=0, max=10
    )
    offset_noise: float = setting(
        0.0,
        "Offset Noise",
        "Shifts whole channels of the noise at random, for darker and lighter pictures than the model makes; the shift "
        "goes both ways, so that the sign makes no difference.",
        min=-1,
        max=1,
    )
    multires_noise_levels: int = setting(
        0,
        "Multi-Resolution Noise Levels",
        "Adds so many coarser layers to the noise, for large areas of light and dark; 0 adds none.",
        min=0,
        max=10,
        advanced=True,
    )
    multires_noise_discount: float = setting(
        0.3,
        "Multi-Resolution Noise Discount",
        "How strong each is beside the one before.",
        min=0.01,
        max=1,
        advanced=True,
    )
    input_perturbation: float = setting(
        0.0,
        "Input Perturbation",
        "Adds so much noise that is not to be predicted, against the errors that sampling adds up; 0.1 is usual.",
        min=0,
        max=1,
        advanced=True,
    )
    timesteps: Literal["uniform", "logit_normal", "cubic"] = setting(
        "uniform",
        "Timestep Sampling",
        "Which steps are drawn: all alike, those in the middle more often, or those of much noise more often.",
        advanced=True,
    )
    timestep_min: int = setting(
        0, "Lowest Timestep", "Steps of less noise are not trained.", min=0, max=TIMESTEPS - 1, advanced=True
    )
    timestep_max: int = setting(
        TIMESTEPS - 1,
        "Highest Timestep",
        "Steps of more noise are not trained.",
        min=0,
        max=TIMESTEPS - 1,
        advanced=True,
    )
    logit_mean: float = setting(
        0.0, "Logit-Normal Mean", "Above 0 the middle moves to steps of more noise.", min=-5, max=5, advanced=True
    )
    logit_std: float = setting(
        1.0, "Logit-Normal Width", "How far around the middle steps are drawn.", min=0.01, max=5, advanced=True
    )
    masked: bool = setting(
        False,
        "Masked Training",
        "Only what is white in NAME-mask.png beside a picture, or in masks/NAME.png, counts in full; a picture without "
        "such a file takes its transparency, if it has any.",
    )
    unmasked_weight: float = setting(
        0.1, "Unmasked Weight", "How much the rest of a masked picture counts.", min=0, max=1
    )


@dataclass
class Lora:
    kind: Literal["lora", "dora", "loha", "lokr"] = setting(
        "lora",
        "Lora Kind",
        "The usual LoRA; DoRA, which also learns how strong inputs are; LoHa; or LoKr, whose files are the smallest.",
    )
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
    lokr_factor: int = setting(
        0,
        "LoKr Factor",
        "The sides of a LoKr's first factor, where they divide the layer's; 0 makes both factors about as large.",
        min=0,
        max=512,
        advanced=True,
    )
    start_file: str = setting(
        "",
        "Lora Model",
        "A LoRA file to go on from, of any trainer; kind, rank, alpha and layers are then that file's.",
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
    scheduler: Literal[
        "dpm++",
        "dpm++_karras",
        "dpm++_sde",
        "dpm++_sde_karras",
        "dpm++_single",
        "ddim",
        "ddpm",
        "euler",
        "euler_karras",
        "euler_a",
        "heun",
        "kdpm2",
        "kdpm2_a",
        "deis",
        "unipc",
        "sa",
        "lms",
        "lms_karras",
        "pndm",
    ] = setting("dpm++", "Image Generation Scheduler", "How previews are drawn.")
    width: int = setting(0, "Sample Width", "In pixels; 0 is the size of training.", min=0, max=4096)
    height: int = setting(0, "Sample Height", "In pixels; 0 is the size of training.", min=0, max=4096)


@dataclass
class Saving:
    custom_model_name: str = setting("", "Custom Model Name", "The name of what is written; empty takes the model's.")
    half_model: bool = setting(True, "Half Model", "Half precision: half the size, the same pictures.")
    checkpoint_format: Literal["safetensors", "ckpt"] = setting(
        "safetensors", "Checkpoint Format", "The file that full fine-tuning writes; ckpt is for old programs."
    )
    weights: Literal["average", "raw"] = setting(
        "average",
        "Weights to Save",
        "With EMA on: the running average, or the weights as they are. Previews show what is saved.",
        advanced=True,
    )


@dataclass
class Reporting:
    tensorboard: bool = setting(
        False, "TensorBoard", "Losses, rates and gradients also go into the run's folder as TensorBoard reads them."
    )
    webhook_url: str = setting(
        "",
        "Notification Webhook",
        "An https address, of Discord or Slack for one, that is told when a run has ended. It is kept secret.",
        advanced=True,
        secret=True,
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
    optimizer: Optimizer = group(Optimizer)
    tuning: Tuning = group(Tuning)
    objective: Objective = group(Objective)
    memory: Memory = group(Memory)
    lora: Lora = group(Lora)
    previews: Previews = group(Previews)
    saving: Saving = group(Saving)
    reporting: Reporting = group(Reporting)

    @property
    def is_lora(self) -> bool:
        return self.general.method == "lora"


# Settings that were called otherwise once: {old key: new key}. What was saved under the old ones is still understood.
RENAMED = {
    "tuning.weight_decay": "optimizer.weight_decay",
    "tuning.max_grad_norm": "optimizer.max_grad_norm",
}


def carried_over(flat: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version saved, under today's keys."""
    return {RENAMED.get(key, key): value for key, value in flat.items()}


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
    return carried_over(flatten(nested))


def to_json(settings: Settings) -> str:
    return json.dumps(to_flat(settings), indent=1, ensure_ascii=False)


def learning_rates(settings: Settings) -> tuple[float, float]:
    """The UNet's and the text encoder's learning rate under the chosen method."""
    rates = settings.learning
    if settings.is_lora:
        return rates.lora_learning_rate, rates.lora_text_encoder_learning_rate
    return rates.learning_rate, rates.text_encoder_learning_rate


def _conflicts(settings: Settings) -> list[str]:
    problems = conflicts.training(settings)
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
    problems += _training_conflicts(settings)
    name = settings.saving.custom_model_name
    if name and (name.strip(" .") != name or any(c in '<>:"/\\|?*' or ord(c) < 32 for c in name)):
        problems.append(f"saving.custom_model_name: {name!r} cannot be a file's name.")
    return problems


def _training_conflicts(settings: Settings) -> list[str]:
    problems = []
    tuning, objective, lora = settings.tuning, settings.objective, settings.lora
    if not tuning.train_unet and tuning.text_encoder_ratio < 1:
        problems.append(
            "tuning.train_unet: without the UNet only the text encoder is trained, for the whole run; "
            "set tuning.text_encoder_ratio to 1 or train the UNet."
        )
    if objective.timestep_min > objective.timestep_max:
        problems.append(
            f"objective.timestep_min: {objective.timestep_min} is above objective.timestep_max, "
            f"{objective.timestep_max}; no step is left to train."
        )
    if objective.prior_loss_scale and objective.prior_loss_weight_min > tuning.prior_loss_weight:
        problems.append(
            f"objective.prior_loss_weight_min: {objective.prior_loss_weight_min:g} is above tuning.prior_loss_weight, "
            f"{tuning.prior_loss_weight:g}; it must not be, as the weight falls to it."
        )
    if settings.is_lora and lora.kind in ("loha", "lokr") and lora.dropout:
        problems.append(f"lora.dropout: {lora.kind} has no input to drop; set it to 0 or choose lora or dora.")
    return problems
