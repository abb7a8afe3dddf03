"""The project's own quantiser: which tensors of the graph become int8, and which of them share one scale.

It thinks in tensors, not in edges: each op says which of its inputs and whether its output must be
integer, every tensor so named gets one quantiser where it is made, and all its users read the quantised
values. Ops that only move data share the qparams of what they move. An op that is not in ``RULES`` stays
float; ``float_ops`` names it.

Integer semantics (those of TFLite's int8 specification and of ONNX Runtime's QLinear kernels): weights
symmetric [-127, 127] by output channel, activations affine [-128, 127] by tensor. Biases are int32 with
the step of the accumulator (``bias.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from kdedge.quantize.capture import is_dropout
from kdedge.quantize.fake_quantize import (
    ACTIVATION_QMAX,
    ACTIVATION_QMIN,
    WEIGHT_QMAX,
    ActivationFakeQuantize,
    WeightFakeQuantize,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """How one op is quantised.

    Attributes:
        inputs: Positions of the activations among its arguments (a list argument counts with all its
            tensors).
        weight: Position of its weight, or None.
        kind: ``compute`` (a range of its own), ``same`` (new values, but the runtimes' kernels want the
            scale of the input) or ``move`` (the values of its inputs at other places).
        fuses: Whether a ReLU or ReLU6 that follows is part of the same integer kernel.
        low, high: Bounds of the output that hold for any input.
        fixed: (scale, zero point) that the runtimes' kernels prescribe for the output.
    """

    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    kind: str = "compute"
    fuses: bool = False
    low: float | None = None
    high: float | None = None
    fixed: tuple[float, int] | None = None


_LAYER = Rule(weight=1, fuses=True)
_BINARY = Rule(inputs=(0, 1), fuses=True)
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
    aten.matmul.default: Rule(inputs=(0, 1)),
    aten.bmm.default: Rule(inputs=(0, 1)),
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
    torch.ops.quantized_decomposed.quantize_per_channel.default,
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
)
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
        if not isinstance(weight, Node) or weight.op != "get_attr":
            return "its weight is computed, not stored"
    elif len(rule.inputs) == 2 and any(not isinstance(node.args[i], Node) for i in rule.inputs):
        return "one operand is a plain number"
    return None


class EdgeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a captured graph: ``output_qspec`` at the node that makes each quantised tensor."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark every tensor that becomes int8; see the module's docstring."""
        tensors = _Tensors(model)
        for node in model.graph.nodes:
            rule = rule_of(node)
            if rule is None or not is_float_tensor(node) or why_float(node) is not None:
                continue
            tensors.add(node, rule)
        tensors.write_annotations()
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: what has no rule stays float and is named by ``float_ops``."""


class _Tensors:
    """The quantised tensors, grouped by shared scale (union-find; the earliest node is the root)."""

    def __init__(self, model: GraphModule) -> None:
        self._order = {node: index for index, node in enumerate(model.graph.nodes)}
        self._parent: dict[Node, Node] = {}
        self._moved: set[Node] = set()
        self._weights: dict[Node, int] = {}

    def add(self, node: Node, rule: Rule) -> None:
        """Take in one op: its weight, its inputs, its output (or its activation's), and what they share."""
        if rule.weight is not None:
            self._weights[cast(Node, node.args[rule.weight])] = 0
        inputs = [self._source(item) for item in input_tensors(node, rule)]
        if _is_fused_into_producer(node):
            inputs = []
        for item in inputs:
            self._parent.setdefault(item, item)
        output = fused_activation(node) or node
        self._parent.setdefault(output, output)
        if rule.kind != "compute":
            for item in inputs:
                self._union(item, output)
        if rule.kind == "move":
            self._moved.add(output)

    def _source(self, node: Node) -> Node:
        """Dropout is the identity on the device: the tensor it reads is the one that is quantised."""
        while is_dropout(node):
            (node,) = node.all_input_nodes
        return node

    def _find(self, node: Node) -> Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _union(self, a: Node, b: Node) -> None:
        first, second = sorted((self._find(a), self._find(b)), key=self._order.__getitem__)
        self._parent[second] = first

    def write_annotations(self) -> None:
        """One spec for each group's root, shared by the others; moved data only carries the qparams along."""
        groups: dict[Node, list[Node]] = {}
        for node in self._parent:
            groups.setdefault(self._find(node), []).append(node)
        for root, members in groups.items():
            made = [member for member in members if member not in self._moved]
            for member in members:
                if member is root:
                    spec = _group_spec(made)
                elif member in self._moved:
                    spec = _follow(root)
                else:
                    spec = SharedQuantizationSpec(root)
                member.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
        for weight, axis in self._weights.items():
            spec = _weight_spec(weight, axis)
            weight.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec, _annotated=True)


def _is_fused_into_producer(node: Node) -> bool:
    producer = node.args[0] if node.args else None
    return isinstance(producer, Node) and fused_activation(producer) is node


def _group_spec(made: list[Node]) -> QuantizationSpecBase:
    """The spec of a group: fixed if its only member prescribes it, else bounds that hold for every member."""
    rules = [rule_of(node) for node in made]
    fixed = rules[0].fixed if len(rules) == 1 and rules[0] is not None else None
    lows = [rule.low if rule is not None else None for rule in rules]
    highs = [rule.high if rule is not None else None for rule in rules]
    low = None if None in lows else min(value for value in lows if value is not None)
    high = None if None in highs else max(value for value in highs if value is not None)
    constructor = ActivationFakeQuantize.with_args(low=low, high=high, fixed=fixed, members=len(made))
    return QuantizationSpec(torch.int8, constructor, ACTIVATION_QMIN, ACTIVATION_QMAX, qscheme=torch.per_tensor_affine)


def _follow(root: Node) -> DerivedQuantizationSpec:
    return DerivedQuantizationSpec(
        [root], _qparams_of_first, torch.int8, ACTIVATION_QMIN, ACTIVATION_QMAX, torch.per_tensor_affine
    )


def _qparams_of_first(quantisers: list[ActivationFakeQuantize]) -> tuple[torch.Tensor, torch.Tensor]:
    return quantisers[0].calculate_qparams()


def _weight_spec(weight: Node, axis: int) -> QuantizationSpec:
    constructor = WeightFakeQuantize.with_args(channels=weight.meta["val"].shape[axis], ch_axis=axis)
    return QuantizationSpec(
        torch.int8, constructor, -WEIGHT_QMAX, WEIGHT_QMAX, torch.per_channel_symmetric, ch_axis=axis
    )
