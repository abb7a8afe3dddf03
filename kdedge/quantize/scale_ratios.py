"""Scales whose ratios the runtimes' kernels can compute.

An int8 kernel brings the step of what it reads to the step of what it makes by an integer multiplier and a shift, and
kernels take ratios within limits only: XNNPACK those below, TFLite's hard swish none from 128 on, ONNX Runtime's global
pool none beyond 256. A net whose ranges were simply observed can lie outside: a tensor that is zero throughout has no
range at all, and a clamp to [0, 6] of values in the thousands, or the difference of two large and like tensors, makes
steps that its inputs' grids cannot reach. One such pair keeps the whole file from being opened.

Where the output's step is too fine for its input's, it is widened: below a 64th of the input's step it holds nothing.
Where an input's step is too fine for its output's, it is widened if nobody that reads it loses by that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from kdedge.quantize.fake_quantize import ActivationFakeQuantize, FakeQuantizer
from kdedge.quantize.rules import CLIPS, fused_activation, rule_of
from kdedge.quantize.scales import quantiser_calls, quantiser_of
from kdedge.quantize.stored import stored_value
from kdedge.quantize.weight_quantize import WeightFakeQuantize

aten = torch.ops.aten

# Limits of step of the input / step of the output, of layers and products with the other factor's step in it.
_ADD, _PRODUCT, _MEAN, _LAYER = (2.0**-10, 2.0**8), (2.0**-16, 2.0**8), (2.0**-8, 2.0**8), (0.0, 2.0**8)
_CLIP, _HARDSWISH = (2.0**-8, 2.0**7), (0.0, 2.0**7)
_LIMITS: dict[object, tuple[float, float]] = {
    aten.add.Tensor: _ADD,
    aten.sub.Tensor: _ADD,
    aten.mul.Tensor: _PRODUCT,
    aten.matmul.default: _PRODUCT,
    aten.bmm.default: _PRODUCT,
    aten.mean.dim: _MEAN,
    aten.adaptive_avg_pool2d.default: _MEAN,
    aten.hardswish.default: _HARDSWISH,
    **dict.fromkeys(CLIPS, _CLIP),
}
_PRODUCTS = (aten.mul.Tensor, aten.matmul.default, aten.bmm.default)
# How far within its limits a ratio that is mended ends up.
_MARGIN = 2.0
# A layer's output step in steps of its accumulator, where nothing else says how fine a step of zeros is.
_UNSEEN = 2.0**-8


@dataclass(frozen=True)
class _Reading:
    """One input of a kernel: ``ratio = factor · input.scale / output.scale`` must lie in [lowest, highest)."""

    input: FakeQuantizer  # of an activation, or of the table that it was looked up in
    others: tuple[FakeQuantizer, ...]
    output: ActivationFakeQuantize
    lowest: float
    highest: float

    @property
    def factor(self) -> float:
        """Of the other operands: the largest step of a weight, the step of a second tensor."""
        found = 1.0
        for other in self.others:
            found *= float(other.scale.max())
        return found

    @property
    def ratio(self) -> float:
        """Of the steps in use."""
        return self.factor * float(self.input.scale) / float(self.output.scale)


@dataclass(frozen=True)
class WidenedScale:
    """An activation whose steps are coarser than its range asks for, since kernels could not compute it otherwise.

    Attributes:
        name: Of the tensor.
        factor: Its scale over the one that its range asks for; None where it is zero throughout.
    """

    name: str
    factor: float | None


def widened_scales(prepared: GraphModule) -> list[WidenedScale]:
    """What ``fit_scales`` widened, in graph order; known of a loaded state too, since ranges are part of it."""
    found = []
    for node, module in quantiser_calls(prepared):
        if isinstance(module, ActivationFakeQuantize) and (factor := module.widened) > 1:
            found.append(WidenedScale(node.all_input_nodes[0].name, factor if math.isfinite(factor) else None))
    return found


@torch.no_grad()
def fit_scales(prepared: GraphModule) -> None:
    """Widen activation scales until every kernel can compute its ratios, in place; ``widened_scales`` names them.

    Args:
        prepared: From ``prepare_qat``, its ranges observed; what was not observed yet is left alone.
    """
    readings = list(_readings(prepared))
    for _ in readings:  # a scale may push the next one, in either direction, and so on to the end of the graph
        changed = False
        for reading in readings:
            if reading.ratio >= reading.highest and reading.output.widen(_coarse_enough(reading)):
                changed = True
        for reading in reversed(readings):
            scale = _wanted(reading)
            if scale is not None and _is_harmless(reading, scale, readings) and _widen(reading.input, scale):
                changed = True
        if not changed:
            break
        _observe_weights(prepared)


def _observe_weights(prepared: GraphModule) -> None:
    """A weight's scale leaves room for its bias, which is counted in steps of the input."""
    for node, module in quantiser_calls(prepared):
        if isinstance(module, WeightFakeQuantize) and module.observing:
            module.observe(stored_value(prepared, node.all_input_nodes[0]))


