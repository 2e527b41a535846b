"""Several one-thread processes that average their gradients: on CPU cores this is faster than
one process with several threads, and it degrades gently when a core is busy with something else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class Worker:
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


def run(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Runs `work(worker, *arguments)` in `count` processes and waits for all."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", OMP_NUM_THREADS="1")
    mp.spawn(_start, args=(count, work, arguments), nprocs=count)


def _start(rank: int, count: int, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    work(Worker(rank, count), *arguments)
    if count > 1:
        dist.destroy_process_group()
