"""The project's own quantiser: which tensors of the graph become int8, and which of them share one scale.

It thinks in tensors, not in edges: each op says which of its inputs and whether its output must be
integer, every tensor so named gets one quantiser where it is made, and all its users read the quantised
values. Ops that only move data share the qparams of what they move. An op that has no rule (``rules.py``) stays
float; ``float_ops`` names it.

A table of embeddings has one scale, which the rows that are looked up keep (kind ``lookup``).

Attention scores and the mask that is added to them: the sum keeps the scale of the scores, so that adding 0 to a score
is the identity on integers and padding costs the others nothing; masked scores saturate at the low end of a range that
is taken for the softmax (``ActivationFakeQuantize``), however large the mask.

Integer semantics (those of TFLite's int8 specification and of ONNX Runtime's QLinear kernels): weights
symmetric [-127, 127] by output channel, activations affine [-128, 127] by tensor. Biases are int32 with
the step of the accumulator (``bias.py``). Where all activations are asked to be symmetric (TensorRT), their zero point
is 0, that of a softmax too, which TFLite's kernel would not take.
"""

from __future__ import annotations

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

from kdedge.quantize.fake_quantize import ACTIVATION_QMAX, ACTIVATION_QMIN, ActivationFakeQuantize
from kdedge.quantize.rules import (
    SOFTMAXES,
    Rule,
    bounds_of_readers,
    fused_activation,
    input_tensors,
    is_dropout,
    is_float_tensor,
    only_layer_norms_read,
    rule_of,
    why_float,
)
from kdedge.quantize.weight_quantize import WEIGHT_QMAX, TableFakeQuantize, WeightFakeQuantize
from kdedge.recipe import Activations

aten = torch.ops.aten


class EdgeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a captured graph: ``output_qspec`` at the node that makes each quantised tensor.

    Args:
        activations: ``affine``, or ``symmetric``: every zero point 0.
    """

    def __init__(self, activations: Activations = "affine") -> None:
        super().__init__()
        self._activations = activations

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark every tensor that becomes int8; see the module's docstring."""
        tensors = _Tensors(model, symmetric=self._activations == "symmetric")
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

    def __init__(self, model: GraphModule, *, symmetric: bool) -> None:
        self._all_symmetric = symmetric
        self._order = {node: index for index, node in enumerate(model.graph.nodes)}
        self._parent: dict[Node, Node] = {}
        self._moved: set[Node] = set()
        self._weights: dict[Node, QuantizationSpec] = {}
        self._lookups: dict[Node, Node] = {}  # what was looked up: in which table
        self._softmax_axes: dict[Node, int] = {}
        self._symmetric: set[Node] = set()

    def add(self, node: Node, rule: Rule) -> None:
        """Take in one op: its weight, its inputs, its output (or its activation's), and what they share."""
        if rule.weight is not None:
            weight = cast(Node, node.args[rule.weight])
            if rule.kind == "lookup":
                self._weights[weight], self._lookups[node] = _table_spec(), weight
            else:  # a layer that shares a table takes the table's one scale
                self._weights.setdefault(weight, _weight_spec(weight))
        inputs = [self._source(item) for item in input_tensors(node, rule)]
        if _is_fused_into_producer(node):
            inputs = []
        for item in inputs:
            self._parent.setdefault(item, item)
        output = fused_activation(node) or node
        self._parent.setdefault(output, output)
        if rule.symmetric is not None:
            self._symmetric.add(inputs[rule.symmetric])
        if node.target in SOFTMAXES:
            self._softmax_axes[inputs[0]] = cast(int, node.args[1])
        sharing = inputs if rule.kind != "compute" else inputs[:1] if _adds_mask(node) else []
        for item in sharing:
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
            table = self._lookups.get(root) if made == [root] else None
            for member in members:
                if table is not None:
                    spec = _follow(table)
                elif member is root:
                    spec = self._group_spec(made, symmetric=not self._symmetric.isdisjoint(members))
                elif member in self._moved:
                    spec = _follow(root)
                else:
                    spec = SharedQuantizationSpec(root)
                member.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
        for weight, spec in self._weights.items():
            weight.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec, _annotated=True)

    def _group_spec(self, made: list[Node], *, symmetric: bool) -> QuantizationSpecBase:
        """The spec of a group: fixed if its only member prescribes it, else bounds that hold for every member."""
        rules = [rule_of(node) for node in made]
        fixed = rules[0].fixed if len(rules) == 1 and rules[0] is not None else None
        if self._all_symmetric:
            symmetric, fixed = True, _symmetric(fixed)
        # What an unknown op or the user gives is bounded by its readers alone.
        bounds = [
            (rule.low, rule.high) if rule is not None else bounds_of_readers(node)
            for node, rule in zip(made, rules, strict=True)
        ]
        lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
        constructor = ActivationFakeQuantize.with_args(
            low=None if None in lows else min(value for value in lows if value is not None),
            high=None if None in highs else max(value for value in highs if value is not None),
            fixed=fixed,
            symmetric=symmetric,
            members=len(made),
            channels=_channels_with_factors(made),
            softmax_axis=next((self._softmax_axes[node] for node in made if node in self._softmax_axes), None),
        )
        limits = ACTIVATION_QMIN, ACTIVATION_QMAX
        return QuantizationSpec(torch.int8, constructor, *limits, qscheme=torch.per_tensor_affine)


def _symmetric(fixed: tuple[float, int] | None) -> tuple[float, int] | None:
    """Prescribed qparams with zero point 0; what ends at 1 - 1/256 (softmax, sigmoid) ends at 1."""
    return fixed if fixed is None or fixed[1] == 0 else (1 / ACTIVATION_QMAX, 0)


def _channels_with_factors(made: list[Node]) -> int:
    """Channels of a layer that goes into float sums alone, see ``outliers.py``; 0 for all else."""
    layer = made[0]
    if len(made) > 1 or layer.target is not aten.linear.default or not only_layer_norms_read(layer):
        return 0
    return int(layer.meta["val"].shape[-1])


def _is_fused_into_producer(node: Node) -> bool:
    producer = node.args[0] if node.args else None
    return isinstance(producer, Node) and fused_activation(producer) is node


def _adds_mask(node: Node) -> bool:
    """Whether this is the add of attention scores, the first operand, and a mask that is broadcast onto them."""
    if node.target is not aten.add.Tensor or [user.target in SOFTMAXES for user in node.users] != [True]:
        return False
    scores, mask = (cast(Node, operand).meta.get("val") for operand in node.args[:2])
    shape = node.meta["val"].shape
    return scores is not None and mask is not None and scores.shape == shape != mask.shape


def _follow(root: Node) -> DerivedQuantizationSpec:
    return DerivedQuantizationSpec(
        [root], _qparams_of_first, torch.int8, ACTIVATION_QMIN, ACTIVATION_QMAX, torch.per_tensor_affine
    )


def _qparams_of_first(quantisers: list[ActivationFakeQuantize]) -> tuple[torch.Tensor, torch.Tensor]:
    return quantisers[0].calculate_qparams()


def _weight_spec(weight: Node) -> QuantizationSpec:
    constructor = WeightFakeQuantize.with_args(channels=weight.meta["val"].shape[0], ch_axis=0)
    return QuantizationSpec(torch.int8, constructor, -WEIGHT_QMAX, WEIGHT_QMAX, torch.per_channel_symmetric, ch_axis=0)


def _table_spec() -> QuantizationSpec:
    constructor = TableFakeQuantize.with_args()
    return QuantizationSpec(torch.int8, constructor, -WEIGHT_QMAX, WEIGHT_QMAX, torch.per_tensor_symmetric)
