"""Expand, expand_as, repeat and tile of images, written as ops that converters turn right.

litert-torch lays images out anew, channels last, and leaves the sizes that an expansion has, and the axes that a repeat
has, as they were: the file does not open, or, where two sizes are alike, computes something else. Sums and products
broadcast by themselves; where anything else reads the copies, a concatenation makes them, which is integer everywhere;
copies of a stored tensor that is not trained are stored. What is left to expand is the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from kdedge.quantize.stored import get_tensor, is_parameter, store_constant

aten = torch.ops.aten

_EXPANSIONS = (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
_REPETITIONS = (aten.repeat.default, aten.tile.default)
_BROADCASTING = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default),
    *(aten.pow.Tensor_Tensor, aten.where.self, aten.eq.Tensor, aten.ne.Tensor),
    *(aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
)
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.linear.default)
_IMAGE_AXES = 4


def write_out_copies(graph_module: GraphModule) -> bool:
    """Drop these ops where what reads them broadcasts anyway, and write the others as concatenations, in place.

    Copies along the batch stay, and those of stored tensors that layers read as weights.

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
        _as_expand(graph_module, node)
        if node.users and (counts := _counts(node)) is not None:
            node.replace_all_uses_with(_over_batch(graph_module, node, _copied(graph_module, node, counts)))
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


def _as_expand(graph_module: GraphModule, node: Node) -> None:
    """An image expanded to the batch of another, by the number of that axis."""
    source, other = node.args[:2]
    copied = node.meta["val"].shape
    if node.target is not aten.expand_as.default or len(copied) != _IMAGE_AXES:
        return
    sizes: list[Any] = [*copied]
    if not isinstance(copied[0], int):
        with graph_module.graph.inserting_before(node):
            sizes[0] = graph_module.graph.call_function(aten.sym_size.int, (other, 0))
        sizes[0].meta = {"val": copied[0]}
    if all(isinstance(size, int) for size in sizes[1:]):
        node.target, node.args = aten.expand.default, (source, sizes)


def _counts(node: Node) -> list[int] | None:
    """How many copies each axis but the batch holds; None where they cannot be written out, or need not be."""
    source = cast(Node, node.args[0])
    sizes, copied = source.meta["val"].shape, node.meta["val"].shape
    if len(copied) != _IMAGE_AXES or len(sizes) != _IMAGE_AXES:
        return None
    if source.op == "get_attr" and any(reader.target in _LAYERS for reader in node.users):
        return None
    if _shape(source)[0] != _shape(node)[0] and (isinstance(copied[0], int) or _batch(node) is None):
        return None
    if not all(isinstance(size, int) and size for size in (*sizes[1:], *copied[1:])):
        return None
    return [1, *(copy // size for size, copy in zip(sizes[1:], copied[1:], strict=True))]


def _batch(node: Node) -> object:
    """What the graph calls the size of the batch that a single sample is expanded to; None where it does not say."""
    if _shape(cast(Node, node.args[0]))[0] != "1":
        return None
    sizes = node.args[1]
    return sizes[0] if isinstance(sizes, list | tuple) and len(sizes) == _IMAGE_AXES else None


def _copied(graph_module: GraphModule, node: Node, counts: Sequence[int]) -> Node:
    """The copies along all axes but the batch."""
    source = cast(Node, node.args[0])
    if source.op != "get_attr" or is_parameter(graph_module, source) or max(counts) == 1:
        return _joined(graph_module, node, counts)
    with graph_module.graph.inserting_before(node):
        return store_constant(graph_module, node, "copies", get_tensor(graph_module, source).repeat(*counts))


def _over_batch(graph_module: GraphModule, node: Node, copies: Node) -> Node:
    if _shape(copies)[0] == _shape(node)[0]:
        return copies
    with graph_module.graph.inserting_before(node):
        sizes = [_batch(node), *[-1] * (_IMAGE_AXES - 1)]
        result = graph_module.graph.call_function(aten.expand.default, (copies, sizes))  # type: ignore[arg-type]
    result.meta = {**node.meta}
    return result


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
