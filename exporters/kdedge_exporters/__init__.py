"""Exporters: from a Bundle to one deployable file, checked against the student before it is kept.

::

    result = export(bundle, "onnx", samples=(images, labels))
    result.artifact, result.parity.agreement, result.float_ops
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.collector import few_collections
from kdedge.errors import KdedgeError, ReachError, UserError
from kdedge.files import atomic_path, sha256_file, write_json

from kdedge_exporters.options import ACTIVATIONS, PRECISIONS, ExportOptions
from kdedge_exporters.reach import Target, oldest_versions, require

if TYPE_CHECKING:
    import torch
    from kdedge.bundle import Bundle
    from kdedge.metrics import Scores

    from kdedge_exporters.parity import ParityRecord

    Samples = tuple[torch.Tensor | Sequence[torch.Tensor], torch.Tensor]

__all__ = ["ACTIVATIONS", "EXPORTERS", "PRECISIONS", "ExportOptions", "ExportResult", "export", "load_artifact"]


def _onnx(bundle: Bundle, options: ExportOptions, path: Path) -> list[dict[str, str]]:
    from kdedge_exporters import onnx

    return onnx.write(bundle, options, path)


def _tflite(bundle: Bundle, options: ExportOptions, path: Path) -> list[dict[str, str]]:
    from kdedge_exporters import tflite

    return tflite.write(bundle, options, path)


EXPORTERS: dict[str, Callable[[Bundle, ExportOptions, Path], list[dict[str, str]]]] = {
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
        precision: As in ``ExportOptions``.
        size_bytes: Of the file.
        sha256: Of the file.
        parity: Against the student; None where no samples were given.
        float_ops: name, op and reason of every op that is computed in float in an int8 artifact, or keeps float32 in a
            float16 one.
        integer_macs_share: Share of the file's multiply-accumulates that is computed on integers alone; None where it
            has none, or not all are known.
        opened_by: The oldest version of each runtime of the format, as far as kdedge knows them, that opens the file
            (``reach.py``); None where none does.
        quantisation: How an int8 artifact came about: ``method`` (``qat`` or ``calibration``), ``activations``,
            ``calibration_samples``, ``widened_scales``; None for other precisions.
    """

    artifact: Path
    format: str
    precision: str
    size_bytes: int
    sha256: str
    parity: ParityRecord | None
    float_ops: tuple[dict[str, str], ...]
    integer_macs_share: float | None
    opened_by: dict[str, str | None]
    quantisation: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``kdedge export --json``."""
        document = {**vars(self), "artifact": str(self.artifact), "float_ops": list(self.float_ops)}
        document["parity"] = None if self.parity is None else self.parity.to_dict()
        document["unmeasured"] = {} if self.parity else {"parity": "no samples were given to compare on"}
        if self.integer_macs_share is None:
            document["unmeasured"]["integer_macs_share"] = "the file's multiply-accumulates are not all known, or none"
        return document


def load_artifact(path: Path | str, runtime: str | None = None, threads: int = 1) -> Any:
    """Open an artifact; see ``kdedge_exporters.artifact.load_artifact``."""
    from kdedge_exporters.artifact import load_artifact as load

    return load(path, runtime, threads)


@few_collections()
def export(
    bundle: Bundle,
    format: str,  # noqa: A002 - the word of the command line
    *,
    precision: str = "int8",
    io: str = "float32",
    activations: str = "affine",
    target_runtime: str | None = None,
    out: Path | str | None = None,
    samples: Samples | None,
    accuracy_tolerance: float | None = None,
    min_agreement: float | None = None,
    score: Callable[[torch.Tensor], Scores] | None = None,
    examine: Callable[[Path], None] | None = None,
    data: dict[str, str] | None = None,
) -> ExportResult:
    """Write an artifact and its parity record; keep neither unless the artifact passes.

    Args:
        bundle: From training.
        format: A key of ``EXPORTERS``.
        precision: As in ``ExportOptions``, like the next two.
        io: Dtype of inputs and output.
        activations: How an int8 ONNX file stores them.
        target_runtime: ``NAME`` or ``NAME==VERSION`` of the runtime that has to open the file; None aims at as many as
            possible.
        out: The file; by default ``student-<precision>.<format>`` beside the bundle's folder.
        samples: (images float32 [N, C, H, W] normalised, labels int64 [N]) of the evaluation split, or (a tensor for
            each of the bundle's inputs, labels); None skips the comparison, and the result says so.
        accuracy_tolerance: How far the artifact's accuracy may lie below the student's, in [0, 1]; default 0.003, for
            text 0.005.
        min_agreement: Least share of equal arg-maxes, in [0, 1]; default 0.99.
        score: The scores of the task from the logits of all samples (``Examples.score``); None compares accuracy.
        examine: Called with the written file before it is compared, so that one that is refused can be looked into.
        data: ``source`` and ``split`` of the samples, for the record.

    Raises:
        UserError: unknown format, options that do not go together; the file cannot be written.
        ParityError: the artifact departs from the student; nothing is left behind.
        ReachError: ``target_runtime`` would not open it; nothing is left behind.
    """
    if format not in EXPORTERS:
        raise UserError(f"unknown format {format!r}", cure=f"Choose one of: {', '.join(EXPORTERS)}")
    target = Target.parse(target_runtime) if target_runtime is not None else None
    options = ExportOptions(precision, io, activations, target)
    options.check(bundle, format)
    for name, share in (("--tolerance", accuracy_tolerance), ("--agreement", min_agreement)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{share} is no share", where=name, cure="Choose a number from 0 to 1")
    from kdedge_exporters.inspection import contents

    path = Path(out) if out is not None else bundle.path.parent / f"student-{precision}.{format}"
    _check_place(path, format)
    record_path = path.with_name(f"{path.name}.parity.json")
    with atomic_path(path) as temporary:
        float_ops = EXPORTERS[format](bundle, options, temporary)
        with _called(temporary, path):
            inside = contents(temporary, format)
            if target is not None:
                require(inside, target)
            if examine is not None:
                examine(temporary)
            record = None
            if samples is not None:
                if (format, precision) == ("onnx", "float16"):
                    _require_opening(temporary)
                record = _parity(
                    bundle, temporary, format, precision, samples, accuracy_tolerance, min_agreement, score, data
                )
        result = ExportResult(
            artifact=path,
            format=format,
            precision=precision,
            size_bytes=temporary.stat().st_size,
            sha256=sha256_file(temporary),
            parity=record,
            float_ops=tuple(float_ops),
            integer_macs_share=inside.integer_macs_share,
            opened_by={found.runtime: found.oldest for found in oldest_versions(inside, format)},
            quantisation=bundle.quantisation() if precision == "int8" else None,
        )
        # Before the artifact is renamed, and the new one after: an interruption leaves no record of another file.
        record_path.unlink(missing_ok=True)
    if record is not None:
        write_json(record_path, {**result.to_dict(), "artifact": path.name})
    return result


def _require_opening(path: Path) -> None:
    """Refuse a float16 ONNX file that ends the process which opens it, as some do in ONNX Runtime's optimizers.

    Raises:
        ReachError: it does, or is not opened.
    """
    from kdedge_exporters.inspection import opening

    found = opening(path, "onnx", "onnxruntime")
    if not found.opens:
        cure = "Nothing was kept. Choose another --precision"
        raise ReachError(f"onnxruntime here does not open the file: {found.reason}", where=path, cure=cure)


def _check_place(path: Path, format: str) -> None:  # noqa: A002 - the word of the command line
    """Refuse, before any work, a place where the artifact cannot stand or would pass for another."""
    from kdedge_exporters.artifact import SUFFIXES

    if path.is_dir():
        cure = f"Name the file in it, e.g. {path / f'student.{format}'}"
        raise UserError("this is a folder, an artifact is one file", where=path, cure=cure)
    suffix = path.suffix.lower()
    if SUFFIXES.get(suffix, format) != format:
        what = f"a file that ends in {suffix} is taken for {SUFFIXES[suffix]}, this one would be {format}"
        raise UserError(
            what, where=path, cure=f"Choose --format {SUFFIXES[suffix]}, or an --out that ends in .{format}"
        )


@contextmanager
def _called(temporary: Path, path: Path) -> Iterator[None]:
    """Errors about the temporary file name the one that was asked for: the other is gone when they are read."""
    try:
        yield
    except KdedgeError as error:
        if error.where != str(temporary):
            raise
        what = error.what.replace(str(temporary), str(path)).replace(temporary.name, path.name)
        cure = "Nothing was kept. Try another --precision or --format"
        raise type(error)(what, where=path, cure=cure) from error


def _parity(
    bundle: Bundle,
    path: Path,
    kind: str,
    precision: str,
    samples: Samples,
    accuracy_tolerance: float | None,
    min_agreement: float | None,
    score: Callable[[torch.Tensor], Scores] | None,
    data: dict[str, str] | None,
) -> ParityRecord:
    """Compare and refuse; the artifact is opened as a user would open it."""
    from kdedge import quantize

    from kdedge_agent import runtimes
    from kdedge_exporters import parity
    from kdedge_exporters.artifact import open_artifact

    student, step = bundle.float_student(), None
    float_student = None
    if precision == "int8":
        float_student, student = student, bundle.qat_student().eval()
        step = quantize.qparams(student)[-1].scale[0]
    if accuracy_tolerance is None:
        text = bundle.preprocessing.kind == "text"
        accuracy_tolerance = parity.TEXT_TOLERANCE if text else parity.ACCURACY_TOLERANCE
    names: list[str | None] = [*runtimes.installed(kind)]
    records = [
        parity.compare(
            open_artifact(path, kind, runtime),
            student,
            *samples,
            step=step,
            accuracy_tolerance=accuracy_tolerance,
            min_agreement=parity.MIN_AGREEMENT if min_agreement is None else min_agreement,
            score=score,
            float_student=float_student,
            difference_bound=parity.DIFFERENCE_BOUNDS.get(precision),
            data=data,
        )
        for runtime in names or [None]  # which then says what to install
    ]
    record = dataclasses.replace(records[0], others=tuple(records[1:]))
    record.require()
    return record
