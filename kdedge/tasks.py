"""What differs by task or by kind of data, in visible tables: how preprocessing is fitted, and found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdedge.data import DataSplits
from kdedge.examples import Preprocessing
from kdedge.preprocessing import ImagePreprocessing, measure_preprocessing
from kdedge.recipe import DistillRecipe, Task


def _fit_images(recipe: DistillRecipe, splits: DataSplits[Any]) -> Preprocessing:
    del recipe
    return measure_preprocessing(splits.train.images)


FIT: dict[Task, Callable[[DistillRecipe, DataSplits[Any]], Preprocessing]] = {
    "image-classification": _fit_images,
}
"""Task -> function that makes the preprocessing from the recipe and the training split alone."""


def _restore_images(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    del files
    return ImagePreprocessing.from_dict(dict(data))


RESTORE: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Preprocessing]] = {
    "image": _restore_images,
}
"""Kind -> function that makes the preprocessing from ``to_dict``'s values and ``files``."""


def restore_preprocessing(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    """The preprocessing that a manifest or an artifact describes.

    Args:
        data: ``Preprocessing.to_dict``'s values; where they name no kind they are of images.
        files: ``Preprocessing.files``.

    Raises:
        KeyError: a value or a kind is missing.
    """
    return RESTORE[str(data.get("kind", "image"))](data, files)
