"""Fake-quantize modules: what the int8 arithmetic of the device does to a tensor, differentiable.

Formula, forward: ``y = (clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale``;
backward: the gradient passes where nothing was clamped (straight-through estimator, Bengio et al. 2013,
arXiv:1308.3432; the scheme itself: Jacob et al. 2018, arXiv:1712.05877).

torch's own modules are not used for two reasons, both measured: its fake-quantize kernel handles one
element at a time on a CPU (five times slower than the vectorised passes here), and its fused kernel
and its observers compute scales by different rules, so that a net trains with other scales than the
converted program carries. Here training, conversion and the saved state share one pair of buffers,
``scale`` and ``zero_point``.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from kdedge.errors import ModelError
from kdedge.ranks import extremes_over_ranks

ACTIVATION_QMIN, ACTIVATION_QMAX = -128, 127
# The moving average forgets with this rate a batch, torch's default too.
AVERAGING_CONSTANT = 0.01
# Smallest scale; only there so that a tensor of zeros does not divide by zero.
TINY_SCALE = 1e-12
# How far below the smallest row maximum the range of a softmax's input reaches, in nats. What saturates there weighs at
# most exp(-12) of its row's largest: 127 masked tokens together a fifth of the output's step of 1/256.
SOFTMAX_DEPTH = 12.0


class _RoundActivation(torch.autograd.Function):
    """Quantize and dequantize by numbers; keeps nothing but ``x``, which other ops keep anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, qmin: int, qmax: int) -> Tensor:
        """``x`` float of any shape; ``qmin`` and ``qmax`` relative to the zero point. Returns a tensor like ``x``."""
        ctx.save_for_backward(x)
        ctx.bounds = ((qmin - 0.5) * scale, (qmax + 0.5) * scale)
        return (x * (1.0 / scale)).round_().clamp_(qmin, qmax).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient where nothing was clamped, zero elsewhere."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], x, *ctx.bounds), None, None, None


