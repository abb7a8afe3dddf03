"""Who builds which shard, and who uses a cache: byte locks in one file, which the kernel frees with their holder.

So no rule has to guess which locks are stale. Where the file system has no locks (or the cache may only be read), every
claim is granted: shards are the same whoever builds them, and the second writer writes what is there already.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

_USERS = 1 << 60
_CREATION = 1 << 61
_TAKEN = (errno.EACCES, errno.EAGAIN)


class Claims:
    """Locks of one cache, held by this process until they are freed or it ends.

    Args:
        path: Of the lock file, made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def use(self) -> None:
        """Say that the cache is in use."""
        self._lock(fcntl.LOCK_SH | fcntl.LOCK_NB, _USERS)

    def nobody_uses(self) -> bool:
        """Whether no other process uses the cache; from now on none does."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, _USERS)

    def creation(self) -> None:
        """Wait for the right to make files; ``created`` gives it back."""
        self._lock(fcntl.LOCK_EX, _CREATION)

    def created(self) -> None:
        """See ``creation``."""
        self._lock(fcntl.LOCK_UN, _CREATION)

    def claim(self, view: int, shard: int, *, wait: bool = False) -> bool:
        """Whether this process may build a shard; with ``wait`` as soon as the other one has let go of it."""
        return self._lock(fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), _place(view, shard))

    def free(self, view: int, shard: int) -> None:
        """Let go of a shard."""
        self._lock(fcntl.LOCK_UN, _place(view, shard))

    def close(self) -> None:
        """Let go of everything."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lock(self, kind: int, place: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, kind, 1, place)
        except OSError as error:
            return error.errno not in _TAKEN
        return True


def _place(view: int, shard: int) -> int:
    return (view << 32) + shard
