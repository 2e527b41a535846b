"""What a run shows and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting


@dataclass
class Previews:
    prompts: str = setting(
        "",
        "Sample Image Prompt",
        "What previews show, separated by semicolons; empty takes the instance and class prompts. [filewords] is the "
        "caption of each concept's first picture.",
    )
    negative_prompt: str = setting("", "Sample Negative Prompt", "What previews must not show.")
    count: int = setting(
        1, "Number of Samples to Generate", "Pictures for each prompt; 0 makes no previews.", min=0, max=64
    )
    seed: int = setting(
        420420, "Sample Seed", "Previews keep this seed, so that only the training changes them.", min=0, max=2**31 - 1
    )
    guidance_scale: float = setting(
        7.5, "Sample CFG Scale", "How strictly previews follow their prompt.", min=1, max=30
    )
    steps: int = setting(20, "Sample Steps", "Sampling steps for each preview.", min=1, max=500)
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
    ] = setting("dpm++", "Image Generation Scheduler", "The sampler that draws previews.")
    width: int = setting(0, "Sample Width", "In pixels; 0 is the training size.", min=0, max=4096)
    height: int = setting(0, "Sample Height", "In pixels; 0 is the training size.", min=0, max=4096)


@dataclass
class Saving:
    custom_model_name: str = setting("", "Custom Model Name", "The file name of results; empty takes the model's name.")
    use_subdirectory: bool = setting(
        False, "Save Checkpoint to Subdirectory", "Results, LoRAs too, are saved in a folder of the model's name."
    )
    half_model: bool = setting(True, "Half Model", "Saves in half precision: half the size, the same pictures.")
    checkpoint_format: Literal["safetensors", "ckpt"] = setting(
        "safetensors", "Checkpoint Format", "The file format of full fine-tuning; ckpt is for old programs."
    )
    embedding_in_lora: bool = setting(
        False,
        "Embedding in the LoRA's File",
        "With an embedding: in AUTOMATIC1111 and SD.Next the LoRA's file alone is enough, and prompts say the "
        "instance token itself. Forge and reForge need the embedding's own file, which is always written; "
        "diffusers cannot read such a LoRA.",
        advanced=True,
    )
    keep_best: bool = setting(
        True,
        "Keep the Best",
        "With pictures held out: the result that predicts them best is saved too, if it is not the last.",
    )
    weights: Literal["average", "raw"] = setting(
        "average",
        "Weights to Save",
        "With EMA: save the average, or the weights as they are. Previews show what is saved.",
        advanced=True,
    )


@dataclass
class Reporting:
    tensorboard: bool = setting(
        False, "TensorBoard", "Losses, rates and gradient norms are also written to the run's folder, for TensorBoard."
    )
    webhook_url: str = setting(
        "",
        "Notification Webhook",
        "An https address, for example of Discord or Slack, that is notified when a run has ended. It is kept secret.",
        advanced=True,
        secret=True,
    )
