from __future__ import annotations

import pytest
import torch
from kdedge import models
from kdedge.recipe import ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.loop import guide_logits
from torch import Tensor, nn

CONVOLUTIONS = [
    nn.Conv2d(5, 7, 1),
    nn.Conv2d(5, 7, 1, stride=2, bias=False),
    nn.Conv2d(5, 7, 3, padding=1),
    nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False),
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
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
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
