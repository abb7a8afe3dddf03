"""Which versions of the runtimes open a file, known before a device refuses it.

The table ``runtime_versions.json`` was measured, by asking each runtime (``tests/runtime_probe.py``): for ONNX Runtime
the newest operator set and IR version that it loads, for TFLite's runtimes the newest version of each op they hold.
A runtime that holds an op may still lack a kernel for it in some dtype: parity in the real runtime is there for that,
and what is known of other versions (``_FIRST``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from kdedge.errors import ReachError, UserError

if TYPE_CHECKING:
    from kdedge_exporters.inspection import Contents

FORMATS = {"onnxruntime": "onnx", "tflite-runtime": "tflite", "ai-edge-litert": "tflite"}
"""Runtime -> the format that it opens."""
_OPSET, _IR = "ai.onnx", "ir"
# What ONNX Runtime brings kernels for; those of any other domain are registered by whoever made the file.
_DOMAINS = ("ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")

# (op, dtype) -> the first version of ONNX Runtime that opens a file with it, where its op set is older. Versions before
# 1.17 take a LayerNormalization without a kernel apart into an op of another op set, and refuse that.
_FIRST = {("LayerNormalization", "float16"): (1, 17)}


@dataclass(frozen=True)
class Target:
    """A runtime that a file is for.

    Attributes:
        runtime: Its pip name.
        version: (major, minor); None is the oldest that was probed.
    """

    runtime: str
    version: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.runtime if self.version is None else f"{self.runtime} {self.version[0]}.{self.version[1]}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """``tflite-runtime``, ``onnxruntime==1.16``.

        Raises:
            UserError: unknown, or no version number.
        """
        name, _, version = text.partition("==")
        if name not in FORMATS:
            raise UserError(f"unknown runtime {name!r}", cure=f"Choose one of: {', '.join(FORMATS)}; or NAME==VERSION")
        return cls(name, _numbers(version) if version else None)


@dataclass(frozen=True)
class Reach:
    """What one runtime says to a file.

    Attributes:
        runtime: Its pip name.
        oldest: The oldest probed version that opens it, as ``major.minor``; None where none does.
        obstacles: What the version before that lacks (or the newest, where none opens it); empty where all do.
    """

    runtime: str
    oldest: str | None
    obstacles: tuple[str, ...]


def oldest_versions(contents: Contents, kind: str) -> tuple[Reach, ...]:
    """The oldest version of each runtime of the format that opens a file.

    Args:
        contents: Of the file.
        kind: ``onnx`` or ``tflite``.
    """
    found = []
    for runtime in (name for name, format_ in FORMATS.items() if format_ == kind):
        oldest: str | None = None
        missing: tuple[str, ...] = ()
        for version in sorted(_versions(runtime), reverse=True):
            lacks = tuple(_lacks(contents, runtime, version))
            if lacks:
                missing = lacks
                break
            oldest = f"{version[0]}.{version[1]}"
        found.append(Reach(runtime, oldest, missing))
    return tuple(found)


def require(contents: Contents, target: Target) -> None:
    """Refuse a file that a runtime would refuse.

    Raises:
        ReachError: with the ops or versions that it lacks.
    """
    lacks = list(_lacks(contents, target.runtime, probed(target)))
    if lacks:
        raise ReachError(
            f"{target} would not open the file: {'; '.join(lacks)}",
            cure="Nothing was kept. Choose another --target-runtime or --precision",
        )


def probed(target: Target) -> tuple[int, int]:
    """The probed version that speaks for a target: the newest that is not newer.

    Raises:
        UserError: the target is older than all that were probed.
    """
    known = sorted(_versions(target.runtime))
    older = [version for version in known if target.version is None or version <= target.version]
    if not older:
        oldest = f"{known[0][0]}.{known[0][1]}"
        raise UserError(f"what {target} opens is not known: the oldest version probed is {oldest}")
    return older[0] if target.version is None else older[-1]


def newest_opset(target: Target) -> int:
    """The newest operator set of ONNX that a version of ONNX Runtime loads."""
    return int(_versions("onnxruntime")[probed(target)][_OPSET])


def _lacks(contents: Contents, runtime: str, version: tuple[int, int]) -> Iterator[str]:
    """What a file asks for and the version does not hold."""
    known = _versions(runtime)[version]
    asked = contents.versions
    if FORMATS[runtime] == "onnx":
        for key, word in ((_OPSET, "operator set"), (_IR, "IR version")):
            if asked.get(key, 0) > known[key]:
                yield f"{word} {asked[key]}, it knows up to {known[key]}"
        yield from (f"it has no ops of {domain}" for domain in contents.domains if domain not in _DOMAINS)
        for kind in contents.ops:
            if version < _FIRST.get((kind.op, kind.dtype), version):
                yield f"it does not open {kind.op} in {kind.dtype}"
        return
    for op in sorted(asked.keys() - {"schema"}):
        newest = known.get(op, 0)
        if not newest:
            yield f"it has no {op}"
        elif asked.get(op, 1) > newest:
            yield f"{op} version {asked[op]}, it knows up to {newest}"


@functools.cache
def _versions(runtime: str) -> dict[tuple[int, int], dict[str, int]]:
    """(major, minor) -> newest version of each thing by name."""
    table: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath("runtime_versions.json").read_text("utf-8")
    )
    if runtime == "onnxruntime":
        rows = {version: row for version, row in table[runtime].items() if version != "columns"}
        return {_numbers(version): {_OPSET: row[0], _IR: row[1]} for version, row in rows.items()}
    ops = dict(table["tflite"])
    columns = [name.split() for name in ops.pop("columns")]
    return {
        _numbers(version): {op: row[position] for op, row in ops.items()}
        for position, (name, version) in enumerate(columns)
        if name == runtime
    }


def _numbers(version: str) -> tuple[int, int]:
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise UserError(f"{version!r} is no version", cure="Write it as onnxruntime==1.16")
    return int(parts[0]), int(parts[1])
