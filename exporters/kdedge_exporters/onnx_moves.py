"""Ops that only move data, on integers: ONNX Runtime takes some of them along itself, others it leaves in float.

Each pass takes and changes an ``onnx_ir.Model`` whose activations are uint8.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

from kdedge_exporters.onnx_values import constant, made_by, read_by_quantize, skip

# Those that ONNX Runtime does not take along (Reshape, Transpose, MaxPool and the like it does).
_MOVES = ("Slice", "Split", "Expand", "Pad")


def move_integers(model: ir.Model) -> None:
    """DequantizeLinear → op → QuantizeLinear with the same qparams is the op on integers."""
    for node in list(model.graph):
        if node.op_type not in _MOVES or not made_by(node.inputs[0], "DequantizeLinear"):
            continue
        source = cast(ir.Node, cast(ir.Value, node.inputs[0]).producer())
        uses = [use.node for value in node.outputs for use in value.uses()]
        if not all(read_by_quantize(value) or _is_unread(value) for value in node.outputs):
            continue
        if cast(ir.Value, source.inputs[0]).is_graph_input() or not all(same_grid(source, use) for use in uses):
            continue
        if node.op_type == "Pad" and not _pads_by_zero(node):
            continue
        node.replace_input_with(0, source.inputs[0])
        if node.op_type == "Pad":
            node.resize_inputs(max(len(node.inputs), 3))
            node.replace_input_with(2, source.inputs[2])  # zero is stored as the zero point
        for value in node.outputs:
            value.dtype = ir.DataType.UINT8
            for use in list(value.uses()):
                skip(use.node, value)


def drop_idle_requantising(model: ir.Model) -> None:
    """Take out QuantizeLinear where it stands right behind a DequantizeLinear with the same qparams."""
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear" or not made_by(node.inputs[0], "DequantizeLinear"):
            continue
        source = cast(ir.Node, cast(ir.Value, node.inputs[0]).producer())
        if same_grid(source, node) and not node.outputs[0].is_graph_output():
            skip(node, cast(ir.Value, source.inputs[0]))


def _is_unread(value: ir.Value) -> bool:
    return not list(value.uses()) and not value.is_graph_output()


def same_grid(first: ir.Node, second: ir.Node) -> bool:
    """Whether both have the same scale and zero point, by tensor."""
    pairs = [(constant(first.inputs[i]), constant(second.inputs[i])) for i in (1, 2)]
    return all(
        a is not None and b is not None and a.ndim == 0 and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in pairs
    )


def _pads_by_zero(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    value = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    return (mode is None or mode.as_string() == "constant") and value is not None and bool((value == 0).all())
