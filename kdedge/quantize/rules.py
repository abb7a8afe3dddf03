"""What the quantiser knows of each op: which of its tensors are integer, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers torch.ops.quantized_decomposed)
from torch.fx import Node

from kdedge.quantize.stored import stored

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """How one op is quantised.

    Attributes:
        inputs: Positions of the activations among its arguments (a list argument counts with all its
            tensors).
        weight: Position of its weight, or None.
        kind: ``compute`` (a range of its own), ``same`` (new values, but the runtimes' kernels want the
            scale of the input), ``move`` (the values of its inputs at other places) or ``lookup`` (rows of its
            weight, whose scale covers the whole table).
        fuses: Whether a ReLU or ReLU6 that follows is part of the same integer kernel.
        symmetric: Position of an input whose zero point must be 0, or None.
        low, high: Bounds of the output that hold for any input.
        fixed: (scale, zero point) that the runtimes' kernels prescribe for the output.
    """

    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    kind: str = "compute"
    fuses: bool = False
    symmetric: int | None = None
    low: float | None = None
    high: float | None = None
    fixed: tuple[float, int] | None = None


_LAYER = Rule(weight=1, fuses=True)
_BINARY = Rule(inputs=(0, 1), fuses=True)
# XNNPACK takes an int8 BATCH_MATMUL only if the zero point of its right operand is 0; TFLite's own kernel took 20 times
# as long (12 products of 128×64 and 64×128, one thread: 2.4 ms, not 0.12).
_PRODUCT = Rule(inputs=(0, 1), symmetric=1)
_MOVE = Rule(kind="move")
RULES: dict[object, Rule] = {
    aten.conv1d.default: _LAYER,
    aten.conv2d.default: _LAYER,
    aten.conv1d.padding: _LAYER,
    aten.conv2d.padding: _LAYER,
    aten.linear.default: _LAYER,
    aten.add.Tensor: _BINARY,
    aten.sub.Tensor: _BINARY,
    aten.mul.Tensor: _BINARY,
    aten.matmul.default: _PRODUCT,
    aten.bmm.default: _PRODUCT,
    aten.embedding.default: Rule(inputs=(), weight=0, kind="lookup"),
    aten.adaptive_avg_pool2d.default: Rule(),
    aten.mean.dim: Rule(),
    aten.avg_pool2d.default: Rule(kind="same"),
    aten.relu.default: Rule(low=0.0),
    aten.relu6.default: Rule(low=0.0, high=6.0),
    aten.hardtanh.default: Rule(),  # bounds are its arguments
    aten.hardswish.default: Rule(),
    aten.gelu.default: Rule(),
    aten.softmax.int: Rule(fixed=(1 / 256, -128)),
    aten._softmax.default: Rule(fixed=(1 / 256, -128)),
    aten.sigmoid.default: Rule(fixed=(1 / 256, -128)),
    aten.tanh.default: Rule(fixed=(1 / 128, 0)),
    aten.cat.default: _MOVE,
    aten.max_pool2d.default: _MOVE,
    aten.adaptive_max_pool2d.default: _MOVE,
    aten.view.default: _MOVE,
    aten.reshape.default: _MOVE,
    aten.flatten.using_ints: _MOVE,
    aten.unflatten.int: _MOVE,
    aten.permute.default: _MOVE,
    aten.transpose.int: _MOVE,
    aten.t.default: _MOVE,
    aten.squeeze.dim: _MOVE,
    aten.squeeze.dims: _MOVE,
    aten.squeeze.default: _MOVE,
    aten.unsqueeze.default: _MOVE,
    aten.expand.default: _MOVE,
    aten.slice.Tensor: _MOVE,
    aten.select.int: _MOVE,
    aten.contiguous.default: _MOVE,
    aten.clone.default: _MOVE,
}
_QDQ = (
    torch.ops.quantized_decomposed.quantize_per_tensor.default,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
    torch.ops.quantized_decomposed.quantize_per_channel.default,
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
)
SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_FUSABLE_ACTIVATIONS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)


def rule_of(node: Node) -> Rule | None:
    """The rule of an op with the bounds that its own arguments give, or None where the op stays float."""
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is not None and node.target is aten.hardtanh.default:
        low = float(node.args[1]) if len(node.args) > 1 else -1.0  # type: ignore[arg-type]
        high = float(node.args[2]) if len(node.args) > 2 else 1.0  # type: ignore[arg-type]
        return Rule(low=low, high=high)
    return rule


def fused_activation(node: Node) -> Node | None:
    """The ReLU or ReLU6 that belongs to the same integer kernel as ``node``, or None."""
    rule = rule_of(node)
    if rule is None or not rule.fuses or len(node.users) != 1:
        return None
    (user,) = node.users
    if user.target not in _FUSABLE_ACTIVATIONS:
        return None
    bounds = rule_of(user)
    return user if bounds is not None and bounds.low == 0.0 and bounds.high in (None, 6.0) else None


def is_float_tensor(node: object) -> bool:
    """Whether the node makes one float tensor (a dequantize does, though it carries no shape)."""
    if not isinstance(node, Node):
        return False
    if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
        return True
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def input_tensors(node: Node, rule: Rule) -> Iterator[Node]:
    """The float activations among the op's arguments."""
    for position in rule.inputs:
        argument = node.args[position] if position < len(node.args) else None
        for item in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(item, Node) and is_float_tensor(item):
                yield item


def why_float(node: Node) -> str | None:
    """Why an op of the graph cannot be integer by its own form; None where it can."""
    rule = rule_of(node)
    if rule is None:
        return "the quantiser has no integer form of this op"
    if rule.weight is not None:
        weight = node.args[rule.weight]
        while isinstance(weight, Node) and weight.target in _QDQ:
            weight = weight.args[0]
        if stored(weight) is None:
            return "its weight is computed, not stored"
    elif len(rule.inputs) == 2 and any(not isinstance(node.args[i], Node) for i in rule.inputs):
        return "one operand is a plain number"
    return None
