"""Steps whose loss or gradient is not finite: they end the stage, or are left out as if they had never been tried."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdedge.errors import CheckError
from kdedge.progress import JsonLog
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from kdedge.ranks import Ranks

MOST_IN_A_ROW = 10
"""So many steps in a row are no accident of a batch any more."""


class FiniteSteps:
    """Looks at every step of a stage.

    Args:
        net: All that is trained.
        stage: Its name.
        skip: Leave a step out whose loss or gradient is not finite: no weight changes, and buffers (statistics of batch
            norm, ranges of QAT) are those from before it. Else the stage ends there, and no weight has changed.
        most_in_a_row: Steps left out in a row that end the stage all the same.
        log: Where steps are named that are left out.
        ranks: Who has to agree.
    """

    def __init__(
        self, net: nn.Module, stage: str, *, skip: bool, most_in_a_row: int, log: JsonLog, ranks: Ranks
    ) -> None:
        self._buffers = list(net.buffers()) if skip else []
        self._told = [module for module in net.modules() if skip and isinstance(module, ActivationFakeQuantize)]
        self._stage, self._skip, self._most, self._log, self._ranks = stage, skip, most_in_a_row, log, ranks
        self._before: list[Tensor] = []
        self._skipped_in_a_row = 0
        self._was_left_out = False

    def begin(self) -> None:
        """Before the forward pass."""
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def may_step(self, loss: float, norm: Tensor) -> bool:
        """After the backward pass: whether the optimizer may change the weights.

        Args:
            loss: Of this rank's samples.
            norm: Of the gradients of all that is trained, the same on every rank.
        """
        is_fine = bool(torch.isfinite(norm))
        if not self._skip:  # a loss that is none on any rank has made the gradients of all what they are
            self._was_left_out = not is_fine
            return is_fine
        self._was_left_out = self._ranks.any(not (is_fine and math.isfinite(loss)))
        if self._was_left_out:
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
            for module in self._told:
                module.buffers_changed()
        return not self._was_left_out

    def counts(self, loss: float, step: int, index: Tensor) -> bool:
        """After the step: whether it was one.

        Args:
            loss: Of the whole batch.
            step: From 0.
            index: Its samples, int64 [n].

        Raises:
            CheckError: the loss is not finite, and no step is to be left out; or too many were.
        """
        if not self._was_left_out and math.isfinite(loss):
            self._skipped_in_a_row = 0
            return True
        self._skipped_in_a_row += 1
        self._log.write("not finite", stage=self._stage, step=step, loss=str(loss), samples=index.tolist())
        skipped = self._was_left_out and self._skip
        if skipped and self._skipped_in_a_row < self._most:
            return False
        many = f", as in {self._most} steps in a row" if skipped and self._most > 1 else ""
        gradient = "the loss or its gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        raise CheckError(
            f"{gradient} at step {step} of stage '{self._stage}'{many}",
            where=f"training samples {', '.join(map(str, index[:8].tolist()))}, ...: all {len(index)} are in log.jsonl",
            cure="Lower the learning rate or set gradient_clip; the last checkpoint is intact",
        )
