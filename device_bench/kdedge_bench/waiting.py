"""Waits that a run in a thread can be called out of, as Ctrl-C calls the main thread out of its own.

Python raises KeyboardInterrupt in the main thread alone. A run that several share the machine with is in another; it
looks between slices of its waits whether it should stop, and then ends in the same way: through its context managers.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

SLICE_S = 0.2
T = TypeVar("T")
_thread = threading.local()


@contextlib.contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """In the block, a wait of this thread ends with KeyboardInterrupt when ``stop`` is set.

    Once, as Ctrl-C does: what is tidied up on the way out may wait again.
    """
    _thread.stop = stop
    try:
        yield
    finally:
        _thread.stop = None


def check() -> None:
    """Between two short waits.

    Raises:
        KeyboardInterrupt: this thread is to stop.
    """
    stop: threading.Event | None = getattr(_thread, "stop", None)
    if stop is not None and stop.is_set():
        _thread.stop = None
        raise KeyboardInterrupt


def slices(timeout_s: float) -> Iterator[float]:
    """A wait of at most ``timeout_s``, as seconds to wait at a time.

    Raises:
        KeyboardInterrupt: this thread is to stop.
    """
    if getattr(_thread, "stop", None) is None:
        yield timeout_s
        return
    until = time.monotonic() + timeout_s
    while True:
        check()
        left_s = until - time.monotonic()
        yield max(0.0, min(SLICE_S, left_s))
        if left_s <= SLICE_S:
            return


def select(selector: selectors.BaseSelector, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
    """What is ready within ``timeout_s``; empty if nothing is."""
    for slice_s in slices(timeout_s):
        if ready := selector.select(slice_s):
            return ready
    return []


def get(items: queue.Queue[T], timeout_s: float) -> T:
    """The next item.

    Raises:
        queue.Empty: none came within ``timeout_s``.
    """
    for slice_s in slices(timeout_s):
        with contextlib.suppress(queue.Empty):
            return items.get(timeout=slice_s)
    raise queue.Empty
