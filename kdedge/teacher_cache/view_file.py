"""The file of one view, filled shard by shard, and its ledger, which says which shards are whole.

The ledger ``view-000.sha256`` has 32 bytes a shard: zeros, or the SHA-256 of the shard's bytes, tensor after tensor. It
is written when the shard is on the disk. A process that dies in between leaves rows that nobody reads; a slot that is
torn fits no bytes, so that its shard is built again. Shards touch no bytes of each other: several processes may fill a
view.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import UserError
from kdedge.files import atomic_path
from kdedge.teacher_cache.layout import Layout

DIGEST_BYTES = 32
ABSENT = bytes(DIGEST_BYTES)
MAPPED_BYTES = 64 << 20
"""Of a mapping: so much of it may stay in the process before its pages are handed back to the kernel."""

FAULT_BYTES = 64 << 10
"""Linux maps so much around a byte that is read (fault_around_bytes)."""


class ViewFile:
    """One view on the disk.

    Args:
        folder: Of the cache.
        layout: Of the cache.
        key: Of the cache.
        view: Its number.
    """

    def __init__(self, folder: Path, layout: Layout, key: str, view: int) -> None:
        self.path = folder / f"view-{view:03d}.safetensors"
        self.ledger = self.path.with_suffix(".sha256")
        self.layout = layout
        self._header = layout.header(key, view)
        self._starts = layout.starts(len(self._header))
        self.size_bytes = len(self._header) + layout.row_bytes * layout.samples

    def exists(self) -> bool:
        """Whether the file is there, of the right size and of this cache."""
        if not self.path.exists() or self.path.stat().st_size != self.size_bytes:
            return False
        with self.path.open("rb") as file:
            return file.read(len(self._header)) == self._header and self.ledger.exists()

    def create(self) -> None:
        """Make the file and its ledger, all shards absent; its space is taken from the disk now rather than in hours.

        Raises:
            UserError: the disk has too little space for it, or it cannot be written.
        """
        self.path.unlink(missing_ok=True)  # a ledger never speaks of a file that was there before
        with _writing(self.path), atomic_path(self.ledger) as temporary:
            temporary.write_bytes(ABSENT * self.layout.shards)
        with _writing(self.path), atomic_path(self.path) as temporary, temporary.open("wb") as file:
            file.write(self._header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
            else:
                file.truncate(self.size_bytes)

    def signed(self) -> list[bool]:
        """Of each shard, whether the ledger has a hash."""
        slots = self.ledger.read_bytes().ljust(DIGEST_BYTES * self.layout.shards, b"\0")
        return [slots[at : at + DIGEST_BYTES] != ABSENT for at in range(0, len(slots), DIGEST_BYTES)]

    def damaged(self) -> list[int]:
        """The shards whose bytes are not those that were signed; reads them all, a shard at a time."""
        slots = self.ledger.read_bytes()
        bad = []
        with self.path.open("rb") as file:
            for shard, signed in enumerate(self.signed()):
                slot = slots[shard * DIGEST_BYTES : (shard + 1) * DIGEST_BYTES]
                if signed and self._digest(file.fileno(), shard) != slot:
                    bad.append(shard)
        return bad

    def forget(self, shard: int) -> None:
        """Declare a shard absent."""
        with _writing(self.ledger), _opened(self.ledger) as ledger:
            _write_all(ledger, ABSENT, shard * DIGEST_BYTES)

    def write(self, shard: int, columns: Sequence[npt.NDArray[Any]]) -> None:
        """Write the rows of a shard, then sign them.

        Args:
            shard: Its number.
            columns: Of each tensor of the layout, its rows in order: contiguous, of the layout's dtype.

        Raises:
            UserError: the disk is full or the file cannot be written; the shards before are intact.
        """
        digest = hashlib.sha256()
        with _writing(self.path), _opened(self.path) as file, _opened(self.ledger) as ledger:
            for (at, _), rows in zip(self._ranges(shard), columns, strict=True):
                data = rows.tobytes()
                digest.update(data)
                _write_all(file, data, at)
            os.fsync(file)
            _write_all(ledger, digest.digest(), shard * DIGEST_BYTES)
            os.fsync(ledger)

    def rows(self) -> Rows:
        """The file for reading, memory-mapped."""
        return Rows(self.path, self.layout, self._starts)

    def _ranges(self, shard: int) -> Iterator[tuple[int, int]]:
        """(first byte, bytes) of a shard in each tensor."""
        samples = self.layout.shard(shard)
        for start, column in zip(self._starts, self.layout.columns, strict=True):
            yield start + samples.start * column.row_bytes, len(samples) * column.row_bytes

    def _digest(self, file: int, shard: int) -> bytes:
        digest = hashlib.sha256()
        for at, size in self._ranges(shard):
            digest.update(os.pread(file, size, at))
        return digest.digest()


class Rows:
    """Rows of a view's file by sample, without reading the others.

    Args:
        path: Of the file.
        layout: Of its tensors.
        starts: Where they begin, in bytes.
    """

    def __init__(self, path: Path, layout: Layout, starts: Sequence[int]) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._advise("MADV_RANDOM")  # samples come in random order: reading ahead would read for nothing
        self._columns = []
        for column, start in zip(layout.columns, starts, strict=True):
            shape = (layout.samples,) if column.width is None else (layout.samples, column.width)
            self._columns.append(np.ndarray(shape, column.dtype, buffer=self._map, offset=start))
        self._row_bytes = len(layout.columns) * FAULT_BYTES + layout.row_bytes
        self._touched_bytes = 0

    def take(self, index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        """Copies of the rows at ``index``, int64 [n], of each tensor."""
        taken = tuple(column[index] for column in self._columns)
        self._touched_bytes += len(index) * self._row_bytes
        if self._touched_bytes > MAPPED_BYTES < len(self._map):
            self._advise("MADV_DONTNEED")  # the pages stay in the kernel's cache, and count as its own
            self._touched_bytes = 0
        return taken

    def _advise(self, advice: str) -> None:
        if hasattr(mmap, advice):
            self._map.madvise(getattr(mmap, advice))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_all(file: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, at)
        rest, at = rest[written:], at + written


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line that speaks of the cache."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error
    except UserError as error:  # of atomic_path
        raise cannot_write(path, error.what.removeprefix("cannot write: ")) from error


def cannot_write(path: Path, reason: str) -> UserError:
    """The error for a cache that cannot be written."""
    cure = "Free some space (kdedge cache prune) or name another disk with --cache-dir; what was finished stays"
    with suppress(OSError):
        stat = os.statvfs(path.parent)
        reason += f" ({stat.f_bavail * stat.f_frsize / 1e6:.0f} MB free there)"
    return UserError(f"cannot write the teacher's cache: {reason}", where=path, cure=cure)
