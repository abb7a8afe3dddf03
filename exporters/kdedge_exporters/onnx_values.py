"""Questions to the values and nodes of an ``onnx_ir`` graph, new ones in it, and old ones out of it."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir


def rank(value: ir.Value | None) -> int | None:
    """The number of axes; None where it is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def sizes(value: ir.Value) -> list[int | None]:
    """The length of each axis; None where one is open or unknown."""
    return [size if isinstance(size, int) else None for size in (value.shape or [])]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind a constant or initializer; None where the value is computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def made_by(value: ir.Value | None, op_type: str) -> bool:
    """Whether an op of this type makes the value."""
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == op_type


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; its name must be new too."""
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that the node is part of."""
    return cast(ir.Graph, node.graph)


def replace(node: ir.Node, new: ir.Node) -> None:
    """Put another node in a node's place; its one result takes over name, shape and type."""
    old, fresh = node.outputs[0], new.outputs[0]
    fresh.name, fresh.shape, fresh.type = old.name, old.shape, old.type
    graph = graph_of(node)
    graph.insert_before(node, new)
    old.replace_all_uses_with(fresh)
    graph.remove(node, safe=True)


def skip(node: ir.Node, value: ir.Value) -> None:
    """Take a node out; who read its result reads ``value``."""
    node.outputs[0].replace_all_uses_with(value)
    graph_of(node).remove(node, safe=True)


def between_qdq(node: ir.Node) -> bool:
    """Whether an op reads only constants and what DequantizeLinear makes, and one QuantizeLinear alone reads it.

    Of a result that lies on two grids ONNX Runtime computes the op in float, and quantises it twice.

    A Relu of which the same is true, but for the op before it, belongs to that op's kernel (``is_fused_relu``).
    """
    data = [value for value in node.inputs if value is not None and value.dtype in (None, ir.DataType.FLOAT)]
    read = all(value.const_value is not None or made_by(value, "DequantizeLinear") for value in data)
    uses = list(node.outputs[0].uses())
    relu = uses[0].node if len(uses) == 1 and uses[0].node.op_type == "Relu" else None
    made = (relu or node).outputs[0]
    alone = len(list(made.uses())) == 1 and read_by_quantize(made)
    return read and alone and not node.outputs[0].is_graph_output()


def is_fused_relu(node: ir.Node) -> bool:
    """Whether this is the Relu between an integer op and its QuantizeLinear."""
    source = node.inputs[0] if node.op_type == "Relu" else None
    producer = source.producer() if source is not None else None
    return producer is not None and between_qdq(producer)


def read_by_quantize(value: ir.Value) -> bool:
    """Whether QuantizeLinear reads the value, and nothing else does."""
    return {use.node.op_type for use in value.uses()} == {"QuantizeLinear"} and not value.is_graph_output()
