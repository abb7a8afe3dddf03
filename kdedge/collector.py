"""Python's collector of cycles, kept from looking at what tracing builds."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_ALLOCATIONS = 50_000


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Collect cycles every 50,000 new containers in place of every 700; as before afterwards.

    torch.export and what translates its programs build hundreds of thousands of objects that live to the end, and each
    collection looks at them all again (``benchmarks/export_time.py``).
    """
    first, *others = gc.get_threshold()
    if first:  # 0: somebody switched it off
        gc.set_threshold(max(first, _ALLOCATIONS), *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)
