"""Rewrites of a captured graph that leave its meaning and give the runtimes ops they have integer kernels for.

- in-place ops become functional (``in_place.py``);
- a view is a reshape: litert-torch lays an image out anew, and a view of that would not be one;
- an op that is asked for twice with the same operands is one op: torch's ONNX exporter joins the two, and a layer whose
  result lies on two grids is float there;
- aliases and slices that leave nothing out go, and the other slices are numbered anew: how many torch.export writes
  depends on whether the batch axis is open, and a state that names other tensors would not load into the other build;
- hard sigmoid becomes ``relu6(x + 3) · ⅙`` and SiLU ``x · sigmoid(x)``: adds, multiplications and sigmoids have
  integer kernels everywhere, the two do not;
- a reshaped or permuted tensor that meets itself in an operation does so before it is reshaped: litert-torch swaps the
  two, and then finds the scale of the result before the reshape and another behind it;
- a plain number in an add or a multiplication becomes a stored tensor, which can be quantised, unless a layer's weight
  takes it in (``stored.py``); subtracting one is adding its negative;
- a clamp between two numbers is a hard tanh, padding by a constant and the larger of two tensors have one form of two,
  parts of a split are slices;
- padding by another number than zero is padding by zero plus a stored tensor, and the sum has a range of its own:
  litert-torch would make such a padding integer with the scale of what is padded, and clip the number to that;
- pools are written in the forms that the runtimes share (``pools.py``), copies of parts of an image without the ops
  that litert-torch turns wrongly (``copies.py``);
- a number that a mask puts in is stored where integers can say it (``masks.py``);
- axes are squeezed one by one, as torch.onnx writes it: between two of its Squeeze there would be no scale;
- what has a prescribed scale (softmax, sigmoid, tanh) is not clipped where it lies between the bounds anyway, and is
  multiplied by 1, which may change the scale, where the next op wants one scale for all that it reads and makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from kdedge.quantize.copies import write_out_copies
from kdedge.quantize.in_place import make_functional
from kdedge.quantize.masks import normalise_fills
from kdedge.quantize.pools import normalise_pools
from kdedge.quantize.rules import CLIPS, RULES, is_dropout, rule_of
from kdedge.quantize.sharing import rename_clashes, separate_weights
from kdedge.quantize.stored import (
    is_repeatable,
    move_factors_to_weights,
    store_computed,
    store_constant,
    store_views,
    stored,
)

aten = torch.ops.aten

_WITH_ITSELF = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor)
_RENAMES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
_MANY = 2**31  # what torch.export writes for the end of an axis of unknown length is more
_WITH_NUMBER = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


def make_quantisable(graph_module: GraphModule) -> None:
    """Apply every rewrite of this module, in place."""
    make_functional(graph_module)
    for node in graph_module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    _drop_aliases(graph_module)
    _join_repeated(graph_module)
    store_computed(graph_module)
    write_out_copies(graph_module)
    normalise_fills(graph_module)
    store_views(graph_module)
    move_factors_to_weights(graph_module)
    normalise_pools(graph_module)
    for node in list(graph_module.graph.nodes):
        if (rewrite := _REWRITES.get(node.target)) is not None:
            rewrite(graph_module, node)
    for node in list(graph_module.graph.nodes):
        if node.target in _WITH_ITSELF:
            _operate_before_renaming(graph_module, node)
    for node in list(graph_module.graph.nodes):
        _free_of_prescribed_scales(graph_module, node)
    separate_weights(graph_module)
    rename_clashes(graph_module)
    graph_module.recompile()


def _drop_aliases(graph_module: GraphModule) -> None:
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.alias.default or (node.target is aten.slice.Tensor and _takes_all(node)):
            _replace(graph_module, node, cast(Node, node.args[0]))
        elif node.target is aten.slice.Tensor:
            with graph.inserting_before(node):
                part = graph.create_node("call_function", node.target, node.args, node.kwargs, name="part")
            part.meta = node.meta
            _replace(graph_module, node, part)


def _join_repeated(graph_module: GraphModule) -> None:
    """One op for all that do the same with the same operands."""
    first: dict[str, Node] = {}
    for node in list(graph_module.graph.nodes):
        if not is_repeatable(node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        kept = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)  # names of nodes are unique
        if kept is not node:
            _replace(graph_module, node, kept)


def _takes_all(node: Node) -> bool:
    arguments: list[Any] = [*node.args, *(None, 0, None, None, 1)[len(node.args) :]]
    x, axis, start, end, step = arguments
    size = x.meta["val"].shape[axis]
    to_the_end: bool = end is None or (isinstance(end, int) and end >= (size if isinstance(size, int) else _MANY))
    return to_the_end and (start is None or start == 0) and step == 1


def _split_hard_sigmoid(graph_module: GraphModule, node: Node) -> None:
    """Hard sigmoid as Howard et al. 2019 define it (arXiv:1905.02244)."""
    x = cast(Node, node.args[0])
    with graph_module.graph.inserting_before(node):
        three, sixth = (_number(graph_module, node, name, value) for name, value in (("3", 3.0), ("6", 1 / 6)))
        shifted = _call(graph_module, node, aten.add.Tensor, x, three)
        clamped = _call(graph_module, node, aten.hardtanh.default, shifted, 0.0, 6.0)
        _replace(graph_module, node, _call(graph_module, node, aten.mul.Tensor, clamped, sixth))


def _split_silu(graph_module: GraphModule, node: Node) -> None:
    x = cast(Node, node.args[0])
    with graph_module.graph.inserting_before(node):
        gate = _call(graph_module, node, aten.sigmoid.default, x)
        _replace(graph_module, node, _call(graph_module, node, aten.mul.Tensor, x, gate))


def _clamp_as_hard_tanh(_: GraphModule, node: Node) -> None:
    bounds = node.args[1:3]
    if len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds):
        node.target = aten.hardtanh.default


def _pad_by_constant(graph_module: GraphModule, node: Node) -> None:
    given = node.args
    if len(given) < 3 or given[2] == "constant":
        value = given[3] if len(given) > 3 and given[3] is not None else 0.0
        node.target, node.args = aten.constant_pad_nd.default, (*given[:2], value)
        _pad_by_zero(graph_module, node)


def _pad_by_zero(graph_module: GraphModule, node: Node) -> None:
    """Another finite number as a stored border that is added."""
    x, sides, value = (*node.args, 0.0)[:3]
    sizes, wider, number = list(cast(Node, x).meta["val"].shape), cast(list[int], sides), cast(float, value)
    padded = {len(sizes) - 1 - index // 2 for index, side in enumerate(wider) if side}
    if number == 0 or not math.isfinite(number) or not node.meta["val"].is_floating_point():
        return
    if not all(isinstance(size, int) for size in (*wider, *(sizes[axis] for axis in padded))):
        return
    inside = torch.zeros([size if axis in padded else 1 for axis, size in enumerate(sizes)], dtype=torch.float64)
    with graph_module.graph.inserting_before(node):
        zeros = _call(graph_module, node, aten.constant_pad_nd.default, x, sides, 0.0)
        border = store_constant(graph_module, node, "border", torch.constant_pad_nd(inside, wider, number))
    node.target, node.args = aten.add.Tensor, (zeros, border)


def _larger_or_smaller(_: GraphModule, node: Node) -> None:
    node.target = aten.maximum.default if node.target is aten.max.other else aten.minimum.default


def _parts_as_slices(graph_module: GraphModule, node: Node) -> None:
    x, axis = cast(Node, node.args[0]), cast(int, node.args[2]) if len(node.args) > 2 else 0
    lengths = [part.shape[axis] for part in node.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        return
    for part in list(node.users):
        index = cast(int, part.args[1])
        start = sum(lengths[:index])
        part.target, part.args = aten.slice.Tensor, (x, axis, start, start + lengths[index])
    graph_module.graph.erase_node(node)


def _subtract_from_number(graph_module: GraphModule, node: Node) -> None:
    """``2 - x``; times a number, which ``rsub`` allows too, it stays."""
    x, value = node.args[:2]
    if len(node.args) > 2 or node.kwargs or not isinstance(value, int | float):
        return
    with graph_module.graph.inserting_before(node):
        constant = _number(graph_module, node, "operand", float(value))
    node.target, node.args = aten.sub.Tensor, (constant, x)


def _store_number(graph_module: GraphModule, node: Node) -> None:
    """``x + 2`` as ``x + constant``; a division becomes a multiplication by the reciprocal; ``x + αy`` has two ops."""
    if isinstance(node.kwargs.get("alpha"), int | float):
        _multiply_by_alpha(graph_module, node)
    value = node.args[1]
    result = node.meta.get("val")
    if stored(node) is not None or not isinstance(value, int | float) or node.kwargs or not isinstance(result, Tensor):
        return
    if not isinstance(node.args[0], Node) or not result.is_floating_point():
        return
    if node.target is aten.div.Tensor:
        node.target, value = aten.mul.Tensor, 1.0 / value
    elif node.target is aten.sub.Tensor:
        node.target, value = aten.add.Tensor, -value
    with graph_module.graph.inserting_before(node):
        node.args = (node.args[0], _number(graph_module, node, "operand", float(value)))


def _multiply_by_alpha(graph_module: GraphModule, node: Node) -> None:
    """The runtimes' adds have no factor."""
    x, y = node.args[:2]
    alpha = cast(float, node.kwargs["alpha"])
    if isinstance(y, Node) and isinstance(like := y.meta.get("val"), Tensor) and like.is_floating_point():
        with graph_module.graph.inserting_before(node):
            factor = _number(graph_module, y, f"{node.name}_alpha", float(alpha))
            product = _call(graph_module, y, aten.mul.Tensor, y, factor)
        node.args, node.kwargs = (x, product), {}
    elif isinstance(y, int | float):
        node.args, node.kwargs = (x, alpha * y), {}


