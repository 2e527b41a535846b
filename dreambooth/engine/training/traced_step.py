"""Forward and backward pass of a batch: as PyTorch does them, or, once it is known which operations they come down to,
by these alone.

At a batch of one much of a step's time goes into Python's modules and autograd. What they ask of the device is the same
for each batch of a shape, so it is written down at the third batch of a shape and done again from the fourth on. The
first time that it is done again it is held against what PyTorch gives for the same batch. Where the optimizer's step is
taken in the backward pass, both of these times are trials that change no weight, so that a pass which is given up half
way has not taken half a step.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreambooth.core.errors import Problem
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.tracing.graph import Graph
from dreambooth.engine.tracing.program import CLOSE, NotTraceable, Program, record, signature
from dreambooth.engine.training import loss
from dreambooth.engine.training.fused_backward import FusedBackward
from dreambooth.engine.training.loss import Batch
from dreambooth.engine.training.session import Session

if TYPE_CHECKING:
    from dreambooth.engine.training.loop import Hooks

BEFORE = 2  # batches of a shape that are done as PyTorch does them, while devices and libraries settle
WORTH = 20  # batches of a shape that must still come: writing one down takes as long as a few
SMALL = 1e-3  # and those below this share of the largest by as much as that one's
DIFFERS = "A step done again from its record gave other gradients than PyTorch"
BROKE = "A step could not be done again from its record ({})"

Losses = tuple[Tensor, ...]


@dataclass
class _Shape:
    """What is known of the batches of one shape."""

    seen: int = 0
    program: Program | Graph | None = None
    learning: list[nn.Parameter] = field(default_factory=list)  # whose gradients the program gives
    is_checked: bool = False
    is_given_up: bool = False


class TracedStep:
    """Does the forward and the backward pass of a session's batches. Gradients are added to those that are there."""

    def __init__(self, session: Session, hooks: Hooks, in_backward: FusedBackward | None) -> None:
        self.session, self.hooks, self.in_backward = session, hooks, in_backward
        self.weights = [weight for part in session.trained.parts.values() for weight in part.values()]
        settings = session.settings
        # Checkpoints put the random numbers of a dropout back, which is no operation.
        draws_again = settings.is_lora and settings.lora.dropout > 0 and settings.batching.gradient_checkpointing
        self.is_on = settings.tuning.trace_steps and not draws_again
        self.captures = settings.tuning.cuda_graphs
        self._graph: Graph | None = None  # the first
        self._shapes: dict[Any, _Shape] = {}
        hooks.release_graphs = self.without_graphs

    def run(self, batch: Batch) -> Losses:
        """The losses of a batch, whose gradients are there afterwards."""
        if not self.is_on:
            return self._plain(batch)
        shape = self._shapes.setdefault(_shape_of(batch), _Shape())
        shape.seen += 1
        if shape.program and shape.is_checked:
            with self._adding_gradients():
                return self._again(shape, batch)
        if shape.program:
            return self._checked(shape, batch)
        if shape.is_given_up or not self._is_worth(shape):
            return self._plain(batch)
        return self._written_down(shape, batch)

    def _plain(self, batch: Batch) -> Losses:
        session = self.session
        with session.computing():
            losses = loss.losses(session, batch)
            if self.in_backward:
                self.in_backward.begin(losses)
            session.accelerator.backward(losses[0] / session.budget.accumulation)
        return tuple(one.detach() for one in losses)

    def _is_worth(self, shape: _Shape) -> bool:
        """Whether enough of this shape is still to come, as far as can be told from how many came."""
        budget, passed = self.session.budget, sum(other.seen for other in self._shapes.values())
        to_come = (budget.steps - self.session.step) * len(self.session.ranks.share(budget.accumulation))
        return shape.seen > BEFORE and to_come * shape.seen / passed >= WORTH

    def _written_down(self, shape: _Shape, batch: Batch) -> Losses:
        """As PyTorch does them; afterwards the shape has its program, or is given up."""
        tensors = batch.tensors()

        def passes(given: list[Tensor]) -> list[Tensor]:
            losses = self._plain(replace(batch, **dict(zip(tensors, given))))
            shape.learning = [weight for weight in self.weights if weight.grad is not None]
            return [*losses, *(weight.grad for weight in shape.learning if weight.grad is not None)]

        with self._adding_gradients():
            try:
                with self._rewound(), self._trial():
                    outputs, shape.program = record(passes, list(tensors.values()))
                if not self.in_backward:
                    return tuple(outputs[: len(outputs) - len(shape.learning)])
            except NotTraceable:
                shape.is_given_up = True
                for weight in self.weights:
                    weight.grad = None
            return self._plain(batch)

    def _trial(self) -> AbstractContextManager[Any]:
        """Within it no weight changes."""
        return self.in_backward.noting(is_trial=True) if self.in_backward else contextlib.nullcontext()

    def _again(self, shape: _Shape, batch: Batch) -> Losses:
        assert shape.program
        found = shape.program(list(batch.tensors().values()))
        split = len(found) - len(shape.learning)
        gradients: Sequence[Tensor] = found[split:]
        if isinstance(shape.program, Graph) and self.session.budget.accumulation > 1:
            # Where a graph writes its gradients it writes those of the next batch, too.
            gradients = torch._foreach_mul(gradients, 1)  # copies, some hundred of them in one operation
        for weight, gradient in zip(shape.learning, gradients):
            weight.grad = gradient
        return found[:split]

    def _checked(self, shape: _Shape, batch: Batch) -> Losses:
        """As PyTorch does them; the program is held against that, and all are given up where it differs."""
        said = DIFFERS
        with self._adding_gradients():
            try:
                with self._rewound():
                    _, found = self._sized(lambda: self._again(shape, batch), is_trial=True)
            except RuntimeError as error:
                if out_of_memory.is_out_of_memory(error):
                    raise
                traceback.print_exc()
                said, found = BROKE.format(out_of_memory.first_line(error)), None
            for weight in self.weights:
                weight.grad = None
            losses, wanted = self._sized(lambda: self._plain(batch), is_trial=False)
        agrees = _agrees(found, wanted)
        if agrees is False:
            self.is_on = False
            self._shapes.clear()
            self._graph = None
            do = "Nothing is wrong with what was learned; the steps take longer."
            self.hooks.warn(Problem(f"{said}; this run goes on without records.", "tuning.trace_steps", do))
        elif agrees and self.captures and isinstance(shape.program, Program):
            self._capture(shape, batch)  # and that is checked, too
        else:
            shape.is_checked = bool(agrees)
        return losses

    def _capture(self, shape: _Shape, batch: Batch) -> None:
        """Makes a CUDA graph of a shape's program, where the device can."""
        assert isinstance(shape.program, Program)
        try:
            with self._rewound():
                shape.program = Graph(shape.program, list(batch.tensors().values()), like=self._graph)
            self._graph = self._graph or shape.program
        except RuntimeError as error:
            if out_of_memory.is_out_of_memory(error):
                raise
            traceback.print_exc()
            shape.is_checked = True
            self.without_graphs()  # in whose room it was
            reason = out_of_memory.first_line(error)
            said = f"The steps cannot be captured as CUDA graphs ({reason}); they go on without."
            self.hooks.warn(Problem(said, "tuning.cuda_graphs", "Turn it off."))

    def without_graphs(self) -> None:
        """From now on nothing is captured, and the memory of what was is free for others."""
        self.captures, self._graph = False, None
        for shape in self._shapes.values():
            if isinstance(shape.program, Graph):
                shape.program = shape.program.program

    def _sized(self, passes: Callable[[], Losses], *, is_trial: bool) -> tuple[Losses, Tensor]:
        """The losses, and all numbers together: these, and how large each gradient is, in two norms."""
        if self.in_backward:
            with self.in_backward.noting(is_trial=is_trial) as norms:
                losses = passes()
        else:
            losses = passes()
            gradients = [weight.grad for weight in self.weights if weight.grad is not None]
            norms = [norm for order in (1, 2) for norm in torch._foreach_norm(gradients, order)]
        return losses, torch.stack([one.to(self.session.model.device).float() for one in (*losses, *norms)])

    @contextlib.contextmanager
    def _adding_gradients(self) -> Iterator[None]:
        """Within it no weight has a gradient to begin with; those from before are added at its end."""
        before = [(weight, weight.grad) for weight in self.weights if weight.grad is not None]
        for weight, _ in before:
            weight.grad = None
        yield
        if both := [(old, weight.grad) for weight, old in before if weight.grad is not None]:
            torch._foreach_add_([old for old, _ in both], [new for _, new in both])
        for weight, old in before:
            weight.grad = old

    def _rewound(self) -> AbstractContextManager[None]:
        """After it random numbers come as if it had not been."""
        return hardware.random_numbers_kept(self.session.model.device)


def _shape_of(batch: Batch) -> Any:
    tensors = batch.tensors()
    return batch.subjects, *tensors, signature(list(tensors.values()))


def _agrees(found: Tensor | None, wanted: Tensor) -> bool | None:
    """Whether a program does what PyTorch does; None where that is no number, so that nothing can be said of it. This
    is the one time that the device is waited for."""
    if found is None or found.shape != wanted.shape:
        return False
    values, right = torch.stack([found, wanted]).tolist()
    if not all(map(math.isfinite, right)):
        return None
    least = SMALL * max(map(abs, right))
    return all(abs(one - other) <= CLOSE * max(abs(other), least) for one, other in zip(values, right))
