"""What a .onnx or .tflite file holds, whoever wrote it: ops, arithmetic, sizes, inputs and outputs, and who opens it.

Read from the file alone; nothing is run but the runtimes' own loading, each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdedge.files import sha256_file

from kdedge_exporters.artifact import format_of
from kdedge_exporters.reach import Reach, oldest_versions

LOAD_TIMEOUT_S = 120
_FLOATS = ("float", "bfloat", "double")


@dataclass(frozen=True)
class OpKind:
    """Ops of one type that compute in one dtype.

    Attributes:
        op: Type, e.g. ``Conv`` or ``CONV_2D``.
        dtype: Of the numbers that it computes with, e.g. ``int8``; ``uint8×int8`` where weights have another.
        count: How many.
        macs: Multiply-accumulates of one inference of the file's batch; 0 for ops that have none, None where a shape is
            open or the op is not known.
    """

    op: str
    dtype: str
    count: int
    macs: int | None


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: In the file.
        dtype: numpy's word.
        shape: None where the caller chooses.
        scale: Of a quantised tensor, else None.
        zero_point: Likewise.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Opening:
    """What a runtime that is installed here says to the file.

    Attributes:
        runtime: Its pip name.
        version: None where it does not import.
        opens: Whether it does.
        reason: Why not; None where it does.
    """

    runtime: str
    version: str | None
    opens: bool
    reason: str | None


@dataclass(frozen=True)
class Contents:
    """What the reader of a format finds.

    Attributes:
        producer: Who wrote the file, as far as it says.
        versions: Of the format: opset by domain and IR version, or the schema's and the newest of each op.
        ops: By type and dtype.
        parameters: Numbers in constant tensors that ops compute with.
        parameter_bytes: What these take in the file.
        peak_activation_bytes: Most bytes of intermediate results alive at once when ops run in the file's order, each
            in memory of its own, for the file's batch; None where a shape is open.
        inputs: In order.
        outputs: In order.
        metadata: By key; JSON is read.
        unmeasured: Why a figure is None, by its name.
        batch: Samples of one inference, for which figures hold: what the file fixes, 1 where it leaves that open.
        domains: Of ONNX ops, where they come from another place than the format's own op set.
    """

    producer: str
    versions: dict[str, int]
    ops: tuple[OpKind, ...]
    parameters: int
    parameter_bytes: int
    peak_activation_bytes: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, Any]
    unmeasured: dict[str, str]
    batch: int = 1
    domains: tuple[str, ...] = ()

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one inference; None where those of an op are not known."""
        counts = [kind.macs for kind in self.ops]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def integer_macs_share(self) -> float | None:
        """Share of them that is computed on integers alone; None where there are none, or not all are known."""
        if not self.macs:
            return None
        return sum(kind.macs or 0 for kind in self.ops if is_integer(kind.dtype) or _quantises(kind)) / self.macs


def is_integer(dtype: str) -> bool:
    """Whether no part of ``dtype``, such as ``float32×int8``, is a float."""
    return not any(part.startswith(_FLOATS) for part in dtype.split("×"))


# Ops whose kernels quantise a float input as they run where their weights are integers.
_QUANTISING = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "DynamicQuantizeMatMul")


def _quantises(kind: OpKind) -> bool:
    """Whether the op multiplies integers though its data are float ("dynamic" or "hybrid" kernels)."""
    data, _, weights = kind.dtype.partition("×")
    return kind.op in _QUANTISING and data == "float32" and bool(weights) and is_integer(weights)


