"""Rewrites of a captured graph that leave its meaning and give the runtimes ops they have integer kernels for.

- in-place ops become functional, so that a quantiser between two of them sees what it should;
- hard sigmoid becomes ``relu6(x + 3) · ⅙`` and SiLU ``x · sigmoid(x)``: adds, multiplications and sigmoids have
  integer kernels everywhere, the two do not;
- a plain number in an add or a multiplication becomes a stored tensor, which can be quantised, unless a layer's weight
  takes it in (``stored.py``);
- an adaptive pooling to the size that its input already has is the identity and goes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from kdedge.quantize.stored import move_factors_to_weights, store_views, stored

aten = torch.ops.aten

# Stored numbers live under this name in the graph module.
_CONSTANTS = "constants"
_IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.silu_.default: aten.silu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.clamp_.default: aten.clamp.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
}
_WITH_NUMBER = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_ADAPTIVE_POOLS = (aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)


def make_quantisable(graph_module: GraphModule) -> None:
    """Apply every rewrite of this module, in place."""
    for node in graph_module.graph.nodes:
        node.target = _IN_PLACE.get(node.target, node.target)
    store_views(graph_module)
    move_factors_to_weights(graph_module)
    for node in list(graph_module.graph.nodes):
        if node.target is aten.hardsigmoid.default:
            _split_hard_sigmoid(graph_module, node)
        elif node.target is aten.silu.default:
            _split_silu(graph_module, node)
        elif node.target in _ADAPTIVE_POOLS:
            _drop_identity_pool(graph_module, node)
        elif node.target in _WITH_NUMBER and stored(node) is None:
            _store_number(graph_module, node)
    graph_module.recompile()


def _split_hard_sigmoid(graph_module: GraphModule, node: Node) -> None:
    """Hard sigmoid as Howard et al. 2019 define it (arXiv:1905.02244)."""
    x = cast(Node, node.args[0])
    with graph_module.graph.inserting_before(node):
        three, sixth = (_constant(graph_module, node, name, value) for name, value in (("3", 3.0), ("6", 1 / 6)))
        shifted = _call(graph_module, node, aten.add.Tensor, x, three)
        clamped = _call(graph_module, node, aten.hardtanh.default, shifted, 0.0, 6.0)
        _replace(graph_module, node, _call(graph_module, node, aten.mul.Tensor, clamped, sixth))


def _split_silu(graph_module: GraphModule, node: Node) -> None:
    x = cast(Node, node.args[0])
    with graph_module.graph.inserting_before(node):
        gate = _call(graph_module, node, aten.sigmoid.default, x)
        _replace(graph_module, node, _call(graph_module, node, aten.mul.Tensor, x, gate))


def _drop_identity_pool(graph_module: GraphModule, node: Node) -> None:
    x = cast(Node, node.args[0])
    if node.target is aten.adaptive_avg_pool2d.default and x.meta["val"].shape == node.meta["val"].shape:
        _replace(graph_module, node, x)


def _store_number(graph_module: GraphModule, node: Node) -> None:
    """``x + 2`` as ``x + constant``; a division becomes a multiplication by the reciprocal."""
    value = node.args[1]
    result = node.meta.get("val")
    if not isinstance(value, int | float) or node.kwargs or not isinstance(result, Tensor):
        return
    if not isinstance(node.args[0], Node) or not result.is_floating_point():
        return
    if node.target is aten.div.Tensor:
        node.target, value = aten.mul.Tensor, 1.0 / value
    with graph_module.graph.inserting_before(node):
        node.args = (node.args[0], _constant(graph_module, node, "operand", float(value)))


def _constant(graph_module: GraphModule, at: Node, name: str, value: float) -> Node:
    """A stored tensor of one element, named after the op that uses it."""
    if not hasattr(graph_module, _CONSTANTS):
        graph_module.add_module(_CONSTANTS, nn.Module())
    leaf = f"{at.name}_{name}"
    like = at.meta["val"]
    tensor = torch.full((1,), value, dtype=like.dtype, device=like.device)
    graph_module.get_submodule(_CONSTANTS).register_buffer(leaf, tensor)
    node = graph_module.graph.get_attr(f"{_CONSTANTS}.{leaf}")
    node.meta["val"] = like.new_empty((1,))
    return node


def _call(graph_module: GraphModule, at: Node, op: torch._ops.OpOverload, *arguments: object) -> Node:
    """A new op whose result has the shape of ``at``'s."""
    node = graph_module.graph.call_function(op, arguments)  # type: ignore[arg-type]
    node.meta = {**at.meta}
    return node


def _replace(graph_module: GraphModule, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph_module.graph.erase_node(node)
