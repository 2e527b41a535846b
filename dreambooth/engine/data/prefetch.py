"""Work on picture files that threads do ahead. Pillow lets other threads run while it decodes, rotates and resizes, so
that a GPU need not wait for the next picture."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = max(4, min(8, os.cpu_count() or 4))
FEW = 4  # workers, while the sizes of the pictures are not known
MOST_BYTES = 3 * 2**28  # of what is worked on or ready and not yet taken


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    bytes_of: Callable[[Item], int] = lambda item: 0,
    workers: int = WORKERS,
) -> Iterator[Result]:
    """The results of `work` for each item, in order; an error is raised at its item's turn. Without workers each item
    is done when its result is taken.

    As many are done ahead as fit into MOST_BYTES by `bytes_of`, at least one, and no more than keep all workers busy.
    Once the iterator is exhausted or closed, none of its threads is left.
    """
    if not workers:
        yield from map(work, items)
        return
    pending = deque[tuple["Future[Result]", int]]()
    pool = ThreadPoolExecutor(workers, "pictures")
    try:
        for item in items:
            size = bytes_of(item)
            while pending and (len(pending) >= 2 * workers or size + sum(held for _, held in pending) > MOST_BYTES):
                yield pending.popleft()[0].result()
            pending.append((pool.submit(work, item), size))
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
