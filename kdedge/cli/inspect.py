"""kdedge inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Json

if TYPE_CHECKING:
    from kdedge_exporters.inspection import Inspection, TensorSpec


@app.command(epilog="Example: kdedge inspect runs/demo/student-int8.tflite")
def inspect(
    artifact: Annotated[Path, typer.Argument(help="An .onnx or .tflite file, from kdedge or from anyone.")],
    as_json: Json = False,
) -> None:
    """What a .onnx or .tflite file computes, in which arithmetic.

    Ops by type and dtype, the integer share of the multiply-accumulates, sizes, inputs and outputs, who opens it.
    """
    from kdedge_exporters.inspection import inspect_artifact

    with output.libraries_on_stderr():
        found = inspect_artifact(artifact)
    if as_json:
        output.document(found.to_dict())
    else:
        _show(found)


def _show(found: Inspection) -> None:
    inside = found.contents
    versions = ", ".join(f"{name} {version}" for name, version in inside.versions.items() if name in _SHOWN)
    output.result(
        f"{found.path}: {found.format}, {found.size_bytes / 1e6:.2f} MB, {versions}, by {inside.producer or '?'}"
    )
    output.result(f"{'op':<24} {'dtype':<16} {'count':>5} {'M MACs':>9}")
    for kind in inside.ops:
        macs = "?" if kind.macs is None else f"{kind.macs / 1e6:.3f}" if kind.macs else ""
        output.result(f"{kind.op:<24} {kind.dtype:<16} {kind.count:>5} {macs:>9}")
    if inside.integer_macs_share is None:
        share = f"not known: {inside.unmeasured.get('macs', 'the file holds no multiply-accumulates')}"
    else:
        share = (
            f"{100 * inside.integer_macs_share:.2f}% of {(inside.macs or 0) / 1e6:.3f} M multiply-accumulates "
            f"(batch {inside.batch})"
        )
    peak = inside.peak_activation_bytes
    held = f"{peak / 1e6:.3f} MB" if peak is not None else f"not known: {inside.unmeasured['peak_activation_bytes']}"
    output.result(f"integer      {share}")
    output.result(f"parameters   {inside.parameters:,} in {inside.parameter_bytes / 1e6:.2f} MB")
    output.result(f"activations  {held} at the peak")
    for word, tensors in (("input", inside.inputs), ("output", inside.outputs)):
        for tensor in tensors:
            output.result(f"{word:<12} {_tensor(tensor)}")
    output.result(f"metadata     {', '.join(sorted(inside.metadata)) or 'none'}")
    for reached in found.reach:
        until = f"; before that: {'; '.join(reached.obstacles)}" if reached.oldest and reached.obstacles else ""
        oldest = f"from {reached.oldest} on{until}" if reached.oldest else f"none: {'; '.join(reached.obstacles)}"
        output.result(f"reach        {reached.runtime}: {oldest}")
    for opening in found.runtimes:
        says = "opens it" if opening.opens else f"does not open it: {opening.reason}"
        output.result(f"runtime      {opening.runtime} {opening.version or ''}: {says}".replace(" :", ":"))


_SHOWN = ("ir", "schema", "ai.onnx", "com.microsoft")


def _tensor(tensor: TensorSpec) -> str:
    shape = "×".join("?" if size is None else str(size) for size in tensor.shape)
    steps = "" if tensor.scale is None else f"  scale {tensor.scale:.6g}, zero point {tensor.zero_point}"
    return f"{tensor.name}  {tensor.dtype} [{shape}]{steps}"
