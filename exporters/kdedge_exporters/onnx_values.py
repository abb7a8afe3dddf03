"""Questions to the values of an ``onnx_ir`` graph, and new ones in it."""

from __future__ import annotations

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


def between_qdq(node: ir.Node) -> bool:
    """Whether an op reads only constants and what DequantizeLinear makes, and QuantizeLinear alone reads it."""
    data = [value for value in node.inputs if value is not None and value.dtype in (None, ir.DataType.FLOAT)]
    read = all(value.const_value is not None or made_by(value, "DequantizeLinear") for value in data)
    result = node.outputs[0]
    readers = [use.node.op_type for use in result.uses()]
    return read and set(readers) == {"QuantizeLinear"} and not result.is_graph_output()
