"""Something that goes on beside a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], None], period_s: float) -> Iterator[None]:
    """The action, over and over, for as long as the block."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(period_s):
            action()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
