"""Dropout of ours: the share that is dropped, the mean that stays, the gradient, and where it stands in for torch's."""

from __future__ import annotations

import math

import pytest
import torch
from kdedge import quantize
from kdedge.dropout import dropout, quick_dropout
from torch import nn

COUNT = 1_000_003  # no multiple of the four numbers that are drawn at once


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_values_are_dropped_and_the_rest_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = dropout(torch.ones(COUNT, dtype=dtype), p).float()
    rounding = 1e-2 if dtype is torch.bfloat16 else 1e-4
    assert torch.unique(made).tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=rounding)
    share = float((made == 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / COUNT) + 2**-17


def test_places_are_independent() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(1 << 20), 0.3) == 0).double() - 0.3
    for distance in (1, 2, 3, 4, 5, 8, 64):
        together = float((dropped[:-distance] * dropped[distance:]).mean()) / (0.3 * 0.7)
        assert abs(together) < 5 / math.sqrt(len(dropped))


def test_the_gradient_meets_the_same_mask() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    made = dropout(x, 0.4)
    made.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(made, x * x.grad)


def test_the_generator_decides_whatever_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    made = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(7)
            made.append(dropout(torch.ones(100_000), 0.1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)
    assert not torch.equal(made[0], dropout(torch.ones(100_000), 0.1))


def test_nothing_and_everything_can_be_dropped() -> None:
    x = torch.randn(4, 4)
    before = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.0), x) and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(dropout(x, 1.0), torch.zeros(4, 4))
    assert dropout(x[:0], 0.5).shape == (0, 4)


def test_a_net_drops_in_training_alone_and_is_itself_again_after() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Dropout1d(0.5))
    x = torch.randn(4, 8)
    with quick_dropout(net, "cpu"):
        assert "forward" in vars(net[1]) and "forward" not in vars(net[2])
        with quick_dropout(net, "cpu"):
            pass
        assert "forward" in vars(net[1])
        assert torch.equal(net.eval()(x), net[0](x))
        assert (net.train()(x) == 0).any()
    assert "forward" not in vars(net[1])
    with quick_dropout(net, "cuda"):
        assert "forward" not in vars(net[1])


class Halved(nn.Dropout):
    """A dropout of the user's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch calls it so)
        """Half of it."""
        return input / 2


def test_a_users_own_dropout_is_left_alone() -> None:
    net = nn.Sequential(Halved(0.5))
    with quick_dropout(net, "cpu"):
        assert torch.equal(net(torch.ones(3)), torch.full((3,), 0.5))


def test_the_graph_of_qat_has_it_too() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    x = torch.randn(4, 8)
    prepared = quantize.prepare_qat(net, (x,))
    quantize.calibrate(prepared, [(x,)])
    prepared.train()
    with quick_dropout(prepared, "cpu"), torch.profiler.profile() as seen:
        prepared(x).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::bernoulli_" not in names and "aten::random_" in names
