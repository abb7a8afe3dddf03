from __future__ import annotations

import math

import pytest
import torch
from kdedge import quantize
from kdedge.quantize.bias import set_bias_quantize
from kdedge.quantize.explain import sqnr_db
from kdedge.quantize.scales import quantisers
from tests import small_nets
from torch import Tensor, nn


def prepared(net: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    graph = quantize.prepare_qat(net.eval(), (x[:2],))
    quantize.calibrate(graph, [(x,)])
    return graph


def test_uniform_noise_of_eight_bits_has_the_ratio_of_theory() -> None:
    """A uniform signal over the whole range of 255 steps: 20·log10(255) ≈ 48.1 dB."""
    torch.manual_seed(0)
    x = torch.rand(64, 1000) * 2 - 1
    graph = prepared(nn.Sequential(nn.Linear(1000, 4)), x)
    (source,) = [error for error in quantize.explain(graph, [(x,)]) if error.name == "input_1"]
    assert source.sqnr_db == pytest.approx(20 * math.log10(255), abs=0.5)
    assert source.clamped_share < 0.01
    assert sqnr_db(1.0, 0.0) is None


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_every_quantised_tensor_is_there_and_all_switches_are_as_before(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    graph = prepared(small_nets.build(name), x)
    quantize.set_observers(graph, False)
    set_bias_quantize(graph, False)
    graph.eval()
    before = graph(x)
    graph.train()
    errors = quantize.explain(graph, [(x[:8],), (x[8:],)])
    assert len(errors) == len(list(quantisers(graph)))  # tensors that share a scale are one
    assert graph.training
    graph.eval()
    torch.testing.assert_close(graph(x), before, rtol=0, atol=0)
    ratios = [math.inf if e.logits_sqnr_db is None else e.logits_sqnr_db for e in errors]
    assert ratios == sorted(ratios)


def test_a_layer_with_an_outlier_is_named_first() -> None:
    """One input channel of a weight 50 times as large as the rest leaves the others few of the 255 steps."""
    torch.manual_seed(0)
    first_layer, second = nn.Linear(32, 32), nn.Linear(32, 32)
    net = nn.Sequential(first_layer, nn.ReLU(), second, nn.ReLU(), nn.Linear(32, 5))
    x = torch.randn(64, 32)
    with torch.no_grad():
        second.weight[:, 7] *= 50.0
        first_layer.weight[7] = 0.0
        first_layer.bias[7] = 0.0
    first = quantize.explain(prepared(net, x), [(x,)])[0]
    assert (first.name, first.kind) == ("2.weight", "weight")
    lines = quantize.in_lines(quantize.explain(prepared(net, x), [(x,)]), 3)
    assert len(lines) == 4
    assert lines[1].startswith("2.weight")


def test_an_activation_range_forced_wide_is_named_first() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    x = torch.randn(64, 32)
    graph = quantize.prepare_qat(net.eval(), (x[:2],))
    wide = x.clone()
    wide[0] *= 100.0
    quantize.calibrate(graph, [(wide,)])
    assert quantize.explain(graph, [(x,)])[0].kind == "activation"
