from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kdedge import models
from kdedge.errors import ModelError
from kdedge.recipe import ModelRecipe, Stem, TrainingRecipe

TRAINING = TrainingRecipe(epochs=1)


def recipe(model: str, stem: Stem = "imagenet", width: float = 1.0, dropout: float | None = None) -> ModelRecipe:
    return ModelRecipe(model, TRAINING, stem, width, dropout)


@pytest.mark.parametrize("name", sorted({**models.TEACHERS, **models.STUDENTS}))
@pytest.mark.parametrize("stem", ["imagenet", "cifar", "cifar-stride2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_with_every_stem_gives_logits(name: str, stem: Stem, channels: int) -> None:
    registry = models.STUDENTS if name in models.STUDENTS else models.TEACHERS
    net = models.build(recipe(name, stem), registry, 7, (channels, 32, 32))
    assert net.eval()(torch.rand(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 1), ("cifar-stride2", 2), ("cifar", 4)])
def test_stems_set_the_resolution_of_mobilenet_v2(stem: Stem, side: int) -> None:
    net = models.build(recipe("mobilenet_v2", stem), models.STUDENTS, 10, (3, 32, 32))
    features = net.get_submodule("features").eval()(torch.rand(1, 3, 32, 32))
    assert features.shape[-2:] == (side, side)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 1), ("cifar-stride2", 2), ("cifar", 4)])
def test_stems_set_the_resolution_of_resnet(stem: Stem, side: int) -> None:
    net = models.build(recipe("resnet18", stem), models.STUDENTS, 10, (3, 32, 32)).eval()
    shapes: list[torch.Size] = []
    net.get_submodule("layer4").register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    net(torch.rand(1, 3, 32, 32))
    assert shapes[0][-2:] == (side, side)


def test_width_shrinks_a_mobilenet_and_is_refused_for_a_resnet() -> None:
    def size(width: float) -> int:
        net = models.build(recipe("mobilenet_v2", width=width), models.STUDENTS, 10, (3, 32, 32))
        return sum(p.numel() for p in net.parameters())

    assert size(0.5) < 0.5 * size(1.0)
    with pytest.raises(ModelError, match="no width multiplier"):
        models.build(recipe("resnet18", width=0.5), models.STUDENTS, 10, (3, 32, 32))


def test_the_mlp_is_the_plans() -> None:
    net = models.build(recipe("mlp"), models.STUDENTS, 10, (1, 16, 32))
    shapes = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(256, 512), (128, 256), (10, 128)]
    assert [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'mobilenet_v2'"):
        models.build(recipe("mobilenetv2"), models.STUDENTS, 10, (3, 32, 32))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(classes, shape):\n"
        "    return nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(4, classes))\n"
        "def wrong(classes, shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0]*shape[1]*shape[2], 3))\n"
        "def broken(classes, shape):\n    raise ValueError('no such thing')\n"
        "def no_module(classes, shape):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def test_a_users_own_student(own_module: str) -> None:
    net = models.build(recipe(f"{own_module}:tiny"), models.STUDENTS, 10, (3, 8, 8))
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong", "has 3 classes, the data has 10"),
        ("broken", "failed: ValueError: no such thing"),
        ("no_module", "returned int"),
        ("absent", "has no 'absent'"),
    ],
)
def test_a_users_student_that_does_not_fit(own_module: str, function: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        models.build(recipe(f"{own_module}:{function}"), models.STUDENTS, 10, (3, 8, 8))


def test_a_module_that_cannot_be_imported() -> None:
    with pytest.raises(ModelError, match="cannot import 'no_such_module_of_mine'"):
        models.build(recipe("no_such_module_of_mine:net"), models.STUDENTS, 10, (3, 8, 8))
