"""Data sets: splits that are disjoint by construction, and whole ones for nets that were trained before.

Images of moderate size live decoded in memory as uint8, so that the hot loop does no Python work per sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdedge.errors import DataError
from kdedge.image_sources import ImageSet, class_folders, digits, hub, is_hub_layout
from kdedge.recipe import DataRecipe

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSplits:
    """Train, validation and test of one data set.

    Attributes:
        source: Where it came from: ``digits``, a Hub name, or an absolute folder.
        labels: Names of the classes, by index.
        train: What the nets learn from.
        validation: For choosing and tuning; never trained on.
        test: For the final figures; neither trained nor tuned nor calibrated on.
        fingerprint: SHA-256 over all images, labels and names.
    """

    source: str
    labels: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    fingerprint: str

    def split(self, name: str) -> ImageSet:
        """The split called ``name``.

        Raises:
            DataError: there is none of that name.
        """
        if name not in SPLITS:
            raise DataError(f"no split '{name}'", cure=f"Splits are {', '.join(SPLITS)}")
        chosen: ImageSet = getattr(self, name)
        return chosen

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def load_data(recipe: DataRecipe, source: str | None = None) -> DataSplits:
    """The data set that the recipe or ``source`` names, decoded and split.

    Args:
        recipe: Sizes, fractions and the seed of the splits.
        source: ``digits``, a folder (one sub-folder a class, or Hub layout), or a Hub name; None takes
            ``recipe.name``.

    Raises:
        DataError: missing, empty, damaged or unusable; says which file or row.
    """
    name, labels, parts = _read(recipe, source)
    return _split(name, labels, parts, recipe)


def _read(
    recipe: DataRecipe, source: str | None, split: str | None = None
) -> tuple[str, tuple[str, ...], dict[str, ImageSet]]:
    """Name, classes and parts of a data set, decoded as far as ``split`` needs."""
    name = source or recipe.name
    folder = Path(name).expanduser()
    if name == "digits":
        parts, labels = digits(recipe)
    elif folder.is_dir():
        name = str(folder.resolve())
        parts, labels = hub(name, recipe, split) if is_hub_layout(folder) else class_folders(folder, recipe, split)
    elif folder.exists() or name.startswith((".", "/", "~")):
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"--data: {what}", where=name, cure="Give a folder, a Hub name, or 'digits'")
    else:
        parts, labels = hub(name, recipe, split)
    for part in parts.values():
        if len(part) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(labels):
            raise DataError(f"a label lies outside the {len(labels)} classes", where=name)
    return name, labels, parts


def load_evaluation(recipe: DataRecipe, source: str | None, split: str, labels: Sequence[str]) -> ImageSet:
    """One split of a data set for a net that was trained before, its labels in the net's own order.

    Args:
        recipe: Sizes and splits as the net was trained with: the same data give the same test split.
        source: As ``load_data``.
        split: ``train``, ``validation`` or ``test``.
        labels: The net's classes.

    Raises:
        DataError: as ``load_data``, and where the classes are not the net's.
    """
    if split not in SPLITS:
        raise DataError(f"no split '{split}'", cure=f"Splits are {', '.join(SPLITS)}")
    name, own, parts = _read(recipe, source, split)
    if len(own) != len(labels):
        raise DataError(
            f"the data has {len(own)} classes, the net has {len(labels)}",
            where=name,
            cure="Give the data that the net was trained for",
        )
    if set(own) != set(labels):
        odd = sorted(set(own) ^ set(labels))
        raise DataError(f"the data's classes are not the net's: {', '.join(odd[:6])}", where=name)
    if split != "train" and set(parts) == {split}:
        chosen = parts[split]
    else:
        chosen = _split(name, own, parts, recipe).split(split)
    order = torch.tensor([list(labels).index(label) for label in own])
    return ImageSet(chosen.images, order[chosen.labels])


def _split(name: str, labels: tuple[str, ...], parts: dict[str, ImageSet], recipe: DataRecipe) -> DataSplits:
    """Carve what is missing out of train, stratified, from index sets that cannot overlap."""
    generator = torch.Generator().manual_seed(recipe.split_seed)
    if "train" not in parts:
        raise DataError("the data set has no 'train' split", where=name)
    train = parts["train"]
    if "test" not in parts:
        # As in parts_for: a validation split serves as test where there is none.
        if "validation" in parts:
            parts = {**parts, "test": parts.pop("validation")}
        else:
            train, test = _carve(train, recipe.test_fraction, generator, name)
            parts = {**parts, "test": test}
    if "validation" in parts:
        validation = parts["validation"]
    else:
        train, validation = _carve(train, recipe.validation_fraction, generator, name)
    digest = hashlib.sha256("\0".join(labels).encode())
    for part in (train, validation, parts["test"]):
        digest.update(np.ascontiguousarray(part.images.numpy()).data)
        digest.update(np.ascontiguousarray(part.labels.numpy()).data)
    return DataSplits(name, labels, train, validation, parts["test"], digest.hexdigest())


def _carve(data: ImageSet, fraction: float, generator: torch.Generator, name: str) -> tuple[ImageSet, ImageSet]:
    """(rest, carved): ``fraction`` of every class, at least one image of it where it has two."""
    carved = torch.zeros(len(data), dtype=torch.bool)
    for label in range(int(data.labels.max()) + 1):
        index = (data.labels == label).nonzero().squeeze(1)
        shuffled = index[torch.randperm(len(index), generator=generator)]
        count = max(1, round(fraction * len(index))) if len(index) > 1 else 0
        carved[shuffled[:count]] = True
    if not carved.any():
        raise DataError("too few images to split: every class needs at least 2", where=name)
    return data.take((~carved).nonzero().squeeze(1)), data.take(carved.nonzero().squeeze(1))
