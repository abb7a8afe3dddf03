from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from kdedge.data.splits import load_data
from kdedge.distillation import distill
from kdedge.errors import DataError
from kdedge.evaluation import evaluate
from kdedge.recipe import AugmentRecipe, DataRecipe
from kdedge.recipe_file import load_recipe
from kdedge.tasks import FIT
from kdedge.training.feeds import StreamFeed, make_feed
from PIL import Image

OPTIONS = ["data.streamed=true", "data.loader_threads=2", "data.validation_fraction=0.2", "teacher.model=mlp",
           "teacher.training.epochs=1", "student.model=mlp", "student.training.epochs=3",
           "student.training.start_size=16", "qat.training.epochs=0", "augment.cutmix_alpha=1"]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, bright and dark, of JPEGs in sizes of their own."""
    generator = np.random.default_rng(0)
    for name, level in (("bright", 190), ("dark", 60)):
        for number in range(30):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.clip(generator.normal(level, 25, (40 + number, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    return tmp_path / "photos"


def test_streamed_images_train_and_score_without_living_in_memory(photos: Path, tmp_path: Path) -> None:
    recipe = load_recipe("digits", [o for o in OPTIONS if "start_size" not in o])
    result = distill(recipe, out=tmp_path / "run", data=str(photos))
    scores = result.metrics["student_float"]
    assert scores is not None
    assert scores.to_dict()["accuracy"] > 0.9
    bundle = result.bundle
    again = load_data(bundle.recipe.data, str(photos)).test
    assert evaluate(bundle.float_student(), again, bundle.preprocessing) == scores


def test_a_view_is_the_same_whatever_the_batches(photos: Path) -> None:
    recipe = load_recipe("digits", OPTIONS)
    splits = load_data(recipe.data, str(photos))
    preprocessing = FIT[recipe.task](recipe, splits, None)
    feed = make_feed(splits.train, preprocessing, recipe.augment, seed=0, classes=2)
    assert isinstance(feed, StreamFeed)
    index = torch.arange(len(feed))
    (whole,) = feed.batches("student", 1, 32, [index], "cpu", guided=True)
    parts = list(feed.batches("student", 1, 32, torch.split(index.flip(0), 5), "cpu", guided=True))
    torch.testing.assert_close(torch.cat([p.inputs[0] for p in parts]).flip(0), whole.inputs[0])
    torch.testing.assert_close(torch.cat([p.labels for p in parts]).flip(0), whole.labels)
    (small,) = feed.batches("student", 1, 16, [index], "cpu", guided=True)
    assert small.inputs[0].shape[-1] == 16
    torch.testing.assert_close(small.guide_inputs[0], whole.inputs[0])
    (alone,) = feed.batches("student", 1, 16, [index], "cpu", guided=False)
    assert alone.guide_inputs[0].shape[-1] == 16


@pytest.mark.parametrize("streamed", [True, False])
def test_unmixed_samples_keep_their_own_labels_and_pixels(photos: Path, streamed: bool) -> None:
    of_streamed = ("data.streamed", "data.loader_threads")
    recipe = load_recipe("digits", [option for option in OPTIONS if streamed or not option.startswith(of_streamed)])
    splits = load_data(recipe.data, str(photos))
    mixed = make_feed(splits.train, FIT[recipe.task](recipe, splits, None), recipe.augment, seed=0, classes=2)
    index = torch.arange(len(mixed))
    (of_two,), (own,) = (
        list(feed.batches("qat", 0, 8, [index], "cpu", guided=False)) for feed in (mixed, mixed.unmixed())
    )
    assert of_two.labels.shape == (len(index), 2)
    assert own.labels.equal(splits.train.labels)
    assert own.inputs[0].shape == of_two.inputs[0].shape
    assert not own.inputs[0].equal(of_two.inputs[0])
    plain = dataclasses.replace(recipe.augment, cutmix_alpha=0.0)
    never = make_feed(splits.train, FIT[recipe.task](recipe, splits, None), plain, seed=0, classes=2)
    (expected,) = never.batches("qat", 0, 8, [index], "cpu", guided=False)
    assert own.inputs[0].equal(expected.inputs[0])


def test_an_image_that_cannot_be_scored_is_named(photos: Path) -> None:
    recipe = DataRecipe(name="-", image_size=32, streamed=True, on_corrupt="skip")
    (photos / "dark" / "7.jpg").write_bytes(b"no image")
    splits = load_data(recipe, str(photos))
    with pytest.raises(DataError, match=r"cannot be read .*7\.jpg"):
        for part in (splits.train, splits.validation, splits.test):
            list(part.batches(4))


def test_leaving_a_stream_leaves_no_thread(photos: Path) -> None:
    import threading

    recipe = load_recipe("digits", OPTIONS)
    splits = load_data(recipe.data, str(photos))
    feed = make_feed(splits.train, FIT[recipe.task](recipe, splits, None), AugmentRecipe(), seed=0, classes=2)
    stream = feed.batches("student", 0, 32, torch.split(torch.arange(len(feed)), 2), "cpu", guided=False)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdedge-prefetch")]
