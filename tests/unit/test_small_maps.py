from __future__ import annotations

import pytest
import torch
from kdedge import models, quantize
from kdedge.recipe import ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.loop import guide_logits
from torch import Tensor, nn, profiler

CONVOLUTIONS = [
    nn.Conv2d(5, 7, 1),
    nn.Conv2d(5, 7, 1, stride=2, bias=False),
    nn.Conv2d(5, 7, 3, padding=1),
    nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(5, 5, 3, padding=1, groups=5),
    nn.Conv2d(5, 5, 3, stride=2, padding=1, groups=5, bias=False),
    nn.Conv2d(5, 5, 5, padding=2, groups=5, bias=False),
    nn.Conv2d(5, 5, 5, stride=2, padding=2, groups=5),
]


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of input and parameters, of a loss that weighs every output alike and none equal."""
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 9])
def test_the_same_sums_forward_and_backward(layer: nn.Conv2d, size: int) -> None:
    x = torch.randn(3, 5, size, size, generator=torch.Generator().manual_seed(size))
    wanted = gradients(layer, x)
    with products_on_small_maps(layer, "cpu"):
        assert "forward" in vars(layer)
        found = gradients(layer, x.contiguous(memory_format=torch.channels_last))
    assert "forward" not in vars(layer)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(layer: nn.Module) -> None:
    with products_on_small_maps(layer, "cpu"):
        assert "forward" not in vars(layer)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_gradient_keeps_the_format_of_its_input(stride: int) -> None:
    # In another one the layers before it take several times as long.
    layer = nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=8)
    x = torch.randn(4, 8, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    with products_on_small_maps(layer, "cpu"):
        (found,) = torch.autograd.grad(layer(x).square().sum(), [x])
    assert found.stride() == x.stride()


def test_maps_that_are_wide_and_low() -> None:
    layer = nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4)
    x = torch.randn(2, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    wanted = gradients(layer, x)
    with products_on_small_maps(layer, "cpu"):
        found = gradients(layer, x)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_depthwise_convolution_under_autocast_gives_its_weight_a_gradient_of_the_weights_type() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with products_on_small_maps(layer, "cpu"):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype is torch.bfloat16
    assert layer.weight.grad is not None and layer.weight.grad.dtype is torch.float32
    assert x.grad is not None and x.grad.dtype is torch.float32


def test_a_prepared_graph_has_the_same_gradients_in_training_and_keeps_the_ops_that_the_quantiser_looks_for() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
        nn.Conv2d(6, 4, 3, padding=1),
    )
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prepared = quantize.prepare_qat(net, (x,))
    quantize.calibrate(prepared, [(x,)])
    code, names = prepared.code, list(prepared.state_dict())
    quantize.set_observers(prepared, False)
    wanted = gradients(prepared, x)
    with products_on_small_maps(prepared, "cpu"):
        assert prepared.forward.__self__.code != code  # type: ignore[attr-defined]
        assert (prepared.code, list(prepared.state_dict())) == (code, names)
        found = gradients(prepared, x)
    assert "forward" not in vars(prepared)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_graph_without_convolutions_is_left_alone() -> None:
    prepared = quantize.prepare_qat(nn.Linear(4, 4), (torch.randn(2, 4),))
    with products_on_small_maps(prepared, "cpu"):
        assert "forward" not in vars(prepared)


def test_a_prepared_graph_learns_as_much_with_ranges_that_move_and_are_then_frozen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.Flatten())
    x = torch.randn(8, 4, 2, 2)
    both = [quantize.prepare_qat(net, (x[:2],)) for _ in range(2)]
    for prepared, device in zip(both, ("cpu", "none"), strict=True):
        optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
        with products_on_small_maps(prepared, device):
            for step in range(4):
                if step == 2:
                    quantize.set_observers(prepared, False)
                optimizer.zero_grad()
                prepared(x).square().mean().backward()
                optimizer.step()
    found, wanted = (prepared.state_dict() for prepared in both)
    assert list(found) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5, msg=name)


class Halved(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base
        return super().forward(input) / 2


def test_a_subclass_keeps_what_it_computes() -> None:
    layer = Halved(4, 4, 1)
    with products_on_small_maps(layer, "cpu"):
        assert "forward" not in vars(layer)


def test_contexts_may_be_nested() -> None:
    layer = nn.Conv2d(4, 4, 1)
    with products_on_small_maps(layer, "cpu"):
        with products_on_small_maps(layer, "cpu"):
            pass
        assert "forward" in vars(layer)


def test_guides_are_computed_so_and_their_logits_averaged() -> None:
    seen: list[bool] = []
    guides = [nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Flatten()) for _ in range(2)]
    for guide in guides:
        guide[0].register_forward_hook(lambda module, *_: seen.append("forward" in vars(module)))
    x = torch.randn(2, 4, 2, 2)
    found = guide_logits(guides, (x,))
    assert seen == [True, True]
    torch.testing.assert_close(found, (guides[0](x) + guides[1](x)) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_strided_layer_of_a_guide_is_one_product_not_one_for_every_row(dtype: torch.dtype) -> None:
    """With copies of the weights for each: a ResNet-50 took 30 times as long in bfloat16."""
    net = nn.Conv2d(8, 16, 1, stride=2, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with products_on_small_maps(net, "cpu"), torch.no_grad(), autocast, profiler.profile() as seen:
        net(x)
    ops = {event.key for event in seen.key_averages()}
    assert "aten::mm" in ops and "aten::bmm" not in ops


def test_a_gpu_keeps_its_convolutions() -> None:
    with products_on_small_maps(CONVOLUTIONS[0], "cuda"):
        assert "forward" not in vars(CONVOLUTIONS[0])


def test_a_whole_net_has_the_same_loss_gradient_and_names() -> None:
    recipe = ModelRecipe("resnet50", TrainingRecipe(epochs=1), "cifar-stride2")
    torch.manual_seed(0)
    net = models.build(recipe, models.TEACHERS, 10, (3, 32, 32)).double().train()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    names = list(net.state_dict())
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with products_on_small_maps(net, "cpu"):
        assert list(net.state_dict()) == names
        found = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
