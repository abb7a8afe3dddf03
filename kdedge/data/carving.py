"""Shares of a data set: index sets that cannot overlap, drawn by class or by groups that stay together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdedge.errors import DataError


def carve(data: Any, fraction: float, generator: torch.Generator, name: str) -> tuple[Any, Any]:
    """(rest, carved): ``fraction`` of every class, at least one sample of it where it has two.

    Samples that belong together (questions about one text) stay together: their groups are carved whole.
    """
    if hasattr(data, "groupings"):
        carved = _groups(data.groupings, fraction, generator, name)
    else:
        sizes = torch.bincount(data.labels).tolist()
        counts = [max(1, round(fraction * size)) if size > 1 else 0 for size in sizes]
        carved = _drawn(data.labels, counts, generator)
        if not carved.any() or carved.all():
            raise DataError("too few samples to split: every class needs at least 2", where=name)
    return data.take((~carved).nonzero().squeeze(1)), data.take(carved.nonzero().squeeze(1))


def _drawn(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Bool [N]: so many samples of each class, drawn at random."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts):
        index = (labels == label).nonzero().squeeze(1)
        shuffled = index[torch.randperm(len(index), generator=generator)]
        drawn[shuffled[:count]] = True
    return drawn


def _groups(groupings: Sequence[Tensor], fraction: float, generator: torch.Generator, name: str) -> Tensor:
    """Bool [N]: whole groups in random order until ``fraction`` of the samples is reached, at least one, never all.

    Groups of the first grouping, int64 [N], unless they are so large that more than twice the share would be taken;
    where those of the last one are as well, the small ones among them.

    Raises:
        DataError: there is one group alone.
    """
    wanted = fraction * len(groupings[0])
    for groups in groupings:
        sizes = torch.bincount(groups)
        order = torch.randperm(len(sizes), generator=generator)
        carved = torch.isin(groups, _until(order[:-1], sizes, wanted))
        if 0 < carved.sum() <= 2 * wanted:
            return carved
    if len(sizes) < 2:
        raise DataError(
            f"too few texts to split: {len(groups)} questions that are to be split are on one text",
            where=name,
            cure="Give more texts, or a test and a validation split",
        )
    small = order[sizes[order] <= wanted]
    return torch.isin(groups, _until(small, sizes, wanted) if len(small) else sizes.argmin())


def _until(order: Tensor, sizes: Tensor, wanted: float) -> Tensor:
    """The first groups that hold so many samples together."""
    before = torch.cumsum(sizes[order], 0) - sizes[order]
    return order[before < wanted]


def limited(data: Any, count: int, generator: torch.Generator, name: str) -> Any:
    """``count`` samples, drawn evenly from the classes.

    Raises:
        DataError: fewer than there are classes.
    """
    sizes = torch.bincount(data.labels).tolist()
    classes = sum(size > 0 for size in sizes)
    if count < classes:
        cure = "Ask for a sample of each class at least"
        raise DataError(f"data.train_limit is {count}, and there are {classes} classes", where=name, cure=cure)
    return data.take(_drawn(data.labels, _shares(sizes, count), generator).nonzero().squeeze(1))


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` in proportion to the sizes of the classes, by largest remainder, at least one of each that has any."""
    wanted = [size * count / sum(sizes) for size in sizes]
    shares = [max(int(share), min(size, 1)) for share, size in zip(wanted, sizes, strict=True)]
    while missing := count - sum(shares):
        step = 1 if missing > 0 else -1
        able = [n for n, size in enumerate(sizes) if (shares[n] < size if step > 0 else shares[n] > 1)]
        shares[max(able, key=lambda n: step * (wanted[n] - shares[n]))] += step
    return shares
