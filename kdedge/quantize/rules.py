"""What the quantiser knows of each op: which of its tensors are integer, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

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
        kind: ``compute`` (a range of its own), ``same`` (new values with the scale of the input), ``move`` (the values
            of its inputs at other places) or ``lookup`` (rows of its weight, whose scale covers the whole table).
        fuses: Whether a ReLU or ReLU6 that follows is part of the same integer kernel.
        symmetric: Position of an input whose zero point must be 0, or None.
        low, high: Bounds of the output that hold for any input, or None.
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


# A clamp that no kernel before it takes in: its input lies on a grid, and so does what is left of it. A range of its
# own would round a second time, which ONNX Runtime leaves out (it joins two QuantizeLinear in a row) and litert-torch
# too, so that their values would be others than torch's.
_CLIP = Rule(kind="same")
# Kernels compare integers as they are, whatever their scales say.
_LARGER = Rule(inputs=(0, 1), kind="same")
RULES: dict[object, Rule] = {
    aten.conv1d.default: _LAYER,
    aten.conv2d.default: _LAYER,
    aten.conv1d.padding: _LAYER,
    aten.conv2d.padding: _LAYER,
    aten.linear.default: _LAYER,
    aten.add.Tensor: _BINARY,
    aten.sub.Tensor: _BINARY,
    aten.mul.Tensor: _BINARY,
    aten.maximum.default: _LARGER,
    aten.minimum.default: _LARGER,
    aten.where.self: Rule(inputs=(1, 2), kind="same"),
    aten.matmul.default: _PRODUCT,
    aten.bmm.default: _PRODUCT,
    aten.embedding.default: Rule(inputs=(), weight=0, kind="lookup"),
    aten.adaptive_avg_pool2d.default: Rule(),
    aten.mean.dim: Rule(),
    aten.avg_pool2d.default: Rule(kind="same"),  # TFLite's kernel wants it
    aten.relu.default: replace(_CLIP, low=0.0),
    aten.relu6.default: replace(_CLIP, low=0.0, high=6.0),
    aten.hardtanh.default: _CLIP,  # bounds are its arguments
    aten.hardswish.default: Rule(),
    aten.gelu.default: Rule(),
    aten.softmax.int: Rule(fixed=(1 / 256, -128)),
    aten._softmax.default: Rule(fixed=(1 / 256, -128)),
    aten.sigmoid.default: Rule(fixed=(1 / 256, -128)),
    aten.tanh.default: Rule(fixed=(1 / 128, 0)),
    aten.cat.default: _MOVE,
    aten.max_pool2d.default: _MOVE,
    aten.constant_pad_nd.default: _MOVE,  # by zero, which every grid holds
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
    aten.flip.default: _MOVE,  # as is the kernel's: integers change places, whatever their scales say
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
DROPOUTS = "dropout"
"""Dropouts live under this name in a captured graph."""
# Before a layer norm they stay float: their few operations are cheap, and their outliers dear (``outliers.py``).
_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
CLIPS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)


def rule_of(node: Node) -> Rule | None:
    """The rule of an op, or None where it stays float.

    Its bounds are those of the op with these arguments, or narrower ones where all that reads the result clips it:
    values beyond them would cost steps and be clipped anyway.
    """
    rule = _own_rule(node)
    if rule is None or rule.fixed is not None or rule.kind == "lookup":
        return rule
    if node.target in CLIPS and rule.high is not None and not _is_only_clipped(node.args[0]):
        rule = replace(rule, kind="compute")  # on a grid that reaches far beyond the upper bound this would be off
    low, high = bounds_of_readers(node)
    lows, highs = ([bound for bound in pair if bound is not None] for pair in ((rule.low, low), (rule.high, high)))
    return replace(rule, low=max(lows, default=None), high=min(highs, default=None))


def is_dropout(node: Node) -> bool:
    """Whether the node is one of the dropouts that ``capture`` made."""
    return node.op == "call_module" and str(node.target).startswith(f"{DROPOUTS}.")


def _own_rule(node: Node) -> Rule | None:
    rule = RULES.get(node.target) if node.op == "call_function" else None
    if rule is not None and node.target is aten.hardtanh.default:
        low = float(node.args[1]) if len(node.args) > 1 else -1.0  # type: ignore[arg-type]
        high = float(node.args[2]) if len(node.args) > 2 else 1.0  # type: ignore[arg-type]
        return replace(rule, low=low, high=high)
    return rule


def bounds_of_readers(node: Node) -> tuple[float | None, float | None]:
    """The range that every reader clips the node's values to, at once or behind ops that move data."""
    ranges: list[tuple[float | None, float | None]] = []
    for user in node.users:
        rule = _own_rule(user)
        if rule is not None and user.target in CLIPS:
            ranges.append((rule.low, rule.high))
        elif (rule is not None and rule.kind == "move") or is_dropout(user):
            ranges.append(bounds_of_readers(user))
        else:
            return None, None
    lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
    return (
        None if not lows or None in lows else min(low for low in lows if low is not None),
        None if not highs or None in highs else max(high for high in highs if high is not None),
    )


