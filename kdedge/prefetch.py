"""Work on the next batches while the last one is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

B = TypeVar("B")
T = TypeVar("T")


def prefetch(batches: Iterable[B], decode: Callable[[B], T], *, workers: int, depth: int) -> Generator[T, None, None]:
    """``decode(batch)`` of every batch, in order, up to ``depth`` of them ahead of the one that is in use.

    Threads, since Pillow lets go of Python's lock while it decodes and resizes, and nothing passes through shared
    memory; benchmarks/image_loading.py compares them with worker processes.

    Whoever leaves a loop over this early, be it by an exception or by Ctrl-C, leaves no thread behind: what was not
    begun is dropped, and what was begun is waited for, one batch a worker at most. Hold the iterator in no name that
    outlives the loop, or close it.

    Args:
        batches: Such as indices; taken one by one, no sooner than they are needed.
        decode: Runs in the worker threads, several calls at a time; its exception is raised here, in the batch's turn.
        workers: Threads.
        depth: Results made or being made beside the one in use; less than ``workers`` leaves threads idle. No more
            than depth + 2 exist at any moment.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="kdedge-prefetch")
    ahead: deque[Future[T]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(decode, batch))
            if len(ahead) > depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
