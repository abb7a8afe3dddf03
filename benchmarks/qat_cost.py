"""What quantization-aware training costs: preparing and converting the graph, and its step against a float step.

MobileNetV2 at 32 px in one process; the steps interleaved. Printed: ratio QAT / float per pair (lower is better) with
observers on and with frozen ranges, and the seconds of prepare and convert, each with n, median and spread.

Run: OMP_NUM_THREADS=1 python benchmarks/qat_cost.py [--pairs 7] [--batch 128] [--stem imagenet]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from kdedge import models, quantize
from kdedge.recipe import ModelRecipe, TrainingRecipe
from kdedge.small_maps import products_on_small_maps
from kdedge.training.feeds import Batch
from kdedge.training.loop import place, train_step
from kdedge.training.stage import Stage
from torch import nn

SHAPE = (3, 32, 32)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(name: str, values: list[float]) -> None:
    """One line."""
    print(f"{name:<36} median {statistics.median(values):.2f}  [{min(values):.2f}, {max(values):.2f}]  n={len(values)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", default="imagenet", choices=["imagenet", "cifar-stride2", "cifar"])
    options = parser.parse_args()
    training = TrainingRecipe(epochs=1, batch_size=options.batch, optimizer="sgd", learning_rate=0.001)
    torch.manual_seed(0)
    student = models.build(ModelRecipe("mobilenet_v2", training, options.stem), models.STUDENTS, 10, SHAPE)
    example = (torch.zeros(2, *SHAPE),)
    x = torch.randn(options.batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (options.batch,))
    print(
        f"MobileNetV2, stem {options.stem}, batch {options.batch}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    prepare, convert = [], []
    for _ in range(3):
        started = time.perf_counter()
        prepared = quantize.prepare_qat(copy.deepcopy(student).eval(), example)
        prepare.append(time.perf_counter() - started)
        quantize.calibrate(prepared, [(x,)])
        convert.append(seconds(lambda p=prepared: quantize.convert(p)))  # type: ignore[misc]
    show("prepare, s", prepare)
    show("convert, s", convert)
    net = place(student, "cpu").train()
    stage = Stage("qat", training)
    optimizers = {id(n): torch.optim.SGD(n.parameters(), lr=0.001, momentum=0.9) for n in (net, prepared)}

    def step(module: nn.Module) -> float:
        module.train()
        with products_on_small_maps(module, "cpu"):  # as the training loop does
            return seconds(lambda: train_step(module, optimizers[id(module)], stage, Batch((x,), (x,), y), None))

    for name, observing in (("observers on", True), ("ranges frozen", False)):
        quantize.set_observers(prepared, observing)
        step(prepared)
        step(net)
        show(f"QAT / float step, {name}", [step(prepared) / step(net) for _ in range(options.pairs)])


if __name__ == "__main__":
    main()
