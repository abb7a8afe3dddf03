"""Where images come from: embedded digits, class folders, Hub layout; decoded into memory as uint8."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdedge.data.encoded_images import EncodedImages, ImageFiles, ImageRows, decode
from kdedge.data.hub import load_hub
from kdedge.data.labels import class_labels, labelled
from kdedge.data.parts import SPLIT_NAMES, digest, parts_for
from kdedge.data.tables import TextTable
from kdedge.errors import DataError
from kdedge.examples import InMemory
from kdedge.metrics import Metrics, score
from kdedge.recipe import DataRecipe

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class ImageSet(InMemory):
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


def digits(recipe: DataRecipe) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """1,797 handwritten digits of 8×8 pixels, 16 grey levels (UCI, in scikit-learn)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.clip(np.rint(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    images = torch.stack([_to_tensor(Image.fromarray(image), recipe) for image in grey])
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return {"train": ImageSet(images, labels)}, tuple(str(n) for n in range(10))


def class_folders(
    folder: Path, recipe: DataRecipe, split: str | None = None
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """``folder/CLASS/image`` or ``folder/{train,validation,test}/CLASS/image``; decoded as far as ``split`` needs."""
    parts, names = list_class_folders(folder, split)
    return {part: _decode_all(files, recipe) for part, files in parts.items()}, names


def list_class_folders(folder: Path, split: str | None = None) -> tuple[dict[str, ImageFiles], tuple[str, ...]]:
    """The files and the classes that ``class_folders`` decodes, none of them opened.

    Raises:
        DataError: too few classes, one without images, a split twice, or splits of unlike classes.
    """
    splits = _split_folders(folder) or {"train": folder}
    names: tuple[str, ...] = ()
    parts: dict[str, ImageFiles] = {}
    needed = parts_for(split, splits)
    for part, root in splits.items():
        classes = _sub_folders(root)
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
        if part in needed:
            parts[needed[part]] = _list_images(root, classes)
    return parts, names


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split; none where the sub-folders are classes, of which one may be called like a split."""
    splits: dict[str, Path] = {}
    others = []
    for child in _sub_folders(folder):
        part = SPLIT_NAMES.get(child.name.lower())
        if part is None:
            others.append(child.name)
        elif splits.setdefault(part, child) != child:
            both = f"'{splits[part].name}' and '{child.name}'"
            raise DataError(f"{both} are the same split", where=folder, cure="Keep one of the two")
    if others and not ("train" in splits and _sub_folders(splits["train"])):
        return {}
    if others:
        log.warning("takes the splits %s alone, not %s (%s)", ", ".join(splits), ", ".join(others[:5]), folder)
    return splits


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: Path, folder: Path) -> bool:
    """Whether it is a file of a known kind; what begins with a dot, or lies in such a folder, is a tool's own."""
    hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _list_images(root: Path, classes: Sequence[Path]) -> ImageFiles:
    files: list[str] = []
    labels: list[int] = []
    for index, folder in enumerate(classes):
        images = sorted(p for p in folder.rglob("*") if _is_image(p, folder))
        if not images:
            raise DataError(
                f"class '{folder.name}' has no images",
                where=folder,
                cure="Add images or remove the folder (known: " + ", ".join(sorted(IMAGE_SUFFIXES)) + ")",
            )
        files += [p.relative_to(root).as_posix() for p in images]
        labels += [index] * len(images)
    return ImageFiles(root, files, labels)


def hub(name: str, recipe: DataRecipe, split: str | None = None) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """A data set of the Hugging Face Hub, by name or as a local folder in its layout; decoded as far as needed."""
    parts, names = list_hub(name, split)
    return {part: _decode_all(rows, recipe) for part, rows in parts.items()}, names


def list_hub(name: str, split: str | None = None) -> tuple[dict[str, ImageRows], tuple[str, ...]]:
    """The rows and the classes that ``hub`` decodes, none of them read.

    Raises:
        DataError: unknown, damaged, or without a column of images or labels.
    """
    import datasets

    tables = {SPLIT_NAMES[str(key)]: table for key, table in load_hub(name).items() if str(key) in SPLIT_NAMES}
    if not tables:
        raise DataError("the data set has no 'train', 'validation' or 'test' split", where=name)
    columns = {part: _columns(table, name) for part, table in tables.items()}
    # A split whose labels are kept back counts as missing, before it is decided which serves as which.
    named = {part: _label_table(tables[part], label, f"{name}, split {part}") for part, (_, label) in columns.items()}
    labels, names = class_labels(labelled(named, ("label",)))
    parts = {}
    for part, called in parts_for(split, labels).items():
        image = columns[part][0]
        cells = tables[part].cast_column(image, datasets.Image(decode=False)).data.column(image)
        parts[called] = ImageRows(cells, labels[part].tolist(), f"{name}, split {part}")
    return parts, names


def _label_table(table: Any, column: str, where: str) -> TextTable:
    names = getattr(table.features[column], "names", None)
    classes = {} if names is None else {"label": tuple(names)}
    return TextTable({"label": list(table[column])}, where, lambda row: f"{where}, row {row}", classes)


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
    pixels = centre_crop(image, recipe.image_size, recipe.image_size, recipe.channels)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def centre_crop(image: Image.Image, short_side: int, size: int, channels: int) -> np.ndarray:
    """Resize the short side to ``short_side`` pixels, crop the centre: uint8 [size, size, C], C 1 or 3."""
    image = eight_bits(image).convert("RGB" if channels == 3 else "L")
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits by its upper eight, as Pillow takes a coloured one; ``convert`` would make it white.

    Raises:
        ValueError: 32 bits or floats, whose range nobody knows.
    """
    # Pillow opens 16-bit PNG (before version 11) and PGM as 32 bits that hold no more than 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of no known range: convert it to 8 or 16 bits")
    return image


def _decode_all(encoded: EncodedImages, recipe: DataRecipe) -> ImageSet:
    def to_tensor(row: int) -> Tensor | None:
        return decode(encoded, row, lambda image: _to_tensor(image, recipe), recipe.on_corrupt)

    rows = range(len(encoded.labels))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(to_tensor, rows, chunksize=64))
    kept = [row for row in rows if decoded[row] is not None]
    if not kept:
        raise DataError("no image could be read", where=encoded.where(0) if rows else None)
    images = torch.stack([image for image in decoded if image is not None])
    return ImageSet(images, torch.tensor([int(encoded.labels[row]) for row in kept], dtype=torch.int64))