def _coarse_enough(reading: _Reading) -> float:
    """A scale of the output that brings a ratio under its upper limit; where it may be, it holds the upper bound."""
    least = reading.factor * float(reading.input.scale) / reading.highest
    high = reading.output.high
    steps = math.floor(high / least * 0.999) if high is not None else 0
    return high / steps if high is not None and steps >= 1 else least * _MARGIN


def _wanted(reading: _Reading) -> float | None:
    """The least scale of the input that keeps a ratio off its lower limit, or None where the ratio is fine."""
    lowest = reading.lowest * _MARGIN
    if not reading.lowest and _is_dead(reading.input):
        lowest = _UNSEEN
    elif reading.ratio >= reading.lowest:
        return None
    return lowest * float(reading.output.scale) / reading.factor


def _widen(module: FakeQuantizer, scale: float) -> bool:
    return isinstance(module, ActivationFakeQuantize) and module.widen(scale)


def _is_dead(module: FakeQuantizer) -> bool:
    """Whether it is an activation's, and only zeros were seen."""
    if not isinstance(module, ActivationFakeQuantize) or module.fixed:
        return False
    return float(module.min_val) == float(module.max_val) == 0.0


def _is_harmless(reading: _Reading, scale: float, readings: list[_Reading]) -> bool:
    """Whether the input may have that scale: zeros lie on any grid; other values, if no reader sees the difference."""
    if _is_dead(reading.input):
        return True
    fine = (other for other in readings if other.input is reading.input)
    return all(scale * other.factor / float(other.output.scale) <= 2.0**-6 for other in fine)


def _readings(prepared: GraphModule) -> Iterator[_Reading]:
    for node in prepared.graph.nodes:
        rule = rule_of(node)
        output = _made(prepared, node)
        if rule is None or rule.kind in ("move", "lookup") or output is None:
            continue
        operands = [quantiser_of(prepared, node.args[position]) for position in rule.inputs]
        weights = [] if rule.weight is None else [quantiser_of(prepared, node.args[rule.weight])]
        limits = _LIMITS.get(node.target) if rule.weight is None else _LAYER
        for position, operand in enumerate(operands):
            others = [operands[1 - position]] if node.target in _PRODUCTS else weights
            known = [module for module in (operand, *others) if module is not None and _has_scale(module)]
            if limits is None or operand is output or len(known) <= len(others) or not output.calibrated:
                continue
            yield _Reading(known[0], tuple(known[1:]), output, *limits)


def _has_scale(module: FakeQuantizer) -> bool:
    return not isinstance(module, ActivationFakeQuantize) or module.calibrated


def _made(prepared: GraphModule, node: Node) -> ActivationFakeQuantize | None:
    """The quantiser of what an op makes, behind the activation that its kernel takes in."""
    made = fused_activation(node) or node
    found = {quantiser_of(prepared, user) for user in made.users if user.op == "call_module"} - {None}
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, ActivationFakeQuantize) else None
