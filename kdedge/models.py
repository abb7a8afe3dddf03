"""Nets by name: two visible dicts of builders, teachers and students being roles that any net may take."""

from __future__ import annotations

import difflib
import functools
import importlib
import itertools
import math
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import nn

import kdedge.torchvision_compat  # noqa: F401  (before torchvision: cures its CUDA wheel on a CPU torch)
from kdedge.errors import ModelError
from kdedge.recipe import ModelRecipe, Stem

from torchvision import models as tv  # isort: skip

Shape = tuple[int, ...]


class Builder(Protocol):
    """Builds a net with random weights: images float32 [N, C, H, W] -> logits float32 [N, classes]."""

    def __call__(self, classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
        """Build it."""


def _resnet(build: Callable[..., nn.Module]) -> Builder:
    """ResNet (He et al. 2015); small-image stems replace the 7×7 stride-2 convolution and the max-pool.

    Residual branches start at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), which speeds up short schedules.
    """

    def builder(classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
        _only_width_one("resnet", width)
        net = build(num_classes=classes, zero_init_residual=True)
        if stem != "imagenet" or shape[0] != 3:
            kernel, stride = (7, 2) if stem == "imagenet" else (3, 2 if stem == "cifar-stride2" else 1)
            net.conv1 = nn.Conv2d(shape[0], 64, kernel, stride, kernel // 2, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        if stem != "imagenet":
            net.maxpool = nn.Identity()
        if dropout:
            net.fc = nn.Sequential(nn.Dropout(dropout), cast(nn.Module, net.fc))
        return net

    return builder


def _mobilenet_v2(classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); ``cifar`` stems keep 4×4 features of a 32-px image, stride 8 in all."""
    net = tv.mobilenet_v2(num_classes=classes, width_mult=width, dropout=0.2 if dropout is None else dropout)
    _first_conv(net.features[0], shape[0], 1 if stem == "cifar" else 2)
    if stem != "imagenet":
        net.features[2].conv[1][0].stride = (1, 1)
    return cast(nn.Module, net)


def _mobilenet_v3(build: Callable[..., nn.Module], strided_block: int) -> Builder:
    """MobileNetV3 (Howard et al. 2019); the first strided block keeps its resolution in the small-image stems.

    Its batch norms average with torch's usual momentum of 0.1 and not torchvision's 0.01, which takes thousands of
    steps to forget where it began: after 270 steps on the digits a net that knew 0.99 of its training images knew 0.10
    of others.
    """
    norm = functools.partial(nn.BatchNorm2d, eps=0.001)

    def builder(classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
        rate = 0.2 if dropout is None else dropout
        net = build(num_classes=classes, width_mult=width, dropout=rate, norm_layer=norm)
        features = cast(nn.Sequential, net.features)
        _first_conv(cast(nn.Sequential, features[0]), shape[0], 1 if stem == "cifar" else 2)
        if stem != "imagenet":
            for module in features[strided_block].modules():
                if isinstance(module, nn.Conv2d) and module.groups > 1:
                    module.stride = (1, 1)
        return net

    return builder


def _efficientnet_b0(classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946); small-image stems as those of MobileNetV2."""
    _only_width_one("efficientnet_b0", width)
    net = tv.efficientnet_b0(num_classes=classes, dropout=0.2 if dropout is None else dropout)
    _first_conv(cast(nn.Sequential, net.features[0]), shape[0], 1 if stem == "cifar" else 2)
    if stem != "imagenet":
        depthwise = next(m for m in net.features[2].modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        depthwise.stride = (1, 1)
    return cast(nn.Module, net)


def _first_conv(block: nn.Sequential, channels: int, stride: int) -> None:
    """Give the first convolution of a MobileNet another stride or number of input channels."""
    old = cast(nn.Conv2d, block[0])
    if old.in_channels != channels:
        old = nn.Conv2d(channels, old.out_channels, 3, 2, 1, bias=False)
        nn.init.kaiming_normal_(old.weight, mode="fan_out")
        block[0] = old
    old.stride = (stride, stride)


def _mlp(classes: int, shape: Shape, *, stem: Stem, width: float, dropout: float | None) -> nn.Module:
    """The plan's MLP: features → 256 → 128 → classes, dropout 0.5 after each hidden layer."""
    del stem
    rate = 0.5 if dropout is None else dropout
    sizes = [math.prod(shape), round(256 * width), round(128 * width)]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def _only_width_one(name: str, width: float) -> None:
    if width != 1.0:
        raise ModelError(f"{name} has no width multiplier, but width is {width}", cure="Set width = 1.0")


TEACHERS: dict[str, Builder] = {
    "resnet18": _resnet(tv.resnet18),
    "resnet50": _resnet(tv.resnet50),
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_large": _mobilenet_v3(tv.mobilenet_v3_large, 2),
    "efficientnet_b0": _efficientnet_b0,
    "mlp": _mlp,
}
STUDENTS: dict[str, Builder] = {
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_small": _mobilenet_v3(tv.mobilenet_v3_small, 1),
    "mobilenet_v3_large": _mobilenet_v3(tv.mobilenet_v3_large, 2),
    "efficientnet_b0": _efficientnet_b0,
    "resnet18": _resnet(tv.resnet18),
    "resnet50": _resnet(tv.resnet50),
    "mlp": _mlp,
}


def build(recipe: ModelRecipe, registry: dict[str, Builder], classes: int, shape: Shape) -> nn.Module:
    """A net with fresh weights, checked once on a blank image.

    Args:
        recipe: Which net; ``module:function`` calls the user's ``function(classes, shape)``.
        registry: ``TEACHERS`` or ``STUDENTS``.
        classes: Number of logits.
        shape: Input as (channels, height, width).

    Raises:
        ModelError: unknown name, a function that fails, or logits of the wrong shape.
    """
    if ":" in recipe.model:
        net = _users_own(recipe.model, classes, shape)
    elif recipe.model in registry:
        net = registry[recipe.model](classes, shape, stem=recipe.stem, width=recipe.width, dropout=recipe.dropout)
    else:
        near = difflib.get_close_matches(recipe.model, registry, 1, 0.4)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise ModelError(
            f"no model '{recipe.model}'",
            cure=f"{hint}Known are {', '.join(registry)}; or module:function of your own",
        )
    check_output(net, recipe.model, classes, shape)
    return net


def check_output(net: nn.Module, name: str, classes: int, shape: Shape) -> None:
    """Refuse a net whose logits do not fit the task.

    Raises:
        ModelError: with both numbers named.
    """
    was_training = net.training
    net.eval()
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            logits = net(torch.zeros(2, *shape, device=device))
    except (RuntimeError, ValueError, TypeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model '{name}' fails on an input of shape {shape}: {line}") from error
    finally:
        net.train(was_training)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ModelError(f"model '{name}' does not return logits of shape [N, classes]")
    if logits.shape[1] != classes:
        raise ModelError(
            f"model '{name}' has {logits.shape[1]} classes, the data has {classes}",
            cure="Give a model trained for these classes, or the data that it was trained for",
        )


def _users_own(spec: str, classes: int, shape: Shape) -> nn.Module:
    module_name, _, function = spec.partition(":")
    try:
        builder = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise ModelError(
            f"cannot import '{module_name}': {error}",
            where=spec,
            cure="Run from its folder or set PYTHONPATH",
        ) from error
    except AttributeError:
        raise ModelError(f"module '{module_name}' has no '{function}'", where=spec) from None
    try:
        net = builder(classes, shape)
    except Exception as error:
        raise ModelError(f"{spec}({classes}, {shape}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"{spec} returned {type(net).__name__}, not a torch.nn.Module")
    return net
