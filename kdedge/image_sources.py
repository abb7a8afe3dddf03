"""Where images come from: embedded digits, class folders, Hub layout; decoded into memory as uint8."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdedge.errors import DataError
from kdedge.metrics import Metrics, score
from kdedge.recipe import DataRecipe

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one split.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], each below the number of classes.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The images."""
        return (self.images,)

    def take(self, index: Tensor) -> ImageSet:
        """The samples at ``index``, int64 [M]."""
        return ImageSet(self.images[index], self.labels[index])

    def score(self, logits: Tensor) -> Metrics:
        """Accuracy and macro F1 of logits [N, classes]."""
        return score(logits, self.labels)

    def relabelled(self, order: Tensor) -> ImageSet:
        """The same images with label i as ``order[i]``."""
        return ImageSet(self.images, order[self.labels])

    def fingerprint(self) -> bytes:
        """SHA-256 over images and labels."""
        return digest(self.images, self.labels)


def digest(*tensors: Tensor) -> bytes:
    """SHA-256 over the bytes of tensors, one after another."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(np.ascontiguousarray(tensor.numpy()).data)
    return state.digest()


def digits(recipe: DataRecipe) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """1,797 handwritten digits of 8×8 pixels, 16 grey levels (UCI, in scikit-learn)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.clip(np.rint(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    images = torch.stack([_to_tensor(Image.fromarray(image), recipe) for image in grey])
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return {"train": ImageSet(images, labels)}, tuple(str(n) for n in range(10))


def parts_for(split: str | None, there: Collection[str]) -> dict[str, str]:
    """Which parts of a source have to be decoded to get at one split, and what each is then called.

    All of them under their own names for None, and wherever the split has to be carved out of train. Public sets
    often keep the test labels to themselves: then their validation split serves as test.
    """
    if split == "test" and "test" in there:
        return {"test": "test"}
    if split == "test" and "validation" in there:
        return {"validation": "test"}
    if split == "validation" and {"validation", "test"} <= set(there):
        return {"validation": "validation"}
    return {part: part for part in there}


def is_hub_layout(folder: Path) -> bool:
    """Whether a folder holds parquet files, as a data set of the Hub does."""
    return any(folder.rglob("*.parquet"))


def class_folders(
    folder: Path, recipe: DataRecipe, split: str | None = None
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """``folder/CLASS/image`` or ``folder/{train,validation,test}/CLASS/image``; decoded as far as ``split`` needs."""
    children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    splits = {SPLIT_NAMES[p.name.lower()]: p for p in children if p.name.lower() in SPLIT_NAMES}
    if not splits or ("train" not in splits and len(splits) < len(children)):
        splits = {"train": folder}
    names: tuple[str, ...] = ()
    parts: dict[str, ImageSet] = {}
    needed = parts_for(split, splits)
    for part, root in splits.items():
        classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(classes) < 2:
            raise DataError(
                f"found {len(classes)} class folders, at least 2 are needed",
                where=root,
                cure="Put the images into one sub-folder a class",
            )
        found = tuple(p.name for p in classes)
        if names and found != names:
            odd = sorted(set(found) ^ set(names))
            raise DataError(f"split '{part}' has other classes than the rest: {', '.join(odd[:5])}", where=root)
        names = found
        if part not in needed:
            continue
        files, labels = _list_images(classes)
        parts[needed[part]] = _decode_all([_opener(f) for f in files], labels, [str(f) for f in files], recipe)
    return parts, names


def _list_images(classes: Sequence[Path]) -> tuple[list[Path], list[int]]:
    files: list[Path] = []
    labels: list[int] = []
    for index, folder in enumerate(classes):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(
                f"class '{folder.name}' has no images",
                where=folder,
                cure="Add images or remove the folder (known: " + ", ".join(sorted(IMAGE_SUFFIXES)) + ")",
            )
        files += images
        labels += [index] * len(images)
    return files, labels


def _opener(path: Path) -> Callable[[], bytes]:
    return path.read_bytes


def load_hub(name: str) -> Any:
    """The splits of a Hub data set, by name or as a local folder in its layout: a ``datasets.DatasetDict``.

    Raises:
        DataError: unknown, out of reach, or damaged.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds for a name that is wrong or a file that is cut
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load the data set: {line}",
            where=name,
            cure="Check the folder or the Hub name, and the network",
        ) from error


def hub(name: str, recipe: DataRecipe, split: str | None = None) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """A data set of the Hugging Face Hub, by name or as a local folder in its layout; decoded as far as needed."""
    import datasets

    tables = load_hub(name)
    parts: dict[str, ImageSet] = {}
    names: tuple[str, ...] = ()
    needed = parts_for(split, {SPLIT_NAMES[str(key)] for key in tables if str(key) in SPLIT_NAMES})
    for key, table in tables.items():
        if str(key) not in SPLIT_NAMES:
            continue
        image_column, label_column = _columns(table, name)
        feature = table.features[label_column]
        found = tuple(feature.names) if hasattr(feature, "names") else ()
        values = table[label_column]
        names = found or names or tuple(str(n) for n in range(max(values) + 1))
        part = SPLIT_NAMES[str(key)]
        if part not in needed:
            continue
        raw = table.cast_column(image_column, datasets.Image(decode=False)).with_format("arrow")
        cells = [cell for batch in raw.iter(1000) for cell in batch[image_column].to_pylist()]
        openers = [_cell_opener(cell) for cell in cells]
        wheres = [f"{name}, split {key}, row {row}" for row in range(len(cells))]
        parts[needed[part]] = _decode_all(openers, list(values), wheres, recipe)
    return parts, names


def _cell_opener(cell: dict[str, Any]) -> Callable[[], bytes]:
    return lambda: bytes(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _columns(table: Any, name: str) -> tuple[str, str]:
    """The image column and the label column of a Hub table, by type first, by name second."""
    import datasets

    features = table.features
    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    labels = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    labels = labels or [c for c in ("label", "labels", "fine_label", "class") if c in features]
    if not images or not labels:
        raise DataError(
            f"no {'image' if not images else 'label'} column among {', '.join(features)}",
            where=name,
            cure="kdedge looks for a column of type Image and one of type ClassLabel or named 'label'",
        )
    return images[0], labels[0]


def _to_tensor(image: Image.Image, recipe: DataRecipe) -> Tensor:
    """Resize the short side to ``image_size``, crop the centre: uint8 [C, H, W]."""
    size = recipe.image_size
    image = image.convert("RGB" if recipe.channels == 3 else "L")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, dtype=np.uint8)
    return torch.from_numpy(array.reshape(size, size, recipe.channels).transpose(2, 0, 1).copy())


def _decode_all(
    openers: Sequence[Callable[[], bytes]], labels: Sequence[int], wheres: Sequence[str], recipe: DataRecipe
) -> ImageSet:
    def decode(index: int) -> Tensor | None:
        try:
            with Image.open(io.BytesIO(openers[index]())) as image:
                return _to_tensor(image, recipe)
        except (
            OSError,
            UnidentifiedImageError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            if recipe.on_corrupt == "skip":
                log.warning("left out an image that cannot be read: %s (%s)", wheres[index], error)
                return None
            raise DataError(
                "an image cannot be read",
                where=wheres[index],
                cure="Remove or replace it, or leave such images out with --set data.on_corrupt=skip",
            ) from error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(decode, range(len(openers)), chunksize=64))
    kept = [index for index, image in enumerate(decoded) if image is not None]
    if not kept:
        raise DataError("no image could be read", where=wheres[0] if wheres else None)
    images = torch.stack([image for image in decoded if image is not None])
    return ImageSet(images, torch.tensor([int(labels[index]) for index in kept], dtype=torch.int64))
