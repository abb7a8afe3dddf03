"""What is stored are the teacher's logits of the very views that the loop shows the student, whatever the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kdedge.errors import CheckError
from kdedge.models import TEACHERS
from kdedge.models import build as build_net
from kdedge.progress import Silent
from kdedge.recipe import DistillRecipe, ModelRecipe, TrainingRecipe
from kdedge.recipe_file import load_recipe
from kdedge.teacher_cache.build import build, open_cache
from kdedge.training.material import Material, load_material
from PIL import Image
from tests.text_data import saved, word_piece
from tests.text_nets import build as build_text_net
from torch import nn

SETTINGS = ["data.image_size=8", "teacher.model=mlp", "distillation.cached_views=2", "distillation.cache=shared"]


def teacher(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    recipe = ModelRecipe("mlp", TrainingRecipe(epochs=1))
    return build_net(recipe, TEACHERS, classes, (3, 8, 8)).eval().requires_grad_(False)


def built_as_shown(recipe: DistillRecipe, material: Material, net: nn.Module, root: Path) -> None:
    """Build two views, then compare what is stored with what the net makes of the loop's own batches."""
    cache = open_cache(recipe, material, net, root, "cpu")
    built = build(cache, 2, recipe, material.feed, net, "cpu", Silent())
    assert (built.found_shards, built.built_shards) == (0, 2 * cache.layout.shards)
    for view in (1, 0):
        indices = list(torch.split(torch.randperm(len(material.feed)), 100))
        shown = material.feed.batches("student", view, material.feed.image_size, indices, "cpu", guided=True)
        for index, batch in zip(indices, shown, strict=True):
            truth, read = net(*batch.guide_inputs), cache.logits(view, index)
            # One step of float16: in another batch the last bit of a float32 sum may differ, and round otherwise.
            torch.testing.assert_close(read, truth, rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("mixing", [[], ["augment.mixup_alpha=0.4", "augment.cutmix_alpha=1.0"]])
def test_images(tmp_path: Path, mixing: list[str]) -> None:
    recipe = load_recipe("digits", [*SETTINGS, *mixing])
    material, net = load_material(recipe, None, None), teacher()
    built_as_shown(recipe, material, net, tmp_path)
    more = build(open_cache(recipe, material, net, tmp_path, "cpu"), 3, recipe, material.feed, net, "cpu", Silent())
    assert (more.found_shards, more.built_shards) == (4, 2)  # a view more of the same cache


def test_streamed_images(tmp_path: Path) -> None:
    """Decoded ahead by threads, so that a shard is claimed while the one before is computed."""
    pixels = np.random.default_rng(0).integers(0, 256, (1600, 9, 9, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    streamed = ["data.streamed=true", "data.loader_threads=2", "augment.cutmix_alpha=1", "data.test_fraction=0.2"]
    recipe = load_recipe("digits", [*SETTINGS, *streamed])
    material = load_material(recipe, str(tmp_path / "photos"), None)
    assert len(material.feed) > 1024
    built_as_shown(recipe, material, teacher(2), tmp_path / "caches")


def test_sentences(tmp_path: Path) -> None:
    """Cut to the longest of a batch, words blanked and runs taken by the view."""
    words = [f"word{number}" for number in range(40)]
    draw = np.random.default_rng(0)
    rows = [f"{' '.join(draw.choice(words, draw.integers(3, 15)))},{number % 4}" for number in range(400)]
    (tmp_path / "data.csv").write_text("\n".join(["sentence,label", *rows]))
    tokenizer = saved(word_piece([" ".join(words)]), tmp_path / "tokenizer")
    changes = ["text.max_length=24", "augment.masked_tokens=0.2", "augment.span_probability=0.5"]
    keys = [
        "teacher.model=bert-tiny",
        "distillation.hidden_weight=0",
        "distillation.teacher_precision=float32",
        f"text.tokenizer={tokenizer}",
        *changes,
    ]
    recipe = load_recipe("sst2-minilm-cpu", [*SETTINGS[2:], *keys])
    material = load_material(recipe, str(tmp_path / "data.csv"), None)
    net = build_text_net("bert", "text-classification").requires_grad_(False)
    built_as_shown(recipe, material, net, tmp_path / "caches")


def test_logits_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("digits", SETTINGS)
    material = load_material(recipe, None, None)
    last = nn.Linear(10, 10)
    nn.init.constant_(last.bias, 1e5)
    net = nn.Sequential(teacher(), last).requires_grad_(False)
    with pytest.raises(CheckError, match="not finite in float16"):
        build(open_cache(recipe, material, net, tmp_path, "cpu"), 1, recipe, material.feed, net, "cpu", Silent())