def _squeeze_one_by_one(graph_module: GraphModule, node: Node) -> None:
    x, axes = cast(Node, node.args[0]), cast(list[int], node.args[1])
    rank = x.meta["val"].ndim
    for axis in sorted((axis % rank for axis in axes), reverse=True):
        with graph_module.graph.inserting_before(node):
            result = _call(graph_module, node, aten.squeeze.dim, x, axis)
        result.meta["val"] = x.meta["val"].squeeze(axis)
        x = result
    _replace(graph_module, node, x)


def _squeeze_all(graph_module: GraphModule, node: Node) -> None:
    """Every axis of length 1 by its number: a batch of one on the device is no axis to squeeze."""
    shape = cast(Node, node.args[0]).meta["val"].shape
    axes = [axis for axis, size in enumerate(shape) if axis > 0 and isinstance(size, int) and size == 1]
    node.args = (node.args[0], axes)
    _squeeze_one_by_one(graph_module, node)


def _operate_before_renaming(graph_module: GraphModule, node: Node) -> None:
    """A reshaped tensor times itself as the product, reshaped."""
    renamed = node.args[0]
    while renamed is node.args[1] and isinstance(renamed, Node) and renamed.target in _RENAMES:
        source = cast(Node, renamed.args[0])
        with graph_module.graph.inserting_before(node):
            result = graph_module.graph.call_function(node.target, (source, source), node.kwargs)  # type: ignore[arg-type]
            result.meta = {**source.meta}
            _replace(graph_module, node, _call(graph_module, node, renamed.target, result, *renamed.args[1:]))
        node, renamed = result, source
    graph_module.graph.eliminate_dead_code()


