"""The order of the training samples in an epoch, a function of seed, stage and epoch alone."""

from __future__ import annotations

import torch
from torch import Tensor

from kdedge.counters import generator_for

SORTED_BATCHES = 50
"""Batches that are sorted by length together: enough for little padding, few enough to leave the order random."""


def epoch_order(
    samples: int, seed: int, stage: str, epoch: int, *, batch: int = 1, lengths: Tensor | None = None
) -> Tensor:
    """The order of the samples: int64 [samples].

    Args:
        samples: N.
        seed: With ``stage`` and ``epoch`` the name of the order.
        stage: Of the training.
        epoch: From 0.
        batch: Samples a batch.
        lengths: Tokens of each sample, int64 [N], for samples of like length side by side, since a batch is padded
            to its longest one. None for an order that is random throughout.
    """
    order = torch.randperm(samples, generator=generator_for(seed, stage, epoch, "order"))
    if lengths is None:
        return order
    # What does not fill a batch is left out of the epoch; it stays a random choice, not the shortest samples.
    whole = samples // batch * batch
    chunks = torch.split(order[:whole], batch * SORTED_BATCHES)
    batches = torch.cat([chunk[lengths[chunk].argsort(stable=True)] for chunk in chunks]).view(-1, batch)
    shuffled = torch.randperm(len(batches), generator=generator_for(seed, stage, epoch, "batches"))
    return torch.cat([batches[shuffled].flatten(), order[whole:]])
