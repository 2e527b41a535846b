"""Work on picture files that threads do before it is asked for. Pillow lets others go on while it decodes, turns and
resizes, so that a card need not wait for the next picture."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = max(4, min(8, os.cpu_count() or 4))
FEW = 4  # where nobody knows yet how large the pictures are
MOST_BYTES = 3 * 2**28  # of what is worked on, and of what is ready and not asked for yet


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    bytes_of: Callable[[Item], int] = lambda item: 0,
    workers: int = WORKERS,
) -> Iterator[Result]:
    """What `work` makes of each item, in their order, and where one fails its error in that order; with no workers each
    is done when it is asked for.

    As many are done ahead as fit into MOST_BYTES by `bytes_of`, one at least, and no more than keep all workers busy.
    Once it is at its end or closed, no thread of it is left.
    """
    if not workers:
        yield from map(work, items)
        return
    asked = deque[tuple["Future[Result]", int]]()
    pool = ThreadPoolExecutor(workers, "pictures")
    try:
        for item in items:
            size = bytes_of(item)
            while asked and (len(asked) >= 2 * workers or size + sum(held for _, held in asked) > MOST_BYTES):
                yield asked.popleft()[0].result()
            asked.append((pool.submit(work, item), size))
        while asked:
            yield asked.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
