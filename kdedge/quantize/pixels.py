"""Normalising pixels inside the integer program, so that a device does no float work before the net.

``(pixel / 255 - mean) / std`` is a 1×1 depthwise convolution: weight ``1 / (255 · std)``, bias ``-mean / std``. Its
input has scale 1 (the pixels themselves), each channel's weight is 127 steps of a scale of its own, its output is the
net's input with the scale that it was trained with. So the only error is the rounding of that output, as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from kdedge.quantize.fake_quantize import ACTIVATION_QMAX, ACTIVATION_QMIN
from kdedge.quantize.rules import aten
from kdedge.quantize.scales import tag_weight
from kdedge.quantize.weight_quantize import WEIGHT_QMAX

decomposed = torch.ops.quantized_decomposed
PIXEL_SCALE, PIXEL_ZERO_POINT = 1.0, ACTIVATION_QMIN
"""Of the input tensor: uint8 pixel = int8 value + 128."""
_NAME = "pixels"


def take_pixels(program: GraphModule, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a converted program take pixels in place of normalised images, in place.

    Args:
        program: From ``convert``; its one input is quantised at once.
        mean: By channel, of values in [0, 1].
        std: Likewise.
    """
    graph = program.graph
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    readers = list(image.users)
    weight, scale, bias = _normaliser(torch.tensor(mean), torch.tensor(std))
    channels = len(mean)
    limits = (ACTIVATION_QMIN, ACTIVATION_QMAX, torch.int8)
    for name, value in (
        ("weight", weight),
        ("scale", scale),
        ("zero_point", torch.zeros(channels, dtype=torch.int32)),
        ("bias", bias),
    ):
        program.register_buffer(f"_{_NAME}_{name}", value)
    with graph.inserting_after(image):
        stored = {name: graph.get_attr(f"_{_NAME}_{name}") for name in ("bias", "zero_point", "scale", "weight")}
    for name, node in stored.items():
        node.meta["val"] = getattr(program, f"_{_NAME}_{name}")
    pixel = (PIXEL_SCALE, PIXEL_ZERO_POINT, *limits)
    with graph.inserting_before(readers[0]):
        integers = graph.call_function(decomposed.quantize_per_tensor.default, (image, *pixel))
        pixels = graph.call_function(decomposed.dequantize_per_tensor.default, (integers, *pixel))
        factors = graph.call_function(
            decomposed.dequantize_per_channel.default,
            (stored["weight"], stored["scale"], stored["zero_point"], 0, -WEIGHT_QMAX, WEIGHT_QMAX, torch.int8),
        )
        normalised = graph.call_function(
            aten.conv2d.default, (pixels, factors, stored["bias"], [1, 1], [0, 0], [1, 1], channels), name="normalised"
        )
    tag_weight(factors, _NAME)
    pixels.meta["val"] = normalised.meta["val"] = image.meta["val"]
    for reader in readers:
        reader.replace_input_with(image, normalised)
    program.recompile()


def _normaliser(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight int8 [C, 1, 1, 1], its scales float32 [C], the bias float32 [C] on the accumulator's grid."""
    scale = (1 / (255 * std.double()) / WEIGHT_QMAX).float()
    weight = torch.full((len(std), 1, 1, 1), WEIGHT_QMAX, dtype=torch.int8)
    step = scale.double() * PIXEL_SCALE
    bias = torch.round(-mean.double() / std.double() / step) * step
    return weight, scale, bias.float()
