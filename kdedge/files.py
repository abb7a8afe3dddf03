"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed onto it when the block ends, removed when it raises.

    The data is on the disk (fsync) before the rename, so that a crash leaves the old file or the new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is intact.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
    return UserError(f"cannot write: {reason}", where=path, cure="Free some space or choose another --out")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX); a file system that cannot is left as it is."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` whole or not at all."""
    with atomic_path(path, mode) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors whole or not at all, from whatever device or layout.

    Raises:
        UserError: as ``atomic_path``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(_apart(tensors), temporary)
        except SafetensorError as error:  # no OSError: a full disk is a text in it
            raise cannot_write(path, error) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own, which the format wants: layers may share a weight."""
    apart: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous().cpu()
        memory = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if memory in taken else whole
        taken.add(memory)
    return apart


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document whole or not at all; NaN and Inf are refused, since JSON has no word for them."""
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON document in a file.

    Raises:
        UserError: missing, unreadable, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON document: {error}", where=path) from None
