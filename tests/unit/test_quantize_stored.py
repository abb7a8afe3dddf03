"""What a graph stores: slices stored as such, plain factors taken into weights, both without changing the function."""

from __future__ import annotations

import pytest
import torch
from kdedge import quantize
from kdedge.quantize.capture import capture
from torch import Tensor, nn

EXAMPLE = (torch.zeros(2, 6, 8),)


class Scaled(nn.Module):
    """A linear layer whose result is reshaped and multiplied by a number."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8, bias=bias), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).view(-1, 6, 2, 4).transpose(1, 2) * 0.3
        result: Tensor = self.last(y.transpose(1, 2).reshape(-1, 6, 8))
        return result


class ReadTwice(nn.Module):
    """The layer's result is read with and without the factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + y * 0.3


class Positions(nn.Module):
    """The first rows of a table, and a column of a parameter that is also read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 8))
        self.shared = nn.Parameter(torch.randn(6, 8))
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x + self.table[:6] + self.shared + self.shared[0])
        return result


class OneWeight(nn.Module):
    """Two layers of one weight, the second with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(self.first(x).relu()).relu())
        return result


class Tied(nn.Module):
    """A table whose rows are looked up and multiplied with the table again, as language models do."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 50)) if bias else None
        self.table = nn.Parameter(torch.randn(50, 8) * torch.linspace(0.1, 1, 50)[:, None])

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.embedding(ids, self.table), self.table, self.bias)


@pytest.mark.parametrize(
    "net", [Scaled(), Scaled(bias=False), ReadTwice(), Positions(), OneWeight()], ids=lambda n: type(n).__name__
)
def test_the_function_stays_and_conversion_is_exact(net: nn.Module) -> None:
    x = torch.randn(16, 6, 8)
    torch.testing.assert_close(capture(net, EXAMPLE)(x), net(x))
    prepared = quantize.prepare_qat(net, EXAMPLE)
    quantize.calibrate(prepared, [(x,)])
    quantize.set_observers(prepared, False)
    prepared.eval()
    converted = quantize.convert(prepared)
    assert torch.equal(converted(x), prepared(x))
    assert quantize.float_ops(converted) == []


def test_a_factor_costs_no_op_and_the_weight_trains_without_it() -> None:
    net = Scaled()
    prepared = quantize.prepare_qat(net, EXAMPLE)
    assert torch.equal(prepared.get_parameter("layer.weight"), net.layer.weight)
    quantize.calibrate(prepared, [(torch.randn(16, 6, 8),)])
    converted = quantize.convert(prepared)
    assert not any(node.target is torch.ops.aten.mul.Tensor for node in converted.graph.nodes)
    scales = {q.name: q for q in quantize.qparams(converted)}
    expected = 0.3 * net.layer.weight.detach().abs().amax(1) / 127
    torch.testing.assert_close(torch.tensor(scales["layer.weight"].scale), expected)


def test_a_factor_on_a_result_that_is_read_twice_stays_an_op() -> None:
    assert any(node.target is torch.ops.aten.mul.Tensor for node in capture(ReadTwice(), EXAMPLE).graph.nodes)


def test_a_slice_is_stored_only_where_nothing_else_reads_the_parameter() -> None:
    graph = capture(Positions(), EXAMPLE)
    assert graph.get_parameter("table").shape == (6, 8)
    assert graph.get_parameter("shared").shape == (6, 8)
    assert sum(node.target is torch.ops.aten.select.int for node in graph.graph.nodes) == 1


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_that_shares_a_table_takes_its_one_scale(bias: bool) -> None:
    ids = torch.randint(0, 50, (16, 6))
    prepared = quantize.prepare_qat(Tied(bias), (ids[:2],))
    quantize.calibrate(prepared, [(ids,)])
    quantize.set_observers(prepared, False)
    converted = quantize.convert(prepared.eval())
    assert torch.equal(converted(ids), prepared(ids))
    assert quantize.float_ops(converted) == []
    (table,) = (q for q in quantize.qparams(converted) if q.name == "table")
    assert table.axis is None and table.zero_point == (0,)
