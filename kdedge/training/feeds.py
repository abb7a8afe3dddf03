"""Feeds: the training split as batches, in an order and with views that can be made again bit for bit."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from kdedge.data.image_stream import EpochCrops, LazyImageSet, loader_threads
from kdedge.data.images import ImageSet
from kdedge.errors import RecipeError
from kdedge.examples import Examples, Preprocessing
from kdedge.images.augment import EpochViews, epoch_views
from kdedge.images.mixing import EpochMixes, epoch_mixes
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.inputs import common_length
from kdedge.prefetch import prefetch
from kdedge.recipe import AugmentRecipe
from kdedge.text.augment import SentenceViews
from kdedge.text.tokenization import TextPreprocessing, TokenSet

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Batch:
    """Samples as the nets of one step take them, on their device.

    Attributes:
        inputs: Of the net that is trained.
        guide_inputs: Of the guides: the same samples in the same view, images in full size.
        labels: int64 [n] or [n, k], or float32 [n, classes] where samples are mixed.
        mask: [n, L], 1 for a token, 0 for padding; None where samples are no text.
    """

    inputs: tuple[Tensor, ...]
    guide_inputs: tuple[Tensor, ...]
    labels: Tensor
    mask: Tensor | None = None

    def guide_rows(self, part: Tensor) -> tuple[Tensor, ...]:
        """The guides' inputs of some rows, int64 [m]; as they are where all are asked for."""
        if len(part) == len(self.labels):
            return self.guide_inputs
        return tuple(like(x[part.to(x.device)], x) for x in self.guide_inputs)

    def shortened(self) -> Batch:
        """The same texts without the padding that all of them share."""
        if self.mask is None:
            return self
        length = common_length(self.mask)
        inputs, guide_inputs = (tuple(x[:, :length] for x in part) for part in (self.inputs, self.guide_inputs))
        return Batch(inputs, guide_inputs, self.labels, self.mask[:, :length])


class Feed(Protocol):
    """The training samples of a run."""

    @property
    def image_size(self) -> int:
        """Pixels of the images in full size; 0 where there are none to resize."""

    def lengths(self, stage: str, view: int, *, guided: bool) -> Tensor | None:
        """Tokens of each sample in a view, int64 [N], where samples of like length shall share a batch; else None."""

    def __len__(self) -> int:
        """Samples."""

    def for_nets(self, preprocessing: Preprocessing, guide_preprocessing: Preprocessing) -> Feed:
        """The same samples for a net that takes what the one makes, and guides that take what the other makes."""

    def unmixed(self) -> Feed:
        """The same samples, none of them mixed with another."""

    def batches(
        self, stage: str, view: int, size: int, indices: Iterable[Tensor], device: str, *, guided: bool
    ) -> Generator[Batch, None, None]:
        """One batch for each of ``indices``.

        Args:
            stage: Of the training; with ``view`` the name of the views.
            view: A view of every sample; the same one has the same pixels again.
            size: Pixels of the images that the net sees.
            indices: int64 [n] each, positions in the training split.
            device: Where the batches shall be.
            guided: Whether guides look at them too, which want images in full size.
        """


class _Images:
    """What feeds of images share, wherever the images are."""

    data: ImageSet | LazyImageSet
    preprocessing: ImagePreprocessing
    augment: AugmentRecipe
    seed: int
    classes: int

    def __len__(self) -> int:
        return len(self.data)

    def lengths(self, stage: str, view: int, *, guided: bool) -> None:
        """None: all are of one size."""

    def for_nets(self, preprocessing: Preprocessing, guide_preprocessing: Preprocessing) -> Self:
        """See ``Feed``: of images, all nets take the same."""
        del preprocessing, guide_preprocessing
        return self

    def mixes(self, views: EpochViews, stage: str, view: int) -> EpochMixes | None:
        """How the images are mixed, None where they are not."""
        wanted = self.augment
        if not (wanted.mixup_alpha or wanted.cutmix_alpha):
            return None
        return epoch_mixes(
            views,
            self.data.labels,
            self.classes,
            self.seed,
            stage,
            view,
            mixup_alpha=wanted.mixup_alpha,
            cutmix_alpha=wanted.cutmix_alpha,
            probability=wanted.mix_probability,
        )

    def batch(self, images: Tensor, labels: Tensor, size: int, device: str) -> Batch:
        """Images uint8 or float32 [n, C, s, s] as the nets take them, those of the trained net at ``size``."""
        inputs = self.preprocessing.prepare((images.to(device, non_blocking=True),))
        return Batch(tuple(resize(x, size) for x in inputs), inputs, labels.to(device))


