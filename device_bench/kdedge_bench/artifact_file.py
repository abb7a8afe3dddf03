"""The artifact as the measurement sees it: a file, its format and its hash, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdedge.errors import ArtifactError
from kdedge.files import sha256_file

FORMATS = {".onnx": "onnx", ".tflite": "tflite"}


@dataclass(frozen=True)
class ArtifactFile:
    """One .onnx or .tflite file.

    Attributes:
        path: On this machine, absolute.
        format: ``onnx`` or ``tflite``.
        sha256: Of its content.
        size_bytes: Of the file.
    """

    path: Path
    format: str
    sha256: str
    size_bytes: int

    @property
    def remote_name(self) -> str:
        """Its name in the device's cache; nothing of the local name travels."""
        return f"artifacts/{self.remote_file}"

    @property
    def remote_file(self) -> str:
        """The last part of ``remote_name``."""
        return f"{self.sha256}.{self.format}"


def check_artifact(path: Path) -> ArtifactFile:
    """Look at a file before it is measured.

    Raises:
        ArtifactError: missing, a folder, empty, or neither .onnx nor .tflite.
    """
    path = Path(path)
    artifact_format = FORMATS.get(path.suffix.lower())
    if artifact_format is None:
        raise ArtifactError(
            "only .onnx and .tflite files can be measured",
            where=path,
            cure="Make one with: kdedge export BUNDLE --format onnx|tflite",
        )
    try:
        if path.is_dir():
            raise ArtifactError("this is a folder, not a file", where=path)
        size_bytes = path.stat().st_size
        sha256 = sha256_file(path)
    except FileNotFoundError:
        raise ArtifactError("no such file", where=path) from None
    except OSError as error:
        raise ArtifactError(f"cannot read: {error.strerror}", where=path) from None
    if size_bytes == 0:
        raise ArtifactError("the file is empty", where=path, cure="Export it again")
    return ArtifactFile(path.resolve(), artifact_format, sha256, size_bytes)
