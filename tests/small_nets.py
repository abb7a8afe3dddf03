"""Small nets that hold every op the quantiser knows, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """conv-bn-relu6, depthwise conv, add, as in MobileNetV2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class Branches(nn.Module):
    """Concatenation of a rectified and a plain branch, max- and average-pooled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.right = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.relu(self.left(x))
        right = torch.nn.functional.avg_pool2d(self.right(x), 2)
        return torch.nn.functional.max_pool2d(torch.cat([left, right], 1), 3, stride=2, padding=1)


class Gate(nn.Module):
    """Squeeze and excitation with a hard sigmoid, then plain numbers, then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.hardsigmoid(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))
        return nn.functional.silu((x * gate * 2.0 + 0.25) / 1.5)


class ChannelsLast(nn.Module):
    """A linear layer over [N, H, W, C], read clipped and unclipped; a permuted square; a mean of one value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = nn.Linear(channels, channels)
        self.gate = nn.Conv2d(channels, channels, 16)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x.permute(0, 2, 3, 1)[:, 0:, :, :])
        mixed = (mixed + nn.functional.hardtanh(mixed)).permute(0, 3, 1, 2)
        mixed = mixed * mixed
        result: Tensor = mixed * self.gate(x).mean((2, 3), keepdim=True)
        return result


def head(channels: int, classes: int = 5) -> list[nn.Module]:
    """Global pool, flatten, hidden layer with dropout, classifier."""
    layers = [nn.Linear(channels, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes)]
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), *layers]


def student(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A small MobileNet as a user's own student, ``tests.small_nets:student``."""
    return nn.Sequential(*body(shape), *head(16, classes))


def without_dropout(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The same with nothing that draws numbers."""
    return nn.Sequential(*body(shape), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, classes))


class Mobile(nn.Module):
    """A MobileNet of three blocks, with dropout, which learns the digits in seconds: ``tests.small_nets:Mobile``."""

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_halved(shape[0], 24), Residual(24), *_halved(24, 48), Residual(48), *_halved(48, 96), Residual(96)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(96, classes))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(self.features(x), 1), 1))
        return result


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution of stride 2, with what belongs to it."""
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]


def body(shape: tuple[int, ...]) -> list[nn.Module]:
    """Images of a shape (channels, height, width) -> 16 channels."""
    first = nn.Sequential(nn.Conv2d(shape[0], 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
    return [first, Residual(16), Residual(16)]


def build(name: str, seed: int = 0) -> nn.Module:
    """A net [N, 3, 16, 16] -> [N, 5] in eval mode, with batch-norm statistics unlike the initial ones."""
    torch.manual_seed(seed)
    layers: dict[str, list[nn.Module]] = {
        "residual": [nn.Conv2d(3, 8, 3, padding=1), Residual(8), Residual(8), *head(8)],
        "branches": [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Branches(8), *head(16)],
        "gate": [nn.Conv2d(3, 8, 3, stride=2, padding=1), Gate(8), *head(8)],
        "channels_last": [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), ChannelsLast(8), *head(8)],
    }
    net = nn.Sequential(*layers[name])
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(2.0 * torch.randn(32, 3, 16, 16) + 0.3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return net.eval()


NAMES = ("residual", "branches", "gate", "channels_last")


class Divided(nn.Module):
    """A map divided by another, and one number by a map."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.above, self.below = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        part = self.above(x) / (1 + self.below(x).abs())
        result: Tensor = self.head((part + 1 / (2 + part.abs())).mean((2, 3)))
        return result


def divided(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """For ``student.model = "tests.small_nets:divided"``."""
    del shape
    return Divided(classes)
