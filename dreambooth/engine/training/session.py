"""A session: everything that a run needs in memory, and what of it is saved for resuming."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.run_length import Budget
from dreambooth.core.settings import Settings
from dreambooth.engine.data.batch_order import BatchOrder
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.caption_schedule import CaptionSchedule
from dreambooth.engine.families.model import Model
from dreambooth.engine.layers import disabled_adapters, lora_layer
from dreambooth.engine.layers.lora_layer import AdapterLayer
from dreambooth.engine.training import nonfinite_steps, optimizers, precision, stochastic_rounding
from dreambooth.engine.training.adapters import LEARNED_TOKENS, Trained
from dreambooth.engine.training.data_parallel import SingleProcess
from dreambooth.engine.training.ema import IN_STATE, Ema
from dreambooth.engine.training.max_norm import MaxNorm
from dreambooth.engine.training.text_embeddings import Texts


@dataclass
class Session:
    """One run at its current step: `make_batch` and the loop read from it, `change_weights` advances it."""

    settings: Settings
    budget: Budget
    model: Model
    trained: Trained
    accelerator: Accelerator
    instances: Encoded
    priors: Encoded | None
    order: BatchOrder
    caption_schedule: CaptionSchedule
    texts: Texts
    optimizer: Any
    ema: Ema | None
    step: int = 0
    about: dict[str, str] = field(default_factory=dict)  # the inputs of the run, compared when it is resumed
    files: tuple[list[str], list[str]] = ([], [])  # the file of each example, the subject's and the class's
    ranks: SingleProcess = field(default_factory=SingleProcess)  # the processes that share the steps' batches

    @property
    def images(self) -> int:
        """Images of the subject seen so far."""
        return self.budget.images_seen(self.step)

    @functools.cached_property
    def groups(self) -> list[optimizers.Group]:
        """The optimizer's parameter groups, in its order."""
        return optimizers.groups(self.trained, self.settings)

    @functools.cached_property
    def lora_layers(self) -> list[AdapterLayer]:
        """The trained adapters whose matrices are cast together; see lora_layer.py."""
        return lora_layer.adapter_layers(
            self.model.parts[part] for part in self.trained.parts if part != LEARNED_TOKENS
        )

    @functools.cached_property
    def max_norm(self) -> MaxNorm | None:
        most = self.settings.lora.max_norm if self.settings.is_lora else 0.0
        return MaxNorm(self.lora_layers, most) if most else None

    @functools.cached_property
    def adapters(self) -> list[BaseTunerLayer]:
        """All adapted layers of the UNet, of any kind."""
        return disabled_adapters.adapters([self.model.unet])

    def cast_adapters(self) -> AbstractContextManager[None]:
        """Casts the adapters' matrices to the precision of the computation, from a batch's loss to its gradients."""
        return lora_layer.cast_at_once(self.lora_layers, precision.compute_dtype(self.accelerator))

    def batch_files(self, step: int) -> list[str]:
        """The files of the images in this step, which counts from 1, without repetitions."""
        first, batch, in_step = (step - 1) * self.budget.images_per_step, self.budget.batch, list[str]()
        for position in range(first, first + self.budget.images_per_step, batch):
            for files, numbers in zip(self.files, self.order.batch(position, batch)):
                in_step += [files[number] for number in numbers.tolist()]
        return list(dict.fromkeys(in_step))

    def change_weights(self, skip_if: Tensor, *, is_stepped: bool = False) -> None:
        """Takes a step of the optimizer with the gradients that are there, then applies max norm and updates the EMA.

        `skip_if` is a boolean on the device; with `is_stepped` the optimizer has already taken its step.
        """
        if not is_stepped:
            self._step(skip_if)
        if self.max_norm:
            self.max_norm.apply()
        self.step += 1
        if self.ema:
            self.ema.update(self.trained.named())

    def _step(self, skip_if: Tensor) -> None:
        # A gradient scaler skips steps itself.
        guarded = (
            contextlib.nullcontext() if self.accelerator.scaler else nonfinite_steps.skipped_if(self.optimizer, skip_if)
        )
        with guarded:
            if self.settings.memory.bf16_weights:
                stochastic_rounding.step(self.optimizer)
            else:
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Gives the model the weights that previews and outputs are made with until the block ends: the EMA weights, if
        the settings ask for them, and the evaluation weights of a schedule-free optimizer. They are restored exactly.

        It takes no second set of weights on the device: EMA weights of the same dtype and layout are swapped in, and
        copies of other weights are kept on the CPU.
        """
        weights = self.trained.named()
        average = self.ema.average if self.ema and self.settings.saving.weights == "average" else {}
        if not average and self.settings.optimizer.name != "adamw_schedule_free":
            yield
            return
        swapped = {name for name, one in average.items() if _is_alike(one, weights[name])}
        others = {name: weight for name, weight in weights.items() if name not in swapped}
        kept = {name: weight.detach().to("cpu", copy=True) for name, weight in others.items()}
        optimizers.set_mode(self.optimizer, training=False)
        _copy({name: average[name] for name in others if name in average}, weights)
        _swap(average, weights, swapped)
        try:
            yield
        finally:
            _swap(average, weights, swapped)
            optimizers.set_mode(self.optimizer, training=True)
            _copy(kept, weights)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that resuming needs: the weights, EMA weights included, and the rest as torch.save takes it."""
        weights = dict(self.trained.named())
        if self.ema:
            weights.update({f"{IN_STATE}{name}": average for name, average in self.ema.average.items()})
        scaler = self.accelerator.scaler
        rest = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": scaler.state_dict() if scaler else None,
            "about": self.about,
        }
        return weights, rest

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Restores what `state` returned. Raises UserError if it belongs to other settings."""
        own, _ = self.state()
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise UserError("The saved state does not fit these settings (method, rank or text encoder differ).")
        _copy(weights, own)
        optimizers.restore(self.optimizer, rest["optimizer"])
        self.step = rest["step"]
        if self.ema:
            self.ema.updates = rest["ema_updates"]
        if self.accelerator.scaler and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])


def _is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors can swap their data."""
    return (one.dtype, one.device, one.stride()) == (other.dtype, other.device, other.stride())


def _swap(some: dict[str, Tensor], others: dict[str, Tensor], names: Iterable[str]) -> None:
    """Swaps the data of the tensors of these names, without a copy."""
    for name in names:
        one, other = some[name], others[name]
        one.data, other.data = other.data, one.data


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
