"""A training step with kdedge's forms of small convolutions against the same step with oneDNN's convolutions.

One process, interleaved pairs, the nets of the shipped CPU recipe on random images; ``qat`` is a step of the graph that
QAT trains, ranges frozen. Printed: ratio convolution / product (higher is better) per net, with n, median and spread.

Run: OMP_NUM_THREADS=1 python benchmarks/small_maps.py [--pairs 7] [--batch 128]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from kdedge import models, quantize
from kdedge.recipe import ModelRecipe, Precision, Stem, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.feeds import Batch
from kdedge.training.loop import place, train_step
from kdedge.training.optimization import bfloat16_pays
from kdedge.training.stage import Stage

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import pairs as in_turn

CASES: tuple[tuple[str, Stem, Precision, int], ...] = (
    ("resnet50", "cifar-stride2", "bfloat16", 32),
    ("resnet50", "cifar-stride2", "float32", 32),
    ("resnet50", "imagenet", "float32", 32),
    ("resnet18", "imagenet", "float32", 32),
    ("mobilenet_v2", "cifar-stride2", "float32", 32),
    ("mobilenet_v2", "cifar-stride2", "float32", 20),
    ("mobilenet_v2", "imagenet", "float32", 32),
    ("mobilenet_v2 qat", "cifar-stride2", "float32", 32),
)


def ratios(model: str, stem: Stem, precision: Precision, size: int, batch: int, pairs: int) -> list[float]:
    """Seconds of a plain step / seconds of a step with products, pair by pair; the order alternates."""
    model, _, qat = model.partition(" ")
    training = TrainingRecipe(epochs=1, batch_size=batch, optimizer="sgd", learning_rate=0.001, precision=precision)
    torch.manual_seed(0)
    registry = models.TEACHERS if model.startswith("resnet") else models.STUDENTS
    net = models.build(ModelRecipe(model, training, stem), registry, 10, (3, size, size))
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    if qat:
        prepared = quantize.prepare_qat(net.eval(), (x[:2],))
        quantize.calibrate(prepared, [(x,)])
        quantize.set_observers(prepared, False)
        net = prepared
    net = place(net, "cpu").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    y = torch.randint(0, 10, (batch,))
    stage = Stage("student", training)

    def seconds(device: str) -> float:
        with products_on_small_maps(net, device):
            started = time.perf_counter()
            train_step(net, optimizer, stage, Batch((x,), (x,), y), None)
            return time.perf_counter() - started

    return in_turn.ratios(seconds, "none", "cpu", pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    print(
        f"training step, batch {options.batch}; torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    for model, stem, precision, size in CASES:
        about = f"{model:<17}{stem:<14}{size} px  {precision:<9}"
        if precision == "bfloat16" and not bfloat16_pays():
            print(f"{about} not measured: kdedge trains in float32 on this CPU")
            continue
        values = ratios(model, stem, precision, size, options.batch, options.pairs)
        print(
            f"{about} convolution/product median {statistics.median(values):.2f}  "
            f"[{min(values):.2f}, {max(values):.2f}]  n={len(values)}"
        )


if __name__ == "__main__":
    main()
