"""Where bfloat16 pays on a CPU: products and a training step in bfloat16 against the same in float32.

One process, interleaved pairs whose order alternates. Printed: seconds in float32 / seconds in bfloat16 (above 1:
bfloat16 is faster), with n, median and spread, and what kdedge takes this processor for (`bfloat16_pays`).

Run: OMP_NUM_THREADS=1 python benchmarks/bfloat16.py [--pairs 7] [--batch 128]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from kdedge import models
from kdedge.recipe import ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.loop import place
from kdedge.training.optimization import bfloat16_pays
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.distill_step import ratios


def product() -> Callable[[torch.dtype], object]:
    """A product of two 1024x1024 matrices in a dtype."""
    made = torch.randn(2, 1024, 1024)
    pairs = {dtype: made.to(dtype).unbind() for dtype in (torch.float32, torch.bfloat16)}
    return lambda dtype: torch.mm(*pairs[dtype])


def step(model: str, batch: int) -> Callable[[torch.dtype], object]:
    """A training step on images of 32 px, as the shipped CPU recipe takes it, autocast to a dtype."""
    torch.manual_seed(0)
    registry = models.TEACHERS if model.startswith("resnet") else models.STUDENTS
    recipe = ModelRecipe(model, TrainingRecipe(epochs=1), "cifar-stride2")
    net = place(models.build(recipe, registry, 10, (3, 32, 32)), "cpu").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def run(dtype: torch.dtype) -> None:
        with products_on_small_maps(net, "cpu"):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = net(x)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    trains_in = "bfloat16" if bfloat16_pays() else "float32"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}; kdedge trains in {trains_in} here"
    )
    cases = {
        "product": product(),
        **{f"step of {name}": step(name, options.batch) for name in ("resnet50", "mobilenet_v2")},
    }
    for name, work in cases.items():
        values = ratios(partial(work, torch.float32), partial(work, torch.bfloat16), options.pairs)
        print(
            f"{name:<22} float32/bfloat16 median {statistics.median(values):.2f}  "
            f"[{min(values):.2f}, {max(values):.2f}]  n={len(values)}"
        )


if __name__ == "__main__":
    main()
