"""Scores with the device's own kernels: samples go there in pieces, classes or outputs come back."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kdedge.errors import AgentError, DataError, WireError

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.run_request import RunRequest, ScoreRequest
from kdedge_bench.artifact_file import ArtifactFile
from kdedge_bench.channel import AgentChannel, Message
from kdedge_bench.devices import Device
from kdedge_bench.process import Transport
from kdedge_bench.remote import Ground, checked_path
from kdedge_bench.text import one_line

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]
    Pair: TypeAlias = tuple[Array | Mapping[str, Array], Array]
    AccuracyData: TypeAlias = Pair | Iterable[Pair] | "Scored"

#: Of one piece of samples: what lies on the device, and here in memory, at a time.
PIECE_BYTES = 32 << 20
#: Of one whose outputs come back, in one message: of a reader they are two thirds as large as its inputs.
PIECE_BYTES_OF_OUTPUTS = 8 << 20


@dataclass(frozen=True)
class Scored:
    """Samples of a net whose outputs are more than classes, such as answers out of texts.

    Attributes:
        inputs: Name of each of the model's inputs -> int32 [N, ...], all of one shape; N ≥ 1.
        score: The outputs of all samples, float32 [N, *], in order and each flattened -> ``n`` and the figures of the
            task, each in [0, 1].
    """

    inputs: Mapping[str, Array]
    score: Callable[[Array], dict[str, Any]]


@dataclass(frozen=True)
class Ready:
    """A device with the agent running and the artifact in place."""

    transport: Transport
    ground: Ground
    agent: AgentChannel
    artifact: ArtifactFile
    artifact_path: str


def score(ready: Ready, request: RunRequest, data: AccuracyData, on_scored: Callable[[int], None]) -> dict[str, Any]:
    """Scores of the artifact on the device: accuracy and macro F1, or what the data themselves make of the outputs.

    Args:
        ready: Where the artifact is.
        request: The run that the score belongs to: runtime, threads.
        data: (samples, labels int [N]) or an iterator of such pairs. Samples are float32 [N, ...], preprocessed;
            uint8 [N,C,H,W], pixels that the agent normalises by the artifact's own metadata; or, for a model of
            several inputs, a mapping from their names to int32 arrays [N, ...] of one shape. Or ``Scored``.
        on_scored: Told how many samples are done.

    Returns:
        ``n``, the figures (``accuracy`` and ``f1_macro`` of classes), and the ``runtime`` that scored.

    Raises:
        DataError: no samples, or arrays that do not go together.
        DeviceError: the device or the wire failed.
    """
    if isinstance(data, Scored):
        return _score_outputs(ready, request, data, on_scored)
    predictions: list[int] = []
    labels: list[int] = []
    runtime: Any = None
    for piece, piece_labels in pieces(data):
        answer = _answer(ready, request, piece, "classes")
        predictions += _predictions(answer, len(piece_labels), ready.transport.device)
        labels += piece_labels
        runtime = answer.get("runtime")
        on_scored(len(predictions))
    if not labels:
        raise DataError("no samples to measure the accuracy with")
    return {**metrics(predictions, labels), "runtime": runtime}


def _score_outputs(ready: Ready, request: RunRequest, data: Scored, on_scored: Callable[[int], None]) -> dict[str, Any]:
    import numpy as np

    parts: list[Array] = []
    runtime: Any = None
    no_labels = np.zeros(len(next(iter(data.inputs.values()))), np.int64)
    for piece, none in pieces((data.inputs, no_labels), PIECE_BYTES_OF_OUTPUTS):
        answer = _answer(ready, request, piece, "outputs")
        parts.append(_outputs(answer, len(none), ready.transport.device))
        runtime = answer.get("runtime")
        on_scored(sum(map(len, parts)))
    if len({part.shape[1] for part in parts}) > 1:
        raise WireError("the device answered with outputs of several sizes", where=ready.transport.device.name)
    return {**data.score(np.concatenate(parts)), "runtime": runtime}


def _answer(ready: Ready, request: RunRequest, piece: Piece, returns: str) -> Message:
    """What the device makes of one piece."""
    with _on_device(ready, piece.values) as (path, sha256):
        wish = _wish(request, path, sha256, piece, returns)
        return ready.agent.request({"type": "score", "request": wish.to_dict()}, about=ready.artifact)


def metrics(predictions: list[int], labels: list[int]) -> dict[str, Any]:
    """``n``, ``accuracy`` and ``f1_macro`` (mean over the classes that occur), by torchmetrics."""
    import kdedge.torchvision_compat  # noqa: F401 - torchmetrics imports torchvision
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score

    guessed, true = torch.tensor(predictions), torch.tensor(labels)
    classes = max(2, int(torch.maximum(guessed, true).max()) + 1)
    f1_macro = multiclass_f1_score(guessed, true, num_classes=classes, average="macro")
    accuracy = (guessed == true).double().mean()
    return {"n": len(labels), "accuracy": float(accuracy), "f1_macro": float(f1_macro)}


@dataclass(frozen=True)
class Piece:
    """Some samples.

    Attributes:
        values: [n, ...], or [columns, n, ...].
        columns: Names of the inputs that they are for; none where there is one input.
    """

    values: Array
    columns: tuple[str, ...] = ()

    @property
    def shape(self) -> list[int]:
        """Of the array for one input."""
        return list(self.values.shape[1:] if self.columns else self.values.shape)


def pieces(data: Pair | Iterable[Pair], size_bytes: int | None = None) -> Iterator[tuple[Piece, list[int]]]:
    """The samples in contiguous pieces of at most ``size_bytes`` (``PIECE_BYTES``), each with its labels.

    Raises:
        DataError: arrays of other types or lengths than needed.
    """
    import numpy as np

    is_pair = isinstance(data, tuple) and len(data) == 2 and hasattr(data[1], "shape")
    pairs: Iterable[Any] = [data] if is_pair else data
    for given, raw_labels in pairs:
        columns = dict(given) if isinstance(given, Mapping) else {"": given}
        arrays, labels = [np.asarray(values) for values in columns.values()], np.asarray(raw_labels)
        _check_pair(arrays, labels, (np.int32,) if isinstance(given, Mapping) else (np.float32, np.uint8))
        step = max(1, (size_bytes or PIECE_BYTES) // max(1, len(arrays) * arrays[0][:1].nbytes))
        for start in range(0, len(labels), step):
            parts = [array[start : start + step] for array in arrays]
            if isinstance(given, Mapping):
                piece = Piece(np.stack(parts), tuple(columns))
            else:
                piece = Piece(np.ascontiguousarray(parts[0]))
            yield piece, [int(label) for label in labels[start : start + step]]


def _check_pair(arrays: list[Array], labels: Array, dtypes: tuple[type, ...]) -> None:
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise DataError(f"samples of {len(shapes)} shapes; every input needs as many, of one shape")
    (shape,) = shapes
    if len(shape) < 2 or labels.ndim != 1 or shape[0] != len(labels):
        raise DataError(f"samples {shape} and labels {labels.shape} do not go together")
    if any(array.dtype not in dtypes for array in arrays) or labels.dtype.kind not in "iu":
        wanted = " or ".join(dtype.__name__ for dtype in dtypes)
        raise DataError(f"samples are {arrays[0].dtype}, labels {labels.dtype}; {wanted}, and integers, needed")


@contextlib.contextmanager
def _on_device(ready: Ready, values: Array) -> Iterator[tuple[str, str]]:
    """The piece as a file in the agent's own scratch folder, which goes when the agent ends, however it ends."""
    data = values.tobytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        scratch = checked_path(ready.agent.greeting.get("scratch_dir"))
        path = f"{scratch}/samples.bin"
    except ValueError:
        reason = one_line(str(ready.agent.greeting.get("scratch_reason")))
        where = ready.transport.device.name
        raise AgentError(f"the agent has no folder for samples: {reason}", where=where) from None
    ready.transport.put(data, path, sha256, ground=ready.ground)
    yield path, sha256
    ready.agent.request({"type": "remove", "paths": [path]})


