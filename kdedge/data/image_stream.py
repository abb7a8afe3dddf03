"""Image sets too large for memory: decoded on demand, each image straight to the crop and the size that is wanted."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdedge.counters import generator_for
from kdedge.data.encoded_images import EncodedImages, decode
from kdedge.data.images import centre_crop, eight_bits
from kdedge.errors import DataError
from kdedge.metrics import Metrics, score
from kdedge.prefetch import prefetch
from kdedge.recipe import DataRecipe

Box = tuple[int, int, int, int]
CROP_ATTEMPTS = 10
# Of the short side before the centre crop to the crop's side, as ImageNet is scored since AlexNet: 256 to 224.
EVALUATION_RATIO = 256 / 224


@dataclass(frozen=True)
class EpochCrops:
    """Random resized crops of one epoch (Szegedy et al. 2015, arXiv:1409.4842, section 6), functions of the sample.

    Attributes:
        seed: Of the run.
        stage: Of the run.
        epoch: Or view: the same one has the same crops again.
        scale: Least and largest share of the image's area.
        ratio: Least and largest width over height, drawn uniformly in its logarithm.
        horizontal_flip: Mirror one image in two.
    """

    seed: int
    stage: str
    epoch: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = True

    def draw(self, sample: int, width: int, height: int) -> tuple[Box, bool]:
        """The crop of a sample, which is an image of ``width`` and ``height`` pixels.

        Returns:
            (left, top, right, bottom) in pixels within the image, and whether it is mirrored.
        """
        generator = generator_for(self.seed, self.stage, self.epoch, "crop", sample)
        flip, *draws = torch.rand(1 + 4 * CROP_ATTEMPTS, generator=generator).tolist()
        mirrored = self.horizontal_flip and flip < 0.5
        low, high = (math.log(ratio) for ratio in self.ratio)
        for attempt in range(0, len(draws), 4):
            area, shape, across, down = draws[attempt : attempt + 4]
            pixels = width * height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
                return (left, top, left + wide, top + tall), mirrored
        # An image too long or too tall for the drawn shapes: as much of its middle as the ratios allow.
        wide = min(width, max(1, round(height * self.ratio[1])))
        tall = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - wide) // 2, (height - tall) // 2
        return (left, top, left + wide, top + tall), mirrored


@dataclass(frozen=True)
class LazyImageSet:
    """Images of one split, decoded when they are asked for, from any thread.

    Attributes:
        encoded: Where they are stored.
        rows: int64 [N], which of the encoded images make up the set.
        labels: int64 [N], each below the number of classes.
        recipe: Channels, and what to do with an image that cannot be read.
    """

    encoded: EncodedImages
    rows: Tensor
    labels: Tensor
    recipe: DataRecipe

    @classmethod
    def of(cls, encoded: EncodedImages, recipe: DataRecipe) -> LazyImageSet:
        """All images of a source, such as ``list_class_folders`` and ``list_hub`` find."""
        labels = torch.tensor(encoded.labels, dtype=torch.int64)
        return cls(encoded, torch.arange(len(labels)), labels, recipe)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> LazyImageSet:
        """The samples at ``index``, int64 [M]."""
        return LazyImageSet(self.encoded, self.rows[index], self.labels[index], self.recipe)

    def relabelled(self, order: Tensor) -> LazyImageSet:
        """The same images with label i as ``order[i]``."""
        return LazyImageSet(self.encoded, self.rows, order[self.labels], self.recipe)

    def fingerprint(self) -> bytes:
        """SHA-256 over name, size in bytes and label of every image, in order.

        The images themselves would take hours to hash: one that was altered and kept its name and size goes unseen.
        """
        digest = hashlib.sha256()
        for row, label in zip(self.rows.tolist(), self.labels.tolist(), strict=True):
            name, size = self.encoded.stamp(row)
            digest.update(f"{name}\0{size}\0{label}\n".encode())
        return digest.digest()

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The middle of every image, uint8 [N, C, s, s] of the recipe's size; ask it of a part of the set alone."""
        return (self.middles(torch.arange(len(self))),)

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """The middles of the images in order, ``size`` at a time, decoded ahead."""
        threads = loader_threads(self.recipe)
        indices = torch.split(torch.arange(len(self)), size)
        for middles in prefetch(indices, self.middles, workers=threads, depth=threads):
            yield (middles,)

    def middles(self, index: Tensor) -> Tensor:
        """``centre_crops`` of the recipe's size; here every image counts, so one that cannot be read is an error."""
        images, kept = self.centre_crops(index, self.recipe.image_size)
        if len(kept) < len(index):
            missing = int(index[~torch.isin(index, kept)][0])
            raise DataError(
                "an image to be scored cannot be read",
                where=self.encoded.where(int(self.rows[missing])),
                cure="Remove or replace it: only training images can be skipped while streaming",
            )
        return images

    def training_columns(self, index: Tensor) -> tuple[Tensor, ...]:
        """The middles of training images at ``index``, to measure or calibrate by; what cannot be read is left out.

        Raises:
            DataError: none of them, or one that is not to be skipped, can be read.
        """
        images, kept = self.centre_crops(index, self.recipe.image_size)
        if not len(kept):
            raise DataError("no image could be read", where=self.encoded.where(int(self.rows[index[0]])))
        return (images,)

    def score(self, logits: Tensor) -> Metrics:
        """Accuracy and macro F1 of logits [N, classes]."""
        return score(logits, self.labels)

    def random_crops(self, index: Tensor, crops: EpochCrops, size: int) -> Tensor:
        """Training images: the epoch's crop of every sample, resized to ``size``.

        Where images that cannot be read are skipped, the next one of the same class in the set takes the place of
        such a one, in its own crop: samples, labels and batches stay as they were numbered.

        Args:
            index: int64 [n], positions in the set.
            crops: Of the epoch.
            size: Pixels, height and width.

        Returns:
            uint8 [n, C, size, size], channels_last in memory.

        Raises:
            DataError: an image cannot be read; names its file or row.
        """
        pixels = []
        for sample in index.tolist():
            crop = self._crop(sample, crops, size)
            pixels.append(self._stand_in(sample, crops, size) if crop is None else crop)
        return _stack(pixels, size, self.recipe.channels)

    def centre_crops(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Evaluation images: short side resized to ``size`` · 256 / 224, centre cropped; nothing random.

        Args:
            index: int64 [n], positions in the set.
            size: Pixels, height and width.

        Returns:
            (uint8 [m, C, size, size], int64 [m]): channels_last in memory, and their positions in the set; m < n only
            where images that cannot be read are skipped.

        Raises:
            DataError: an image cannot be read; names its file or row.
        """
        channels = self.recipe.channels
        short_side = evaluation_short_side(size)
        found = [self._decode(n, lambda image: centre_crop(image, short_side, size, channels)) for n in index.tolist()]
        kept = torch.tensor([pixels is not None for pixels in found], dtype=torch.bool)
        return _stack([pixels for pixels in found if pixels is not None], size, channels), index[kept]

    def _decode(self, sample: int, use: Callable[[Image.Image], np.ndarray]) -> np.ndarray | None:
        return decode(self.encoded, int(self.rows[sample]), use, self.recipe.on_corrupt)

    def _crop(self, sample: int, crops: EpochCrops, size: int) -> np.ndarray | None:
        def use(image: Image.Image) -> np.ndarray:
            return _resized_crop(image, *crops.draw(sample, *image.size), size, self.recipe.channels)

        return self._decode(sample, use)

    def _stand_in(self, sample: int, crops: EpochCrops, size: int) -> np.ndarray:
        """The crop of the next sample of the same class that can be read."""
        alike = (self.labels == self.labels[sample]).nonzero().squeeze(1).tolist()
        place = alike.index(sample)
        for other in (*alike[place + 1 :], *alike[:place]):
            crop = self._crop(other, crops, size)
            if crop is not None:
                return crop
        raise DataError("no image of a class can be read", where=self.encoded.where(int(self.rows[sample])))


def evaluation_short_side(size: int) -> int:
    """What the short side is resized to before the middle of ``size`` pixels is scored, in pixels."""
    return round(size * EVALUATION_RATIO)


def loader_threads(recipe: DataRecipe) -> int:
    """Threads that decode ahead."""
    return recipe.loader_threads or min(16, os.cpu_count() or 1)


def _resized_crop(image: Image.Image, box: Box, mirrored: bool, size: int, channels: int) -> np.ndarray:
    """Decode no finer than the crop needs (JPEG by 1/2, 1/4 or 1/8 of its size): uint8 [size, size, C]."""
    mode = "RGB" if channels == 3 else "L"
    left, top, right, bottom = box
    whole = (math.ceil(image.width * size / (right - left)), math.ceil(image.height * size / (bottom - top)))
    width = image.width
    draft = image.draft(mode, whole)
    scale = 1.0 if draft is None else draft[1][2] / width
    image = eight_bits(image)
    if image.mode != mode:
        image = image.convert(mode)
    place = cast(tuple[float, float, float, float], tuple(edge * scale for edge in box))
    image = image.resize((size, size), Image.Resampling.BILINEAR, place)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _stack(pixels: Sequence[np.ndarray], size: int, channels: int) -> Tensor:
    """[size, size, C] each -> [n, C, size, size]."""
    batch = np.empty((len(pixels), size, size, channels), dtype=np.uint8)
    for place, image in zip(batch, pixels, strict=True):
        place[:] = image
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
