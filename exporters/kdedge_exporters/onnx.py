"""ONNX: the converted program as a QDQ graph, or the float student as it is.

Opset 18 and IR version 8 are the lowest that torch's exporter writes and enough for most nets; ONNX Runtime reads them
from 1.14 on. A quantised GELU asks for opset 20 (ONNX Runtime 1.17): in 18 it is five float ops, which ONNX Runtime
does not fuse between DequantizeLinear and QuantizeLinear; that is what an older target gets. The batch axis is open;
token ids are int32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import ModelError

from kdedge_exporters import onnx_passes
from kdedge_exporters.metadata import (
    DYNAMIC,
    METADATA_KEY,
    OUTPUT_NAME,
    ArtifactInput,
    describe,
    encode,
)
from kdedge_exporters.onnx_values import sizes
from kdedge_exporters.program import int8_program
from kdedge_exporters.reach import newest_opset
from kdedge_exporters.untranslatable import TORCH_ONNX, translating

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from kdedge.bundle import Bundle
    from kdedge.inputs import InputSpec

    from kdedge_exporters.options import ExportOptions
    from kdedge_exporters.reach import Target

OPSET, IR_VERSION = 18, 8
_GELU_OPSET, _GELU_IR_VERSION = 20, 9


def write(bundle: Bundle, options: ExportOptions, path: Path) -> list[dict[str, str]]:
    """Write the artifact, with an open batch axis.

    Args:
        bundle: The student.
        options: Checked.
        path: Where to.

    Returns:
        Name, op and reason of the ops that are computed in float (int8), or are kept in float32 (float16).
    """
    import onnx_ir as ir

    if options.precision == "int8":
        model, float_ops = _int8(bundle, options)
    else:
        model = _translate(bundle.float_student(), bundle.inputs)
        _lean(model)
        model, float_ops = _reduced(model, options.precision)
    onnx_passes.rename_io(model, [spec.name for spec in bundle.inputs], [OUTPUT_NAME])
    document = describe(
        bundle,
        options.precision,
        inputs=[
            ArtifactInput(spec.name, spec.layout, "uint8" if options.io == "uint8" else spec.dtype, shape)
            for spec in bundle.inputs
            for shape in [(DYNAMIC, *spec.shape)]
        ],
        output_shape=[DYNAMIC if size is None else size for size in sizes(model.graph.outputs[0])],
        float_ops=float_ops,
    )
    _sign(model, document)
    _check(model)
    ir.save(model, path)
    return float_ops


def _int8(bundle: Bundle, options: ExportOptions) -> tuple[ir.Model, list[dict[str, str]]]:
    """The converted program as a QDQ graph, and the ops left in float."""
    from kdedge import quantize

    program = int8_program(bundle, options)
    model = _translate(program, bundle.inputs, options.target)
    onnx_passes.to_integer_form(model, signed=options.activations == "symmetric")
    if options.io == "uint8":
        onnx_passes.uint8_input(model)
    _lean(model)
    # What nothing reads is gone by now, and the names are still the program's.
    reasons = {op.name: op.reason for op in quantize.float_ops(program)}
    return model, onnx_passes.float_ops(model, reasons)


def _reduced(model: ir.Model, precision: str) -> tuple[ir.Model, list[dict[str, str]]]:
    """The float32 graph in a smaller precision, and the ops that do not take part."""
    import onnx_ir as ir

    if precision == "float32":
        return model, []
    from kdedge_exporters import dynamic, float16

    if precision == "int8-dynamic":  # for CPUs
        onnx_passes.sums_before_layer_norms(model)
    source = ir.to_proto(model)
    if precision == "float16":
        return ir.from_proto(float16.onnx_float16(source)), float16.onnx_float32_ops(source)
    made = dynamic.onnx_dynamic(source)
    return ir.from_proto(made), dynamic.onnx_float_ops(made)


def _lean(model: ir.Model) -> None:
    onnx_passes.int32_inputs(model)
    onnx_passes.tidy(model)


def _translate(module: torch.nn.Module, inputs: tuple[InputSpec, ...], target: Target | None = None) -> ir.Model:
    """Torch's own translation; what it prints is no concern of the user's.

    Raises:
        ModelError: it cannot translate an op.
    """
    import torch
    from kdedge.inputs import examples

    batch = examples(inputs, 2)
    knows_gelu = target is None or newest_opset(target) >= _GELU_OPSET
    opset = _GELU_OPSET if knows_gelu and _has_quantised_gelu(module) else OPSET
    with _quiet(), translating(TORCH_ONNX, module, batch):
        program = torch.onnx.export(
            module,
            batch,
            dynamo=True,
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in batch),
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model


def _has_quantised_gelu(module: torch.nn.Module) -> bool:
    import torch

    return isinstance(module, torch.fx.GraphModule) and any(
        node.target is torch.ops.aten.gelu.default for node in module.graph.nodes
    )


def _sign(model: ir.Model, document: dict[str, Any]) -> None:
    model.ir_version = _GELU_IR_VERSION if model.graph.opset_imports[""] >= _GELU_OPSET else IR_VERSION
    model.producer_name, model.producer_version = "kdedge", document["kdedge_version"]
    model.graph.name = document["model"]
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = encode(document)


def _check(model: ir.Model) -> None:
    """ONNX's own checker with shape inference: what it refuses, some runtime would.

    Raises:
        ModelError: it refuses the graph.
    """
    import onnx
    import onnx_ir as ir

    try:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the student's ONNX graph is not valid: {reason}",
            where=model.graph.name,
            cure="Write that part of the student another way, or export it as TFLite",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