def _wish(request: RunRequest, path: str, sha256: str, piece: Piece, returns: str) -> ScoreRequest:
    try:
        return ScoreRequest(
            artifact=request.artifact,
            artifact_sha256=request.artifact_sha256,
            format=request.format,
            samples=path,
            samples_sha256=sha256,
            shape=piece.shape,
            dtype=str(piece.values.dtype),
            columns=list(piece.columns),
            returns=returns,
            runtime=request.runtime,
            threads=request.threads,
            wait_s=request.wait_s,
            provider=request.provider,
        )
    except ProtocolError as error:
        raise DataError(f"these samples cannot be scored: {error}") from None


def _predictions(answer: Message, count: int, device: Device) -> list[int]:
    found = answer.get("predictions")
    if not isinstance(found, list) or len(found) != count:
        raise WireError(f"the device did not answer with {count} predictions", where=device.name)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1_000_000:
            raise WireError("the device answered with what is no class", where=device.name)
    return found


def _outputs(answer: Message, count: int, device: Device) -> Array:
    """Finite float32 [count, k] out of the message's texts."""
    import numpy as np

    texts = answer.get("outputs")
    try:
        data = b"".join(base64.b64decode(text, validate=True) for text in texts) if isinstance(texts, list) else b""
    except (TypeError, ValueError):  # no text, or none of base64
        data = b""
    if not data or len(data) % (4 * count):
        raise WireError(f"the device did not answer with the outputs of {count} samples", where=device.name)
    outputs = np.frombuffer(data, "<f4").reshape(count, -1)
    if not np.isfinite(outputs).all():
        raise WireError("the device answered with outputs that are no finite numbers", where=device.name)
    return outputs