@dataclass(frozen=True)
class ImageFeed(_Images):
    """Decoded images, augmented in whole batches."""

    data: ImageSet
    preprocessing: ImagePreprocessing
    augment: AugmentRecipe
    seed: int
    classes: int

    @property
    def image_size(self) -> int:
        """Pixels."""
        return int(self.data.images.shape[-1])

    def unmixed(self) -> ImageFeed:
        """See ``Feed``."""
        return replace(self, augment=unmixed(self.augment))

    def batches(
        self, stage: str, view: int, size: int, indices: Iterable[Tensor], device: str, *, guided: bool
    ) -> Generator[Batch, None, None]:
        """See ``Feed``."""
        del guided
        views = epoch_views(len(self.data), self.augment, self.seed, stage, view)
        mixes = self.mixes(views, stage, view)
        for index in indices:
            if mixes is None:
                images, labels = views.apply(self.data.images[index], index), self.data.labels[index]
            else:
                images, labels = mixes.apply(self.data.images, index)
            yield self.batch(images, labels, size, device)


@dataclass(frozen=True)
class StreamFeed(_Images):
    """Images decoded while the step before is computed."""

    data: LazyImageSet
    preprocessing: ImagePreprocessing
    augment: AugmentRecipe
    seed: int
    classes: int

    @property
    def image_size(self) -> int:
        """Pixels."""
        return self.data.recipe.image_size

    def unmixed(self) -> StreamFeed:
        """See ``Feed``."""
        return replace(self, augment=unmixed(self.augment))

    def batches(
        self, stage: str, view: int, size: int, indices: Iterable[Tensor], device: str, *, guided: bool
    ) -> Generator[Batch, None, None]:
        """See ``Feed``. Without guides images are decoded straight to ``size``."""
        decoded_size = self.image_size if guided else size
        crops = EpochCrops(
            self.seed, stage, view, (self.augment.crop_scale, 1.0), horizontal_flip=self.augment.horizontal_flip
        )
        mixes = self.mixes(epoch_views(len(self.data), self.augment, self.seed, stage, view), stage, view)

        def decode(index: Tensor) -> tuple[Tensor, Tensor]:
            images = self.data.random_crops(index, crops, decoded_size)
            if mixes is None:
                return images, self.data.labels[index]
            partners = self.data.random_crops(mixes.partner[index], crops, decoded_size)
            return mixes.mix(images, partners, index)

        threads = loader_threads(self.data.recipe)
        for images, labels in prefetch(indices, decode, workers=threads, depth=threads):
            yield self.batch(images, labels, size, device)


@dataclass(frozen=True)
class _Columns:
    """What feeds share whose samples are rows of tensors."""

    data: Examples
    preprocessing: Preprocessing
    guide_preprocessing: Preprocessing

    @property
    def image_size(self) -> int:
        """None."""
        return 0

    def __len__(self) -> int:
        return len(self.data)

    def for_nets(self, preprocessing: Preprocessing, guide_preprocessing: Preprocessing) -> Self:
        """See ``Feed``."""
        return replace(self, preprocessing=preprocessing, guide_preprocessing=guide_preprocessing)

    def unmixed(self) -> Self:
        """See ``Feed``."""
        return self

    def batch(self, columns: tuple[Tensor, ...], index: Tensor, device: str) -> Batch:
        """The rows at ``index`` of some columns."""
        rows = tuple(column[index].to(device) for column in columns)
        inputs, guide_inputs = (p.prepare(rows) for p in (self.preprocessing, self.guide_preprocessing))
        return Batch(inputs, guide_inputs, self.data.labels[index].to(device))


