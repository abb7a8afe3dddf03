"""Fake-quantize modules of weights; the formula and its gradient are those of ``fake_quantize.py``."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from kdedge.quantize.fake_quantize import TINY_SCALE, FakeQuantizer

WEIGHT_QMAX = 127
# A channel whose weights are all smaller than this share of the layer's largest is quantised as if it reached it.
# What such weights add is below one step of any activation; dead channels (folded batch norm leaves weights of 1e-20
# beside ordinary biases) would otherwise ask for absurdly small scales.
SMALLEST_CHANNEL = 2.0**-10
# A bias is stored in int32 steps of ``s_input · s_weight``, half of which are left for the sum of products.
LARGEST_BIAS = 2**30


class _RoundWeight(torch.autograd.Function):
    """Quantize and dequantize by a scale that broadcasts against the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, qmax: int, clamps: bool) -> Tensor:
        """``weight`` float; ``clamps`` is False where the scale was just taken from it. Returns a tensor like it."""
        steps = weight * (1.0 / scale)
        if not clamps:
            return steps.round_().mul_(scale)
        ctx.save_for_backward(steps)
        ctx.bound = qmax + 0.5
        return steps.round().clamp_(-qmax, qmax).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient where nothing was clamped, zero elsewhere."""
        if not ctx.saved_tensors:
            return grads[0], None, None, None
        (steps,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], steps, -ctx.bound, ctx.bound), None, None, None


class WeightFakeQuantize(FakeQuantizer):
    """Symmetric int8 in [-127, 127], one scale for each output channel: ``max|w| / 127``, more where a bias needs it.

    A layer that is all but dead has weights, or an input, so small that its bias would not fit into int32. Then the
    weights take larger steps: all that they add is less than a step of the layer's output anyway.

    While ``observing`` the scales follow the weights in every forward, in evaluation too: they depend on
    nothing else. Frozen, they stay and large weights clamp.

    Args:
        channels: Length of the weight's output-channel axis.
        ch_axis: That axis.
    """

    qscheme = torch.per_channel_symmetric
    quant_min, quant_max = -WEIGHT_QMAX, WEIGHT_QMAX

    def __init__(self, channels: int, ch_axis: int = 0, **_: Any) -> None:
        super().__init__()
        self.ch_axis = ch_axis
        self._biases: list[tuple[FakeQuantizer, Tensor, float]] = []
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with ``channels`` along ``ch_axis``; the same shape, on the grid if ``quantizing``."""
        if self.observing:
            self.observe(weight)
        if not self.quantizing:
            return weight
        scale = self.steps(weight.ndim)
        rounded = _RoundWeight.apply(weight, scale, self.quant_max, not self.observing)  # type: ignore[no-untyped-call]
        return cast(Tensor, rounded)

    def leave_room_for(self, bias: Tensor, factor: float, source: FakeQuantizer) -> None:
        """Keep the steps large enough for a layer's bias.

        Args:
            bias: The parameter, float [channels], which may be trained on.
            factor: The layer adds so many times that.
            source: Quantiser of the layer's input.
        """
        self._biases.append((source, bias, factor))

    def steps(self, ndim: int) -> Tensor:
        """The scales, in a shape that broadcasts against a weight of ``ndim`` axes."""
        shape = [1] * ndim
        shape[self.ch_axis] = -1
        return self.scale.view(shape)

    @torch.no_grad()
    def observe(self, weight: Tensor) -> None:
        """Take the scales from the weights; see ``SMALLEST_CHANNEL`` for dead channels, ``LARGEST_BIAS`` for layers."""
        axes = [axis for axis in range(weight.ndim) if axis != self.ch_axis]
        values = weight.detach().float()
        largest = torch.maximum(values.amax(dim=axes), -values.amin(dim=axes))
        floor = (largest.max() * SMALLEST_CHANNEL).clamp(min=TINY_SCALE)
        scale = torch.maximum(largest, floor) / self.quant_max
        for source, bias, factor in self._biases:
            least = bias.detach().abs() * (abs(factor) / LARGEST_BIAS) / source.calculate_qparams()[0]
            scale = torch.maximum(scale, least if least.numel() == scale.numel() else least.max())
        self.scale.copy_(scale)


class TableFakeQuantize(WeightFakeQuantize):
    """Symmetric int8 in [-127, 127] with one scale for a whole table of embeddings: ``max|w| / 127``.

    One scale, since looking up moves integers: the kernels of TFLite (GATHER) and of ONNX Runtime (Gather between
    DequantizeLinear and QuantizeLinear) copy rows and know no scale by row or column.
    """

    qscheme = torch.per_tensor_symmetric

    def __init__(self, **_: Any) -> None:
        super().__init__(channels=1, ch_axis=-1)
