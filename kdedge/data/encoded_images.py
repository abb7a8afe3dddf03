"""Encoded images of one split, read one at a time and decoded on demand."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from PIL import Image

from kdedge.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")
UNREADABLE = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for files that are cut or changed."""


class EncodedImages(Protocol):
    """Images as they are stored, in a fixed order; threads may read them at the same time."""

    @property
    def labels(self) -> Sequence[int]:
        """The class of each."""

    def read(self, row: int) -> bytes:
        """One image, encoded."""

    def stamp(self, row: int) -> tuple[str, int]:
        """Its name in the data set and its size in bytes, −1 where there is nothing; found without reading it."""

    def where(self, row: int) -> str:
        """Its file, or its row in words."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder.

    Attributes:
        root: The folder.
        names: Paths below it, with slashes.
        labels: The class of each.
    """

    root: Path
    names: Sequence[str]
    labels: Sequence[int]

    def read(self, row: int) -> bytes:
        """The content of a file."""
        return (self.root / self.names[row]).read_bytes()

    def stamp(self, row: int) -> tuple[str, int]:
        """See ``EncodedImages``."""
        return self.names[row], _size(self.root / self.names[row])

    def where(self, row: int) -> str:
        """The file's path."""
        return str(self.root / self.names[row])


@dataclass(frozen=True)
class ImageRows:
    """Cells of a Hub table, which ``datasets`` maps into memory rather than reads.

    Attributes:
        cells: Arrow's column of {bytes, path}, as ``datasets.Image`` stores it: one of the two may be null.
        labels: The class of each row.
        table: The table in words: source and split.
    """

    cells: Any
    labels: Sequence[int]
    table: str

    def read(self, row: int) -> bytes:
        """The bytes of a cell, or of the file that it names."""
        cell = self.cells[row].as_py() or {"bytes": None, "path": None}
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        if cell["path"] is not None:
            return Path(cell["path"]).read_bytes()
        raise ValueError("the cell is empty")

    def stamp(self, row: int) -> tuple[str, int]:
        """See ``EncodedImages``."""
        cell = self.cells[row]
        path, content = cell["path"].as_py(), cell["bytes"].as_buffer()
        name = Path(path).name if path else ""
        if content is not None:
            return name, content.size
        return name, _size(Path(path)) if path else -1

    def where(self, row: int) -> str:
        """Table and row."""
        return f"{self.table}, row {row}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def decode(
    encoded: EncodedImages, row: int, use: Callable[[Image.Image], T], on_corrupt: Literal["error", "skip"]
) -> T | None:
    """What ``use`` makes of an image that is opened but not decoded yet.

    Returns:
        Its result; None, and a warning in the log, where the image cannot be read and ``on_corrupt`` is ``skip``.

    Raises:
        DataError: the image cannot be read; names its file or row.
    """
    try:
        with Image.open(io.BytesIO(encoded.read(row))) as image:
            return use(image)
    except UNREADABLE as error:
        if on_corrupt == "skip":
            log.warning("left out an image that cannot be read: %s (%s)", encoded.where(row), error)
            return None
        reason = f": {error}" if isinstance(error, ValueError) else ""  # Pillow's others speak of a buffer
        raise DataError(
            f"an image cannot be read{reason}",
            where=encoded.where(row),
            cure="Remove or replace it; in training --set data.on_corrupt=skip leaves such images out",
        ) from error
