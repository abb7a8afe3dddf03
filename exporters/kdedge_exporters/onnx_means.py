"""Means and differences in the forms that ONNX Runtime has integer kernels for: GlobalAveragePool and Add.

Each pass takes and changes an ``onnx_ir.Model``; what stands between DequantizeLinear and QuantizeLinear there moves
axes on the integer side, where that is only renaming or copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import cast

import numpy as np
import onnx_ir as ir

from kdedge_exporters.onnx_values import (
    constant,
    graph_of,
    initializer,
    made_by,
    rank,
    read_by_quantize,
    replace,
    sizes,
)


def means_as_pools(model: ir.Model, *, move_axes: bool = True) -> None:
    """ReduceMean over other axes than the batch as GlobalAveragePool.

    Args:
        model: A graph of floats between DequantizeLinear and QuantizeLinear.
        move_axes: Also where the axes have to be brought into another order or number before and behind it; activations
            are uint8 then.
    """
    for node in list(model.graph):
        count = rank(node.inputs[0]) if node.op_type == "ReduceMean" else None
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if count is None or axes is None:
            continue
        reduced = sorted({int(axis) % count for axis in axes})
        keep = node.attributes.get("keepdims")
        if reduced == [2, 3] and count == 4 and (keep is None or keep.as_int() != 0):
            replace(node, ir.node("GlobalAveragePool", [node.inputs[0]]))
        elif move_axes and made_by(node.inputs[0], "DequantizeLinear") and read_by_quantize(node.outputs[0]):
            _pool_rows(node, [axis for axis in range(count) if axis not in reduced], reduced)


def _pool_rows(node: ir.Node, kept: list[int], reduced: list[int]) -> None:
    """Transpose and Reshape to [N, kept, reduced], DequantizeLinear, GlobalAveragePool, QuantizeLinear, Reshape."""
    old, lengths = node.outputs[0], sizes(cast(ir.Value, node.inputs[0]))
    if kept[:1] != [0] or None in lengths[1:] or None in sizes(old)[1:]:
        return
    source = cast(ir.Node, cast(ir.Value, node.inputs[0]).producer())
    integers = cast(ir.Value, source.inputs[0])
    order = [*kept, *reduced]
    if order != sorted(order):
        transpose = ir.node("Transpose", [integers], attributes={"perm": order})
        integers = _inserted(node, transpose, "ordered", ir.DataType.UINT8)
    rows = (0, *(prod(cast(int, lengths[axis]) for axis in axes) for axes in (kept[1:], reduced)))  # 0: as it is
    integers = _inserted(node, _reshape(node, integers, "rows", rows), "rows", ir.DataType.UINT8)
    reals = ir.node("DequantizeLinear", [integers, *source.inputs[1:]])
    pool = ir.node("GlobalAveragePool", [_inserted(node, reals, "real", ir.DataType.FLOAT)])
    pooled = _inserted(node, pool, "pooled", ir.DataType.FLOAT)
    for use in list(old.uses()):
        use.node.replace_input_with(0, pooled)
        means = use.node.outputs[0]
        readers = list(means.uses())
        back = _reshape(use.node, means, "shape", (-1, *sizes(old)[1:]))
        result = back.outputs[0]
        result.name, result.dtype, result.shape = f"{means.name}_reshaped", ir.DataType.UINT8, means.shape
        means.shape = None
        graph_of(node).insert_after(use.node, back)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, result)
    graph_of(node).remove(node, safe=True)


def _reshape(at: ir.Node, value: ir.Value, word: str, shape: Sequence[int | None]) -> ir.Node:
    wanted = initializer(graph_of(at), f"{at.outputs[0].name}_to_{word}", np.asarray(shape, np.int64))
    return ir.node("Reshape", [value, wanted])


def _inserted(at: ir.Node, new: ir.Node, word: str, dtype: ir.DataType) -> ir.Value:
    """The result of a new node before another one, named after it."""
    result = new.outputs[0]
    result.name, result.dtype = f"{at.outputs[0].name}_{word}", dtype
    graph_of(at).insert_before(at, new)
    return result


def differences_as_sums(model: ir.Model) -> None:
    """``Sub(a, b)`` between DequantizeLinear and QuantizeLinear as Add, with the negative of b's scale.

    ``-(q - z) · s = (q - z) · (-s)``, so nothing is rounded; the kernel of QLinearAdd takes scales as plain factors.
    """
    for node in list(model.graph):
        if node.op_type != "Sub" or not read_by_quantize(node.outputs[0]):
            continue
        if not all(made_by(value, "DequantizeLinear") for value in node.inputs):
            continue
        source = cast(ir.Node, cast(ir.Value, node.inputs[1]).producer())
        scale = constant(source.inputs[1])
        if scale is None:
            continue
        negative = initializer(model.graph, f"{node.outputs[0].name}_negative", np.asarray(-scale))
        reals = ir.node("DequantizeLinear", [source.inputs[0], negative, *source.inputs[2:]])
        operand = _inserted(node, reals, "negated", ir.DataType.FLOAT)
        operand.shape = cast(ir.Value, node.inputs[1]).shape
        replace(node, ir.node("Add", [node.inputs[0], operand]))
