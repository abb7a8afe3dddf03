"""Progressive depth: blocks that wait cost nothing, and join without changing what the net computes."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kdedge import models
from kdedge.data.images import ImageSet
from kdedge.data.splits import DataSplits, load_data
from kdedge.errors import RecipeError
from kdedge.images.preprocessing import measure_preprocessing
from kdedge.progress import JsonLog, Silent
from kdedge.recipe import AugmentRecipe, DataRecipe, ModelRecipe, TrainingRecipe
from kdedge.recipe_file import load_recipe
from kdedge.training.depth import Depth, in_order_of_joining
from kdedge.training.feeds import ImageFeed
from kdedge.training.loop import train
from kdedge.training.stage import Setting, Stage
from tests.unit.test_training_loop import StopAt
from torch import nn
from torchvision.models.resnet import BasicBlock

BLOCKS = {
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "mobilenet_v3_large": 10,
    "efficientnet_b0": 9,
    "resnet18": 5,
    "resnet50": 12,
}
SHAPE = (3, 32, 32)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    recipe = ModelRecipe(name, TrainingRecipe(1), dropout=0.0)
    net = models.build(recipe, {**models.TEACHERS, **models.STUDENTS}, 4, SHAPE)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained ones are: neither ones nor zeros
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_sections_grow_together() -> None:
    order = in_order_of_joining(build("mobilenet_v2"))
    assert order == [f"features.{n}" for n in (3, 5, 8, 12, 15, 6, 9, 13, 16, 10)]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_block_joins_without_changing_the_net(name: str) -> None:
    net = build(name).eval()
    depth = Depth(net, 0.0)
    assert len(depth.names) == BLOCKS[name]
    depth.grow(0, net)
    shallow = net(images())
    depth.grow(len(depth.names), net)
    torch.testing.assert_close(net(images()), shallow, rtol=1e-5, atol=1e-5)
    depth.release(net)
    assert not any("forward" in vars(module) for module in net.modules())


def test_blocks_in_use_from_the_start_keep_their_weights() -> None:
    net = build("mobilenet_v2").eval()
    whole = copy.deepcopy(net)
    depth = Depth(net, 0.5)
    depth.grow(10, net)
    assert torch.equal(net(images()), whole(images()))


def test_a_block_that_waits_is_not_computed_and_gets_no_gradient() -> None:
    net = build("resnet18").train()
    depth = Depth(net, 0.4)
    assert depth.wanted(0, 10) == 2
    depth.grow(2, net)
    ran: list[str] = []
    for name in depth.names:
        net.get_submodule(name).conv1.register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore
    net(images()).sum().backward()
    assert sorted(ran) == sorted(depth.names[:2])
    for name in depth.names:
        has = [p.grad is not None for p in net.get_submodule(name).parameters()]
        assert all(has) if name in ran else not any(has)


def test_a_joined_block_learns() -> None:
    net = build("mobilenet_v2").train()
    depth = Depth(net, 0.0)
    depth.grow(0, net)
    depth.grow(1, net)
    block = net.get_submodule(depth.names[0])
    before = copy.deepcopy(block.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):  # the first step moves the scale off zero, the second what stands before it
        optimizer.zero_grad()
        net(images()).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in block.named_parameters())


def test_the_average_grows_along() -> None:
    net = build("mobilenet_v2").eval()
    average = copy.deepcopy(net)
    depth = Depth(net, 0.0)
    depth.grow(0, net, average)
    shallow = average(images())
    depth.grow(4, net, average)
    torch.testing.assert_close(average(images()), shallow, rtol=1e-5, atol=1e-5)


def test_taken_up_again_the_blocks_in_use_are_left_as_they_are() -> None:
    net = build("mobilenet_v2").eval()
    whole = copy.deepcopy(net)
    depth = Depth(net, 0.2)
    depth.restore(6, net)
    for name in depth.names[:6]:
        ours, theirs = net.get_submodule(name).state_dict(), whole.get_submodule(name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    before = net(images())
    depth.grow(10, net)
    torch.testing.assert_close(net(images()), before, rtol=1e-5, atol=1e-5)


def test_all_have_joined_half_way() -> None:
    depth = Depth(build("mobilenet_v2"), 0.4)
    counts = [depth.wanted(epoch, 20) for epoch in range(20)]
    assert counts[0] == 4
    assert counts == sorted(counts)
    assert counts[9] < 10 and counts[10:] == [10] * 10


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_the_last_epoch_has_them_all(epochs: int) -> None:
    depth = Depth(build("mobilenet_v2"), 0.0)
    assert depth.wanted(epochs - 1, epochs) == 10


@pytest.fixture(scope="module")
def splits() -> DataSplits[ImageSet]:
    return load_data(DataRecipe(name="digits", image_size=8, channels=1))


def setting(splits: DataSplits[ImageSet], folder: Path) -> Setting:
    folder.mkdir(exist_ok=True)
    preprocessing = measure_preprocessing(splits.train.images)
    feed = ImageFeed(splits.train, preprocessing, AugmentRecipe(horizontal_flip=False), seed=0, classes=10)
    return Setting(feed, splits.validation, preprocessing, 0, "cpu", folder, JsonLog(folder / "log.jsonl"), Silent())


def residual() -> nn.Module:
    torch.manual_seed(0)
    blocks = [BasicBlock(8, 8) for _ in range(4)]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9, "patience": 1}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}]
)
def test_an_interrupted_stage_ends_with_the_weights_of_one_that_was_not(
    splits: DataSplits[ImageSet], tmp_path: Path, options: dict[str, Any]
) -> None:
    recipe = TrainingRecipe(epochs=5, batch_size=100, learning_rate=0.01, start_depth=0.25, **options)
    stage = Stage("student", recipe)
    whole, parts = residual(), residual()
    train(whole, stage, setting(splits, tmp_path / "whole"))
    per_epoch = len(splits.train) // 100
    for step in (1, per_epoch, per_epoch + 3, 2 * per_epoch + 1):
        with pytest.raises(KeyboardInterrupt):
            stopped = dataclasses.replace(setting(splits, tmp_path / "parts"), progress=StopAt(step))
            train(residual(), stage, stopped)
    train(parts, stage, setting(splits, tmp_path / "parts"))
    ours, theirs = whole.state_dict(), parts.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any("forward" in vars(module) for module in whole.modules())


def test_patience_waits_for_the_whole_net(splits: DataSplits[ImageSet], tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=6, batch_size=100, learning_rate=1e-9, start_depth=0.0, patience=1)
    train(residual(), Stage("student", recipe), setting(splits, tmp_path / "run"))
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert epochs[-1] >= 5, "the fourth epoch is the first of the whole net, and nothing gets better after it"


def test_qat_has_the_whole_graph() -> None:
    with pytest.raises(RecipeError, match=r"qat\.training\.start_depth"):
        load_recipe("digits", ["qat.training.start_depth=0.5"])


def test_a_net_without_such_blocks_is_refused() -> None:
    with pytest.raises(RecipeError, match="no residual blocks"):
        Depth(nn.Sequential(nn.Linear(2, 2)), 0.5)
