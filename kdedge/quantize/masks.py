"""Values that are put in where a mask says so (masked_fill, where), as integers or as float ops that stay float.

Zero lies on every grid, and what a softmax reads may saturate at the end of its range: such a number is stored, and
becomes an operand of ``where`` with the scale of the values beside it. Any other, -1e9 among logits say, would take all
steps from them, so that the op stays float. litert-torch's converter then makes it integer by itself, with the values'
own scale, and clips the number to that. ``fill_by_arithmetic`` gives it sums and products, which it leaves alone.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch.fx import GraphModule, Node

from kdedge.quantize.rules import SOFTMAXES, is_dropout
from kdedge.quantize.stored import get_tensor, store_constant

aten = torch.ops.aten

_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_LARGEST = 1e30
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_CHOICES = (aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.self)


def normalise_fills(graph_module: GraphModule) -> None:
    """Write a number under a mask as ``where`` with a stored one, or else as ``masked_fill.Scalar``, in place."""
    for node in list(graph_module.graph.nodes):
        found = _fill(graph_module, node)
        if found is None:
            continue
        values, value, where_false = found
        mask = cast(Node, node.args[1 if node.target in _FILLS else 0])
        with graph_module.graph.inserting_before(node):
            if value == 0 or _only_softmaxes_read(node):
                finite = max(-_LARGEST, min(value, _LARGEST))
                shape = (1,) * values.meta["val"].ndim
                number = store_constant(graph_module, node, "value", torch.full(shape, finite, dtype=torch.float64))
                node.target = aten.where.self
                node.args = (mask, values, number) if where_false else (mask, number, values)
                continue
            if where_false:
                inverse = graph_module.graph.call_function(aten.logical_not.default, (mask,))
                inverse.meta = {**mask.meta}
                mask = inverse
        node.target, node.args = aten.masked_fill.Scalar, (values, mask, value)
    graph_module.graph.eliminate_dead_code()


def fill_by_arithmetic(program: GraphModule) -> None:
    """Write each ``masked_fill`` that is left as ``values · kept + number · (1 - kept)``, in place."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not aten.masked_fill.Scalar:
            continue
        values, mask, value = cast(tuple[Node, Node, float], node.args)
        if values.target is not _DEQUANTIZE:  # then it is float there too, and may hold infinity
            continue

        def call(op: torch._ops.OpOverload, *arguments: object, like: Node) -> Node:
            made = graph.call_function(op, arguments)  # type: ignore[arg-type]
            made.meta = {**like.meta}
            return made

        with graph.inserting_before(node):
            kept = call(aten.logical_not.default, mask, like=mask)
            kept = graph.call_function(aten.to.dtype, (kept, node.meta["val"].dtype))
            if math.isinf(value):  # times 0 it would be no number
                number = call(aten.log.default, kept, like=node)
                number = number if value < 0 else call(aten.neg.default, number, like=node)
            else:
                number = call(aten.mul.Tensor, call(aten.rsub.Scalar, kept, 1.0, like=node), value, like=node)
            result = call(aten.add.Tensor, call(aten.mul.Tensor, values, kept, like=node), number, like=node)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    program.recompile()


def _fill(graph_module: GraphModule, node: Node) -> tuple[Node, float, bool] | None:
    """What the op keeps, the number that it puts in, and whether that stands where the mask is false."""
    if node.target not in (*_FILLS, *_CHOICES) or not _is_float(node):
        return None
    if node.target in _FILLS:
        values, number, where_false = node.args[0], _number(graph_module, node.args[2]), False
    else:
        values, number, where_false = node.args[1], _number(graph_module, node.args[2]), True
        if number is None:
            values, number, where_false = node.args[2], _number(graph_module, node.args[1]), False
    if number is None or math.isnan(number) or not isinstance(values, Node):
        return None
    return values, number, where_false


def _number(graph_module: GraphModule, argument: object) -> float | None:
    """A plain number, or a stored one of no axes."""
    if isinstance(argument, int | float):
        return float(argument)
    while isinstance(argument, Node) and argument.target in (aten.lift_fresh_copy.default, aten.detach_.default):
        argument = argument.args[0]
    if isinstance(argument, Node) and argument.op == "get_attr":
        tensor = get_tensor(graph_module, argument)
        return float(tensor) if tensor.ndim == 0 else None
    return None


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _only_softmaxes_read(node: Node) -> bool:
    return bool(node.users) and all(
        user.target in SOFTMAXES or (is_dropout(user) and _only_softmaxes_read(user)) for user in node.users
    )
