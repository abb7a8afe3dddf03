"""Scales that kernels could not bring together are widened, the others stay what was observed."""

from __future__ import annotations

import pytest
import torch
from kdedge import quantize
from kdedge.quantize.fake_quantize import TINY_SCALE
from kdedge.quantize.scale_ratios import fit_scales
from tests.both_runtimes import calibrated, prepare
from tests.random_nets import Net, Node, samples
from tests.unit.test_quantize_properties import check
from torch import nn

CLAMP = {"low": 0.0, "high": 6.0}
LAYER = {"channels": 3, "kernel": 1}
CLASSIFIER = (Node("flatten", (3,)), Node("linear", (4,), {"channels": 2}))
# Without it LiteRT refused the first five files, or ended the process, and ONNX Runtime the one with the pool.
REFUSED = {
    "a clamp of values in the ten thousands": Net(
        (Node("clamp", (0,), CLAMP), Node("conv", (1,), LAYER), Node("conv", (0,), LAYER), Node("concat", (2, 3))),
        shape=(3, 5, 5),
        scale=1e4,
    ),
    "hard swish of values in the ten thousands": Net((Node("hardswish"),), shape=(3, 5, 5), scale=1e4, offset=-2.0),
    "a difference of like tensors": Net(
        (Node("conv", (0,), LAYER), Node("add", (1, 0)), Node("sub", (2, 1)), Node("sub", (3, 0))),
        shape=(3, 5, 5),
        scale=1e4,
    ),
    "a sum with zeros": Net((Node("conv", (0,), LAYER), Node("add", (0, 1))), shape=(3, 5, 5), inputs="zeros"),
    "a product with zeros": Net(
        (Node("conv", (0,), LAYER), Node("mul", (0, 1)), Node("global_avg", (2,)), *CLASSIFIER),
        shape=(3, 5, 5),
        inputs="zeros",
    ),
    "a layer whose outputs a ReLU makes zeros": Net(
        (
            Node("conv", (0,), {**LAYER, "fill": "positive", "bias": False}),
            Node("relu", (1,)),
            Node("global_avg", (2,)),
            *CLASSIFIER,
        ),
        shape=(3, 5, 5),
        inputs="uniform",
        offset=-2.0,
    ),
}


@pytest.mark.parametrize("net", REFUSED.values(), ids=REFUSED.keys())
def test_what_kernels_refused_runs_and_agrees(net: Net) -> None:
    check([net])


@pytest.mark.parametrize("net", REFUSED.values(), ids=REFUSED.keys())
def test_a_second_fit_changes_nothing(net: Net) -> None:
    prepared = calibrated([net])
    before = quantize.qparams(prepared)
    fit_scales(prepared)
    assert quantize.qparams(prepared) == before


def test_a_clamp_keeps_its_bound_on_a_coarse_grid() -> None:
    net = REFUSED["a clamp of values in the ten thousands"]
    scales = {q.name: q.scale[0] for q in quantize.qparams(calibrated([net]))}
    assert scales["a"] > 200
    assert (6.0 / scales["clamp"]) % 1 == pytest.approx(0, abs=1e-5)
    assert scales["a"] / scales["clamp"] < 128


def test_what_was_widened_is_named_with_how_much_also_of_a_loaded_state() -> None:
    net = REFUSED["a clamp of values in the ten thousands"]
    prepared = calibrated([net])
    (found,) = (scale for scale in quantize.widened_scales(prepared) if scale.name == "clamp")
    (made,) = (q.scale[0] for q in quantize.qparams(prepared) if q.name == "clamp")
    assert found.factor == pytest.approx(made / (6 / 255), rel=1e-4)
    loaded = prepare([net])
    quantize.load_quantised_state(loaded, quantize.quantised_state(prepared))
    assert quantize.widened_scales(loaded) == quantize.widened_scales(prepared)


def test_a_tensor_of_zeros_is_named_without_a_factor() -> None:
    prepared = calibrated([REFUSED["a layer whose outputs a ReLU makes zeros"]])
    assert quantize.WidenedScale("relu", None) in quantize.widened_scales(prepared)


def test_a_live_input_keeps_its_steps_where_another_reader_needs_them() -> None:
    """x is a millionth of what it is added to, and what a layer enlarges: no scale of x serves both."""

    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            nn.init.eye_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, self.layer(x)

    x, y = torch.randn(8, 4) * 1e-3, torch.randn(8, 4) * 1e3
    prepared = quantize.prepare_qat(TwoReaders(), (x, y))
    quantize.calibrate(prepared, [(x, y)])
    scales = {q.name: q.scale[0] for q in quantize.qparams(prepared)}
    assert scales["x"] < 1e-4


def test_ordinary_ranges_are_those_of_the_data() -> None:
    net = Net((Node("conv", (0,), LAYER), Node("relu", (1,)), Node("add", (2, 0))), shape=(3, 5, 5))
    prepared = calibrated([net])
    scales = {q.name: q.scale[0] for q in quantize.qparams(prepared)}
    low, high = (float(extreme) for extreme in torch.aminmax(samples(net, 32)))
    assert scales["a"] == pytest.approx((high - low) / 255, rel=1e-5)
    assert quantize.widened_scales(prepared) == []


def test_ranges_that_are_observed_on_are_fitted_again_when_they_freeze() -> None:
    net = REFUSED["a layer whose outputs a ReLU makes zeros"]
    prepared = calibrated([net])
    widened = quantize.qparams(prepared)
    quantize.set_observers(prepared, True)
    prepared.train()
    prepared(samples(net, 32))
    scales = {q.name: q.scale[0] for q in quantize.qparams(prepared)}
    assert scales["relu"] <= 2 * TINY_SCALE
    quantize.set_observers(prepared, False)
    assert quantize.qparams(prepared) == widened


def test_an_input_that_is_only_clamped_has_the_range_of_the_clamp() -> None:
    net = Net((Node("clamp", (0,), CLAMP), Node("conv", (1,), LAYER)), shape=(3, 5, 5), scale=1e4)
    scales = {q.name: q.scale[0] for q in quantize.qparams(calibrated([net]))}
    assert scales["a"] == pytest.approx(6 / 255)
