"""kdedge export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.int8_loss import QuantizationErrors, say_loss, say_trained_loss
from kdedge.cli.options import Data, HostThreads, Json, use_threads

if TYPE_CHECKING:
    from kdedge.bundle import Bundle
    from kdedge_exporters import ExportResult
    from kdedge_exporters.layers import LayerDifference
    from kdedge_exporters.parity import ParityRecord


@app.command(epilog="Example: kdedge export runs/demo/bundle --format tflite --out student.tflite")
def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, as `kdedge distill` wrote it.")],
    format_: Annotated[str, typer.Option("--format", help="onnx or tflite.")],
    precision: Annotated[str, typer.Option("--precision", help="int8, int8-dynamic, float32 or float16.")] = "int8",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="The artifact; student-PRECISION.FORMAT beside the bundle."),
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option("--split", help="Samples for parity: test or validation.")] = "test",
    io: Annotated[
        str, typer.Option("--io", help="float32; int8 (TFLite); uint8: pixels as they are, normalised in integers.")
    ] = "float32",
    activations: Annotated[
        str, typer.Option("--activations", help="In an int8 ONNX file: affine, or symmetric (zero point 0; TensorRT).")
    ] = "affine",
    target_runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--target-runtime", metavar="NAME[==VERSION]", help="Runtime that must open it, e.g. onnxruntime==1.16."
        ),
    ] = None,
    calibrate: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--calibrate", metavar="N", min=1, help="Quantise after training instead, from N training samples (PTQ)."
        ),
    ] = None,
    tolerance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--tolerance", help="Largest fall of accuracy, 0 to 1; the recipe's tolerance.artifact_drop."),
    ] = None,
    agreement: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--agreement", help="Least share of equal arg-maxes, 0 to 1; the recipe's tolerance.agreement."),
    ] = None,
    explain_quantization: Annotated[
        bool, typer.Option("--explain-quantization", help="Show the quantised tensors that cost the logits most.")
    ] = False,
    debug_layers: Annotated[
        bool,
        typer.Option("--debug-layers", help="Compare each int8 tensor with torch's; name the first that departs."),
    ] = False,
    threads: HostThreads = None,
    as_json: Json = False,
) -> None:
    """Write an ONNX or TFLite artifact, checked for parity.

    Leaves neither artifact nor parity record where the artifact departs from its student.
    """
    use_threads(threads)
    from kdedge.bundle import Bundle as BundleType
    from kdedge.errors import UserError

    loaded = BundleType.load(bundle)
    if explain_quantization and precision != "int8":
        raise UserError("--explain-quantization: only int8 has quantised tensors", cure="Leave --precision out")
    if calibrate is not None and precision != "int8":
        raise UserError("--calibrate: only int8 has ranges to calibrate", cure="Leave --precision out")
    if debug_layers and precision != "int8":
        raise UserError("--debug-layers: only int8 has quantised tensors", cure="Leave --precision out")
    with output.libraries_on_stderr():
        if calibrate is not None:
            loaded = calibrated(loaded, data, calibrate, activations)
        errors = QuantizationErrors(loaded, data, split)
        by_tensor = errors.by_tensor if explain_quantization else []
        if precision == "int8" and loaded.calibration is None:
            say_trained_loss(errors)
    if explain_quantization and not as_json:
        from kdedge.quantize import in_lines

        for line in in_lines(by_tensor):
            output.result(line)
    layers: list[LayerDifference] = []
    try:
        with output.libraries_on_stderr():
            result = export_with_parity(
                loaded, format_, precision=precision, out=out, data=data, split=split, io=io, activations=activations,
                target_runtime=target_runtime, tolerance=tolerance, agreement=agreement,
                layers=layers if debug_layers else None, errors=errors,
            )  # fmt: skip
    finally:  # a refused file is what the layers are looked at for
        if layers and not as_json:
            from kdedge_exporters.layers import in_lines as layer_lines

            for line in layer_lines(layers):
                output.result(line)
    if loaded.calibration is not None and result.parity is not None:
        with output.libraries_on_stderr():
            scores = result.parity.scores_student, result.parity.scores_float
            say_loss(errors, *scores)
    if as_json:
        found = {"quantization_error": [error.to_dict() for error in by_tensor]} if explain_quantization else {}
        compared = {"layers": [layer.to_dict() for layer in layers]} if debug_layers else {}
        output.document({**result.to_dict(), **found, **compared})
        return
    show(result)


CALIBRATION_BATCH = 32


def calibrated(bundle: Bundle, data: str | None, count: int, activations: str) -> Bundle:
    """The bundle's student quantised after training, from so many of its training samples, drawn with its seed.

    Raises:
        KdedgeError: the data are missing, or there is no such way to quantise activations.
    """
    import torch

    from kdedge.cli import samples
    from kdedge.errors import UserError
    from kdedge_exporters import ACTIVATIONS

    if activations not in ACTIVATIONS:
        raise UserError(f"unknown activations {activations!r}", cure=f"Choose one of: {', '.join(ACTIVATIONS)}")
    found = samples.for_bundle(bundle, data, "train")
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(bundle.recipe.seed))
    rows = (found.data.training_columns(index) for index in torch.split(order[:count], CALIBRATION_BATCH))
    return bundle.calibrated(map(found.preprocessing.prepare, rows), activations)  # type: ignore[arg-type]


COMPARED_LAYERS = 8
"""Samples on which layers are compared."""
COMPARED_STREAMED = 2000
"""Images on which an artifact is compared where the data set does not fit into memory."""


def export_with_parity(
    bundle: Bundle,
    format_: str,
    *,
    precision: str = "int8",
    out: Path | None = None,
    data: str | None = None,
    split: str = "test",
    io: str = "float32",
    activations: str = "affine",
    target_runtime: str | None = None,
    tolerance: float | None = None,
    agreement: float | None = None,
    layers: list[LayerDifference] | None = None,
    errors: QuantizationErrors | None = None,
) -> ExportResult:
    """Export a bundle, compared on a whole split of its data; a list of ``layers`` is filled with their differences.

    A refusal names the costliest tensors, by what ``errors`` may know of them already.

    Raises:
        KdedgeError: unknown format, missing data, or an artifact that departs from its student.
    """
    import torch

    from kdedge.cli import samples
    from kdedge.errors import ParityError, UserError
    from kdedge_exporters import EXPORTERS, export as run  # isort: skip

    if format_ not in EXPORTERS:
        raise UserError(f"no format '{format_}'", where="--format", cure=f"It is one of {', '.join(EXPORTERS)}")
    found = samples.for_bundle(bundle, data, split).at_most(COMPARED_STREAMED)

    def examine(path: Path) -> None:
        from kdedge_exporters.layers import compare_layers

        some = found.data.take(torch.arange(COMPARED_LAYERS) * len(found.data) // COMPARED_LAYERS)
        inputs = found.preprocessing.prepare(some.columns)
        layers.extend(compare_layers(path, format_, bundle.int8_program(), inputs))  # type: ignore[union-attr]

    wanted = bundle.recipe.tolerance
    try:
        return run(
            bundle,
            format_,
            precision=precision,
            out=out,
            samples=(found.preprocessing.prepare(found.data.columns), found.data.labels),
            accuracy_tolerance=wanted.artifact_drop if tolerance is None else tolerance,
            min_agreement=wanted.agreement if agreement is None else agreement,
            io=io,
            activations=activations,
            target_runtime=target_runtime,
            score=found.data.score,
            examine=None if layers is None else examine,
            data={"source": found.source, "split": found.split},
        )
    except ParityError as error:
        if precision != "int8":
            raise
        worst = (errors or QuantizationErrors(bundle, data, split)).worst
        cure = f"{error.cure}. {worst}: see --explain-quantization"
        raise ParityError(error.what, where=error.where, cure=cure) from error


def _in_words(record: ParityRecord) -> str:
    """One comparison in a line."""
    from kdedge.metrics import in_words

    found = record.to_dict()
    scores = {
        who: found[f"scores_{who}"] or {"accuracy": found[f"accuracy_{who}"]}
        for who in ("artifact", "student", "float")
        if found[f"accuracy_{who}"] is not None
    }
    beside = [f"student in torch: {in_words(scores['student'])}"]
    if "float" in scores:
        beside.append(f"float: {in_words(scores['float'])}")
    return (
        f"{in_words(scores['artifact'])} in {record.runtime['name']} ({'; '.join(beside)}), "
        f"agreement {record.agreement:.4f}, n={record.n}"
    )


def show(result: ExportResult) -> None:
    """The result in lines."""
    from kdedge_agent.onnx_session import EXACT

    output.result(f"{result.artifact}: {result.format} {result.precision}, {result.size_bytes / 1e6:.2f} MB")
    if result.parity is not None:
        for record in (result.parity, *result.parity.others):
            output.result(f"parity: {_in_words(record)}")
            for note in record.notes:
                output.result(f"note: {record.runtime['name']}: {note}")
    if result.integer_macs_share is not None and result.precision == "int8":
        output.result(f"integer: {100 * result.integer_macs_share:.2f}% of the multiply-accumulates")
    oldest = [f"{name} {version}" for name, version in result.opened_by.items() if version is not None]
    if oldest:
        output.result(f"opens in: {' and '.join(oldest)} or newer")
    if result.format == "onnx" and result.precision.startswith("int8"):
        option = "=".join(EXACT)
        output.result(f"x86 processors without VNNI: open it with {option}, as kdedge does, else sums of products clip")
    word = "float32 op" if result.precision == "float16" else "float op"
    for line in _float_ops(result):
        output.result(f"{word}: {line}")
    for scale in (result.quantisation or {}).get("widened_scales") or ():
        output.result(f"widened scale: {scale['name']}: {_why_widened(scale['factor'])}")


def _why_widened(factor: float | None) -> str:
    if factor is None:
        return "zero in all samples, it takes the steps that the kernels beside it compute with"
    return f"its steps are {factor:.3g} times as coarse as its range asks for, or no kernel would compute it"


def _float_ops(result: ExportResult) -> list[str]:
    """Each op of an int8 file; of others, which keep many on purpose, how many of a kind."""
    if result.precision == "int8":
        return [f"{op['name']} ({op['op']}): {op['reason']}" for op in result.float_ops]
    kinds = Counter((op["op"], op["reason"]) for op in result.float_ops)
    return [f"{count} × {op}: {reason}" for (op, reason), count in kinds.items()]
