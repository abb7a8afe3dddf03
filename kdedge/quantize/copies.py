"""Expand, expand_as, repeat and tile of images, written as ops that converters turn right.

litert-torch lays images out anew, channels last, and leaves the sizes that an expansion has, and the axes that a repeat
has, as they were: the file does not open, or, where two sizes are alike, computes something else. Sums and products
broadcast by themselves; where anything else reads the copies, a concatenation makes them, which is integer everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_EXPANSIONS = (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
_REPETITIONS = (aten.repeat.default, aten.tile.default)
_BROADCASTING = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default),
    *(aten.pow.Tensor_Tensor, aten.where.self, aten.eq.Tensor, aten.ne.Tensor),
    *(aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
)
_IMAGE_AXES = 4


def write_out_copies(graph_module: GraphModule) -> bool:
    """Drop these ops where what reads them broadcasts anyway, and write the others as concatenations, in place.

    Copies along the batch, and those of stored tensors that something else than a sum or product reads, stay.

    Args:
        graph_module: From torch.export.

    Returns:
        Whether there was anything to do.
    """
    changed = False
    for node in list(graph_module.graph.nodes):
        if node.target not in (*_EXPANSIONS, *_REPETITIONS):
            continue
        for reader in [reader for reader in node.users if _broadcasts_without(reader, node)]:
            reader.replace_input_with(node, cast(Node, node.args[0]))
            changed = True
        if node.users and (counts := _counts(node)) is not None:
            node.replace_all_uses_with(_joined(graph_module, node, counts))
            changed = True
        if not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return changed


def _broadcasts_without(reader: Node, copies: Node) -> bool:
    """Whether the op has the same result of what was copied."""
    source = cast(Node, copies.args[0])
    pairs = zip(reversed(_shape(source)), reversed(_shape(copies)), strict=False)
    if reader.target not in _BROADCASTING or not all(size in ("1", copied) for size, copied in pairs):
        return False
    operands = [source if item is copies else item for item in reader.args]
    shapes = [_shape(item) for item in operands if isinstance(item, Node) and _is_tensor(item)]
    result = _shape(reader)
    return all(
        any(len(shape) >= axis and shape[-axis] == result[-axis] for shape in shapes)
        for axis in range(1, len(result) + 1)
    )


def _counts(node: Node) -> list[int] | None:
    """How many copies each axis holds; None where they cannot be joined, or need not be."""
    source = cast(Node, node.args[0])
    sizes, copied = source.meta["val"].shape, node.meta["val"].shape
    if len(copied) != _IMAGE_AXES or len(sizes) != _IMAGE_AXES or source.op == "get_attr":
        return None
    if _shape(source)[0] != _shape(node)[0]:
        return None
    if not all(isinstance(size, int) and size for size in (*sizes[1:], *copied[1:])):
        return None
    return [1, *(copy // size for size, copy in zip(sizes[1:], copied[1:], strict=True))]


def _joined(graph_module: GraphModule, node: Node, counts: Sequence[int]) -> Node:
    result = cast(Node, node.args[0])
    for axis, count in enumerate(counts):
        if count > 1:
            made = torch.cat([result.meta["val"]] * count, axis)
            with graph_module.graph.inserting_before(node):
                result = graph_module.graph.call_function(aten.cat.default, ([result] * count, axis))
            result.meta = {**node.meta, "val": made}
    return result


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _shape(node: Node) -> list[str]:
    """Sizes by name: the open batch axis has no number."""
    value: Any = node.meta["val"]
    return [str(size) for size in value.shape]
