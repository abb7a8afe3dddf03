"""How a stage is optimised: optimizer, learning rate, size of the images, precision; functions of the recipe alone."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdedge.recipe import Precision, TrainingRecipe


def make_optimizer(net: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; biases and normalisation do not decay (He et al. 2019, arXiv:1812.01187, section 3.1).

    Fused: one pass over a parameter and its state, on a CPU too, where the loop over them takes a pass an operation.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return _sgd(groups, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True)


def _sgd(groups: list[dict[str, Any]], recipe: TrainingRecipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum, whose buffers are there from the start.

    The fused step makes the buffers of all parameters at once or of none, so that a block which joins later
    (progressive depth) would stop it. A buffer of zeros does what the first step has to: momentum · 0 + gradient.
    """
    momentum = recipe.momentum
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    if momentum:
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def image_size(recipe: TrainingRecipe, epoch: int, full: int) -> int:
    """Pixels of the images in this epoch: progressive resizing, in steps of 4, full after 60% of the epochs.

    The last epoch is at the full size, however few there are: the artifact sees no other.
    """
    share = epoch / max(1, 0.6 * recipe.epochs)
    if not 0 < recipe.start_size < full or share >= 1 or epoch >= recipe.epochs - 1:
        return full
    return min(full, recipe.start_size + round((full - recipe.start_size) * share / 4) * 4)


def learning_rate(recipe: TrainingRecipe, step: int, total: int) -> float:
    """Linear warm-up, then a half cosine to zero (Loshchilov & Hutter 2017) or a constant."""
    warmup = round(recipe.warmup_fraction * total)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def autocast_dtype(precision: Precision, device: str) -> torch.dtype | None:
    """The dtype of a forward pass, None for float32."""
    if device == "cuda":
        return torch.bfloat16 if precision != "float32" and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if precision == "bfloat16" and bfloat16_pays() else None


@functools.cache
def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    try:
        return multiplies_bfloat16_faster(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False


def multiplies_bfloat16_faster(cpuinfo: str) -> bool:
    """What ``/proc/cpuinfo`` says of it: AMX, Arm's BF16 extension, or the AVX512-BF16 of an AMD processor.

    Intel's AVX512-BF16 without AMX, as virtual machines show it, is slower than float32
    (``benchmarks/bfloat16.py``). The flags are asked, not a clock, so that a run goes on as it began.
    """
    words = set(re.findall(r"\w+", cpuinfo))
    return bool(words & {"amx_bf16", "bf16"}) or {"avx512_bf16", "AuthenticAMD"} <= words
