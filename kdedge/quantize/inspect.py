"""What of a converted program is integer and what is not: float ops by name and reason, share of MACs."""

from __future__ import annotations

import operator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from kdedge.quantize.rules import (
    RULES,
    fused_activation,
    input_tensors,
    is_float_tensor,
    why_float,
)
from kdedge.quantize.stored import get_tensor

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

QUANTIZE = (decomposed.quantize_per_tensor.default, decomposed.quantize_per_channel.default)
DEQUANTIZE = (decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default)
_NO_ARITHMETIC = (operator.getitem, aten.sym_size.int, aten._assert_tensor_metadata.default)


@dataclass(frozen=True)
class FloatOp:
    """An op of the converted program that computes in float.

    Attributes:
        name: Its name in the graph.
        op: The ATen op, e.g. ``aten.layer_norm.default``.
        reason: Why it is not integer.
    """

    name: str
    op: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Plain values, ready for JSON."""
        return dict(vars(self))


def float_ops(converted: GraphModule) -> list[FloatOp]:
    """Every op that computes in float, in the order of the graph; empty for a fully integer net."""
    found = []
    for node in converted.graph.nodes:
        reason = _float_reason(node)
        if reason is not None:
            found.append(FloatOp(node.name, str(node.target), reason))
    return found


def integer_macs_share(converted: GraphModule) -> float:
    """Share of the multiply-accumulates (conv, linear, matmul) that is integer; 1.0 where there are none."""
    integer = total = 0
    for node in converted.graph.nodes:
        macs = multiply_accumulates(converted, node)
        total += macs
        integer += macs if _float_reason(node) is None else 0
    return integer / total if total else 1.0


def op_of_prescribed_scale(converted: GraphModule) -> str | None:
    """The first op whose output has other qparams than its kernel in TFLite prescribes, such as softmax; or None."""
    for node in converted.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or rule.fixed is None:
            continue
        for user in node.users:
            if user.target is QUANTIZE[0] and (float(user.args[1]), int(user.args[2])) != rule.fixed:
                return str(node.target)
    return None


def multiply_accumulates(graph_module: GraphModule, node: Node) -> int:
    """Multiply-accumulates of one op for one sample (an open batch axis counts as one); 0 for other ops."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is None:
        return _of_unknown_op(graph_module, node)
    if rule.kind == "lookup" or not is_float_tensor(node):
        return 0
    outputs = prod(size if isinstance(size, int) else 1 for size in node.meta["val"].shape)
    if rule.weight is not None:
        weight = _shape(graph_module, node.args[rule.weight])
        return outputs * prod(weight[1:])
    if node.target in (aten.matmul.default, aten.bmm.default):
        return outputs * int(_shape(graph_module, node.args[0])[-1])
    return 0


def _of_unknown_op(graph_module: GraphModule, node: Node) -> int:
    """What torch's own counter finds in an op without a rule, such as a transposed convolution or an LSTM."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in (*QUANTIZE, *DEQUANTIZE, *_NO_ARITHMETIC):
        return 0

    def shaped(argument: Node) -> Any:
        if argument.op != "get_attr" and isinstance(argument.meta.get("val"), int | torch.SymInt):
            return 1
        value = argument.meta.get("val")
        dtype = value.dtype if isinstance(value, Tensor) else torch.float32
        return torch.empty(_shape(graph_module, argument), dtype=dtype, device="meta")

    with suppress(Exception), torch.no_grad(), FlopCounterMode(display=False) as counter:
        node.target(*map_arg(node.args, shaped), **map_arg(node.kwargs, shaped))
        return int(counter.get_total_flops()) // 2
    return 0  # what has no shape without data multiplies no matrices that torch could count


def _makes_floats(node: Node) -> bool:
    """Whether one of its results is a float tensor."""
    value = node.meta.get("val")
    several = value if isinstance(value, tuple | list) else ()
    return is_float_tensor(node) or any(isinstance(item, Tensor) and item.is_floating_point() for item in several)


def _float_reason(node: Node) -> str | None:
    """Why this op computes in float; None if it is integer or does not compute."""
    if node.op != "call_function" or node.target in (*QUANTIZE, *DEQUANTIZE, *_NO_ARITHMETIC):
        return None
    if not _makes_floats(node):
        return None
    reason = why_float(node)
    if reason is not None:
        return reason
    rule = RULES[node.target]
    producer = node.args[0]
    if not (isinstance(producer, Node) and fused_activation(producer) is node):
        for item in input_tensors(node, rule):
            if item.target not in DEQUANTIZE:
                return f"its input {item.name!r} is float"
    result = fused_activation(node) or node
    if not all(user.target in QUANTIZE for user in result.users):
        return "its output is read as float"
    return None


def _shape(graph_module: GraphModule, argument: object) -> tuple[int, ...]:
    """Shape of a tensor, looked up behind its quantize and dequantize."""
    node = cast(Node, argument)
    while node.target in (*QUANTIZE, *DEQUANTIZE):
        node = cast(Node, node.args[0])
    if node.op == "get_attr":
        return tuple(get_tensor(graph_module, node).shape)
    return tuple(size if isinstance(size, int) else 1 for size in node.meta["val"].shape)
