"""Stop a stage whose validation figure no longer improves, and keep the weights that were best."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn


class Patience:
    """The best epoch of a stage so far (early stopping; Prechelt 1998, "Early Stopping – But When?").

    What is decided depends on the figures and on ``state_dict`` alone: with it in the checkpoint, a run that goes on
    stops where it would have stopped, with the same weights.

    Args:
        patience: Epochs in a row without a better figure after which to stop; None never stops and keeps nothing.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best_epoch: int | None = None
        self.best_value = -math.inf
        self._best_state: dict[str, Tensor] | None = None

    def update(self, epoch: int, value: float, net: nn.Module) -> bool:
        """Take in the figure of an epoch.

        Args:
            epoch: Its number, rising from call to call.
            value: The validation figure, higher is better; an equal one is no improvement, nor is NaN.
            net: Whose figure it is; its state is copied to the CPU where the figure is the best so far.

        Returns:
            Whether to stop.
        """
        if self.patience is None:
            return False
        if self.best_epoch is None or value > self.best_value:
            self.best_epoch, self.best_value = epoch, value
            self._best_state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in net.state_dict().items()}
        return epoch - self.best_epoch >= self.patience

    def best_state(self) -> dict[str, Tensor] | None:
        """The net's state dict after the best epoch, None before the first and where nothing is kept."""
        return self._best_state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {"best_epoch": self.best_epoch, "best_value": self.best_value, "best_state": self._best_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over ``state_dict``'s values."""
        self.best_epoch, self.best_value = state["best_epoch"], state["best_value"]
        self._best_state = state["best_state"]
