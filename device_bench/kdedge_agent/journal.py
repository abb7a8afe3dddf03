"""A small file that says how to undo a change, locked by whoever is responsible for undoing it."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any, Dict


def locked(path: Path, *, create: bool, wait: bool) -> IO[str]:
    """The journal, open and locked; a file that was unlinked while we waited for its lock is not it.

    Raises:
        OSError: no such file, not writable, or (EWOULDBLOCK) another has the lock.
    """
    while True:
        handle = os.open(str(path), os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        file = os.fdopen(handle, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            if not create:
                file.close()
                raise
        except OSError:
            file.close()
            raise
        file.close()


def read(file: IO[str]) -> Dict[str, Any]:
    """The journal; empty for one that is empty or was never written to its end."""
    file.seek(0)
    try:
        document = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) and isinstance(document.get("was"), dict) else {}


def write(file: IO[str], text: str) -> None:
    """Replace its content, and wait until that is on the disk."""
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
