"""A teacher's logits for one run, in memory: computed once and replayed with the very views that they were computed on.

A view is (sample, view number): its augmentation comes from counters (``augment.epoch_views``), so that the student
sees bit for bit the pixels that the teacher saw (Beyer et al. 2022, arXiv:2106.05237, on why the views must agree).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor


class ViewLogits(Protocol):
    """What the loop replays."""

    def logits(self, view: int, index: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """See ``TeacherCache``."""


NOTED_BYTES = 1 << 30


def memory_note(views: int, samples: int, classes: int) -> str | None:
    """What a user should know who keeps many logits in memory, in one line; None for few."""
    size_bytes = views * samples * classes * 2
    if size_bytes < NOTED_BYTES:
        return None
    return (
        f"note: the teacher's logits of {views} views take {size_bytes / 1e9:.1f} GB of memory and of each checkpoint; "
        'distillation.cache = "shared" keeps them in files'
    )


class TeacherCache:
    """Logits float16 [views, samples, ...] in memory, filled as views come by.

    Args:
        views: Views a sample.
        samples: Size of the training set.
    """

    def __init__(self, views: int, samples: int) -> None:
        self._known = torch.zeros(views, samples, dtype=torch.bool)
        self._logits: Tensor | None = None

    def logits(self, view: int, index: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits float32 [n, ...] of one view of the samples at ``index``.

        Args:
            view: Its number.
            index: int64 [n], positions in the training set.
            compute: Positions within ``index`` of what is not known yet -> their logits.
        """
        unknown = (~self._known[view, index]).nonzero().squeeze(1)
        if len(unknown):
            fresh = compute(unknown).detach().to("cpu", torch.float16)
            if self._logits is None:
                self._logits = torch.zeros(*self._known.shape, *fresh.shape[1:], dtype=torch.float16)
            self._logits[view, index[unknown]] = fresh
            self._known[view, index[unknown]] = True
        # Replayed and fresh logits pass through float16 alike, so that a view always has the same ones.
        return cast(Tensor, self._logits)[view, index].float()

    def state(self) -> dict[str, Any]:
        """Tensors for a checkpoint."""
        return {"known": self._known, "logits": self._logits}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over ``state``."""
        self._known, self._logits = state["known"], state["logits"]
