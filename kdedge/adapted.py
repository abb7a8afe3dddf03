"""A teacher behind another preprocessing than the run's, or with its classes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Adapted(nn.Module):
    """A net behind its own normalisation and size, its logits in the order of our classes.

    Args:
        net: Images [N, C, H, W] or features [N, D], normalised as it was trained with -> logits [N, classes].
        ours: Mean and standard deviation, by channel or feature, that the run's inputs were normalised with.
        theirs: Those that the net was trained with.
        size: (height, width) that the net wants; None takes images as they come.
        order: Where each of our classes stands among the net's; None where they stand alike.
    """

    def __init__(
        self,
        net: nn.Module,
        ours: Moments | None = None,
        theirs: Moments | None = None,
        *,
        size: tuple[int, int] | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.size = size
        scale, shift = torch.ones(1), torch.zeros(1)
        if ours is not None and theirs is not None:
            (our_mean, our_std), (mean, std) = ([torch.tensor(v) for v in moments] for moments in (ours, theirs))
            scale, shift = our_std / std, (our_mean - mean) / std
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def extra_repr(self) -> str:
        """Its size."""
        return f"size={self.size}"

    def forward(self, x: Tensor) -> Tensor:
        """The net's logits in our order."""
        dims = (1, -1, *[1] * (x.ndim - 2))
        x = x * cast(Tensor, self.scale).view(dims) + cast(Tensor, self.shift).view(dims)
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        logits = cast(Tensor, self.net(x))
        return logits if self.order is None else logits[:, cast(Tensor, self.order)]


class Reordered(nn.Module):
    """A net of any inputs, its logits in the order of our classes.

    Args:
        net: -> logits [N, classes].
        order: Where each of our classes stands among the net's.
    """

    def __init__(self, net: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", torch.tensor(order))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The net's logits in our order."""
        return cast(Tensor, self.net(*inputs))[:, cast(Tensor, self.order)]


Moments = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, by channel or feature."""


def order_among(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Where each of our classes stands among theirs."""
    return [theirs.index(name) for name in ours]
