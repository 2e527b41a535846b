"""The course of a run: what it trains, how long, how fast and with what optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting

# What is said of several rates.
_OTHER_RATES = "The default is meant for AdamW: Lion wants a third to a tenth of it, CAME a fifth, Prodigy 1."
_TWO_ENCODERS = "SDXL's two want a lower one."


@dataclass
class General:
    method: Literal["lora", "full", "embedding"] = setting(
        "lora",
        "What to train",
        "A LoRA is a small add-on file; full fine-tuning writes a whole new checkpoint; an embedding (Textual "
        "Inversion) is a word alone that learns, in a file of some kilobytes, and the model stays as it is.",
    )
    resolution: int = setting(
        0,
        "Max Resolution",
        "The side in pixels of the square that pictures are cut to, or whose area their buckets have; 0 takes the "
        "model's own size.",
        min=0,
        max=2048,
    )
    seed: int = setting(
        420420,
        "Seed",
        "The same seed and settings give the same weights; on a GPU to the last bit only with Deterministic.",
        min=0,
        max=2**31 - 1,
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
    validate_every: int = setting(
        10,
        "Validation Frequency (Epochs)",
        "With pictures held out or mirror images: how well they are predicted is measured this often.",
        min=1,
        max=100_000,
    )
    validate_mirrored: bool = setting(
        False,
        "Measure Mirror Images",
        "Mirror images of up to four pictures are looked at as pictures held out are, so that a run with few can tell, "
        "too, when it is best; not of writing or a symbol, which a mirror makes another.",
    )
    patience: int = setting(
        0,
        "Patience",
        "With pictures held out or mirror images: the run ends after so many measures that were no better than the "
        "best; 0 goes on.",
        min=0,
        max=1000,
    )
    results_kept: int = setting(
        0,
        "Results Kept",
        "Of the results written on the way so many of the newest stay; 0 keeps all. The last, the best, what Save now "
        "wrote and what you have changed stay in any case.",
        min=0,
        max=1000,
    )
    states_kept: int = setting(
        1,
        "States Kept",
        "So many of the newest states stay; should the newest be damaged, the one before it is taken.",
        min=1,
        max=100,
        advanced=True,
    )
    states_kept_every: int = setting(
        0,
        "States Kept Every (Epochs)",
        "Beside the newest, the first state of each so many epochs stays until the run ends; 0 keeps none of them.",
        min=0,
        max=100_000,
        advanced=True,
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
    train_batch_size: int = setting(
        1,
        "Batch Size",
        "Pictures of yours in each step. With more of them an epoch has fewer steps, which bear a higher rate: usually "
        "twice the rate for four times the batch.",
        min=1,
        max=256,
    )
    gradient_accumulation_steps: int = setting(
        1, "Gradient Accumulation Steps", "Batches that are added up before the weights change.", min=1, max=256
    )
    num_processes: int = setting(
        1,
        "Number of Processes",
        "So many GPUs share the batches that are added up for each step, and learn the same as one, sooner; or so many "
        "parts of a CPU.",
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
        "Class pictures and previews made at a time; 0 is automatic: as many as the memory that is free then has room "
        "for, up to what the device is quicker with.",
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
        "How many times the text encoder's rate the second one of SDXL has; 1 is one rate for both.",
        min=0.001,
        max=1000,
        advanced=True,
    )
    lora_plus_ratio: float = setting(
        1.0,
        "LoRA+ Ratio",
        "How many times the rate of the first of a LoRA's or DoRA's two matrices the second (B, up) has; 1 is one rate "
        "for both.",
        min=1,
        max=1000,
        advanced=True,
    )
    embedding_learning_rate: float = setting(1e-3, "Embedding Learning Rate", "Of a word that learns.", min=0, max=1)
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
        "came",
        "prodigy",
        "adamw_schedule_free",
    ] = setting(
        "adamw",
        "Optimizer",
        "Beside AdamW's memory 8bit AdamW takes a quarter, Lion and CAME half, 8bit Lion an eighth, Adafactor next to "
        "none, Prodigy twice as much; paged ones lend theirs from the computer's. Lion and CAME want lower rates; "
        "Prodigy finds the rate, set it to 1; schedule-free wants the scheduler constant.",
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
        "Longer gradients of each text encoder, or of words that learn, are shortened to this; 0 leaves them.",
        min=0,
        max=1000,
        advanced=True,
    )
    beta1: float = setting(
        0.0,
        "Beta 1",
        "How long the mean of the gradients remembers; 0 is 0.9, and of Adafactor no mean, which would take 4 bytes of "
        "each value that is trained.",
        min=0,
        max=0.99999,
        advanced=True,
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
        "Keeps small gradients from large steps; 0 is 1e-8, of Adafactor and CAME 1e-30.",
        min=0,
        max=1,
        advanced=True,
    )
    d_coef: float = setting(
        1.0,
        "D Coefficient",
        "Of Prodigy: how far it goes of what it finds; 0.5 is gentler, 2 bolder. The rate shown is what it found.",
        min=0.01,
        max=10,
        advanced=True,
    )
