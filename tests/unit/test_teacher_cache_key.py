"""What a cache's key says, and what a recipe may ask of a cache."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kdedge.data.images import ImageSet
from kdedge.errors import RecipeError
from kdedge.models import TEACHERS
from kdedge.models import build as build_net
from kdedge.recipe import DistillRecipe, ModelRecipe, TrainingRecipe, told
from kdedge.recipe_file import load_recipe
from kdedge.teacher_cache.key import key_of, layout_of, made_of, structure_sha256, weights_sha256
from kdedge.text import TextNet
from kdedge.training.material import Material, load_material
from tests.text_nets import build as build_text_net
from torch import nn

SETTINGS = ["data.image_size=8", "teacher.model=mlp", "distillation.cached_views=2", "distillation.cache=shared"]


def teacher(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    recipe = ModelRecipe("mlp", TrainingRecipe(epochs=1))
    return build_net(recipe, TEACHERS, 10, (3, 8, 8)).eval().requires_grad_(False)


def given(*settings: str) -> tuple[DistillRecipe, Material]:
    recipe = load_recipe("digits", [*SETTINGS, *settings])
    return recipe, load_material(recipe, None, None)


def key(recipe: DistillRecipe, material: Material, net: nn.Module, device: str = "cpu") -> str:
    layout = layout_of(recipe.distillation, len(material.feed), 10)
    return key_of(made_of(recipe, material, net, layout, device))


@pytest.fixture(scope="module")
def base() -> str:
    return key(*given(), teacher())


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "augment.crop_padding=1",
        "augment.rotation_deg=5.0",
        "augment.mixup_alpha=0.2",
        "data.split_seed=1",
        "data.train_limit=500",
        "distillation.cache_top_k=3",
    ],
)
def test_what_decides_the_logits_changes_the_key(base: str, setting: str) -> None:
    assert key(*given(setting), teacher()) != base


@pytest.mark.parametrize(
    "setting",
    [
        "student.model=resnet18",
        "student.training.epochs=3",
        "student.training.batch_size=32",
        "distillation.temperature=4.0",
        "distillation.alpha=0.9",
        "distillation.cached_views=7",
        "distillation.cache_top_k=10",  # of ten classes
        "qat.alpha=0.1",
    ],
)
def test_what_does_not_leaves_it(base: str, setting: str) -> None:
    assert key(*given(setting), teacher()) == base


def test_the_mass_of_the_other_classes_is_that_at_one_temperature() -> None:
    top = "distillation.cache_top_k=3"
    assert key(*given(top), teacher()) != key(*given(top, "distillation.temperature=4.0"), teacher())


def test_one_weight_one_image_or_one_stride_changes_the_key(base: str) -> None:
    recipe, material = given()
    net = teacher()
    with torch.no_grad():
        next(net.parameters()).view(-1)[5] += 1e-6
    assert key(recipe, material, net) != base
    images = material.splits.train.images.clone()
    images[17, 0, 3, 3] ^= 1
    parts = material.splits
    digest = ImageSet(images, parts.train.labels).fingerprint()
    assert digest != parts.train.fingerprint()  # of which the data's fingerprint is made
    assert key(recipe, material, teacher()) == base
    strides = [nn.Sequential(nn.Conv2d(3, 4, 3, stride=s), nn.Dropout(0.1 * s)) for s in (1, 2)]
    strides[1].load_state_dict(strides[0].state_dict())
    assert weights_sha256(strides[0]) == weights_sha256(strides[1])
    assert structure_sha256(strides[0]) != structure_sha256(strides[1])


@pytest.mark.parametrize("change", [{"heads": 2}, {"activation": "relu"}])
def test_sizes_of_a_text_net_that_are_in_no_weight_change_the_key(change: dict[str, Any]) -> None:
    config = build_text_net("bert", "text-classification").config
    nets = [TextNet(config), TextNet(dataclasses.replace(config, **change))]
    nets[1].load_state_dict(nets[0].state_dict())
    assert weights_sha256(nets[0]) == weights_sha256(nets[1])
    assert structure_sha256(nets[0]) != structure_sha256(nets[1])
    other_dropout = TextNet(dataclasses.replace(config, dropout=0.5))
    assert structure_sha256(nets[0]) == structure_sha256(other_dropout)  # it teaches in eval mode


OWN_NET = """
from torch import nn

class Own(nn.Module):
    def __init__(self, classes, shape):
        super().__init__()
        self.inner = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        return {factor} * self.inner(images.flatten(1))
"""


def test_code_of_a_users_own_teacher_changes_the_key(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_teacher_of_this_test"
    recipe, material = given(f"teacher.model={name}:Own")
    keys = []
    for factor in (1.0, 1.0, 20.0):
        (tmp_path / f"{name}.py").write_text(OWN_NET.format(factor=factor))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        keys.append(key(recipe, material, build_net(recipe.teacher, TEACHERS, 10, (3, 8, 8)).eval()))
    assert keys[0] == keys[1] != keys[2]
    assert key(recipe, material, teacher()) == base  # the module of a teacher that is not the one in use


def test_an_altered_image_is_another_data_set(tmp_path: Path) -> None:
    """Through the reader: a folder of images, one of which changes by one pixel."""
    from PIL import Image

    def folder_key() -> str:
        recipe = load_recipe("digits", [*SETTINGS, "data.validation_fraction=0.3"])
        return key(recipe, load_material(recipe, str(tmp_path), None), teacher())

    for number in range(24):
        path = tmp_path / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number * 9, 40, 200)).save(path)
    before = folder_key()
    assert folder_key() == before
    image = Image.open(path)
    image.putpixel((3, 3), (0, 0, 0))
    image.save(path)
    assert folder_key() != before


def test_an_augmentation_that_works_otherwise_has_another_key(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe, other code: as after an update of kdedge or torch."""
    import kdedge.images.augment as module

    real = module._crop

    def shifted(images: torch.Tensor, u: torch.Tensor, *more: Any) -> torch.Tensor:
        return real(images, (u + 0.3) % 1, *more)

    monkeypatch.setattr(module, "_crop", shifted)
    assert key(*given(), teacher()) != base


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["distillation.cached_views=0"], r"cached_views' must be above 0 for a shared cache"),
        (["distillation.cache=run", "distillation.cache_top_k=3"], r"cache_top_k' must be 0 but for a shared cache"),
        (["distillation.loss=dkd", "distillation.cache_top_k=3"], r"cache_top_k' must be 0 for 'dkd'"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("digits", [*SETTINGS, *settings])


def test_the_new_keys_leave_the_hash_of_recipes_that_do_not_use_them() -> None:
    assert not {"cache", "cache_top_k"} & set(told(load_recipe("cifar10-cpu"))["distillation"])
    assert load_recipe("digits", SETTINGS[2:]).sha256 != load_recipe("digits", SETTINGS[2:3]).sha256
