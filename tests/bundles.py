"""Real bundles for tests: a small student trained for seconds on separable images, prepared, calibrated, written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from kdedge import models, quantize
from kdedge.bundle import Bundle, write_bundle
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.recipe import Activations
from kdedge.recipe_file import load_recipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.loop import place
from torch import Tensor, nn

CLASSES = 6


def images_of(shape: tuple[int, ...], count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Normalised images float32 [count, *shape] around one fixed pattern a class, and their labels."""
    patterns = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return patterns[labels] + 0.7 * torch.randn(count, *shape, generator=generator), labels


def train(net: nn.Module, shape: tuple[int, ...], steps: int = 40) -> nn.Module:
    """A few steps of training; the net in eval mode."""
    images, labels = images_of(shape, steps * 32, seed=2)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    place(net, "cpu").train()
    with products_on_small_maps(net, "cpu"):  # as kdedge trains: two thirds of the time
        for x, y in zip(images.split(32), labels.split(32), strict=True):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():  # so short a training leaves batch norm's averages behind the weights
            for x in images[: 30 * 32].split(32):  # type: ignore[no-untyped-call]
                net(x)
    return net.eval()


def batches(shape: tuple[int, ...], count: int = 128) -> Iterator[tuple[Tensor]]:
    """Images to calibrate with."""
    return ((batch,) for batch in images_of(shape, count, seed=3)[0].split(32))  # type: ignore[no-untyped-call]


def write(
    folder: Path,
    *,
    size: int = 32,
    steps: int = 40,
    activations: Activations = "affine",
    quantised: bool = True,
    **student: Any,
) -> Bundle:
    """A bundle of a student of ``models.STUDENTS``; more keywords are those of ``ModelRecipe``."""
    torch.manual_seed(0)
    shape = (3, size, size)
    recipe = load_recipe("digits")
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, image_size=size),
        student=dataclasses.replace(recipe.student, **student),
        qat=dataclasses.replace(recipe.qat, activations=activations),
    )
    net = train(models.build(recipe.student, models.STUDENTS, CLASSES, shape), shape, steps)
    prepared = None
    if quantised:
        prepared = quantize.prepare_qat(net, (torch.zeros(2, *shape),), activations=activations)
        quantize.calibrate(prepared, batches(shape))
    return write_bundle(
        folder,
        recipe=recipe,
        student=net,
        prepared=prepared,
        labels=tuple(f"class {index}" for index in range(CLASSES)),
        preprocessing=ImagePreprocessing((size, size), 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        data={},
        results={},
    )
