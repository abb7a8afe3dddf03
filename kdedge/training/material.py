"""What a run trains on: the data as they were read and split, the preprocessing fitted on them, and the feed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdedge.data.splits import DataSplits, load_data
from kdedge.examples import Preprocessing
from kdedge.recipe import DistillRecipe
from kdedge.tasks import FIT
from kdedge.training.feeds import Feed, make_feed


@dataclass(frozen=True)
class Material:
    """See the module.

    Attributes:
        splits: Encoded.
        preprocessing: Of the teacher's inputs; the student may take fewer.
        feed: Of the training split, for the teacher.
    """

    splits: DataSplits[Any]
    preprocessing: Preprocessing
    feed: Feed


def load_material(recipe: DistillRecipe, data: str | None, teacher: str | None) -> Material:
    """Read and prepare what the recipe, or ``--data`` and ``--teacher``, name.

    Raises:
        DataError: see ``load_data``.
        RecipeError: the data cannot be augmented as the recipe says.
    """
    splits = load_data(recipe.data, data, recipe.task)
    preprocessing = FIT[recipe.task](recipe, splits, teacher)
    splits = splits.encoded(preprocessing.encode)
    feed = make_feed(
        splits.train,
        preprocessing,
        recipe.augment,
        seed=recipe.seed,
        classes=len(splits.labels),
        group_by_length=recipe.text.group_by_length,
    )
    return Material(splits, preprocessing, feed)
