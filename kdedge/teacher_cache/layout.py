"""Where in a view's file each sample's logits stand; pure arithmetic.

A view is one safetensors file (https://github.com/huggingface/safetensors#format) whose tensors have a row a sample, so
that any reader of that format opens a finished one. Its header is padded to a whole page. All logits of a sample are
one tensor ``logits`` float16 [samples, classes]; of a sample's ``top_k`` largest there are three: ``classes`` (uint16,
or int32 for more than 65,536 of them) and ``logits`` float16, both [samples, top_k] in falling order, and ``rest``
float16 [samples], see ``losses.top_logits``.

Rows of any sample are one indexing operation on one mapping, whatever the shards: a shard is a range of rows, written
in place and then signed in the ledger (``view_file``). Files of their own for shards would be touched nearly as often
as a batch of random samples has rows, and safetensors' own ``get_slice`` wants a call a row. Either would do, at half a
millisecond a batch (``benchmarks/teacher_cache_reads.py``); the mapping alone needs no Python for a row, and lets go of
its pages.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BATCH_SAMPLES = 128
"""Samples that the teacher sees at a time: fixed, because the last bit of a sum may depend on it."""

SHARD_SAMPLES = 8 * BATCH_SAMPLES
"""What a kill during building costs at most."""

PAGE_BYTES = 4096


@dataclass(frozen=True)
class Column:
    """A tensor of a view's file.

    Attributes:
        name: In the file.
        dtype: Little-endian.
        width: Values a row; None for a tensor [samples].
    """

    name: str
    dtype: np.dtype[Any]
    width: int | None

    @property
    def row_bytes(self) -> int:
        """Of a sample."""
        return self.dtype.itemsize * (1 if self.width is None else self.width)


@dataclass(frozen=True)
class Layout:
    """Sizes of a cache.

    Attributes:
        samples: Of the training split.
        classes: Logits of a sample.
        top_k: How many of them are kept, below ``classes``; 0 for all.
    """

    samples: int
    classes: int
    top_k: int = 0

    @property
    def columns(self) -> tuple[Column, ...]:
        """The tensors in the file's order, wider values first, so that all of them are aligned."""
        half = np.dtype("<f2")
        if not self.top_k:
            return (Column("logits", half, self.classes),)
        number = np.dtype("<u2") if self.classes <= 1 << 16 else np.dtype("<i4")
        kept = Column("classes", number, self.top_k), Column("logits", half, self.top_k)
        return (*kept, Column("rest", half, None))

    @property
    def row_bytes(self) -> int:
        """Of a sample, in all tensors."""
        return sum(column.row_bytes for column in self.columns)

    @property
    def shards(self) -> int:
        """Of a view."""
        return -(-self.samples // SHARD_SAMPLES)

    def shard(self, number: int) -> range:
        """Samples of a shard."""
        first = number * SHARD_SAMPLES
        return range(first, min(first + SHARD_SAMPLES, self.samples))

    def header(self, key: str, view: int) -> bytes:
        """The beginning of a view's file, a whole number of pages."""
        names = {"<f2": "F16", "<u2": "U16", "<i4": "I32"}
        entries: dict[str, Any] = {"__metadata__": {"kdedge_teacher_cache": key, "view": str(view)}}
        at = 0
        for column in self.columns:
            shape = [self.samples] if column.width is None else [self.samples, column.width]
            end = at + column.row_bytes * self.samples
            entries[column.name] = {"dtype": names[column.dtype.str], "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries).encode()
        size = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8
        return struct.pack("<Q", size) + text.ljust(size)

    def starts(self, header_bytes: int) -> tuple[int, ...]:
        """Where each tensor begins in the file, in bytes."""
        starts = [header_bytes]
        for column in self.columns:
            starts.append(starts[-1] + column.row_bytes * self.samples)
        return tuple(starts[:-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        sizes = {"batch_samples": BATCH_SAMPLES, "shard_samples": SHARD_SAMPLES}
        return {**asdict(self), "dtype": "float16", **sizes}
