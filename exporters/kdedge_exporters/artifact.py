"""Open a deployable file with its own runtime and predict with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import ArtifactError
from kdedge.files import sha256_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdedge_agent.runtimes import Session

    Array = NDArray[Any]

SUFFIXES = {".onnx": "onnx", ".tflite": "tflite"}
FORMAT_VERSION = 1
# Samples of one run where the file leaves the batch open: attention over a whole data set at once would not fit.
_OPEN_BATCH = 64


@dataclass(frozen=True)
class Artifact:
    """One deployable file, loaded and ready.

    Attributes:
        path: The file.
        format: ``onnx`` or ``tflite``.
        precision: ``int8`` or ``float32``.
        metadata: The ``kdedge`` document inside the file.
        sha256: Of the file.
        size_bytes: Of the file.
        runtime: ``name`` and ``version`` of what runs it here.
    """

    path: Path
    format: str
    precision: str
    metadata: dict[str, Any]
    sha256: str
    size_bytes: int
    runtime: dict[str, str]
    _session: Session = field(repr=False, compare=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index of the logits."""
        return tuple(self.metadata["labels"])

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order in which ``predict`` takes them."""
        return tuple(str(entry["name"]) for entry in self.metadata["inputs"])

    def predict(self, inputs: Array | Sequence[Array]) -> NDArray[np.float32]:
        """Logits of normalised images, or of token ids.

        Args:
            inputs: One array, or one for each of ``input_names``: float32 [N, C, H, W] (or [N, features]), normalised
                as ``metadata["preprocessing"]`` says, or integers [N, L].

        Returns:
            float32 [N, classes], or [N, 2, L] in question answering; dequantised where the file's output is an
            integer one.

        Raises:
            ArtifactError: the inputs do not fit the file, or its runtime failed.
        """
        import numpy as np

        from kdedge_agent import tensors
        from kdedge_agent.runtimes import DYNAMIC, RuntimeTrouble

        sources, result = self._session.inputs, self._session.outputs[0]
        rows = []
        try:
            arrays = self._in_order([inputs] if isinstance(inputs, np.ndarray) else list(inputs))
            count = len(arrays[0])
            batch = sources[0].shape[0] if sources[0].shape[0] != DYNAMIC else max(min(count, _OPEN_BATCH), 1)
            if sources[0].shape[0] != DYNAMIC and count % batch:
                raise ArtifactError(f"the file takes batches of {batch}, {count} given", where=self.path)
            for start in range(0, count, batch):
                parts = [values[start : start + batch] for values in arrays]
                rows.append(tensors.dequantise(self._run(parts)[0], result))
        except RuntimeTrouble as error:
            raise ArtifactError(error.what, where=self.path, cure=error.cure) from None
        if not rows:
            return np.zeros((0, *result.shape[1:]), np.float32)
        return np.concatenate(rows).astype(np.float32, copy=False)

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        """Every output of one run, as the file holds it: integers stay integers.

        Args:
            inputs: As ``predict`` takes them; as many samples as the file takes at once.

        Raises:
            ArtifactError: the inputs do not fit the file, or its runtime failed.
        """
        from kdedge_agent.runtimes import RuntimeTrouble

        try:
            return self._run(self._in_order(list(inputs)))
        except RuntimeTrouble as error:
            raise ArtifactError(error.what, where=self.path, cure=error.cure) from None

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        """One run on arrays that are in the session's order and layout; integer inputs are quantised here."""
        import numpy as np

        from kdedge_agent import tensors

        pairs = zip(arrays, self._session.inputs, strict=True)
        return self._session.run([np.ascontiguousarray(tensors.quantise(values, source)) for values, source in pairs])

    def _in_order(self, arrays: list[Array]) -> list[Array]:
        """The arrays in the order, the kind of number and the layout of the session's inputs."""
        import numpy as np

        from kdedge_agent import tensors

        names = self.input_names
        counts = sorted({len(array) for array in arrays})
        if len(arrays) != len(names) or len(counts) > 1:
            what = f"{len(arrays)} inputs given" if len(counts) == 1 else f"inputs of {counts} samples given"
            raise ArtifactError(what, where=self.path, cure=f"Give as many of each of: {', '.join(names)}")
        by_name = dict(zip(names, arrays, strict=True))
        ordered = []
        for source in self._session.inputs:
            values = by_name[source.name] if len(names) > 1 else arrays[0]
            if tensors.takes_pixels(self.metadata):
                values = tensors.pixels(np.asarray(values, np.float32), self.metadata)
            elif source.dtype.startswith("float") or source.scale is not None:
                values = np.asarray(values, np.float32)
            ordered.append(tensors.to_layout(values, source, self.metadata))
        return ordered


def load_artifact(path: Path | str, runtime: str | None = None, threads: int = 1) -> Artifact:
    """Open an artifact.

    Args:
        path: A .onnx or .tflite file that kdedge wrote.
        runtime: ``onnxruntime``, ``ai-edge-litert`` or ``tflite-runtime``; None takes what is installed.
        threads: Of the runtime.

    Raises:
        ArtifactError: missing, of unknown suffix, damaged, foreign, or no runtime for it here.
    """
    path = Path(path)
    return open_artifact(path, format_of(path), runtime, threads)


def format_of(path: Path) -> str:
    """``onnx`` or ``tflite``, by the file's name.

    Raises:
        ArtifactError: missing, a folder, or of unknown suffix.
    """
    _require_file(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ArtifactError(
            f"an artifact ends in {' or '.join(SUFFIXES)}, this in {path.suffix or 'nothing'!r}", where=path
        )
    return kind


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError("no such file" if not path.exists() else "this is a folder", where=path)


def open_artifact(path: Path, kind: str, runtime: str | None = None, threads: int = 1) -> Artifact:
    """``load_artifact`` for a file whose format is known, whatever its name."""
    from kdedge_agent import runtimes

    _require_file(path)
    try:
        session = runtimes.load(str(path), kind, runtime, threads)
        metadata = session.metadata()
    except runtimes.RuntimeTrouble as error:
        raise ArtifactError(error.what, where=path, cure=error.cure) from None
    document = _checked(metadata, path)
    return Artifact(
        path=path,
        format=kind,
        precision=str(document["precision"]),
        metadata=document,
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        runtime={"name": session.name, "version": session.version},
        _session=session,
    )


def _checked(metadata: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The document, refused where it is none of ours or newer than this kdedge."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list):
        raise ArtifactError(
            "the file carries no kdedge description, so its labels and preprocessing are unknown",
            where=path,
            cure="Export it with `kdedge export`",
        )
    version = metadata.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArtifactError(
            f"artifact of format version {version}; this kdedge reads {FORMAT_VERSION}",
            where=path,
            cure="Update kdedge",
        )
    required = {"precision": str, "task": str, "preprocessing": dict, "inputs": list}
    lacking = [key for key, kind in required.items() if not isinstance(metadata.get(key), kind)]
    if lacking:
        raise ArtifactError(
            f"the file's kdedge description has no {' and no '.join(lacking)}",
            where=path,
            cure="It was changed after its export: export it again",
        )
    return metadata
