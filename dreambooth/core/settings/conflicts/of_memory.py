"""What saves memory or time, and what that does not go with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings


def found(settings: Settings) -> list[str]:
    return [
        *_bf16_weights(settings),
        *_step_in_backward(settings),
        *_cuda_graphs(settings),
        *_processes(settings),
        *_unet_weights(settings),
        *_checkpointed_share(settings),
    ]


def _bf16_weights(settings: Settings) -> list[str]:
    if not settings.memory.bf16_weights:
        return []
    if settings.is_lora:
        return [
            "memory.bf16_weights: a LoRA is small, and tuning.mixed_precision says how the model around it lies; turn "
            "it off, or set general.method to full."
        ]
    if settings.is_embedding:
        return ["memory.bf16_weights: an embedding alone leaves the model's weights as they are; turn it off."]
    if settings.tuning.mixed_precision not in ("auto", "bf16"):
        chosen = settings.tuning.mixed_precision
        return [f"tuning.mixed_precision: it is {chosen}, but memory.bf16_weights computes in bf16; set it to bf16."]
    return []


def _step_in_backward(settings: Settings) -> list[str]:
    if not settings.memory.step_in_backward:
        return []
    key, problems = "memory.step_in_backward", []
    if settings.batching.gradient_accumulation_steps > 1:
        problems.append(
            f"{key}: gradients are gone before the next batch could be added to them; set "
            "batching.gradient_accumulation_steps to 1."
        )
    if settings.optimizer.name in ("prodigy", "adamw_schedule_free"):
        problems.append(f"{key}: {settings.optimizer.name} looks at all gradients at once; choose another optimizer.")
    if settings.tuning.mixed_precision == "fp16":
        problems.append(f"{key}: fp16 must see all gradients before any is applied; choose bf16 or no mixed precision.")
    return problems


def _cuda_graphs(settings: Settings) -> list[str]:
    key, problems = "tuning.cuda_graphs", []
    if settings.tuning.cuda_graphs and not settings.tuning.trace_steps:
        problems.append(f"{key}: they are made of traced steps; turn tuning.trace_steps on.")
    if settings.tuning.cuda_graphs and settings.memory.step_in_backward:
        problems.append(f"{key}: the optimizer's own step is not captured; turn memory.step_in_backward off.")
    return problems


def _processes(settings: Settings) -> list[str]:
    count, parts = settings.batching.num_processes, settings.batching.gradient_accumulation_steps
    if count == 1:
        return []
    problems, key = [], "batching.num_processes"
    if parts % count:
        problems.append(
            f"batching.gradient_accumulation_steps: it is {parts}, which {count} processes cannot share evenly; set it "
            f"to {-(-parts // count) * count}, or {key} to 1."
        )
    if settings.imagic.enabled:
        problems.append(f"{key}: imagic.enabled has one picture, which is not shared; set it to 1.")
    if settings.tuning.cuda_graphs:
        problems.append(
            "tuning.cuda_graphs: what processes tell each other may come in between while a graph is captured; turn it "
            f"off, or set {key} to 1."
        )
    return problems


def _unet_weights(settings: Settings) -> list[str]:
    memory, problems = settings.memory, []
    if memory.unet_weights == "whole":
        return []
    key = f"memory.unet_weights: it is {memory.unet_weights}"
    if not settings.batching.gradient_checkpointing:
        problems.append(
            f"{key}, which saves nothing while each block's weights are kept for the way back; turn "
            "batching.gradient_checkpointing on."
        )
    if not settings.is_full:
        if settings.is_lora and settings.lora.kind != "lora" and not settings.lora.start_file.strip():
            problems.append(f"{key}, but {settings.lora.kind} looks at the model's whole weights; set it to whole.")
        return problems
    if memory.unet_weights != "streamed":
        return [f"{key}, but full fine-tuning changes the model's weights; set it to whole or streamed."]
    if not memory.step_in_backward:
        problems.append(
            f"{key}, so that there is no room for all gradients of full fine-tuning; turn memory.step_in_backward on."
        )
    if settings.optimizer.name.startswith("paged_"):
        plain = settings.optimizer.name.removeprefix("paged_")
        problems.append(
            f"optimizer.name: what it remembers comes and goes with streamed weights anyway; set it to {plain}."
        )
    return problems


def _checkpointed_share(settings: Settings) -> list[str]:
    share, lying = settings.memory.checkpointed_share, settings.memory.unet_weights
    if share == 1:
        return []
    key = f"memory.checkpointed_share: it is {share:g}"
    if not settings.batching.gradient_checkpointing:
        return [f"{key}, but nothing is checkpointed; turn batching.gradient_checkpointing on, or set it to 1."]
    if lying != "whole":
        return [f"{key}, but with weights that are {lying} every block must be; set it to 1."]
    return []
