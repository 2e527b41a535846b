"""How a run trains: with which method, how long, at which learning rates and with which optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting

# In the help of several learning rates.
_OTHER_RATES = "The default suits AdamW: Lion needs a third to a tenth of it, CAME a fifth, Prodigy 1."
_TWO_ENCODERS = "SDXL's two need a lower one."


@dataclass
class General:
    method: Literal["lora", "full", "embedding"] = setting(
        "lora",
        "What to train",
        "A LoRA is a small add-on file; full fine-tuning writes a whole new checkpoint; an embedding (textual "
        "inversion) trains a word alone, in a file of some kilobytes, and leaves the model as it is.",
    )
    resolution: int = setting(
        0,
        "Max Resolution",
        "The side in pixels of the square that pictures are cropped to; buckets have about its area. 0 is the "
        "model's own.",
        min=0,
        max=2048,
    )
    seed: int = setting(
        420420,
        "Seed",
        "The same seed and settings give the same weights; on a GPU bit for bit only with Deterministic.",
        min=0,
        max=2**31 - 1,
    )


@dataclass
class Intervals:
    num_train_epochs: int = setting(
        100, "Training Steps Per Image (Epochs)", "How many times each of your pictures is trained.", min=1, max=100_000
    )
    max_train_steps: int = setting(
        0,
        "Total Steps",
        "Optimizer steps in total, instead of epochs; 0 goes by the epochs.",
        min=0,
        max=10_000_000,
    )
    save_preview_every: int = setting(
        25,
        "Save Preview(s) Frequency (Epochs)",
        "Previews are drawn this often; 0 draws only the first and the last.",
        min=0,
        max=100_000,
    )
    save_model_every: int = setting(
        0,
        "Save Model Frequency (Epochs)",
        "A usable checkpoint or LoRA is saved this often; 0 saves only the last.",
        min=0,
        max=100_000,
    )
    save_state_every: int = setting(
        25,
        "Save State Frequency (Epochs)",
        "A state to resume from is saved this often; a crash costs no more. 0 saves it only on pause.",
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
    validate_every: int = setting(
        10,
        "Validation Frequency (Epochs)",
        "With pictures held out or mirror images: how often they are measured.",
        min=1,
        max=100_000,
    )
    validate_mirrored: bool = setting(
        False,
        "Measure Mirror Images",
        "Mirror images of up to four pictures are measured as pictures held out are, so that a run that can spare"
        " none can tell, too, when it is best. Not for writing or symbols, which mirroring changes.",
    )
    patience: int = setting(
        0,
        "Patience",
        "With pictures held out or mirror images: the run ends after this many measurements without improvement; "
        "0 never ends it.",
        min=0,
        max=1000,
    )
    results_kept: int = setting(
        0,
        "Results Kept",
        "How many of the results written on the way are kept, the newest ones; 0 keeps all. The last, the best, "
        "those of Save now and those that you changed are always kept.",
        min=0,
        max=1000,
    )
    states_kept: int = setting(
        1,
        "States Kept",
        "How many of the newest states are kept. If the newest is damaged, the one before it is used.",
        min=1,
        max=100,
        advanced=True,
    )
    states_kept_every: int = setting(
        0,
        "States Kept Every (Epochs)",
        "Besides the newest, the first state in every so many epochs is kept until the run ends; 0 keeps none of them.",
        min=0,
        max=100_000,
        advanced=True,
    )
    epoch_pause_frequency: int = setting(
        0,
        "Pause After N Epochs",
        "The run rests after every so many epochs, to let the machine cool down; 0 never rests.",
        min=0,
        max=100_000,
        advanced=True,
    )
    epoch_pause_time: int = setting(
        0,
        "Amount of time to pause between Epochs (s)",
        "How long each rest is, in seconds. Pause and stop end it at once.",
        min=0,
        max=86_400,
        advanced=True,
    )


@dataclass
class Batching:
    train_batch_size: int = setting(
        1,
        "Batch Size",
        "Pictures of yours in each step. A larger batch makes fewer steps of an epoch and allows a higher rate: "
        "usually twice the rate for four times the batch.",
        min=1,
        max=256,
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Gradient Accumulation Steps",
        "Batches whose gradients are added up for each optimizer step.",
        min=1,
        max=256,
    )
    num_processes: int = setting(
        1,
        "Number of Processes",
        "How many GPUs share the accumulated batches of each step (data parallel), with the result of one; "
        "without GPUs, how many processes of the CPU.",
        min=1,
        max=64,
        advanced=True,
    )
    gradient_checkpointing: bool = setting(
        False, "Gradient Checkpointing", "Much less memory for about a third more time; the result is the same."
    )
    class_batch_size: int = setting(
        0,
        "Class Batch Size",
        "Class pictures and previews drawn at once; 0 draws as many as free memory has room for, up to what the "
        "device is fastest with.",
        min=0,
        max=256,
    )


@dataclass
class LearningRate:
    learning_rate: float = setting(
        2e-6, "Learning Rate", f"Of the UNet, in full fine-tuning. {_OTHER_RATES}", min=0, max=1
    )
    text_encoder_learning_rate: float = setting(
        1e-6, "Text Encoder Learning Rate", f"Of the text encoder, in full fine-tuning. {_TWO_ENCODERS}", min=0, max=1
    )
    lora_learning_rate: float = setting(
        1e-4, "Lora UNET Learning Rate", f"Of the UNet's LoRA. {_OTHER_RATES}", min=0, max=1
    )
    lora_text_encoder_learning_rate: float = setting(
        5e-5, "Lora Text Encoder Learning Rate", f"Of the text encoder's LoRA. {_TWO_ENCODERS}", min=0, max=1
    )
    text_encoder_2_ratio: float = setting(
        1.0,
        "Second Text Encoder's Ratio",
        "The rate of SDXL's second text encoder as a multiple of the text encoder's rate; 1 is one rate for both.",
        min=0.001,
        max=1000,
        advanced=True,
    )
    lora_plus_ratio: float = setting(
        1.0,
        "LoRA+ Ratio",
        "The rate of the second matrix (B, up) of a LoRA or DoRA as a multiple of the first one's (A, down); 1 is"
        " one rate for both.",
        min=1,
        max=1000,
        advanced=True,
    )
    embedding_learning_rate: float = setting(
        1e-3, "Embedding Learning Rate", "Of the embedding that is trained.", min=0, max=1
    )
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "one_cycle"] = (
        setting(
            "constant",
            "Learning Rate Scheduler",
            "How the rate changes over the run: constant, falling, falling with restarts, or rising and falling.",
        )
    )
    warmup: float = setting(
        0.0,
        "Learning Rate Warmup",
        "The share of the run over which the rate rises from zero; for one_cycle its own rise (0 is 0.3 of the run).",
        min=0,
        max=0.9,
    )
    minimum: float = setting(
        0.0, "Min Learning Rate", "The share of the rate at which a falling schedule ends.", min=0, max=1, advanced=True
    )
    cycles: int = setting(
        2,
        "Number of Hard Resets",
        "How many times cosine_with_restarts falls from the full rate.",
        min=1,
        max=1000,
        advanced=True,
    )
    power: float = setting(
        2.0,
        "Polynomial Power",
        "The exponent of the polynomial schedule: 1 falls evenly, more falls faster at first.",
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
        "came",
        "prodigy",
        "adamw_schedule_free",
    ] = setting(
        "adamw",
        "Optimizer",
        "State memory relative to AdamW: 8-bit AdamW a quarter, Lion and CAME half, 8-bit Lion an eighth, "
        "Adafactor almost none, Prodigy twice; paged ones can move theirs to main memory. Lion and CAME need "
        "lower rates, Prodigy a rate of 1, schedule-free the constant scheduler.",
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
        "Longer gradients of the UNet are clipped to this norm; 0 does not clip.",
        min=0,
        max=1000,
        advanced=True,
    )
    text_encoder_max_grad_norm: float = setting(
        1.0,
        "TENC Gradient Clip Norm",
        "Longer gradients of each text encoder, or of embeddings, are clipped to this norm; 0 does not clip.",
        min=0,
        max=1000,
        advanced=True,
    )
    beta1: float = setting(
        0.0,
        "Beta 1",
        "How slowly the running mean of the gradients changes; 0 is 0.9, for Adafactor no mean, which would take "
        "4 bytes for each trained value.",
        min=0,
        max=0.99999,
        advanced=True,
    )
    beta2: float = setting(
        0.0,
        "Beta 2",
        "How slowly the running mean of their squares changes; 0 is 0.999, for Lion 0.99.",
        min=0,
        max=0.999999,
        advanced=True,
    )
    epsilon: float = setting(
        0.0,
        "Epsilon",
        "Keeps small gradients from large steps; 0 is 1e-8, for Adafactor and CAME 1e-30.",
        min=0,
        max=1,
        advanced=True,
    )
    d_coef: float = setting(
        1.0,
        "D Coefficient",
        "For Prodigy: multiplies the rate that it finds; 0.5 is gentler, 2 bolder. The rate shown is what it found.",
        min=0.01,
        max=10,
        advanced=True,
    )