@dataclass(frozen=True)
class VectorFeed(_Columns):
    """Feature vectors, which have one view."""

    def lengths(self, stage: str, view: int, *, guided: bool) -> None:
        """None: all are of one size."""

    def batches(
        self, stage: str, view: int, size: int, indices: Iterable[Tensor], device: str, *, guided: bool
    ) -> Generator[Batch, None, None]:
        """See ``Feed``; stage, view and size change nothing here."""
        del stage, view, size, guided
        for index in indices:
            yield self.batch(self.data.columns, index, device)


@dataclass(frozen=True)
class TokenFeed(_Columns):
    """Texts as tokens.

    Attributes:
        group_by_length: Whether texts of like length share a batch.
        views: How sentences are changed where a teacher says what they mean; None for never.
        label_views: How they are changed where labels alone say it; None for never.
    """

    group_by_length: bool = False
    views: SentenceViews | None = None
    label_views: SentenceViews | None = None

    def tokens(self, stage: str, view: int, *, guided: bool) -> tuple[Tensor, ...]:
        """The columns in one view: ids, mask, and types where the data have them."""
        views = self.views if guided else self.label_views
        if views is None:
            return self.data.columns
        ids, mask, *types = self.data.columns
        uncut = torch.zeros(len(ids), dtype=torch.bool)
        return views.apply(TokenSet(ids, mask, types[0] if types else None, uncut), stage, view).columns

    def lengths(self, stage: str, view: int, *, guided: bool) -> Tensor | None:
        """See ``Feed``."""
        return self.tokens(stage, view, guided=guided)[_MASK].long().sum(1) if self.group_by_length else None

    def batches(
        self, stage: str, view: int, size: int, indices: Iterable[Tensor], device: str, *, guided: bool
    ) -> Generator[Batch, None, None]:
        """See ``Feed``."""
        del size
        columns = self.tokens(stage, view, guided=guided)
        for index in indices:
            made = self.batch(columns, index, device)
            yield replace(made, mask=made.inputs[_MASK])


_MASK = 1  # after the ids, see inputs.token_inputs


def make_feed(
    data: Examples,
    preprocessing: Preprocessing,
    augment: AugmentRecipe,
    *,
    seed: int,
    classes: int,
    group_by_length: bool = False,
) -> Feed:
    """The feed for a kind of data."""
    if isinstance(data, ImageSet) and isinstance(preprocessing, ImagePreprocessing):
        return ImageFeed(data, preprocessing, augment, seed, classes)
    if isinstance(data, LazyImageSet) and isinstance(preprocessing, ImagePreprocessing):
        return StreamFeed(data, preprocessing, augment, seed, classes)
    if isinstance(preprocessing, TextPreprocessing):
        views = SentenceViews.of(augment, preprocessing, seed)
        label_views = SentenceViews.of(AugmentRecipe(masked_tokens=augment.word_dropout), preprocessing, seed)
        if augment.span_probability and any(types.any() for types in data.columns[2:]):
            raise RecipeError("augment.span_probability: a run of tokens of two texts is no pair", cure="Set it to 0")
        return TokenFeed(data, preprocessing, preprocessing, group_by_length, views, label_views)
    return VectorFeed(data, preprocessing, preprocessing)


def unmixed(augment: AugmentRecipe) -> AugmentRecipe:
    """The same augmentation, without mixing samples."""
    return replace(augment, mixup_alpha=0.0, cutmix_alpha=0.0)


def channels_last(x: Tensor) -> Tensor:
    """Images in the layout that the fast convolutions of CPU and GPU want (benchmarks/distill_step.py)."""
    return x.contiguous(memory_format=torch.channels_last)


def like(x: Tensor, other: Tensor) -> Tensor:
    """``x`` contiguous in the layout of ``other``."""
    if other.ndim == 4 and other.is_contiguous(memory_format=torch.channels_last):
        return channels_last(x)
    return x.contiguous()


def resize(x: Tensor, size: int) -> Tensor:
    """Images [n, C, s, s] at ``size`` pixels."""
    if size == x.shape[-1]:
        return x
    return channels_last(functional.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False))