class FakeQuantizer(FakeQuantizeBase):  # type: ignore[misc]
    """What activation and weight quantisers share: switches, qparams, and what torchao's convert asks for.

    ``observing`` and ``quantizing`` are plain attributes, not buffers: the training loop owns the phase
    and sets it after loading a state; reading a buffer in every forward would also stall a GPU.
    """

    scale: Tensor
    zero_point: Tensor
    dtype = torch.int8
    is_dynamic = False

    def __init__(self) -> None:
        nn.Module.__init__(self)  # not FakeQuantizeBase's: its switches are buffers
        self.observing = True
        self.quantizing = True

    def enable_observer(self, enabled: bool = True) -> None:
        """Let the ranges follow the data, or freeze them."""
        self.observing = enabled

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round to the grid, or pass the float values through."""
        self.quantizing = enabled

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """The scale (float32) and zero point (int32) in use: shape [1] or [channels]."""
        return self.scale, self.zero_point

    def extra_repr(self) -> str:
        """What is in use, for ``print(model)``."""
        switches = f"observing={self.observing}, quantizing={self.quantizing}"
        return f"{switches}, qmin={self.quant_min}, qmax={self.quant_max}"


class ActivationFakeQuantize(FakeQuantizer):
    """Affine int8 over a whole tensor; the range is a moving average of the batches' minima and maxima.

    The range always holds zero. It moves only while ``observing`` and in training mode, so that an evaluation
    between two epochs never leaks into the ranges.

    Args:
        low: The tensor's values are known never to lie below (0 after a ReLU); None where nothing is known.
        high: Likewise above (6 after a ReLU6). ``high`` also keeps ``255·scale`` at or below it, which
            is what ONNX Runtime asks for before it drops the Clip.
        fixed: (scale, zero point) prescribed by the runtimes' kernels; then nothing is observed.
        symmetric: The zero point is 0, and the range as wide on either side of it.
        members: How many tensors of one pass share this quantiser; the range covers all of them.
        softmax_axis: Set for the input of a softmax over that axis. The range is then that of the scores that matter,
            from ``SOFTMAX_DEPTH`` below the smallest row maximum to the largest score of the pass's last member;
            lower ones, masked ones above all, saturate.
        channels: Length of the last axis where its channels may have factors (``outliers.py``), which what is quantised
            is divided by first and multiplied by after; 0 where they may not.
    """

    qscheme = torch.per_tensor_affine
    quant_min, quant_max = ACTIVATION_QMIN, ACTIVATION_QMAX
    ch_axis = -1

    min_val: Tensor
    max_val: Tensor
    factors: Tensor

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        fixed: tuple[float, int] | None = None,
        symmetric: bool = False,
        members: int = 1,
        softmax_axis: int | None = None,
        channels: int = 0,
        **_: Any,
    ) -> None:
        super().__init__()
        self.low, self.high, self.fixed = low, high, fixed is not None
        self.symmetric, self.softmax_axis, self.channels = symmetric, softmax_axis, channels
        self.averaging = AVERAGING_CONSTANT
        if channels:
            self.register_buffer("factors", torch.ones(channels))
        self._has_factors: bool | None = None
        scale, zero_point = fixed or (1.0, 0)
        extremes = (self.quant_min - zero_point, self.quant_max - zero_point) if fixed else (math.inf, -math.inf)
        self.register_buffer("min_val", torch.tensor(scale * extremes[0]))
        self.register_buffer("max_val", torch.tensor(scale * extremes[1]))
        self.register_buffer("scale", torch.full((1,), scale))
        self.register_buffer("zero_point", torch.full((1,), zero_point, dtype=torch.int32))
        self._numbers: tuple[float, int] | None = None
        self._members = members
        self._seen: list[tuple[Tensor, Tensor]] = []  # extremes of this pass, until every member was met
        self._started = fixed is not None  # whether the range holds a whole pass

    @property
    def calibrated(self) -> bool:
        """Whether any data was seen (or a state loaded)."""
        return bool(self.min_val <= self.max_val)

    @property
    def has_factors(self) -> bool:
        """Whether any channel has another factor than 1."""
        if self._has_factors is None:
            self._has_factors = self.channels > 0 and bool((self.factors != 1).any())
        return self._has_factors

    def set_factors(self, factors: Tensor) -> None:
        """Take these, float [channels], powers of two so that dividing by them is exact; the range is not changed."""
        self.factors.copy_(factors)
        self._has_factors = None

    def steps(self) -> Tensor:
        """The size of a step: float [1], or [channels] where these have factors."""
        return self.scale * self.factors if self.has_factors else self.scale

    def widen(self, scale: float) -> bool:
        """Have at least that scale, with the zero point as it is, until the range is observed anew.

        Returns:
            Whether that changed anything; a prescribed scale stays.
        """
        if self.fixed or scale <= float(self.scale) * (1 + 1e-6):  # as float32 holds it
            return False
        self.scale.fill_(scale)
        self._numbers = None
        return True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape; the same shape and dtype, on the int8 grid if ``quantizing``."""
        if self.has_factors:
            return self._round(x / self.factors) * self.factors
        return self._round(x)

    def _round(self, x: Tensor) -> Tensor:
        if self.observing and self.training and not self.fixed:
            self._observe(x.detach())
        if not self.quantizing:
            return x
        if x.is_cuda or x.dtype != torch.float32:
            # On a GPU reading the scale would stall the stream, and torch's kernel is fast there.
            rounded = torch.fake_quantize_per_tensor_affine(
                x.float(), self.scale, self.zero_point, self.quant_min, self.quant_max
            )
            return rounded.to(x.dtype)
        scale, zero_point = self._numbers or self._read_numbers()
        bounds = self.quant_min - zero_point, self.quant_max - zero_point
        return cast(Tensor, _RoundActivation.apply(x, scale, *bounds))  # type: ignore[no-untyped-call]

    def _read_numbers(self) -> tuple[float, int]:
        self._numbers = (float(self.scale), int(self.zero_point))
        return self._numbers

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        """Take in one tensor; the average moves once a pass, by the extremes over all members."""
        self._seen.append(self._extremes(x))
        complete = len(self._seen) == self._members
        if self._started and not complete:
            return
        seen = self._seen if self.softmax_axis is None else self._seen[-1:]
        low = torch.stack([extremes[0] for extremes in seen]).min().float()
        high = torch.stack([extremes[1] for extremes in seen]).max().float()
        low, high = extremes_over_ranks(low, high)
        if self._started:
            self.min_val.lerp_(low, self.averaging)
            self.max_val.lerp_(high, self.averaging)
        else:
            self.min_val.copy_(low)
            self.max_val.copy_(high)
        self._update_qparams()
        if complete:
            self._started, self._seen = True, []

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.softmax_axis is None:
            return cast(tuple[Tensor, Tensor], torch.aminmax(x))
        lowest, highest = torch.aminmax(x.amax(self.softmax_axis))
        return lowest - SOFTMAX_DEPTH, highest

    @property
    def widened(self) -> float:
        """Scale over the one that the range asks for: above 1 after ``widen``, infinite where only zeros were seen."""
        if self.fixed or not self.calibrated:
            return 1.0
        wanted = float(self._of_range()[0])
        factor = float(self.scale) / wanted
        if factor <= 1 + 1e-6:  # as float32 holds it
            return 1.0
        return math.inf if wanted <= TINY_SCALE else factor

    def _update_qparams(self) -> None:
        """Scale and zero point from the running range; all on the tensor's device, without a stall."""
        scale, zero_point = self._of_range()
        self.scale.copy_(scale.reshape(1))
        self.zero_point.copy_(zero_point.reshape(1).to(torch.int32))
        self._numbers = None

    def _of_range(self) -> tuple[Tensor, Tensor]:
        low = self.min_val.clamp(max=0.0)
        high = self.max_val.clamp(min=0.0)
        if self.low is not None:
            low = low.clamp(min=min(self.low, 0.0))
        if self.high is not None:
            high = high.clamp(max=max(self.high, 0.0))
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high * (-self.quant_min / self.quant_max)
        levels = self.quant_max - self.quant_min
        scale = ((high - low) / levels).clamp(min=TINY_SCALE)
        if self.high is not None and self.low == 0.0 and not self.symmetric:
            # The float32 quotient may round up by one unit: 255·scale must not exceed ``high``.
            scale = torch.where(scale * levels > high, torch.nextafter(scale, torch.zeros_like(scale)), scale)
        zero_point = (self.quant_min - torch.round(low / scale)).clamp(self.quant_min, self.quant_max)
        return scale, zero_point

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.buffers_changed()

    def buffers_changed(self) -> None:
        """Forget what was read from the buffers: others were put into them."""
        self._numbers, self._seen, self._started, self._has_factors = None, [], self.calibrated, None

    def _apply(self, fn: Any, recurse: bool = True) -> ActivationFakeQuantize:
        self._numbers = None
        super()._apply(fn, recurse)
        return self


def require_calibrated(name: str, module: nn.Module) -> None:
    """Refuse a quantiser that never saw data, or saw NaN or infinity.

    Raises:
        ModelError: its range is unknown, so nothing can be converted.
    """
    if not isinstance(module, ActivationFakeQuantize):
        return
    extremes = float(module.min_val), float(module.max_val)
    if extremes != (math.inf, -math.inf) and not all(map(math.isfinite, extremes)):
        raise ModelError(
            "a quantised tensor held NaN or infinity, so that no range covers it",
            where=name,
            cure="Look for such values in the weights and the data; mask attention by a large finite number",
        )
    if not module.calibrated:
        raise ModelError(
            "a quantised tensor never saw data, so its range is unknown",
            where=name,
            cure="Run at least one batch through the prepared model in training mode before converting it",
        )
