"""The batches of an epoch, a function of seed, stage and epoch alone."""

from __future__ import annotations

import torch
from torch import Tensor

from kdedge.counters import generator_for

SORTED_BATCHES = 50
"""Batches that are sorted by length together: enough for little padding, few enough to leave the order random."""


def epoch_batches(
    samples: int, seed: int, stage: str, epoch: int, *, batch: int, lengths: Tensor | None = None
) -> list[Tensor]:
    """The batches of an epoch in their order: int64 [batch] each. What does not fill a batch is left out, at random.

    Args:
        samples: Of the training split, N.
        seed: With ``stage`` and ``epoch`` the name of the order.
        stage: Of the training.
        epoch: From 0.
        batch: Samples a batch, at most N.
        lengths: Tokens of each sample, int64 [N], for samples of like length in a batch, since it is padded to its
            longest one. None for batches that are random throughout.
    """
    order = torch.randperm(samples, generator=generator_for(seed, stage, epoch, "order"))
    whole = order[: samples // batch * batch]
    if lengths is None:
        return list(torch.split(whole, batch))
    chunks = torch.split(whole, batch * SORTED_BATCHES)
    batches = torch.cat([chunk[lengths[chunk].argsort(stable=True)] for chunk in chunks]).view(-1, batch)
    return list(batches[torch.randperm(len(batches), generator=generator_for(seed, stage, epoch, "batches"))])
