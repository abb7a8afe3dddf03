"""In-place ops of a captured graph as functional ones, so that a quantiser between two of them sees what it should.

A tensor that was written into is its new value for all that reads it later. Where a view of it, or what it is a view
of, is read later too, or only a part is written, no functional op says the same: such a net is refused, since what
converts a graph drops the write without a word.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import cast

import torch
from torch.fx import GraphModule, Node

from kdedge.errors import ModelError

aten = torch.ops.aten

_FUNCTIONAL = {
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
# Views of what is contiguous, though their schemas do not say so.
_MAY_BE_VIEWS = (aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default)


def make_functional(graph_module: GraphModule) -> None:
    """Write every in-place op as the functional one, in place.

    Raises:
        ModelError: a write that no functional op says; names the op and the line of the model.
    """
    order = {node: number for number, node in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        if not _writes(node):
            continue
        functional, written = _FUNCTIONAL.get(node.target), node.args[0]
        if functional is None or not isinstance(written, Node):
            raise _refusal(node)
        if any(order[user] > order[node] for alias in _aliases(written) for user in alias.users):
            raise _refusal(node)
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)
        node.target = functional


def _writes(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _aliases(node: Node) -> Iterator[Node]:
    """The other nodes that hold the same memory: what it is a view of, and the views of that."""
    base = node
    while _is_view(base):
        base = cast(Node, base.args[0])
    found, left = [], [base]
    while left:
        found.append(left.pop())
        left += [user for user in found[-1].users if _is_view(user) and user.args[0] is found[-1]]
    return (alias for alias in found if alias is not node)


def _is_view(node: Node) -> bool:
    if node.target in _MAY_BE_VIEWS or node.target is operator.getitem:
        return isinstance(node.args[0], Node)
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args or not isinstance(node.args[0], Node):
        return False
    results = node.target._schema.returns
    return any(result.alias_info is not None and not result.alias_info.is_write for result in results)


def _refusal(node: Node) -> ModelError:
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    code = f" in `{lines[-1]}`" if lines else ""
    place = next((line for line in reversed(lines) if line.startswith("File ")), None)
    return ModelError(
        f"the model writes into a tensor{code}, which cannot be quantised",
        where=place or str(node.target),
        cure="Make a new tensor of it, for instance with torch.cat, torch.where or an op without a trailing underscore",
    )
