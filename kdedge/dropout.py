"""Dropout whose masks cost a CPU little.

Torch draws them number by number, with which a text net's training step took 1.02 (24 tokens, float32) to 1.14 times as
long (192 tokens, bfloat16; ``benchmarks/dropout.py``, one thread of an AMD EPYC).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

_STEPS = 1 << 16
"""A mask's number has 16 bits: probabilities are met within 1/131072, and four are drawn at once."""


@contextmanager
def quick_dropout(net: nn.Module, device: str) -> Iterator[None]:
    """Within the context the net's dropouts draw their masks in another way, from torch's own generator.

    What is drawn depends on the generator's state alone, not on the number of threads.

    Args:
        net: Any module, or the graph that QAT trains; its ``nn.Dropout`` are meant, not calls of a function.
        device: ``cpu``; on any other the context does nothing.
    """
    replaced: list[nn.Module] = []
    for module in net.modules() if device == "cpu" else ():
        if isinstance(module, nn.Dropout) and _is_plain(module):
            setattr(module, "forward", functools.partial(_forward, module))  # noqa: B010 (mypy: a method)
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def dropout(x: Tensor, p: float) -> Tensor:
    """``x`` of any shape with each value zero with probability ``p`` in [0, 1], the others times 1 / (1 - p)."""
    return cast(Tensor, _Dropout.apply(x, p)) if p else x  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    """Keeps the mask, in the dtype of the values, for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """``x`` times a mask."""
        mask = _mask(x, p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient times the same mask."""
        return grads[0] * ctx.saved_tensors[0], None


def _mask(x: Tensor, p: float) -> Tensor:
    """Zeros and 1 / (1 - p), of the shape and dtype of ``x``; p is the multiple of 1/65536 next to what is asked."""
    dropped = round(p * _STEPS)
    if dropped == _STEPS:
        return torch.zeros_like(x)
    count = x.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    numbers = drawn.view(torch.int16)[:count].view(x.shape)  # even over [-32768, 32767]
    return (numbers >= dropped - _STEPS // 2).to(x.dtype).mul_(_STEPS / (_STEPS - dropped))


def _is_plain(module: nn.Dropout) -> bool:
    # What an outer context has replaced stays so; a subclass that computes something of its own keeps it.
    return type(module).forward is nn.Dropout.forward and "forward" not in vars(module)


def _forward(module: nn.Dropout, x: Tensor) -> Tensor:
    """What stands in for the module's forward."""
    return dropout(x, module.p) if module.training else x