@dataclass(frozen=True)
class Inspection:
    """A file and its contents.

    Attributes:
        path: Of the file.
        format: ``onnx`` or ``tflite``.
        size_bytes: Of the file.
        sha256: Of the file.
        contents: What is in it.
        runtimes: What the runtimes here say to it.
        reach: The oldest version of each runtime of the format that opens it.
    """

    path: Path
    format: str
    size_bytes: int
    sha256: str
    contents: Contents
    runtimes: tuple[Opening, ...]
    reach: tuple[Reach, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``kdedge inspect --json``."""
        contents = asdict(self.contents)
        figures = {"macs": self.contents.macs, "integer_macs_share": self.contents.integer_macs_share}
        head = {"artifact": str(self.path), "format": self.format, "size_bytes": self.size_bytes, "sha256": self.sha256}
        openings = {"runtimes": [asdict(o) for o in self.runtimes], "reach": [asdict(r) for r in self.reach]}
        return {**head, **figures, **contents, **openings}


def inspect_artifact(path: Path | str) -> Inspection:
    """Look into a file.

    Args:
        path: A .onnx or .tflite file of any origin.

    Raises:
        ArtifactError: missing, of unknown suffix, or damaged.
    """
    path = Path(path)
    kind = format_of(path)
    inside = contents(path, kind)
    size, sha256 = path.stat().st_size, sha256_file(path)
    return Inspection(path, kind, size, sha256, inside, openings(path, kind), oldest_versions(inside, kind))


def contents(path: Path, kind: str) -> Contents:
    """What is in a file of a known format.

    Raises:
        ArtifactError: it is damaged.
    """
    from kdedge_exporters import inspect_onnx, inspect_tflite

    return inspect_onnx.contents(path) if kind == "onnx" else inspect_tflite.contents(path)


def openings(path: Path, kind: str) -> tuple[Opening, ...]:
    """Ask every runtime for the format that is installed here to open the file."""
    from kdedge_agent.runtimes import RUNTIMES

    return tuple(opening(path, kind, runtime) for runtime in RUNTIMES[kind])


_LOADER = """
import json, sys
from kdedge_agent import runtimes
path, kind, name = sys.argv[1:]
try:
    version = runtimes.import_runtime(name)
except runtimes.RuntimeTrouble as error:
    print(json.dumps([None, error.what])); sys.exit()
try:
    runtimes.load(path, kind, name)
    print(json.dumps([version, None]))
except runtimes.RuntimeTrouble as error:
    print(json.dumps([version, error.what]))
"""


def opening(path: Path, kind: str, runtime: str) -> Opening:
    """What a runtime that is installed here says to a file, in a process of its own: it may end that."""
    command = [sys.executable, "-c", _LOADER, str(path), kind, runtime]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Opening(runtime, None, opens=False, reason=f"did not open it within {LOAD_TIMEOUT_S} s")
    try:
        version, reason = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return Opening(runtime, None, opens=False, reason=f"died with code {done.returncode} while opening it")
    return Opening(runtime, version, opens=reason is None, reason=reason)


def op_kinds(found: Iterable[tuple[str, str, int | None]]) -> tuple[OpKind, ...]:
    """(type, dtype, multiply-accumulates) of every op -> kinds, those with the most arithmetic first."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    for op, dtype, macs in found:
        groups.setdefault((op, dtype), []).append(macs)
    kinds = [
        OpKind(op, dtype, len(counts), None if None in counts else sum(count or 0 for count in counts))
        for (op, dtype), counts in groups.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (-(kind.macs or 0), -kind.count, kind.op, kind.dtype)))


@dataclass(frozen=True)
class Step:
    """One op of a graph as its memory sees it: tensors by any name, aliases resolved, constants left out."""

    reads: Sequence[object]
    writes: Sequence[object]


def peak_bytes(steps: Sequence[Step], sizes: dict[object, int | None], kept: Iterable[object]) -> int | None:
    """Most bytes alive at once.

    Args:
        steps: In the order in which they run.
        sizes: Bytes of every tensor; None where they are not known.
        kept: Tensors that live from the first to the last step: inputs and outputs of the graph.
    """
    first: dict[object, int] = {}
    last: dict[object, int] = {}
    for number, step in enumerate(steps):
        for tensor in (*step.reads, *step.writes):
            first.setdefault(tensor, number)
            last[tensor] = number
    for tensor in kept:
        first[tensor], last[tensor] = 0, len(steps) - 1
    if any(sizes.get(tensor) is None for tensor in first):
        return None
    change = [0] * (len(steps) + 1)
    for tensor, begin in first.items():
        size = sizes[tensor] or 0
        change[begin] += size
        change[last[tensor] + 1] -= size
    alive, peak = 0, 0
    for delta in change:
        alive += delta
        peak = max(peak, alive)
    return peak


def decoded(text: str) -> Any:
    """Metadata as JSON where it is JSON, which has no word for NaN and infinities."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except ValueError:
        return text


def _no_json(word: str) -> None:
    raise ValueError(word)
