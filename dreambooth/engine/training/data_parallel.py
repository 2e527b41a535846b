"""One run by several processes, each with a device of its own (data parallelism).

The batches whose gradients a step adds up are shared among them. Which pictures and which noise a batch has follows
from its position alone, and all change their weights by the same sum, so that they stay alike to the bit and learn what
one process would have learned. The first, rank 0, is the run that a person sees; the others know nothing but their
steps (see run/rank_launcher.py).
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dreambooth.engine.training.factored_moments import portions

if TYPE_CHECKING:
    from dreambooth.engine.training.session import Session

_VALUES_AT_ONCE = 2**25  # gradients that are sent together, of which there is a copy meanwhile
_PATIENCE = datetime.timedelta(days=30)  # the others wait while rank 0 draws or rests; an end is seen at once


class PeerLost(RuntimeError):
    """Another process has ended, or cannot be spoken to."""


class SingleProcess:
    """A run that has one process."""

    rank, size = 0, 1

    def share(self, batches: int) -> range:
        """Which of a step's batches are this process's."""
        return range(self.rank, batches, self.size)

    def begin_step(self) -> None:
        """Tells the others that there is a step to take."""

    def add_up(self, session: Session, losses: Tensor) -> None:
        """Puts the sums over all processes in the gradients' and the losses' place."""

    def check(self) -> None:
        """Raises PeerLost if what the device has computed lacks what another process should have added."""


class DataParallel(SingleProcess):
    """One process of several, which find each other by a store. Raises PeerLost wherever they cannot go on together."""

    def __init__(self, store: dist.Store, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self.is_lost = False  # another process has ended
        # NCCL, which is RCCL on a card of AMD, is not there on Windows.
        self.on_card = device.type == "cuda" and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if self.on_card else "gloo"
        with _speaking():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)

    def meet(self, device: torch.device) -> None:
        """Waits until all have spoken by way of their devices.

        NCCL makes its connection when it is first asked for a sum, and waits for good for one that ends before that.
        """
        self._sum(torch.zeros(1, device=device))
        if self.on_card:
            with _speaking():
                torch.cuda.synchronize(device)

    def give_up(self) -> None:
        """Ends all waiting for the others; another thread calls it when one of them is no more.

        A sum on cards that lacks one of them never ends, and whatever the CPU reads from its card then waits for that.
        What is read after this is no result.
        """
        self.is_lost = True
        if self.on_card:
            dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()

    def check(self) -> None:
        if self.is_lost:
            raise PeerLost("another process of the run has ended")

    def begin_step(self) -> None:
        self.check()
        self._tell(True)

    def end(self) -> None:
        """Tells the others that there are no more."""
        self._tell(False)

    def is_told(self) -> bool:
        """Whether rank 0 takes one more step, once it says so."""
        return self._tell(False)

    def _tell(self, what: bool) -> bool:
        told = torch.tensor([what], dtype=torch.uint8)
        with _speaking():
            dist.broadcast(told, 0)
        return bool(told)

    @torch.no_grad()
    def add_up(self, session: Session, losses: Tensor) -> None:
        self._sum(losses)
        weights = [weight for part in session.trained.parts.values() for weight in part.values()]
        for some in _alike(self._learning(weights)):
            for portion in portions(some, _VALUES_AT_ONCE):
                gradients: list[Any] = [weight.grad for weight in portion]
                together = torch.cat([gradient.reshape(-1) for gradient in gradients])
                self._sum(together)
                pieces = together.split([gradient.numel() for gradient in gradients])
                torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients)])

    def _learning(self, weights: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those that have a gradient in any process; where it has none in this one it gets zeros."""
        there = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
        with _speaking():
            dist.all_reduce(there, dist.ReduceOp.MAX)
        found = [weight for weight, is_there in zip(weights, there.tolist()) if is_there]
        for weight in found:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return found

    def _sum(self, tensor: Tensor) -> None:
        sent = tensor if self.on_card else tensor.cpu()
        with _speaking():
            dist.all_reduce(sent)
        if sent is not tensor:
            tensor.copy_(sent)


@contextlib.contextmanager
def joined_processes(store: dist.Store, rank: int, size: int, device: torch.device) -> Iterator[DataParallel]:
    """Within it this process is one of several. Raises PeerLost as that does."""
    ranks = DataParallel(store, rank, size, device)
    try:
        ranks.meet(device)
        yield ranks
    except BaseException:
        if ranks.on_card:  # else its work for the others would be waited for
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error


def _alike(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those whose gradients lie together: of one device and one precision."""
    found: dict[Any, list[nn.Parameter]] = {}
    for weight in weights:
        assert weight.grad is not None
        found.setdefault((weight.grad.device, weight.grad.dtype), []).append(weight)
    return list(found.values())
