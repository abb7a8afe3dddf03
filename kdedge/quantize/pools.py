"""Pools written in the forms that the runtimes have integer kernels for, and compute alike.

Each rewrite keeps what torch computes; the comments say what a runtime made of the form before:

- an adaptive pool whose windows are all alike is a pool with that window, a pool over the whole map a global one (a
  mean where channels lie last in memory); averages of single pixels, and means over axes of length 1, are no pool;
- ``ceil_mode`` that adds no window goes: it keeps litert-torch from the integer kernel, and ONNX's shape inference
  counts a window that starts in the padding, which torch drops;
- averages over clipped windows (``ceil_mode``, ``count_include_pad=False``) become plain averages of the input padded
  with zeros, times how much of each window was clipped. ONNX Runtime divides windows that ``ceil_mode`` adds by their
  whole size, litert-torch computes them in float and, where only one axis gets one, with one column too many;
- ``divisor_override`` becomes a factor: torch's ONNX exporter ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from kdedge.quantize.stored import store_constant

aten = torch.ops.aten

_ADAPTIVE = (aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default)
Pair = tuple[int, int]


def normalise_pools(graph_module: GraphModule) -> None:
    """Apply the rewrites above, in place."""
    for node in list(graph_module.graph.nodes):
        if node.target in _ADAPTIVE:
            _adaptive(graph_module, node)
    for node in list(graph_module.graph.nodes):
        if node.target is aten.max_pool2d.default:
            _max_pool(graph_module, node)
        elif node.target is aten.avg_pool2d.default:
            _avg_pool(graph_module, node)
        elif node.target is aten.mean.dim:
            _mean_of_one(graph_module, node)
    graph_module.recompile()


def _adaptive(graph_module: GraphModule, node: Node) -> None:
    """An adaptive pool as the identity, or as a pool with windows of one size; an average over everything stays one."""
    x = cast(Node, node.args[0])
    averages = node.target is aten.adaptive_avg_pool2d.default
    size, wanted = _map_size(x), _pair(node.args[1])
    if averages and size == wanted:
        node.replace_all_uses_with(x)
        graph_module.graph.erase_node(node)
        return
    if any(before % after for before, after in zip(size, wanted, strict=True)):
        return
    if averages and wanted == (1, 1):
        if not x.meta["val"].is_contiguous():  # behind a permutation torch's ONNX exporter gathers such a pool's result
            node.target, node.args = aten.mean.dim, (x, [-2, -1], True)
        return
    window = [before // after for before, after in zip(size, wanted, strict=True)]
    if averages:
        node.target, node.args = aten.avg_pool2d.default, (x, window, window)
        return
    values = [user for user in node.users if user.users]
    if any(value.args[1] != 0 for value in values):
        return  # the places of the maxima are read too
    for value in values:
        value.target, value.args = aten.max_pool2d.default, (x, window, window)
    for left in list(node.users):
        graph_module.graph.erase_node(left)
    graph_module.graph.erase_node(node)


def _mean_of_one(graph_module: GraphModule, node: Node) -> None:
    """litert-torch makes a reshape of such a mean, whose result then has another scale than its input."""
    x, axes, keeps = cast(Node, node.args[0]), node.args[1], len(node.args) > 2 and node.args[2]
    if not isinstance(axes, list | tuple) or any(x.meta["val"].shape[axis] != 1 for axis in axes):
        return
    if keeps:
        node.replace_all_uses_with(x)
        graph_module.graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = aten.squeeze.dims, (x, list(axes)), {}


def _max_pool(graph_module: GraphModule, node: Node) -> None:
    x, kernel, stride, padding, dilation, ceil = _arguments(node, (None, None, 0, 1, False))
    if not ceil:
        return
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if stride else kernel
    result = _map_size(node)
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    rooms = [n + 2 * p - e for n, p, e in zip(_map_size(x), padding, extents, strict=True)]
    floors = [room // s + 1 for room, s in zip(rooms, stride, strict=True)]
    added = [size > floor for size, floor in zip(result, floors, strict=True)]
    if not any(added):
        node.args = (x, kernel, stride, padding, dilation)
        return
    counted = [-(-room // s) + 1 for room, s in zip(rooms, stride, strict=True)]
    if list(result) == counted:
        return
    # ceil_mode adds a window on one axis, and on the other one that torch drops: an axis after the other.
    axis = added.index(True)
    first = [[values[0], 1] if axis == 0 else [1, values[1]] for values in (kernel, stride, dilation)]
    second = [[1, values[1]] if axis == 0 else [values[0], 1] for values in (kernel, stride, dilation)]
    paddings = [[padding[0], 0], [0, padding[1]]] if axis == 0 else [[0, padding[1]], [padding[0], 0]]
    with graph_module.graph.inserting_before(node):
        arguments = (x, first[0], first[1], paddings[0], first[2], True)
        half = graph_module.graph.call_function(aten.max_pool2d.default, arguments)
    shape = list(x.meta["val"].shape)
    shape[2 + axis] = result[axis]
    half.meta = {**node.meta, "val": node.meta["val"].new_empty(shape)}
    node.args = (half, second[0], second[1], paddings[1], second[2])


def _avg_pool(graph_module: GraphModule, node: Node) -> None:
    x, kernel, stride, padding, _, includes, divisor = _arguments(node, (None, None, 0, False, True, None))
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    size, result = _map_size(x), _map_size(node)
    if kernel == (1, 1) and padding == (0, 0) and result == size and divisor is None:
        # litert-torch drops it, and then finds the scale before it and another behind it.
        node.replace_all_uses_with(x)
        graph_module.graph.erase_node(node)
        return
    if kernel == size and result == (1, 1) and padding == (0, 0) and divisor is None:
        node.target, node.args = aten.adaptive_avg_pool2d.default, (x, [1, 1])
        return
    axes = list(zip(size, result, kernel, stride, padding, strict=True))
    factor = prod(kernel) / torch.outer(*(_counts(*axis, includes=bool(includes)) for axis in axes))
    if divisor is not None:
        factor = torch.full(result, prod(kernel) / divisor)
    ends = [(p, max(0, (o - 1) * s + k - n - p)) for n, o, k, s, p in axes]
    beyond = any(after > before for before, after in ends)  # of the padding that torch puts on either side
    if not beyond and bool((factor == 1).all()):
        node.args = (x, kernel, stride, padding)
    elif divisor is None and (clips := _clipped_by_kernels(axes, includes=bool(includes))) is not None:
        node.args = (x, kernel, stride, padding, clips == "ceil_mode", False)
    else:
        if beyond:
            x, padding = _pad(graph_module, node, x, ends), (0, 0)
        node.args = (x, kernel, stride, padding)
        if bool((factor != 1).any()):
            _multiply(graph_module, node, factor[None, None])


def _clipped_by_kernels(axes: Sequence[tuple[int, int, int, int, int]], *, includes: bool) -> str | None:
    """The argument by which both runtimes average these windows over what lies in the map alone; None where not both.

    TFLite's kernel does so for ``SAME`` padding, which litert-torch recognises in these two forms.
    """
    paddings = [_same_padding(*axis) for axis in axes]
    if all(padding == 0 for *_, padding in axes) and all(padding in (0, 1) for padding in paddings):
        return "ceil_mode"
    centred = all(same == 2 * padding for same, (*_, padding) in zip(paddings, axes, strict=True))
    if not includes and centred and all(stride == 1 for _, _, _, stride, _ in axes):
        return "count_include_pad"
    return None


def _pad(graph_module: GraphModule, node: Node, x: Node, ends: Sequence[Pair]) -> Node:
    """``x`` with zeros around it, by axis before and after."""
    (top, bottom), (left, right) = ends
    sides = [left, right, top, bottom]
    with graph_module.graph.inserting_before(node):
        padded = graph_module.graph.call_function(aten.constant_pad_nd.default, (x, sides, 0.0))
    padded.meta = {**node.meta, "val": torch.constant_pad_nd(x.meta["val"], sides)}
    return padded


def _same_padding(size: int, result: int, kernel: int, stride: int, _: int) -> int | None:
    """How much padding TFLite's ``SAME`` adds to this axis; None where it would give another size than torch did."""
    return max(0, (result - 1) * stride + kernel - size) if result == -(-size // stride) else None


def _counts(size: int, result: int, kernel: int, stride: int, padding: int, *, includes: bool) -> Tensor:
    """By how many numbers torch divides, along one axis: window ∩ map, or window ∩ padded map."""
    starts = torch.arange(result) * stride - padding
    low, high = (-padding, size + padding) if includes else (0, size)
    return ((starts + kernel).clamp(max=high) - starts.clamp(min=low)).double()


def _multiply(graph_module: GraphModule, node: Node, factor: Tensor) -> None:
    """Multiply the node's result by a stored tensor, for all who read it."""
    readers = list(node.users)
    with graph_module.graph.inserting_before(node):
        constant = store_constant(graph_module, node, "factor", factor)
    with graph_module.graph.inserting_after(node):
        product = graph_module.graph.call_function(aten.mul.Tensor, (node, constant))
    product.meta = {**node.meta}
    for reader in readers:
        reader.replace_input_with(node, product)


def _arguments(node: Node, defaults: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of a pool, the ones left out as they are by default."""
    given = node.args
    return (*given, *defaults[len(given) - 1 :])


def _pair(value: Any) -> Pair:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return int(values[0]), int(values[-1])


def _map_size(node: Node) -> Pair:
    height, width = node.meta["val"].shape[-2:]
    return int(height), int(width)
