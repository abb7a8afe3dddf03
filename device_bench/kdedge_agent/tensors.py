"""Arrays as a model wants them: layout, normalising of pixels, quantised inputs and outputs, random inputs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from kdedge_agent.runtimes import DYNAMIC, RuntimeRefused, Session, TensorInfo

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


OPEN_BATCH = 8
"""Samples in a batch of ``offline`` where neither the artifact nor the user says."""


def batch_size(session: Session, asked: Optional[int], given: Optional[Mapping[str, List[int]]] = None) -> int:
    """Samples in one batch: the artifact's own, else what was asked.

    Args:
        session: Of the artifact.
        asked: By the user.
        given: As in ``input_shapes``.

    Raises:
        RuntimeRefused: another size was asked than the artifact has.
    """
    first = session.inputs[0]
    shape = (given or {}).get(first.name) or (given or {}).get("") or first.shape
    own = shape[0] if shape else 1
    if own == DYNAMIC:
        return asked or OPEN_BATCH
    if asked not in (None, own):
        raise RuntimeRefused(f"the artifact takes batches of {own}, not of {asked}", "Leave --batch-size out")
    return own


def input_shapes(
    session: Session, batch: int, given: Optional[Mapping[str, List[int]]] = None
) -> List[Tuple[int, ...]]:
    """The shape of each input: the file's own, with ``batch`` where it leaves the first dimension open.

    Args:
        session: Of the artifact.
        batch: Samples in a call.
        given: Input -> its whole shape, by the user; ``""`` is the only input there is.

    Raises:
        RuntimeRefused: another dimension is open and its size not given, or a size is given that the file has not.
    """
    asked = dict(given or {})
    if "" in asked and len(session.inputs) == 1:
        asked[session.inputs[0].name] = asked.pop("")
    names = [info.name for info in session.inputs]
    for name in asked:
        if name not in names:
            raise RuntimeRefused(
                f"--input-shape names no input {name!r}", f"The model takes {', '.join(names)}: write NAME=1x3x224x224"
            )
    return [_input_shape(info, batch, asked.get(info.name)) for info in session.inputs]


def _input_shape(info: TensorInfo, batch: int, asked: Optional[List[int]]) -> Tuple[int, ...]:
    declared = "x".join("?" if size == DYNAMIC else str(size) for size in info.shape)
    if asked is not None:
        fits = len(asked) == len(info.shape) and all(own in (DYNAMIC, size) for own, size in zip(info.shape, asked))
        if not fits:
            what = "x".join(map(str, asked))
            raise RuntimeRefused(f"--input-shape {info.name}={what} does not fit", f"The model takes {declared}")
        return tuple(asked)
    if DYNAMIC in info.shape[1:]:
        raise RuntimeRefused(
            f"the model leaves sizes of its input {info.name} open ({declared}), and its time depends on them",
            f"Say which to measure: --input-shape {info.name}={declared.replace('?', 'N')}, a number for each N",
        )
    return tuple(batch if size == DYNAMIC else size for size in info.shape)


def random_inputs(
    session: Session, seed: int, batch: int = 1, given: Optional[Mapping[str, List[int]]] = None
) -> List[Array]:
    """One array for each input, for timing where no samples are given; the same for a seed everywhere.

    Floats are standard normal, 8- and 16-bit integers uniform over their range. 32- and 64-bit integers and
    booleans are ones: they are token ids and masks, and an id outside the vocabulary would be refused.

    Raises:
        RuntimeRefused: as ``input_shapes``, which decides on the shapes.
    """
    import numpy as np

    generator = random.Random(seed)
    arrays: List[Array] = []
    for info, shape in zip(session.inputs, input_shapes(session, batch, given)):
        count = int(np.prod(shape, dtype=np.int64))
        dtype = np.dtype(info.dtype)
        if dtype.kind == "f":
            arrays.append(_normal(generator, count).reshape(shape).astype(dtype))
        elif dtype.kind in "iu" and dtype.itemsize <= 2:
            arrays.append(_bits(generator, count * dtype.itemsize).view(dtype).reshape(shape))
        else:
            arrays.append(np.ones(shape, dtype))
    return arrays


def _bits(generator: random.Random, count: int) -> Array:
    """So many random bytes. numpy.random would do it too, and cost 7 MB in the very process that is measured."""
    import numpy as np

    return np.array(np.frombuffer(generator.getrandbits(8 * count).to_bytes(count, "little"), np.uint8))


def _normal(generator: random.Random, count: int) -> Array:
    """So many standard normal numbers, by Box and Muller's transform of uniform ones in (0, 1]."""
    import numpy as np

    pairs = -(-count // 2)
    uniform = (_bits(generator, 8 * pairs).view("<u4").astype(np.float64) + 1) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    return np.asarray(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count])


def quantise(values: Array, info: TensorInfo) -> Array:
    """Real values to the dtype of a tensor: round(value / scale) + zero_point, saturating; same shape.

    A tensor without scale is cast to its dtype as it is.
    """
    import numpy as np

    if info.scale is None:
        return values.astype(info.dtype)
    limits = np.iinfo(info.dtype)
    stored = np.rint(values / np.float32(info.scale)) + (info.zero_point or 0)
    return np.asarray(np.clip(stored, limits.min, limits.max), dtype=info.dtype)


def dequantise(values: Array, info: TensorInfo) -> Array:
    """Stored values to float32 real ones: scale * (stored - zero_point); same shape."""
    import numpy as np

    if info.scale is None:
        return values.astype(np.float32)
    shifted = values.astype(np.float32) - np.float32(info.zero_point or 0)
    return np.asarray(shifted * np.float32(info.scale), dtype=np.float32)


