"""Convolutions over small feature maps as matrix products: the same sums, faster where a CPU trains a net.

oneDNN's weight gradient of a convolution is slow where the map has few pixels: deep in a ResNet-50 that sees 32-px
images, where 512 channels become 2048 on 2×2 pixels, it took 8 times as long as the forward pass. As a matrix product
over batch × pixels the same sums cost what they should (``benchmarks/small_maps.py`` measures the whole step). A
teacher's forward pass alone gains too (``benchmarks/distill_step.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Above so many pixels a 3×3 convolution is left alone: its product copies every pixel nine times.
LARGEST_MAP_3X3 = 9


@contextmanager
def products_on_small_maps(net: nn.Module, device: str) -> Iterator[None]:
    """Within the context the net's plain 1×1 and 3×3 convolutions run as matrix products where that is faster.

    Weights, gradients and the state dict keep their names and shapes; results differ by the order of additions.

    Args:
        net: Any module; convolutions that are grouped, dilated or padded otherwise stay as they are.
        device: ``cpu``; on any other the context does nothing.
    """
    replaced = [m for m in net.modules() if device == "cpu" and isinstance(m, nn.Conv2d) and _is_plain(m)]
    for module in replaced:
        module.forward = functools.partial(_product, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _product(module: nn.Conv2d, x: Tensor) -> Tensor:
    """What stands in for the module's forward: images [N, C, H, W] -> [N, C', H', W'], channels_last."""
    stride = module.stride[0]
    height, width = ((size - 1) // stride + 1 for size in x.shape[-2:])
    pixels = x.permute(0, 2, 3, 1)
    if module.kernel_size == (1, 1):
        columns = pixels[:, ::stride, ::stride]
        weight = module.weight.flatten(1)
    elif height * width <= LARGEST_MAP_3X3:
        columns = cast(Tensor, _Columns.apply(pixels, stride, height, width))  # type: ignore[no-untyped-call]
        weight = module.weight.permute(0, 2, 3, 1).flatten(1)
    else:
        return functional.conv2d(x, module.weight, module.bias, module.stride, module.padding)
    return functional.linear(columns, weight, module.bias).permute(0, 3, 1, 2)


class _Columns(torch.autograd.Function):
    """The 3×3 neighbourhood of every output pixel: [N, H, W, C] -> [N, H', W', 9·C].

    A backward of its own, since that of nine slices makes and adds nine maps of zeros.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, stride: int, height: int, width: int) -> Tensor:
        """``height`` and ``width`` of the output in pixels; the input is padded with one pixel of zeros."""
        ctx.shape, ctx.places = pixels.shape, _places(stride, height, width)
        padded = functional.pad(pixels, (0, 0, 1, 1, 1, 1))
        return torch.cat([padded[:, rows, columns] for rows, columns in ctx.places], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Each pixel's gradient is the sum over the neighbourhoods that hold it."""
        count, height, width, channels = ctx.shape
        padded = grads[0].new_zeros(count, height + 2, width + 2, channels)
        for (rows, columns), part in zip(ctx.places, torch.split(grads[0], channels, dim=-1), strict=True):
            padded[:, rows, columns] += part
        return padded[:, 1:-1, 1:-1], None, None, None


def _places(stride: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the padded map that stand at each of the nine places of a kernel."""
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    return [(slice(i, i + rows, stride), slice(j, j + columns, stride)) for i in range(3) for j in range(3)]


def _is_plain(module: nn.Conv2d) -> bool:
    # A subclass that computes something of its own keeps it, and so does what an outer context has replaced.
    if type(module).forward is not nn.Conv2d.forward or "forward" in vars(module):
        return False
    fits = (module.kernel_size, module.padding) in (((1, 1), (0, 0)), ((3, 3), (1, 1)))
    square = module.stride[0] == module.stride[1]
    return fits and square and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
