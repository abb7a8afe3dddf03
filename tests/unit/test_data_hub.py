from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from kdedge.data.splits import load_data, load_evaluation
from kdedge.errors import DataError
from kdedge.recipe import DataRecipe
from PIL import Image

RECIPE = DataRecipe(name="-", image_size=8)


def images(folder: Path, split: str, names: list[str], labels: list[int]) -> None:
    """A split of small images as the Hub keeps it, its classes in the order of ``names``."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    cells = [Image.new("L", (8, 8), n) for n in range(len(labels))]
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("streamed", [False, True])
def test_images_whose_splits_number_their_classes_unlike(tmp_path: Path, streamed: bool) -> None:
    """The library takes the first file's order for all: cats would be scored as dogs."""
    recipe = DataRecipe(name="-", image_size=8, streamed=streamed)
    images(tmp_path / "hub", "train", ["cat", "dog"], [0, 1] * 10)
    images(tmp_path / "hub", "test", ["dog", "cat"], [0, 0, 1])
    splits = load_data(recipe, str(tmp_path / "hub"))
    assert splits.labels == ("cat", "dog")
    assert splits.test.labels.tolist() == [1, 1, 0]
    swapped = load_evaluation(recipe, str(tmp_path / "hub"), "test", ("dog", "cat"))
    assert swapped.labels.tolist() == [0, 0, 1]


def test_images_of_a_class_that_the_training_split_lacks(tmp_path: Path) -> None:
    images(tmp_path / "hub", "train", ["cat", "dog"], [0, 1] * 10)
    images(tmp_path / "hub", "test", ["dog", "cow"], [0, 1])
    with pytest.raises(DataError, match=r"split 'test' has classes that 'train' lacks: cow \(.*split test\)"):
        load_data(RECIPE, str(tmp_path / "hub"))
