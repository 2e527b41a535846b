"""The optimizer's step fused into the backward pass: a gradient is applied and freed as soon as it is there.

So at most `PORTION_BYTES` of gradients (or one that is larger) are held at once, in place of all of them. Lv et
al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (arXiv 2306.09782), do so for
plain descent; here it is any optimizer that treats each weight by itself. The same numbers come out, but that each
gradient is clipped by its own norm, as that of all is only known at the end, and that of a step whose gradients are
not finite only those portions are left out.

Where a step is written down and done again (see traced_step.py), what is done here is a call at its place among the
operations.
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
from dreambooth.engine.training import nonfinite_steps, optimizer_offload, stochastic_rounding
from dreambooth.engine.training.session import Session

PORTION_BYTES = GRADIENTS_AT_ONCE


Arrived = tuple[nn.Parameter, Tensor]  # a weight and its gradient


class FusedBackward:
    """Changes the weights of a session while its gradients are worked out. `begin` comes before each backward pass."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inner: Any = getattr(session.optimizer, "optimizer", session.optimizer)  # accelerate's wrapping
        self.groups, self.parts = session.groups, list(session.trained.parts)
        self.device = session.model.device
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)
        self.squares = torch.zeros(len(self.parts), device=self.device)
        self.waiting: dict[int, list[Arrived]] = {n: [] for n in range(len(self.groups))}
        self.bytes = 0
        self.numbers = stochastic_rounding.numbered(self.inner)
        self.noted: list[Tensor] | None = None
        self.is_trial = False
        self.streamed = {made.kept: made for _, made in unet_weights.streamed(session.model.unet)}
        self._hooks = [
            self._listen(weight, number) for number, group in enumerate(self.groups) for weight in group.weights
        ]

    def begin(self, losses: tuple[Tensor, ...]) -> None:
        """What comes is left out where a loss is no number."""
        call(self._begun, *(loss.detach() for loss in losses))

    @contextlib.contextmanager
    def noting(self, *, is_trial: bool) -> Iterator[list[Tensor]]:
        """Within it the sizes of gradients are noted as they come, each in two norms, (), in full precision.

        In a trial that is all that becomes of them: no weight changes.
        """
        self.noted, self.is_trial = [], is_trial
        try:
            yield self.noted
        finally:
            self.noted, self.is_trial = None, False

    def _begun(self, *losses: Tensor) -> None:
        self.bad = ~torch.isfinite(torch.stack(losses)).all()
        self.squares.zero_()

    def finish(self) -> Tensor:
        """Applies the gradients that still wait. Returns the norms of each part's gradients, (parts,)."""
        self._apply()
        if self.streamed:
            optimizer_offload.settle(self.device)
        return self.squares.sqrt()

    def close(self) -> None:
        for stop in self._hooks:
            stop()

    def _listen(self, weight: nn.Parameter, number: int) -> Callable[[], None]:
        """Has a weight's gradients arrive here. Returns what ends it."""
        if made := self.streamed.get(weight):
            before, elsewhere = made.arrived, functools.partial(self._arrived_elsewhere, weight, number)
            made.arrived = functools.partial(call, elsewhere)
            return lambda: setattr(made, "arrived", before)
        arrived = functools.partial(self._arrived, weight, number)

        def hand_over(weight: Tensor) -> None:
            if weight.grad is not None:
                call(arrived, weight.grad)

        return weight.register_post_accumulate_grad_hook(hand_over).remove

    def _arrived_elsewhere(self, weight: nn.Parameter, number: int, gradient: Tensor) -> None:
        self._arrived(weight, number, _laid_out_as(weight, gradient))

    def _arrived(self, weight: nn.Parameter, number: int, gradient: Tensor) -> None:
        if self.noted is not None:
            self.noted += [torch.linalg.vector_norm(gradient, order, dtype=torch.float32) for order in (1, 2)]
        if self.is_trial:
            weight.grad = None
            return
        size = gradient.numel() * gradient.element_size()
        if self.bytes + size > PORTION_BYTES:  # what waits first, so that a large one need not share the room
            self._apply()
        self.waiting[number].append((weight, gradient))
        self.bytes += size
        if self.bytes >= PORTION_BYTES:
            self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        self.bytes = 0
        for number, some in self.waiting.items():
            if some:
                self.waiting[number] = []
                self._apply_some(number, some)

    def _apply_some(self, number: int, some: list[Arrived]) -> None:
        gradients = [gradient for _, gradient in some]
        norms = torch.stack(torch._foreach_norm(gradients)).float()
        part, chosen = self.groups[number].part, self.session.settings.optimizer
        self.squares[self.parts.index(part)] += norms.square().sum()
        most = chosen.max_grad_norm if part == "unet" else chosen.text_encoder_max_grad_norm
        if most:
            shares = (most / (norms + 1e-6)).clamp(max=1)  # as PyTorch's clip_grad_norm_ has it
            torch._foreach_mul_(gradients, list(shares.to(gradients[0].dtype)))
        self._change(number, some, self.bad | ~torch.isfinite(norms).all())

    def _change(self, number: int, some: list[Arrived], bad: Tensor) -> None:
        weights = [weight for weight, _ in some]
        elsewhere = [weight for weight in weights if weight in self.streamed]
        group = self.inner.param_groups[number]
        # Weights that are parts of one mapped file count their changes together, so that one's change would make
        # autograd refuse the others'; every use of these here is over.
        unseen = torch.autograd._unsafe_preserve_version_counter(tuple(weights))
        with (
            optimizer_offload.on_device(elsewhere, self.inner, self.device),
            stochastic_rounding.only(self.inner, group, weights),
            unseen,
        ):
            for weight, gradient in some:
                weight.grad = gradient
            with nonfinite_steps.skipped_if(self.inner, bad):
                if self.session.settings.memory.bf16_weights:
                    stochastic_rounding.step_all(self.inner, weights, self.numbers)
                else:
                    self.inner.step()
        for weight in weights:
            weight.grad = None


def _laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its weight's order in memory, as autograd itself would put it there."""
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, device=gradient.device, requires_grad=False).copy_(gradient)


@contextlib.contextmanager
def stepping(session: Session) -> Iterator[FusedBackward | None]:
    """Within it the session's steps are taken in the backward pass, where its settings ask for that."""
    if not session.settings.memory.step_in_backward:
        yield None
        return
    made = FusedBackward(session)
    try:
        yield made
    finally:
        made.close()
