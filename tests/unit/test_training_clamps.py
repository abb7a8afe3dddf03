"""ReLU6 that keeps its result: the same bits, less memory, and the net as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from kdedge.training.clamps import clamps_keep_results
from torch import Tensor, nn


def net() -> nn.Sequential:
    """Two blocks as MobileNetV2 has them, and a clamp that is not in place, with bounds of its own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.Hardtanh(-0.5, 0.25),
        nn.Flatten(), nn.Linear(16 * 6 * 6, 5),
    )  # fmt: skip


def images() -> Tensor:
    """Large enough for both bounds to be met."""
    return 8.0 * torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def trained(kept: bool, *, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], int]:
    """Gradients of one step, and the bytes that were kept for it, each memory counted once."""
    made, storages = net(), {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", dtype, dtype.itemsize < 4):
        if kept:
            with clamps_keep_results(made):
                loss = made(images()).float().square().sum()
        else:
            loss = made(images()).float().square().sum()
    loss.backward()
    return [p.grad for p in made.parameters() if p.grad is not None], sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_the_same_bits_and_less_is_kept(dtype: torch.dtype) -> None:
    plain, plain_bytes = trained(False, dtype=dtype)
    ours, our_bytes = trained(True, dtype=dtype)
    assert len(plain) == len(ours) == 10
    for a, b in zip(plain, ours, strict=True):
        assert torch.equal(a, b)
    assert our_bytes < 0.85 * plain_bytes


@pytest.mark.parametrize("inplace", [False, True])
def test_bounds_and_numbers_that_are_none(inplace: bool) -> None:
    values = torch.tensor([-1.0, -0.0, 0.0, 3.0, 6.0, 7.0, float("nan"), float("inf")])
    layer = nn.ReLU6(inplace)
    grads, results = [], []
    for kept in (False, True):
        x = values.clone().requires_grad_()
        if kept:
            with clamps_keep_results(layer):
                y = layer(x * 1.0)
        else:
            y = layer(x * 1.0)
        y.backward(torch.arange(1.0, 9.0))
        grads.append(x.grad)
        results.append(y.detach())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0, equal_nan=True)


def test_the_net_is_as_it_was_afterwards() -> None:
    made = net()
    with clamps_keep_results(made):
        assert "forward" in vars(made[2]) and "forward" in vars(made[5])
    assert not any("forward" in vars(module) for module in made.modules())
