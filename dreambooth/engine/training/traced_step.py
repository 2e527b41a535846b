"""Forward and backward pass of a batch: run eagerly, or replayed from a record of its operations.

At a batch size of 1 much of a step's time goes into Python modules and autograd. The operations that these launch are
the same for every batch of a shape, so each shape goes through the phases of `Phase`: a few batches run eagerly, one is
recorded, the next one is replayed and verified against an eager run of the same batch, and the others are replayed.
Where the settings ask for it, the replay is a CUDA graph, which is verified like the program that it was captured from.

Where the optimizer's step is fused into the backward pass, recording and the replay to be verified are dry runs that
change no weight: a pass that is abandoned halfway has not taken half a step.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreambooth.core.errors import Problem
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.tracing.graph import Graph
from dreambooth.engine.tracing.program import RELATIVE_TOLERANCE, NotTraceable, Program, record, signature
from dreambooth.engine.training import loss
from dreambooth.engine.training.fused_backward import FusedBackward
from dreambooth.engine.training.loss import Batch
from dreambooth.engine.training.session import Session

if TYPE_CHECKING:
    from dreambooth.engine.training.loop import Hooks

EAGER_BATCHES = 2  # of a shape before it is recorded, while devices and libraries warm up
MIN_REMAINING_BATCHES = 20  # of a shape that make recording worthwhile: it takes as long as a few batches
SMALL_NORM = 1e-3  # share of the largest norm, below which a norm may deviate by as much as one of this size
DIFFERS = "A step done again from its record gave other gradients than PyTorch"
BROKE = "A step could not be done again from its record ({})"

Losses = tuple[Tensor, ...]


class Phase(Enum):
    """How the next batch of a shape is run."""

    EAGER = auto()  # by PyTorch; recorded as soon as that is worthwhile
    RECORD = auto()  # by PyTorch, while its operations are recorded
    VERIFY = auto()  # replayed as a trial, then by PyTorch, and compared
    REPLAY = auto()  # from the record
    FALLBACK = auto()  # by PyTorch for good: the shape cannot be recorded


@dataclass
class _Shape:
    """The batches of one shape."""

    phase: Phase = Phase.EAGER
    seen: int = 0  # batches
    program: Program | Graph | None = None  # from phase VERIFY on
    weights: list[nn.Parameter] = field(default_factory=list)  # whose gradients the program returns after the losses


class TracedStep:
    """Runs the forward and the backward pass of a session's batches. Gradients are added to those that are there."""

    def __init__(self, session: Session, hooks: Hooks, fused_backward: FusedBackward | None) -> None:
        self.session, self.hooks, self.fused_backward = session, hooks, fused_backward
        self.weights = [weight for part in session.trained.parts.values() for weight in part.values()]
        settings = session.settings
        # Checkpointing restores the random state for dropout, which is no operation that could be recorded.
        recomputes_dropout = settings.is_lora and settings.lora.dropout > 0 and settings.batching.gradient_checkpointing
        self.is_enabled = settings.tuning.trace_steps and not recomputes_dropout
        self.uses_cuda_graphs = settings.tuning.cuda_graphs
        self._first_graph: Graph | None = None  # whose memory pool the others share
        self._shapes: dict[Any, _Shape] = {}
        hooks.release_cuda_graphs = self.release_cuda_graphs

    def run(self, batch: Batch) -> Losses:
        """Returns the losses of a batch, detached, and leaves its gradients in the weights."""
        if not self.is_enabled:
            return self._run_eager(batch)
        shape = self._shapes.setdefault(_shape_key(batch), _Shape())
        shape.seen += 1
        if shape.phase is Phase.EAGER and self._is_worth_recording(shape):
            shape.phase = Phase.RECORD
        if shape.phase is Phase.RECORD:
            return self._record(shape, batch)
        if shape.phase is Phase.VERIFY:
            return self._verify_against_eager(shape, batch)
        if shape.phase is Phase.REPLAY:
            with self._accumulating_gradients():
                return self._replay(shape, batch)
        return self._run_eager(batch)

    def _is_worth_recording(self, shape: _Shape) -> bool:
        """Whether enough batches of this shape are to come, estimated from its share of those seen so far."""
        budget, seen = self.session.budget, sum(other.seen for other in self._shapes.values())
        remaining = (budget.steps - self.session.step) * len(self.session.ranks.share(budget.accumulation))
        return shape.seen > EAGER_BATCHES and remaining * shape.seen / seen >= MIN_REMAINING_BATCHES

    def _run_eager(self, batch: Batch) -> Losses:
        session = self.session
        with session.cast_adapters():
            losses = loss.compute_losses(session, batch)
            if self.fused_backward:
                self.fused_backward.start(losses)
            session.accelerator.backward(losses[0] / session.budget.accumulation)
        return tuple(one.detach() for one in losses)

    def _record(self, shape: _Shape, batch: Batch) -> Losses:
        """Runs a batch eagerly while its operations are recorded."""
        tensors = batch.tensors()

        def run_with(inputs: list[Tensor]) -> list[Tensor]:
            losses = self._run_eager(batch.with_tensors(dict(zip(tensors, inputs))))
            shape.weights = [weight for weight in self.weights if weight.grad is not None]
            return [*losses, *(weight.grad for weight in shape.weights if weight.grad is not None)]

        dry_run = self.fused_backward.recording_norms(dry_run=True) if self.fused_backward else contextlib.nullcontext()
        with self._accumulating_gradients():
            try:
                with self._preserving_random_state(), dry_run:
                    outputs, shape.program = record(run_with, list(tensors.values()))
                shape.phase = Phase.VERIFY
                if not self.fused_backward:
                    return tuple(outputs[: len(outputs) - len(shape.weights)])
            except NotTraceable:
                shape.phase = Phase.FALLBACK
                self._clear_gradients()
            return self._run_eager(batch)

    def _replay(self, shape: _Shape, batch: Batch) -> Losses:
        assert shape.program
        outputs = shape.program(list(batch.tensors().values()))
        split = len(outputs) - len(shape.weights)
        gradients: Sequence[Tensor] = outputs[split:]
        if isinstance(shape.program, Graph) and self.session.budget.accumulation > 1:
            # The next replay of the graph writes its gradients to the same memory, so these are copied: all at once.
            gradients = torch._foreach_mul(gradients, 1)
        for weight, gradient in zip(shape.weights, gradients):
            weight.grad = gradient
        return outputs[:split]

    def _verify_against_eager(self, shape: _Shape, batch: Batch) -> Losses:
        """Runs a batch eagerly and compares its replay with that; disables tracing for the run where they differ."""
        reason = DIFFERS
        with self._accumulating_gradients():
            try:
                with self._preserving_random_state():
                    _, replayed = self._run_and_summarize(lambda: self._replay(shape, batch), dry_run=True)
            except RuntimeError as error:
                if out_of_memory.is_out_of_memory(error):
                    raise
                traceback.print_exc()
                reason, replayed = BROKE.format(out_of_memory.first_line(error)), None
            self._clear_gradients()
            losses, eager = self._run_and_summarize(lambda: self._run_eager(batch), dry_run=False)
        matches = _matches(replayed, eager)
        if matches is False:
            self._disable(reason)
        elif matches and self.uses_cuda_graphs and isinstance(shape.program, Program):
            self._capture_cuda_graph(shape, batch)
        elif matches:
            shape.phase = Phase.REPLAY
        return losses

    def _disable(self, reason: str) -> None:
        """Runs all batches eagerly from now on."""
        self.is_enabled = False
        self._shapes.clear()
        self._first_graph = None
        do = "Nothing is wrong with what was learned; the steps take longer."
        self.hooks.warn(Problem(f"{reason}; this run goes on without records.", "tuning.trace_steps", do))

    def _capture_cuda_graph(self, shape: _Shape, batch: Batch) -> None:
        """Turns a shape's verified program into a CUDA graph, which is verified at the next batch.

        Where the device cannot capture it, the shape keeps its program and no other graphs are used.
        """
        assert isinstance(shape.program, Program)
        try:
            with self._preserving_random_state():
                shape.program = Graph(shape.program, list(batch.tensors().values()), like=self._first_graph)
            self._first_graph = self._first_graph or shape.program
        except RuntimeError as error:
            if out_of_memory.is_out_of_memory(error):
                raise
            traceback.print_exc()
            shape.phase = Phase.REPLAY
            self.release_cuda_graphs()  # they share the memory pool of the failed capture
            reason = out_of_memory.first_line(error)
            said = f"The steps cannot be captured as CUDA graphs ({reason}); they go on without."
            self.hooks.warn(Problem(said, "tuning.cuda_graphs", "Turn it off."))

    def release_cuda_graphs(self) -> None:
        """Replays programs in place of CUDA graphs from now on, and frees the memory of the graphs."""
        self.uses_cuda_graphs, self._first_graph = False, None
        for shape in self._shapes.values():
            if isinstance(shape.program, Graph):
                shape.program = shape.program.program

    def _run_and_summarize(self, run: Callable[[], Losses], *, dry_run: bool) -> tuple[Losses, Tensor]:
        """Returns the losses, and as one vector what two runs of a batch are compared by: the losses, and the L1 and L2
        norm of each gradient. With the optimizer's step in the backward pass, a dry run changes no weight."""
        if self.fused_backward:
            with self.fused_backward.recording_norms(dry_run=dry_run) as norms:
                losses = run()
        else:
            losses = run()
            gradients = [weight.grad for weight in self.weights if weight.grad is not None]
            norms = [norm for order in (1, 2) for norm in torch._foreach_norm(gradients, order)]
        return losses, torch.stack([one.to(self.session.model.device).float() for one in (*losses, *norms)])

    def _clear_gradients(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @contextlib.contextmanager
    def _accumulating_gradients(self) -> Iterator[None]:
        """Sets the gradients of earlier batches aside, and adds them to the new ones at the end."""
        earlier = [(weight, weight.grad) for weight in self.weights if weight.grad is not None]
        for weight, _ in earlier:
            weight.grad = None
        yield
        if both := [(old, weight.grad) for weight, old in earlier if weight.grad is not None]:
            torch._foreach_add_([old for old, _ in both], [new for _, new in both])
        for weight, old in earlier:
            weight.grad = old

    def _preserving_random_state(self) -> AbstractContextManager[None]:
        """Restores the random generators' state at its end."""
        return hardware.random_numbers_kept(self.session.model.device)


def _shape_key(batch: Batch) -> Any:
    """What two batches must have in common to be replayed by the same program."""
    tensors = batch.tensors()
    return batch.instances, *tensors, signature(list(tensors.values()))


def _matches(replayed: Tensor | None, eager: Tensor) -> bool | None:
    """Whether a replay gave the losses and norms of the eager run; None where these are not finite and nothing can be
    said. The only place that waits for the device."""
    if replayed is None or replayed.shape != eager.shape:
        return False
    values, expected = torch.stack([replayed, eager]).tolist()
    if not all(map(math.isfinite, expected)):
        return None
    least = SMALL_NORM * max(map(abs, expected))
    return all(abs(one - other) <= RELATIVE_TOLERANCE * max(abs(other), least) for one, other in zip(values, expected))
