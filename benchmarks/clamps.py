"""A training step of MobileNetV2 whose ReLU6 keep their results for the backward pass, against one that copies inputs.

Pairs of steps in one process, on the same net and images, the order changing from pair to pair. Printed: seconds of
torch's own way / seconds of ours, and bytes kept for the backward pass by either, each memory counted once.

Run: OMP_NUM_THREADS=1 python benchmarks/clamps.py [--pairs 7] [--batch 128]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch
from kdedge import models
from kdedge.recipe import ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.clamps import clamps_keep_results
from kdedge.training.loop import place
from torch import Tensor, nn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    wishes = parser.parse_args()
    torch.manual_seed(0)
    recipe = ModelRecipe("mobilenet_v2", TrainingRecipe(epochs=1), "cifar-stride2")
    net = place(models.build(recipe, models.STUDENTS, 10, (3, 32, 32)), "cpu").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(wishes.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (wishes.batch,))

    def step(ours: bool) -> float:
        started = time.perf_counter()
        with clamps_keep_results(net) if ours else contextlib.nullcontext():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return time.perf_counter() - started

    def kept_bytes(ours: bool) -> int:
        storages: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            step(ours)
        return sum(storages.values())

    with products_on_small_maps(net, "cpu"):
        kept = {ours: kept_bytes(ours) for ours in (False, True)}
        ratios = []
        for pair in range(wishes.pairs):
            seconds = {ours: step(ours) for ours in ((False, True) if pair % 2 else (True, False))}
            ratios.append(seconds[False] / seconds[True])
    print(
        f"step, torch's way / ours: median {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]  "
        f"n={len(ratios)}; {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    print(f"kept for the backward pass: {kept[False] / 2**20:.0f} MiB and {kept[True] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
