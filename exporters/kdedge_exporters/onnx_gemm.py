"""A linear layer over tokens, MatMul and Add on [N, L, C] (or [N, H, W, C]), as Gemm on [N·L, C].

From MatMul and Add ONNX Runtime makes an integer product with float output, a float add and a QuantizeLinear; from Gemm
one integer kernel with an int32 bias. The reshapes stand on the integer side, where they only rename the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from kdedge_exporters.onnx_values import constant, initializer, made_by, rank, sizes


@dataclass(frozen=True)
class _Layer:
    """A linear layer over tokens, as torch's translation leaves it.

    Attributes:
        source: The DequantizeLinear of its input [N, ..., C].
        matmul: The product.
        weight: [C', C], dequantised.
        bias: [C'] float, or None.
        last: The Add of the bias, or the product.
    """

    source: ir.Node
    matmul: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    last: ir.Node


def linear_as_gemm(model: ir.Model) -> None:
    """Rewrite every such layer that stands between DequantizeLinear and QuantizeLinear, in place."""
    for node in list(model.graph):
        layer = _token_layer(node)
        if layer is not None:
            _write_gemm(model.graph, layer)


def _token_layer(node: ir.Node) -> _Layer | None:
    """The layer whose product this node is; None where it is none, or its input or output is float."""
    if node.op_type != "MatMul" or (rank(node.inputs[0]) or 0) < 3 or not made_by(node.inputs[0], "DequantizeLinear"):
        return None
    transpose = cast(ir.Value, node.inputs[1]).producer()
    if transpose is None or transpose.op_type != "Transpose" or not made_by(transpose.inputs[0], "DequantizeLinear"):
        return None
    source, weight = cast(ir.Node, cast(ir.Value, node.inputs[0]).producer()), cast(ir.Value, transpose.inputs[0])
    bias, last = None, node
    users = [use.node for use in node.outputs[0].uses()]
    if [user.op_type for user in users] == ["Add"]:
        (last,) = users
        bias = next(value for value in last.inputs if value is not node.outputs[0])
        if constant(bias) is None or rank(bias) != 1:
            return None
    if cast(ir.Value, source.inputs[0]).producer() is None:
        return None  # the input itself is stored
    quantised = all(use.node.op_type == "QuantizeLinear" for use in last.outputs[0].uses())
    if rank(weight) != 2 or not quantised or None in sizes(last.outputs[0])[1:]:
        return None
    return _Layer(source, node, weight, bias, last)


def _write_gemm(graph: ir.Graph, layer: _Layer) -> None:
    """Reshape → DequantizeLinear → Gemm → QuantizeLinear → Reshape in place of MatMul and Add."""
    old = layer.last.outputs[0]
    flat = _reshaped(graph, cast(ir.Value, layer.source.inputs[0]), (-1, sizes(layer.source.outputs[0])[-1]))
    rows = ir.node("DequantizeLinear", [flat, *layer.source.inputs[1:]])
    operands = [rows.outputs[0], layer.weight, *([layer.bias] if layer.bias is not None else [])]
    gemm = ir.node("Gemm", operands, attributes={"transB": 1})
    gemm.outputs[0].name = f"{old.name}_rows"
    for new in (rows, gemm):
        new.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_before(layer.last, [rows, gemm])
    for use in list(old.uses()):
        use.node.replace_input_with(0, gemm.outputs[0])
        integers = use.node.outputs[0]
        readers = list(integers.uses())
        tokens = _reshaped(graph, integers, (-1, *sizes(old)[1:]))
        tokens.shape, integers.shape = integers.shape, None
        for reader in readers:
            reader.node.replace_input_with(reader.idx, tokens)
    nodes = [layer.last, layer.matmul] if layer.last is not layer.matmul else [layer.matmul]
    graph.remove(nodes, safe=True)


def _reshaped(graph: ir.Graph, value: ir.Value, shape: Sequence[int | None]) -> ir.Value:
    """The value in another shape, right behind where it is made; one reshape serves all that ask for the same."""
    wanted = np.asarray(shape, np.int64)
    for use in value.uses():
        given = constant(use.node.inputs[1]) if use.node.op_type == "Reshape" else None
        if given is not None and np.array_equal(given, wanted):
            return use.node.outputs[0]
    name = f"{value.name}_as_{'x'.join(map(str, shape))}"
    node = ir.node("Reshape", [value, initializer(graph, f"{name}_shape", wanted)])
    node.outputs[0].name, node.outputs[0].type = name, value.type
    graph.insert_after(cast(ir.Node, value.producer()), node)
    return node.outputs[0]
