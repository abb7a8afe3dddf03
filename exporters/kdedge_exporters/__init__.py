"""Exporters: from a Bundle to one deployable file, checked against the student before it is kept.

::

    result = export(bundle, "onnx", samples=(images, labels))
    result.artifact, result.parity.agreement, result.float_ops
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import UserError
from kdedge.files import atomic_path, sha256_file, write_json

if TYPE_CHECKING:
    import torch
    from kdedge.bundle import Bundle
    from kdedge.metrics import Scores

    from kdedge_exporters.parity import ParityRecord

    Samples = tuple[torch.Tensor | Sequence[torch.Tensor], torch.Tensor]

__all__ = ["EXPORTERS", "PRECISIONS", "ExportResult", "export", "load_artifact"]

PRECISIONS = ("int8", "float32")


def _onnx(bundle: Bundle, precision: str, path: Path, io: str) -> list[dict[str, str]]:
    from kdedge_exporters import onnx

    if io != "float32":
        raise UserError(f"an ONNX artifact takes float32 input, not {io}", cure="Leave --io out")
    module = bundle.float_student() if precision == "float32" else bundle.int8_program(None)
    return onnx.write(bundle, module, precision, path)


def _tflite(bundle: Bundle, precision: str, path: Path, io: str) -> list[dict[str, str]]:
    from kdedge_exporters import tflite

    if io != "float32" and precision != "int8":
        raise UserError(f"a float32 artifact has no {io} input", cure="Leave --io out")
    module = bundle.float_student() if precision == "float32" else bundle.int8_program(1)
    return tflite.write(bundle, module, precision, path, io=io)


EXPORTERS: dict[str, Callable[[Bundle, str, Path, str], list[dict[str, str]]]] = {
    "onnx": _onnx,
    "tflite": _tflite,
}
"""Format -> function that writes a bundle as a file of it and returns the ops left in float."""


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        artifact: The file.
        format: ``onnx`` or ``tflite``.
        precision: ``int8`` or ``float32``.
        size_bytes: Of the file.
        sha256: Of the file.
        parity: Against the student; None where no samples were given.
        float_ops: name, op and reason of every op that computes in float in an int8 artifact.
    """

    artifact: Path
    format: str
    precision: str
    size_bytes: int
    sha256: str
    parity: ParityRecord | None
    float_ops: tuple[dict[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``kdedge export --json``."""
        document = {**vars(self), "artifact": str(self.artifact), "float_ops": list(self.float_ops)}
        document["parity"] = None if self.parity is None else self.parity.to_dict()
        document["unmeasured"] = {} if self.parity else {"parity": "no samples were given to compare on"}
        return document


def load_artifact(path: Path | str, runtime: str | None = None, threads: int = 1) -> Any:
    """Open an artifact; see ``kdedge_exporters.artifact.load_artifact``."""
    from kdedge_exporters.artifact import load_artifact as load

    return load(path, runtime, threads)


def export(
    bundle: Bundle,
    format: str,  # noqa: A002 - the word of the command line
    *,
    precision: str = "int8",
    out: Path | str | None = None,
    samples: Samples | None,
    accuracy_tolerance: float | None = None,
    min_agreement: float | None = None,
    io: str = "float32",
    score: Callable[[torch.Tensor], Scores] | None = None,
) -> ExportResult:
    """Write an artifact and its parity record; keep neither unless the artifact passes.

    Args:
        bundle: From training.
        format: A key of ``EXPORTERS``.
        precision: ``int8`` or ``float32``.
        out: The file; by default ``student-<precision>.<format>`` beside the bundle's folder.
        samples: (images float32 [N, C, H, W] normalised, labels int64 [N]) of the evaluation split, or (a tensor for
            each of the bundle's inputs, labels); None skips the comparison, and the result says so.
        accuracy_tolerance: How far the artifact's accuracy may lie below the student's; default 0.005.
        min_agreement: Least share of equal arg-maxes; default 0.99.
        io: ``float32``, or ``int8`` for an int8 TFLite file without conversions at its borders.
        score: The scores of the task from the logits of all samples (``Examples.score``); None compares accuracy.

    Raises:
        UserError: unknown format, precision or io; the file cannot be written.
        ParityError: the artifact departs from the student; nothing is left behind.
    """
    _check_choice("format", format, tuple(EXPORTERS))
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("io", io, ("float32", "int8"))
    path = Path(out) if out is not None else bundle.path.parent / f"student-{precision}.{format}"
    record_path = path.with_name(f"{path.name}.parity.json")
    with atomic_path(path) as temporary:
        float_ops = EXPORTERS[format](bundle, precision, temporary, io)
        record = None
        if samples is not None:
            record = _parity(bundle, temporary, format, precision, samples, accuracy_tolerance, min_agreement, score)
        result = ExportResult(
            artifact=path,
            format=format,
            precision=precision,
            size_bytes=temporary.stat().st_size,
            sha256=sha256_file(temporary),
            parity=record,
            float_ops=tuple(float_ops),
        )
        if record is not None:
            write_json(record_path, {**result.to_dict(), "artifact": path.name})
        else:
            record_path.unlink(missing_ok=True)
    return result


def _parity(
    bundle: Bundle,
    path: Path,
    kind: str,
    precision: str,
    samples: Samples,
    accuracy_tolerance: float | None,
    min_agreement: float | None,
    score: Callable[[torch.Tensor], Scores] | None,
) -> ParityRecord:
    """Compare and refuse; the artifact is opened as a user would open it."""
    from kdedge import quantize

    from kdedge_exporters import parity
    from kdedge_exporters.artifact import open_artifact

    student, step = bundle.float_student(), None
    if precision == "int8":
        student = bundle.qat_student(None).eval()
        step = quantize.qparams(student)[-1].scale[0]
    record = parity.compare(
        open_artifact(path, kind),
        student,
        *samples,
        step=step,
        accuracy_tolerance=parity.ACCURACY_TOLERANCE if accuracy_tolerance is None else accuracy_tolerance,
        min_agreement=parity.MIN_AGREEMENT if min_agreement is None else min_agreement,
        score=score,
    )
    record.require()
    return record


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"unknown {name} {value!r}", cure=f"Choose one of: {', '.join(choices)}")
