"""What dropout costs a text net's training step on a CPU: torch's masks against kdedge's, in one process.

A net of MiniLM's shape (6 layers, hidden size 384, random weights) with the loss of its task, texts of one length, by
kdedge's own step; the two take turns. Printed: seconds with torch's dropout / seconds with kdedge's (higher is better),
pair by pair, with n, median and spread, for the float net and for the graph that QAT trains with frozen ranges.

Run: OMP_NUM_THREADS=1 python benchmarks/dropout.py [--pairs 7]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from kdedge import quantize, text
from kdedge.dropout import quick_dropout
from kdedge.recipe import Precision, TrainingRecipe
from kdedge.training.feeds import Batch
from kdedge.training.loop import train_step
from kdedge.training.optimization import bfloat16_pays, make_optimizer
from kdedge.training.stage import Stage
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import pairs as in_turn

# Sentences as `sst2-minilm-cpu` has them, windows as `squad-minilm-cpu`: texts a batch, tokens, precision, QAT.
CASES: tuple[tuple[int, int, Precision, bool], ...] = (
    (32, 24, "float32", False),
    (32, 24, "bfloat16", False),
    (16, 192, "float32", False),
    (16, 192, "bfloat16", False),
    (16, 192, "float32", True),
)


def ratios(count: int, length: int, precision: Precision, qat: bool, pairs: int) -> list[float]:
    """Seconds with torch's dropout / seconds with ours, pair by pair; the order alternates."""
    torch.manual_seed(0)
    sizes = {"layers": 6, "hidden": 384, "heads": 12, "intermediate": 1536, "vocab_size": 30522}
    net: nn.Module = text.from_config("bert", "text-classification", **sizes)
    ids = torch.randint(1000, 30000, (count, length))
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    if qat:
        prepared = quantize.prepare_qat(net.eval(), inputs)
        quantize.calibrate(prepared, [inputs])
        quantize.set_observers(prepared, False)
        net = prepared
    training = TrainingRecipe(epochs=1, batch_size=count, optimizer="adamw", learning_rate=1e-5, precision=precision)
    optimizer, stage = make_optimizer(net.train(), training), Stage("student", training)
    batch = Batch(inputs, inputs, torch.randint(0, 2, (count,)))

    def seconds(device: str) -> float:
        with quick_dropout(net, device):
            started = time.perf_counter()
            train_step(net, optimizer, stage, batch, None)
            return time.perf_counter() - started

    return in_turn.ratios(seconds, "none", "cpu", pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    print(
        f"training step; torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    for count, length, precision, qat in CASES:
        about = f"{count} texts of {length:>3} tokens, {'QAT' if qat else 'float'}, {precision:<9}"
        if precision == "bfloat16" and not bfloat16_pays():
            print(f"{about} not measured: kdedge trains in float32 on this CPU")
            continue
        values = ratios(count, length, precision, qat, options.pairs)
        print(
            f"{about} torch/kdedge median {statistics.median(values):.2f}  [{min(values):.2f}, {max(values):.2f}]"
            f"  n={len(values)}"
        )


if __name__ == "__main__":
    main()
