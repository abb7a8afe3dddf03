"""Convolutions over small feature maps in forms that a CPU trains fast: the same sums, in another order.

oneDNN's weight gradient of a convolution is slow where the map has few pixels: deep in a ResNet-50 that sees 32-px
images, where 512 channels become 2048 on 2×2 pixels, it took 8 times as long as the forward pass. As a matrix product
over batch × pixels the same sums cost what they should (``benchmarks/small_maps.py`` measures the whole step). A
teacher's forward pass alone gains too (``benchmarks/distill_step.py``). That of a depthwise convolution takes
fifty times its forward pass and more where the map is smaller than the kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# Above so many pixels a 3×3 convolution is left alone: its product copies every pixel nine times.
LARGEST_MAP_3X3 = 9

NOWHERE = slice(0, 0)
ONLY_INPUT = [True, False, False]


@contextmanager
def products_on_small_maps(net: nn.Module, device: str) -> Iterator[None]:
    """Within the context the net's plain and depthwise convolutions run in another form where that is faster.

    Weights, gradients and the state dict keep their names and shapes; results differ by the order of additions.

    Args:
        net: Any module, or the graph that QAT trains; convolutions that are grouped otherwise, dilated, or padded
            otherwise than to keep the size of the map, stay as they are.
        device: ``cpu``; on any other the context does nothing.
    """
    replaced: list[nn.Module] = []
    for module in net.modules() if device == "cpu" else ():
        forward = _other_form(module)
        if forward is not None:
            module.forward = forward
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _other_form(module: nn.Module) -> Callable[..., Any] | None:
    if "forward" in vars(module):  # what an outer context has replaced stays so
        return None
    if isinstance(module, nn.Conv2d) and _is_known(module):
        return functools.partial(_forward, module)
    if isinstance(module, fx.GraphModule):
        return _of_graph(module)
    return None


def _of_graph(module: fx.GraphModule) -> Callable[..., Any] | None:
    """What the graph computes, by ``convolution``; the graph itself keeps the ops that the quantiser looks for."""
    if not any(node.target is torch.ops.aten.conv2d.default for node in module.graph.nodes):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(module.graph._codegen)
    for node in graph.nodes:
        if node.target is torch.ops.aten.conv2d.default:
            node.target = convolution
    same_modules = fx.GraphModule(module, graph)
    return same_modules.forward


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """What ``aten.conv2d`` gives for images [N, C, H, W] and weights [C', C / groups, k, k]: [N, C', H', W'].

    By a matrix product for 1×1 kernels and for 3×3 ones on small maps; by oneDNN with a weight gradient of ours for
    depthwise ones whose map is smaller than the kernel; else by oneDNN.
    """
    kernel, step = weight.shape[-1], stride[0]
    if _fits(weight, stride, padding, dilation):
        made = tuple((size - 1) // step + 1 for size in x.shape[-2:])
        if groups == 1 and (kernel == 1 or (kernel == 3 and math.prod(made) <= LARGEST_MAP_3X3)):
            return _product(x, weight, bias, step)
        if groups == x.shape[1] == weight.shape[0] and max(x.shape[-2:]) < kernel + (step > 1):
            return _depthwise(x, weight, bias, step)
    return functional.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    pixels, kernel = x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1)
    if weight.shape[-1] == 1:
        neighbours = pixels[:, ::stride, ::stride]
    else:
        rows, columns = (_seen(size, weight.shape[-1], stride) for size in x.shape[-2:])
        kernel = kernel[:, rows, columns]
        neighbours = cast(Tensor, _Columns.apply(pixels, stride, rows, columns))  # type: ignore[no-untyped-call]
    # Two axes: of four that lie apart, as after a stride, torch without gradients would make one small product a row of
    # the map, each with a copy of the weights where they are bfloat16.
    made = functional.linear(neighbours.flatten(0, 2), kernel.flatten(1), bias)
    return made.view(*neighbours.shape[:3], -1).permute(0, 3, 1, 2)


def _seen(size: int, kernel: int, stride: int) -> slice:
    """The rows of a kernel that meet a row of the map anywhere; the others meet padding alone."""
    made = (size - 1) // stride + 1
    met = [i for i in range(kernel) if _joined(i - kernel // 2, stride, size, made)[0] != NOWHERE]
    return slice(met[0], met[-1] + 1)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if max(x.shape[-2:]) == 1:  # the rest of the kernel sees zeros, at which oneDNN's 5×5 crawls forward too
        middle = weight.shape[-1] // 2
        made = x * weight[:, 0, middle, middle].view(1, -1, 1, 1)
    else:
        made = cast(Tensor, _Depthwise.apply(x, weight, stride))  # type: ignore[no-untyped-call]
    return made if bias is None else made + bias.to(made.dtype).view(1, -1, 1, 1)


class _Columns(torch.autograd.Function):
    """The neighbourhood of every output pixel that a 3×3 kernel sees: [N, H, W, C] -> [N, H', W', rows·columns·C].

    A backward of its own, since that of nine slices makes and adds nine maps of zeros.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, stride: int, rows: slice, columns: slice) -> Tensor:
        """``rows`` and ``columns`` of the kernel are taken; the input is padded with one pixel of zeros."""
        ctx.shape, ctx.places = pixels.shape, _places(pixels, stride, rows, columns)
        padded = functional.pad(pixels, (0, 0, 1, 1, 1, 1))
        return torch.cat([padded[:, row, column] for row, column in ctx.places], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Each pixel's gradient is the sum over the neighbourhoods that hold it."""
        count, height, width, channels = ctx.shape
        padded = grads[0].new_zeros(count, height + 2, width + 2, channels)
        for (row, column), part in zip(ctx.places, torch.split(grads[0], channels, dim=-1), strict=True):
            padded[:, row, column] += part
        return padded[:, 1:-1, 1:-1], None, None, None


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose map is no larger than its kernel, [N, C, H, W] and [C, 1, k, k] -> [N, C, H', W'].

    oneDNN's weight gradient falls back there to its reference code. Each of its numbers is the sum of products of two
    overlapping parts of maps, of which the smallest have few.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Padded so that a stride of one keeps the size."""
        made = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))
        # Where autocast made the product in bfloat16, its gradient comes so too.
        ctx.save_for_backward(x.to(made.dtype), weight)
        ctx.stride = stride
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The input's gradient by oneDNN, the weight's by sums of products."""
        (grad,) = grads
        x, weight = ctx.saved_tensors
        kernel, stride = weight.shape[-1], ctx.stride
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            ends = [kernel // 2] * 2
            of_x = torch.ops.aten.convolution_backward(
                grad, x, weight.to(grad.dtype), None, [stride] * 2, ends, [1, 1], False, [0, 0], len(weight), ONLY_INPUT
            )[0]
        if ctx.needs_input_grad[1]:
            pixels, made = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
            sums = [_sum_of_products(pixels, made, i, j, kernel, stride) for i in range(kernel) for j in range(kernel)]
            of_weight = torch.stack(sums, dim=1).view(weight.shape).to(weight.dtype)
        return of_x, of_weight, None


def _sum_of_products(pixels: Tensor, made: Tensor, row: int, column: int, kernel: int, stride: int) -> Tensor:
    """Sum of input [N, H, W, C] × output [N, H', W', C] where that place of the kernel joins them: [C]."""
    from_rows, to_rows = _joined(row - kernel // 2, stride, pixels.shape[1], made.shape[1])
    from_columns, to_columns = _joined(column - kernel // 2, stride, pixels.shape[2], made.shape[2])
    products = pixels[:, from_rows, from_columns] * made[:, to_rows, to_columns]
    return products.sum((0, 1, 2), dtype=torch.promote_types(products.dtype, torch.float32))


def _joined(offset: int, stride: int, size: int, made: int) -> tuple[slice, slice]:
    """Where pixels 0..size-1 and outputs 0..made-1 meet: output k with pixel k · stride + offset. May be empty."""
    first = max(0, math.ceil(-offset / stride))
    last = min(made - 1, (size - 1 - offset) // stride)
    if last < first:
        return NOWHERE, NOWHERE
    return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)


def _places(pixels: Tensor, stride: int, rows: slice, columns: slice) -> list[tuple[slice, slice]]:
    """Rows and columns of the padded map [N, H + 2, W + 2, C] that stand at each of those places of a kernel."""
    height, width = (stride * ((size - 1) // stride) + 1 for size in pixels.shape[1:3])
    return [
        (slice(i, i + height, stride), slice(j, j + width, stride))
        for i in range(rows.start, rows.stop)
        for j in range(columns.start, columns.stop)
    ]


def _forward(module: nn.Conv2d, x: Tensor) -> Tensor:
    """What stands in for the module's forward."""
    padding = cast(tuple[int, int], module.padding)
    return convolution(x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups)


def _is_known(module: nn.Conv2d) -> bool:
    # A subclass that computes something of its own keeps it.
    if type(module).forward is not nn.Conv2d.forward or module.padding_mode != "zeros":
        return False
    plain = module.groups == 1 and module.kernel_size[0] in (1, 3)
    depthwise = 1 < module.groups == module.in_channels == module.out_channels
    fits = not isinstance(module.padding, str) and _fits(module.weight, module.stride, module.padding, module.dilation)
    return fits and (plain or depthwise)


def _fits(weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """A square kernel of odd size, padded by half of it, with the same stride along both axes."""
    height, width = weight.shape[-2:]
    square = height == width and height % 2 == 1 and len({*stride}) == 1
    return square and tuple(padding) == (height // 2,) * 2 and tuple(dilation) == (1, 1)
