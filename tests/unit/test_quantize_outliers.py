"""Outlying channels before a layer norm: factors of their own, exact in the converted program, and only there."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from kdedge import quantize
from kdedge.quantize import outliers
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from kdedge.quantize.scales import scaled_layers
from kdedge.recipe import Activations
from tests import small_nets
from torch import Tensor, nn
from torch.fx import GraphModule

WIDTH, LENGTH, OUTLIER = 64, 12, 5


class Residual(nn.Module):
    """A linear layer, its residual sum, a layer norm, a linear layer; one channel is ``outlier`` times as large."""

    def __init__(self, outlier: float, *, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.inner, self.norm = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.dropout, self.last = nn.Dropout(dropout), nn.Linear(WIDTH, 4)
        with torch.no_grad():
            self.inner.weight[OUTLIER] *= outlier
            self.norm.weight[OUTLIER] = 1 / outlier  # as trained nets have it: the channel is no louder after it
            self.norm.weight[:OUTLIER] *= outlier / 10
            self.norm.weight[OUTLIER + 1 :] *= outlier / 10

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        result: Tensor = self.last(self.norm(self.dropout(self.inner(x)) + x))
        return result


class Tied(nn.Module):
    """Two sums that read the results of layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        with torch.no_grad():
            self.inner.weight[OUTLIER] *= 100

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inner(x) + x)
        result: Tensor = self.norm(self.inner(x) + x)
        return result


class PreNorm(nn.Module):
    """The sum goes on beside its layer norm, and is read by another sum before the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for norm, layer in zip(self.norms, self.layers[1:], strict=False):
            x = x + layer(norm(x))
        result: Tensor = self.norms[-1](x)
        return result


def batches() -> Iterator[tuple[Tensor]]:
    """Normal features float32 [16, LENGTH, WIDTH]."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield (torch.randn(16, LENGTH, WIDTH, generator=generator),)


def calibrated(net: nn.Module) -> GraphModule:
    prepared = quantize.prepare_qat(net.eval(), next(batches()))
    quantize.calibrate(prepared, batches())
    quantize.set_observers(prepared, False)
    return prepared.eval()


def factors(prepared: GraphModule) -> list[Tensor]:
    return [layer.result.factors for layer in scaled_layers(prepared)]


def noise(net: nn.Module, prepared: nn.Module) -> float:
    """Root mean square distance from the float net's outputs."""
    with torch.no_grad():
        return float((prepared(*next(batches())) - net(*next(batches()))).square().mean().sqrt())


def test_an_outlier_gets_a_power_of_two_and_everything_else_gains() -> None:
    net = Residual(100.0).eval()
    prepared = calibrated(net)
    (found,) = factors(prepared)
    assert found[OUTLIER] >= 16 and math.log2(found[OUTLIER]).is_integer()
    assert (torch.cat([found[:OUTLIER], found[OUTLIER + 1 :]]) == 1).all()
    with_factors = noise(net, prepared)
    (layer,) = scaled_layers(prepared)
    layer.result.set_factors(torch.ones(WIDTH))
    quantize.set_observers(prepared, True)
    layer.result.min_val.mul_(found[OUTLIER])
    layer.result.max_val.mul_(found[OUTLIER])
    layer.result._update_qparams()
    assert with_factors < 0.3 * noise(net, prepared)


def test_without_outliers_there_are_no_factors_and_no_op_for_them() -> None:
    prepared = calibrated(Residual(1.0))
    assert (factors(prepared)[0] == 1).all()
    targets = [node.target for node in quantize.convert(prepared).graph.nodes]
    assert torch.ops.aten.mul.Tensor not in targets


@pytest.mark.parametrize("activations", ["affine", "symmetric"])
def test_the_converted_program_is_the_prepared_one_bit_for_bit(activations: Activations) -> None:
    prepared = quantize.prepare_qat(Residual(100.0, dropout=0.1), next(batches()), activations=activations)
    quantize.calibrate(prepared, batches())
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for inputs in batches():  # and after training, which moves weights, biases and ranges
        optimizer.zero_grad()
        prepared(*inputs).square().mean().backward()
        optimizer.step()
    quantize.set_observers(prepared, False)
    prepared.eval()
    converted = quantize.convert(prepared)
    assert torch.equal(converted(*next(batches())), prepared(*next(batches())))
    ours = {entry.name: entry for entry in quantize.qparams(converted)}
    assert [ours[entry.name] for entry in quantize.qparams(prepared)] == list(ours.values())
    assert (factors(prepared)[0] != 1).any()  # conversion left it alone


def test_sums_before_layer_norms_are_float_and_said_to_be() -> None:
    converted = quantize.convert(calibrated(Residual(100.0)))
    reasons = {entry.op: entry.reason for entry in quantize.float_ops(converted)}
    assert set(reasons) == {"aten.layer_norm.default", "aten.add.Tensor", "aten.mul.Tensor"}
    assert reasons["aten.add.Tensor"] == reasons["aten.mul.Tensor"] == "only layer norms read it, which are float"
    assert quantize.integer_macs_share(converted) == 1.0


def test_what_a_layer_norm_made_is_added_without_its_grid() -> None:
    prepared = calibrated(Residual(1.0))
    (add,) = [node for node in prepared.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert torch.ops.aten.layer_norm.default in [node.target for node in add.all_input_nodes]


def test_a_whole_stream_of_sums_is_float_where_layer_norms_alone_read_it() -> None:
    prepared = calibrated(PreNorm())
    assert [node.target for node in prepared.graph.nodes].count(torch.ops.aten.add.Tensor) == 2
    converted = quantize.convert(prepared)
    assert [entry.op for entry in quantize.float_ops(converted)].count("aten.add.Tensor") == 2
    assert torch.equal(converted(*next(batches())), prepared(*next(batches())))


def test_layers_that_share_a_weight_have_no_factors() -> None:
    net = Tied().eval()
    prepared = calibrated(net)
    assert factors(prepared) == []
    assert torch.equal(quantize.convert(prepared)(*next(batches())), prepared(*next(batches())))


def test_factors_travel_with_the_state() -> None:
    prepared = calibrated(Residual(100.0))
    again = quantize.prepare_qat(Residual(100.0), next(batches())).eval()
    assert not next(scaled_layers(again)).result.has_factors
    quantize.load_quantised_state(again, quantize.quantised_state(prepared))
    assert torch.equal(factors(again)[0], factors(prepared)[0])
    assert torch.equal(again(*next(batches())), prepared(*next(batches())))


@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_channels_that_are_all_but_zero_do_no_harm(size: float) -> None:
    net = Residual(1.0).eval()
    with torch.no_grad():
        net.inner.weight[: WIDTH - 8] *= size
        net.inner.bias[: WIDTH - 8] *= size
    prepared = calibrated(net)
    assert factors(prepared)[0].max() <= outliers.MOST
    assert torch.equal(quantize.convert(prepared)(*next(batches())), prepared(*next(batches())))
    with torch.no_grad():
        assert noise(net, prepared) < 0.05 * float(net(*next(batches())).std())


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_nets_without_layer_norms_have_no_factors_in_their_state(name: str) -> None:
    prepared = quantize.prepare_qat(small_nets.build(name), (torch.zeros(2, 3, 16, 16),))
    assert not any(key.endswith(".factors") for key in quantize.quantised_state(prepared))
    assert not any(m.channels for m in prepared.modules() if isinstance(m, ActivationFakeQuantize))
