"""Mixup and CutMix of whole batches: each sample has a partner, by view, that its image and label are mixed with.

As in ``augment`` every random number is a function of (seed, stage, epoch or view) and is looked up by sample. The
partner is so too, rather than a neighbour in the batch: the mixed image of a view does not depend on order or batch, a
run that goes on sees the same pixels, and a teacher's logits can be cached by (view, sample) as without mixing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdedge.counters import generator_for
from kdedge.images.augment import EpochViews


@dataclass(frozen=True)
class EpochMixes:
    """How every sample of one view is mixed.

    Attributes:
        views: Augmentation of the samples and of their partners.
        labels: int64 [N].
        classes: Columns of the mixed labels.
        partner: int64 [N], each sample's partner; a sample that stays as it is has itself.
        own_share: float32 [N], the sample's own weight in mixup; 1 where none is done.
        cut_share: float32 [N], area of CutMix's box before the border clips it, as a share of the image's; 0 for none.
        centre: float32 [N, 2], row and column of the box's centre as shares of height and width.
        blends: Whether any sample is mixed up: then all images come as float32.
    """

    views: EpochViews
    labels: Tensor
    classes: int
    partner: Tensor
    own_share: Tensor
    cut_share: Tensor
    centre: Tensor
    blends: bool

    def apply(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed views of the samples at ``index``, each partner in its own augmentation of this view.

        Args:
            images: uint8 [N, C, H, W], all samples.
            index: int64 [n], positions among them.

        Returns:
            As ``mix``.
        """
        partner = self.partner[index]
        return self.mix(self.views.apply(images[index], index), self.views.apply(images[partner], partner), index)

    def mix(self, own: Tensor, partners: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """What ``apply`` does with views that are already there, such as those of images decoded on demand.

        Args:
            own: uint8 or float [n, C, H, W] in [0, 255], the samples at ``index``.
            partners: The same of the samples at ``partner[index]``.
            index: int64 [n].

        Returns:
            (images, labels): uint8 [n, C, H, W], float32 in [0, 255] where mixup blends; float32 [n, classes], the
            one-hot labels of sample and partner by their shares of the pixels.
        """
        box = self._box(index, own.shape[2], own.shape[3])
        images = torch.where(box.unsqueeze(1), partners, own)
        share = self.own_share[index].view(-1, 1)
        if self.blends:
            # Not torch.lerp: its last bit can depend on where in the batch a sample stands.
            part = share.view(-1, 1, 1, 1)
            images = part * images + (1 - part) * partners
        share = share * (1 - box.float().mean((1, 2))).view(-1, 1)
        mine, theirs = (functional.one_hot(self.labels[i], self.classes) for i in (index, self.partner[index]))
        return images, share * mine + (1 - share) * theirs

    def _box(self, index: Tensor, height: int, width: int) -> Tensor:
        """Where the partner's pixels go: bool [n, H, W], sides of √area each as a share of the image's."""
        side = self.cut_share[index].sqrt().view(-1, 1)
        rows = _between(self.centre[index, :1], side, height)
        columns = _between(self.centre[index, 1:], side, width)
        return rows.unsqueeze(2) & columns.unsqueeze(1)


def epoch_mixes(
    views: EpochViews,
    labels: Tensor,
    classes: int,
    seed: int,
    stage: str,
    epoch: int,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    probability: float = 1.0,
) -> EpochMixes:
    """Mixes of all samples in one epoch (or cached view) of one stage.

    Args:
        views: Of the same epoch.
        labels: int64 [N], of all samples.
        classes: Number of classes.
        seed: As of the views.
        stage: As of the views.
        epoch: As of the views.
        mixup_alpha: Both images are blended by shares from Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412);
            0 for no mixup.
        cutmix_alpha: A box of the partner's pixels replaces the sample's, its area from Beta(alpha, alpha) (Yun et
            al. 2019, arXiv:1905.04899); 0 for no CutMix. With both on, each sample takes one of them at even odds.
        probability: Of each sample to be mixed at all.
    """
    samples = len(labels)
    generator = generator_for(seed, stage, epoch, "mixes")
    partner = torch.randperm(samples, generator=generator)
    draw = torch.rand(samples, 4, generator=generator)
    mixed = draw[:, 0] < probability
    cut_odds = 0.5 if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0)
    cut = mixed & (draw[:, 1] < cut_odds)
    blended = mixed & ~cut & (mixup_alpha > 0)
    return EpochMixes(
        views,
        labels,
        classes,
        partner=torch.where(cut | blended, partner, torch.arange(samples)),
        own_share=torch.where(blended, _beta(samples, mixup_alpha, generator), torch.ones(samples)),
        cut_share=torch.where(cut, _beta(samples, cutmix_alpha, generator), torch.zeros(samples)),
        centre=draw[:, 2:],
        blends=mixup_alpha > 0,
    )


def _beta(samples: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draws of Beta(alpha, alpha): float32 [samples]; zeros for alpha 0. NumPy's, since torch's take no generator."""
    if not alpha:
        return torch.zeros(samples)
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, samples).astype(np.float32))


def _between(centre: Tensor, side: Tensor, pixels: int) -> Tensor:
    """Which pixels of an axis lie in the box: bool [n, pixels]; centre and side [n, 1] as shares of the axis."""
    first = ((centre - side / 2) * pixels).round()
    last = ((centre + side / 2) * pixels).round()
    place = torch.arange(pixels)
    return (place >= first) & (place < last)