def _free_of_prescribed_scales(graph_module: GraphModule, node: Node) -> None:
    """Leave to softmax and the like the scale that their kernels prescribe; see the module's docstring."""
    rule = rule_of(node)
    if rule is None or not (rule.kind == "same" or node.target is aten.cat.default):
        return
    prescribed = {item: RULES[source.target].fixed for item in node.all_input_nodes if (source := _fixed_source(item))}
    if node.target in CLIPS and (fixed := prescribed.get(node.all_input_nodes[0])) is not None:
        lowest, highest = ((q - fixed[1]) * fixed[0] for q in (-128, 127))
        if (rule.low is None or rule.low <= lowest) and (rule.high is None or rule.high >= highest):
            _replace(graph_module, node, node.all_input_nodes[0])
            return
    for item in prescribed:
        with graph_module.graph.inserting_before(node):
            one = _number(graph_module, node, f"{item.name}_as_it_is", 1.0)
            product = _call(graph_module, item, aten.mul.Tensor, item, one)
        node.replace_input_with(item, product)


def _fixed_source(node: Node) -> Node | None:
    """The op of prescribed scale whose values these are, or None."""
    rule = rule_of(node)
    while is_dropout(node) or (rule is not None and rule.kind == "move" and node.target is not aten.cat.default):
        node = cast(Node, node.args[0])
        rule = rule_of(node)
    return node if rule is not None and rule.fixed is not None else None


def _number(graph_module: GraphModule, at: Node, name: str, value: float) -> Node:
    """A stored tensor of one element."""
    return store_constant(graph_module, at, name, torch.full((1,), value, dtype=torch.float64))


def _call(graph_module: GraphModule, at: Node, op: torch._ops.OpOverload, *arguments: object) -> Node:
    """A new op whose result has the shape of ``at``'s."""
    node = graph_module.graph.call_function(op, arguments)  # type: ignore[arg-type]
    node.meta = {**at.meta}
    return node


def _replace(graph_module: GraphModule, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph_module.graph.erase_node(node)


_REWRITES: dict[object, Callable[[GraphModule, Node], None]] = {
    aten.hardsigmoid.default: _split_hard_sigmoid,
    aten.silu.default: _split_silu,
    aten.clamp.default: _clamp_as_hard_tanh,
    aten.pad.default: _pad_by_constant,
    aten.constant_pad_nd.default: _pad_by_zero,
    aten.max.other: _larger_or_smaller,
    aten.min.other: _larger_or_smaller,
    aten.squeeze.dims: _squeeze_one_by_one,
    aten.squeeze.default: _squeeze_all,
    aten.rsub.Scalar: _subtract_from_number,
    **dict.fromkeys(_SPLITS, _parts_as_slices),
    **dict.fromkeys(_WITH_NUMBER, _store_number),
}
