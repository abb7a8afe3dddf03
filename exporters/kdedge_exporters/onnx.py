"""ONNX: the converted program as a QDQ graph, or the float student as it is.

Opset 18 and IR version 8 are the lowest that torch's exporter writes and enough for everything here;
ONNX Runtime reads them from 1.14 on. The batch axis is open.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge_exporters import onnx_passes
from kdedge_exporters.metadata import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, describe, encode

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from kdedge.bundle import Bundle

OPSET, IR_VERSION = 18, 8
_DYNAMIC = -1


def write(bundle: Bundle, module: torch.nn.Module, precision: str, path: Path) -> list[dict[str, str]]:
    """Write the artifact.

    Args:
        bundle: Labels, preprocessing and shapes.
        module: The converted program (``int8``) or the float student (``float32``); batch axis open.
        precision: ``int8`` or ``float32``.
        path: Where to.

    Returns:
        The ops that ONNX Runtime computes in float: name, op, reason (for ``int8``).
    """
    import onnx_ir as ir
    from kdedge import quantize

    model = _translate(module, bundle.input_shape)
    float_ops: list[dict[str, str]] = []
    if precision == "int8":
        onnx_passes.to_integer_form(model)
        reasons = {op.name: op.reason for op in quantize.float_ops(module)}  # type: ignore[arg-type]
        float_ops = onnx_passes.float_ops(model, reasons)
    onnx_passes.tidy(model)
    onnx_passes.rename_io(model, [INPUT_NAME], [OUTPUT_NAME])
    document = describe(
        bundle,
        precision,
        layout="NCHW",
        dtype="float32",
        shape=(_DYNAMIC, *bundle.input_shape),
        float_ops=float_ops,
    )
    _sign(model, document)
    _check(model)
    ir.save(model, path)
    return float_ops


def _translate(module: torch.nn.Module, input_shape: tuple[int, ...]) -> ir.Model:
    """Torch's own translation; what it prints is no concern of the user's."""
    import torch

    example = torch.zeros(2, *input_shape)
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model


def _sign(model: ir.Model, document: dict[str, Any]) -> None:
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "kdedge", document["kdedge_version"]
    model.graph.name = document["model"]
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = encode(document)


def _check(model: ir.Model) -> None:
    """ONNX's own checker with shape inference: what it refuses, some runtime would."""
    import onnx
    import onnx_ir as ir

    onnx.checker.check_model(ir.to_proto(model), full_check=True)


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
