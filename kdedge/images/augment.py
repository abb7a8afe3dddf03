"""Augmentation of whole batches; a view is (sample, epoch, seed) and can be made again bit for bit.

The random numbers of an epoch are drawn for all samples at once and looked up by sample index. So a view does not
depend on the batch it stands in, on the order, or on where a run was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdedge.counters import generator_for
from kdedge.recipe import AugmentRecipe


@dataclass(frozen=True)
class EpochViews:
    """The random numbers of every sample of one epoch, each uniform in [0, 1): float32 [N, 6]."""

    uniform: Tensor
    recipe: AugmentRecipe

    def apply(self, images: Tensor, index: Tensor) -> Tensor:
        """The views of the samples at ``index``.

        Args:
            images: uint8 [n, C, H, W], the samples at ``index``.
            index: int64 [n], positions in the data set.

        Returns:
            uint8 [n, C, H, W] (float32 in [0, 255] where a rotation interpolates).
        """
        draw = self.uniform[index]
        if self.recipe.crop_padding:
            images = _crop(images, draw[:, 0], draw[:, 1], self.recipe.crop_padding)
        if self.recipe.horizontal_flip:
            images = torch.where((draw[:, 2] < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
        if self.recipe.rotation_deg:
            images = _rotate(images, (draw[:, 3] * 2 - 1) * self.recipe.rotation_deg)
        if self.recipe.cutout:
            images = _cutout(images, draw[:, 4], draw[:, 5], self.recipe.cutout)
        return images


def epoch_views(samples: int, recipe: AugmentRecipe, seed: int, stage: str, epoch: int) -> EpochViews:
    """Views of all samples in one epoch of one stage."""
    generator = generator_for(seed, stage, epoch, "views")
    return EpochViews(torch.rand(samples, 6, generator=generator), recipe)


def _crop(images: Tensor, u: Tensor, v: Tensor, padding: int) -> Tensor:
    """A crop of the image's size at a random place of the image with a reflected border."""
    count, channels, height, width = images.shape
    padding = min(padding, height - 1, width - 1)
    padded = functional.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    top = (u * (2 * padding + 1)).long()
    left = (v * (2 * padding + 1)).long()
    rows = (top.view(-1, 1) + torch.arange(height)).view(count, 1, height, 1)
    columns = (left.view(-1, 1) + torch.arange(width)).view(count, 1, 1, width)
    sample = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(channels).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotation about the centre, bilinear, the border repeated."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _cutout(images: Tensor, u: Tensor, v: Tensor, size: int) -> Tensor:
    """A square of mid grey around a random point (DeVries & Taylor 2017, arXiv:1708.04552)."""
    _, _, height, width = images.shape
    rows = torch.arange(height).view(1, -1) - (u * height).view(-1, 1)
    columns = torch.arange(width).view(1, -1) - (v * width).view(-1, 1)
    inside = (rows.abs() <= size / 2)[:, None, :, None] & (columns.abs() <= size / 2)[:, None, None, :]
    return torch.where(inside, torch.full_like(images, 128), images)
