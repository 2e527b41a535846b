"""The optimizer's step fused into the backward pass: a gradient is applied and freed as soon as it is there.

So at most `PORTION_BYTES` of gradients (or one that is larger) are held at once, in place of all of them. Lv et
al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (arXiv 2306.09782), do so for
plain SGD; here it is any optimizer that updates each weight independently. The results are the same but for two things:
each gradient is clipped by its own norm, as the norm of all is only known at the end, and of a step whose gradients are
not finite only the affected portions are skipped.

Where a step is recorded and replayed (see traced_step.py), what happens here is a call between the recorded operations.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.core.memory.footprint import GRADIENTS_AT_ONCE
from dreambooth.engine.families import unet_weights
from dreambooth.engine.tracing.recorder import call
from dreambooth.engine.training import (
    gradient_clipping,
    nonfinite_steps,
    optimizer_offload,
    optimizers,
    stochastic_rounding,
)
from dreambooth.engine.training.session import Session

PORTION_BYTES = GRADIENTS_AT_ONCE

WeightGradient = tuple[nn.Parameter, Tensor]  # a weight and its gradient


class FusedBackward:
    """Updates the weights of a session during its backward passes. `start` comes before each of them, `finish` after
    it; `close` removes the hooks from the weights."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._optimizer: Any = optimizers.unwrapped(session.optimizer)
        self._parts = list(session.trained.parts)
        self._device = session.model.device
        self._skip = torch.zeros((), dtype=torch.bool, device=self._device)
        self._squared_norms = torch.zeros(len(self._parts), device=self._device)
        self._pending: dict[int, list[WeightGradient]] = {n: [] for n in range(len(session.groups))}  # by group
        self._pending_bytes = 0
        self._positions = stochastic_rounding.positions(self._optimizer)
        self._norms: list[Tensor] | None = None
        self._is_dry_run = False
        self._streamed = {stored.offloaded: stored for _, stored in unet_weights.streamed(session.model.unet)}
        self._removers = [
            self._register(weight, group) for group, made in enumerate(session.groups) for weight in made.weights
        ]

    def start(self, losses: tuple[Tensor, ...]) -> None:
        """Begins a backward pass, which changes no weight if one of the losses is not finite."""
        call(self._start, *(loss.detach() for loss in losses))

    def finish(self) -> Tensor:
        """Applies the gradients that are still pending. Returns the norm of each part's gradients, (parts,)."""
        self._apply_pending()
        if self._streamed:
            optimizer_offload.wait(self._device)
        return self._squared_norms.sqrt()

    @contextlib.contextmanager
    def recording_norms(self, *, dry_run: bool) -> Iterator[list[Tensor]]:
        """Collects the L1 and the L2 norm of each gradient, (), in float32. In a dry run no weight changes."""
        self._norms, self._is_dry_run = [], dry_run
        try:
            yield self._norms
        finally:
            self._norms, self._is_dry_run = None, False

    def close(self) -> None:
        for remove in self._removers:
            remove()

    def _start(self, *losses: Tensor) -> None:
        self._skip = ~torch.isfinite(torch.stack(losses)).all()
        self._squared_norms.zero_()

    def _register(self, weight: nn.Parameter, group: int) -> Callable[[], None]:
        """Passes a weight's gradients to `_on_gradient`. Returns a function that ends this."""
        if streamed := self._streamed.get(weight):
            before, on_device = streamed.on_gradient, functools.partial(self._on_streamed_gradient, weight, group)
            streamed.on_gradient = functools.partial(call, on_device)
            return lambda: setattr(streamed, "on_gradient", before)
        on_gradient = functools.partial(self._on_gradient, weight, group)

        def hand_over(weight: Tensor) -> None:
            if weight.grad is not None:
                call(on_gradient, weight.grad)

        return weight.register_post_accumulate_grad_hook(hand_over).remove

    def _on_streamed_gradient(self, weight: nn.Parameter, group: int, gradient: Tensor) -> None:
        self._on_gradient(weight, group, _with_strides_of(weight, gradient))

    def _on_gradient(self, weight: nn.Parameter, group: int, gradient: Tensor) -> None:
        if self._norms is not None:
            self._norms += [torch.linalg.vector_norm(gradient, order, dtype=torch.float32) for order in (1, 2)]
        if self._is_dry_run:
            weight.grad = None
            return
        size = gradient.numel() * gradient.element_size()
        if self._pending_bytes + size > PORTION_BYTES:  # before this one is added, so that a large one is alone
            self._apply_pending()
        self._pending[group].append((weight, gradient))
        self._pending_bytes += size
        if self._pending_bytes >= PORTION_BYTES:
            self._apply_pending()

    @torch.no_grad()
    def _apply_pending(self) -> None:
        self._pending_bytes = 0
        for group, portion in self._pending.items():
            if portion:
                self._pending[group] = []
                self._apply_portion(group, portion)

    def _apply_portion(self, group: int, portion: list[WeightGradient]) -> None:
        gradients = [gradient for _, gradient in portion]
        norms = torch.stack(torch._foreach_norm(gradients)).float()
        part = self._session.groups[group].part
        self._squared_norms[self._parts.index(part)] += norms.square().sum()
        if max_norm := gradient_clipping.max_grad_norm(self._session.settings.optimizer, part):
            factors = (max_norm / (norms + 1e-6)).clamp(max=1)  # as in PyTorch's clip_grad_norm_
            torch._foreach_mul_(gradients, list(factors.to(gradients[0].dtype)))
        self._step(group, portion, self._skip | ~torch.isfinite(norms).all())

    def _step(self, group: int, portion: list[WeightGradient], skip: Tensor) -> None:
        weights = [weight for weight, _ in portion]
        streamed = [weight for weight in weights if weight in self._streamed]
        # Weights that are parts of one mapped file share a version counter, so that after an update of one autograd
        # would refuse the others; but here no backward pass needs their former values any more.
        unversioned = torch.autograd._unsafe_preserve_version_counter(tuple(weights))
        with (
            optimizer_offload.on_device(streamed, self._optimizer, self._device),
            stochastic_rounding.restricted_to(self._optimizer, self._optimizer.param_groups[group], weights),
            unversioned,
        ):
            for weight, gradient in portion:
                weight.grad = gradient
            with nonfinite_steps.skipped_if(self._optimizer, skip):
                if self._session.settings.memory.bf16_weights:
                    stochastic_rounding.step_together(self._optimizer, weights, self._positions)
                else:
                    self._optimizer.step()
        for weight in weights:
            weight.grad = None


def _with_strides_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its weight's memory layout, as autograd itself would accumulate it."""
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, device=gradient.device, requires_grad=False).copy_(gradient)


@contextlib.contextmanager
def stepping(session: Session) -> Iterator[FusedBackward | None]:
    """Fuses the session's steps into its backward passes within the block; None if the settings do not ask for it."""
    if not session.settings.memory.step_in_backward:
        yield None
        return
    fused = FusedBackward(session)
    try:
        yield fused
    finally:
        fused.close()