def normalise(pixels: Array, metadata: Optional[Mapping[str, Any]]) -> Array:
    """Pixels uint8 [N,C,H,W] to normalised float32 [N,C,H,W] by the artifact's own mean and std.

    Raises:
        RuntimeRefused: the artifact carries no preprocessing, or for another number of channels.
    """
    import numpy as np

    mean, std = _statistics(metadata, pixels)
    scaled = pixels.astype(np.float32) / np.float32(255)
    return np.asarray((scaled - mean[:, None, None]) / std[:, None, None], dtype=np.float32)


def _statistics(metadata: Optional[Mapping[str, Any]], images: Array) -> Tuple[Array, Array]:
    """Mean and std by channel, of values in [0, 1]."""
    import numpy as np

    steps: Dict[str, Any] = dict((metadata or {}).get("preprocessing") or {})
    mean, std = np.asarray(steps.get("mean", []), np.float32), np.asarray(steps.get("std", []), np.float32)
    if images.ndim != 4 or len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise RuntimeRefused(
            "the artifact carries no mean and std for these pixels",
            "Send normalised float32 samples, or export it with kdedge export",
        )
    return mean, std


def takes_pixels(metadata: Optional[Mapping[str, Any]]) -> bool:
    """Whether the artifact normalises by itself: its input is the uint8 pixels."""
    return ((metadata or {}).get("input") or {}).get("dtype") == "uint8"


def pixels(normalised: Array, metadata: Optional[Mapping[str, Any]]) -> Array:
    """The pixels uint8 [N,C,H,W] that ``normalise`` makes into these values, exactly.

    Raises:
        RuntimeRefused: the artifact carries no preprocessing, or for another number of channels.
    """
    import numpy as np

    mean, std = _statistics(metadata, normalised)
    scaled = (normalised * std[:, None, None] + mean[:, None, None]) * np.float32(255)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def to_layout(values: Array, info: TensorInfo, metadata: Optional[Mapping[str, Any]]) -> Array:
    """Samples [N,C,H,W] in the layout of the model's input; anything but rank 4 stays as it is.

    The layout is what the artifact says (``input.layout``); where it says nothing, what its shape allows.
    """
    import numpy as np

    if values.ndim != 4 or len(info.shape) != 4:
        return values
    said = ((metadata or {}).get("input") or {}).get("layout")
    if said is None:
        said = "NCHW" if info.shape[1] in (DYNAMIC, values.shape[1]) else "NHWC"
    return np.transpose(values, (0, 2, 3, 1)) if said == "NHWC" else values


def logits(session: Session, samples: Array, metadata: Optional[Mapping[str, Any]]) -> Array:
    """Real-valued outputs [N, classes] of normalised float32 samples, one batch of the model's own size a run.

    Raises:
        RuntimeRefused: samples do not fit the input.
    """
    import numpy as np

    info, out = session.inputs[0], session.outputs[0]
    values = to_layout(pixels(samples, metadata) if takes_pixels(metadata) else samples, info, metadata)
    batch, padded = _batches(info, len(values))
    if padded != len(values):  # a fixed batch size: the last run is filled up and its surplus dropped
        values = np.concatenate([values, np.repeat(values[-1:], padded - len(values), axis=0)])
    rows = []
    for start in range(0, padded, batch):
        part = np.ascontiguousarray(quantise(values[start : start + batch], info))
        rows.append(dequantise(session.run([part])[0], out).reshape(batch, -1))
    return np.concatenate(rows)[: len(samples)]


def logits_of_columns(session: Session, columns: Mapping[str, Array]) -> Array:
    """Real-valued outputs [N, classes] of a model of several inputs, one batch of its own size a run.

    Args:
        session: With the model.
        columns: Input's name -> N values in the numbers that the input takes (tokens, masks); nothing is quantised.

    Raises:
        RuntimeRefused: an input has no column.
    """
    import numpy as np

    lacking = [info.name for info in session.inputs if info.name not in columns]
    if lacking:
        raise RuntimeRefused(f"no samples for the input {lacking[0]}", f"There are some for {', '.join(columns)}")
    count = len(next(iter(columns.values())))
    batch, padded = _batches(session.inputs[0], count)
    rows = []
    for start in range(0, padded, batch):
        index = np.minimum(np.arange(start, start + batch), count - 1)  # the last run is filled up with its last sample
        part = [np.ascontiguousarray(columns[info.name][index], dtype=info.dtype) for info in session.inputs]
        rows.append(dequantise(session.run(part)[0], session.outputs[0]).reshape(batch, -1))
    return np.concatenate(rows)[:count]


def _batches(info: TensorInfo, count: int) -> Tuple[int, int]:
    """Batch size of a run, and the count rounded up to whole batches."""
    batch = 1 if info.shape[0] == DYNAMIC else max(1, info.shape[0])
    return batch, -(-count // batch) * batch


def read_samples(path: str, shape: List[int], dtype: str) -> Array:
    """A raw little-endian array of the given shape, mapped from its file and not read into memory.

    Args:
        path: Of the file.
        shape: Of the array.
        dtype: ``float32``, ``uint8`` or ``int32``.

    Raises:
        RuntimeRefused: the file's size is not what shape and dtype make.
    """
    import numpy as np

    kind = np.dtype({"float32": "<f4", "uint8": "u1", "int32": "<i4"}[dtype])
    wanted = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    size = Path(path).stat().st_size
    if size != wanted:
        raise RuntimeRefused(f"samples of {size} bytes; {shape} of {dtype} are {wanted}", "Send them again")
    return np.memmap(path, dtype=kind, mode="r", shape=tuple(shape))