def _is_only_clipped(argument: object) -> bool:
    """Whether nothing reads these values, or those that they are copies of, but what clips them."""
    if not isinstance(argument, Node):
        return False
    rule = _own_rule(argument)
    if (rule is not None and rule.kind == "move") or is_dropout(argument):
        return all(_is_only_clipped(item) for item in argument.all_input_nodes if is_float_tensor(item))
    return bounds_of_readers(argument) != (None, None)


def fused_activation(node: Node) -> Node | None:
    """The ReLU or ReLU6 that belongs to the same integer kernel as ``node``, or None."""
    rule = _own_rule(node)
    if rule is None or not rule.fuses or len(node.users) != 1:
        return None
    (user,) = node.users
    if user.target not in CLIPS:
        return None
    bounds = _own_rule(user)
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
    rule = _own_rule(node)
    if rule is None:
        return "the quantiser has no integer form of this op"
    if rule.weight is not None:
        weight = node.args[rule.weight]
        while isinstance(weight, Node) and weight.target in _QDQ:
            weight = weight.args[0]
        if stored(weight) is None:
            return "its weight is computed, not stored"
    elif node.target is aten.constant_pad_nd.default and not _pads_by_zero(node):
        return "it pads with another number than 0, or cuts"
    elif node.target is aten.max_pool2d.default and _is_dilated(node):
        return "TFLite's max pool knows no dilation"
    elif len(rule.inputs) == 2:
        return _why_pair_float(node, rule)
    return None


def _why_pair_float(node: Node, rule: Rule) -> str | None:
    if node.target in _SUMS and only_layer_norms_read(node) and not _adds_table(node):
        return "only layer norms read it, which are float"
    if node.target is aten.where.self and any(_is_unbounded(item) for item in node.args[1:3]):
        return "it chooses among what an op without integer form makes, infinity perhaps"
    if any(not isinstance(node.args[position], Node) for position in rule.inputs):
        return "one operand is a plain number"
    return None


def _is_unbounded(value: object) -> bool:
    """Whether an op that no range is known of makes it: a quotient is often chosen where the divisor is not zero."""
    while isinstance(value, Node) and (value.op == "call_module" or value.target in _QDQ):
        value = value.args[0]
    return isinstance(value, Node) and value.op == "call_function" and value.target not in RULES


def _adds_table(node: Node) -> bool:
    """Whether an operand is stored or looked up: embeddings have no outliers, and their tables are to be int8."""
    if node.target is not aten.add.Tensor:
        return False
    for operand in node.args[:2]:
        source = operand
        while isinstance(source, Node) and (source.op == "call_module" or source.target in _QDQ):
            source = source.args[0]
        if isinstance(source, Node) and (source.op == "get_attr" or source.target is aten.embedding.default):
            return True
    return False


def only_layer_norms_read(node: Node) -> bool:
    """Whether all that becomes of the values, behind dropouts, are sums and products that layer norms read."""
    readers = list(_readers(node))
    return bool(readers) and all(
        reader.target is aten.layer_norm.default or (reader.target in _SUMS and only_layer_norms_read(reader))
        for reader in readers
    )


def _readers(node: Node) -> Iterator[Node]:
    for user in node.users:
        if is_dropout(user):
            yield from _readers(user)
        else:
            yield user


def _pads_by_zero(node: Node) -> bool:
    sides, value = cast(list[int], node.args[1]), node.args[2] if len(node.args) > 2 else 0
    return value in (0, 0.0) and all(isinstance(side, int) and side >= 0 for side in sides)


def _is_dilated(pool: Node) -> bool:
    dilation = pool.args[4] if len(pool.args) > 4 else 1
    return any(step != 1 for step in (dilation if isinstance(dilation, list | tuple) else [dilation]))
