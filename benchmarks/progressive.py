"""Progressive training against the plain schedule at equal compute: depth that grows, images that grow, both.

With `--assistant MODEL` also a teacher assistant, on which half of the student's compute is spent.

Each schedule trains the recipe's student from the same teacher, which is trained once; a progressive one gets as many
more epochs as its cheaper ones save, counted in multiply-accumulates of the forward pass (torch's FlopCounterMode), so
that none computes more than the plain one. The teacher's part is not counted: with `distillation.cached_views` it is
the same for all. Printed: epochs and compute of each schedule, its accuracy and macro F1 on the test split over the
seeds, the gain over plain seed by seed, and seconds relative to plain.

Run: OMP_NUM_THREADS=1 python benchmarks/progressive.py [digits] [--data D] [--seeds 0 1 2] [--set KEY=VALUE ...]
         [--assistant MODEL] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import kdedge.torchvision_compat  # noqa: F401
import torch
from kdedge import models
from kdedge.recipe import DistillRecipe, ModelRecipe, TrainingRecipe, told
from kdedge.recipe_file import load_recipe
from kdedge.training.depth import Depth
from kdedge.training.optimization import image_size
from torch.utils.flop_counter import FlopCounterMode

PLAIN = "plain"
STAGE = "student.training"


def schedules(recipe: DistillRecipe) -> dict[str, dict[str, Any]]:
    """Settings of the student's stage by name."""
    size = recipe.data.image_size * 5 // 8 // 4 * 4
    plain: dict[str, Any] = {"start_depth": 1.0, "start_size": 0}
    depth, resolution = {"start_depth": 0.3}, {"start_size": size}
    return {
        PLAIN: plain,
        "depth from 0.3": plain | depth,
        f"resolution from {size}": plain | resolution,
        "both": plain | depth | resolution,
    }


class Compute:
    """Multiply-accumulates of the forward passes of a stage that trains a net, per sample of the training split."""

    def __init__(self, recipe: DistillRecipe, wish: ModelRecipe) -> None:
        self.full, self.channels = recipe.data.image_size, recipe.data.channels
        shape = (self.channels, self.full, self.full)
        self.net = models.build(wish, models.STUDENTS, 10, shape).eval()
        self.known: dict[tuple[int, int], float] = {}

    def of(self, training: TrainingRecipe) -> float:
        """Of all epochs."""
        depth = Depth(self.net, training.start_depth)
        counts = [depth.wanted(epoch, training.epochs) for epoch in range(training.epochs)]
        sizes = [image_size(training, epoch, self.full) for epoch in range(training.epochs)]
        return sum(self._pass(depth, *place) for place in zip(counts, sizes, strict=True))

    def _pass(self, depth: Depth, count: int, size: int) -> float:
        if (count, size) not in self.known:
            depth.restore(count, self.net)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.net(torch.zeros(1, self.channels, size, size))
            depth.release(self.net)
            self.known[(count, size)] = counter.get_total_flops() / 2
        return self.known[(count, size)]


def epochs_for(compute: Compute, settings: dict[str, Any], budget: float) -> tuple[int, float]:
    """The most epochs of a schedule within a budget, and what they compute."""
    found = (0, 0.0)
    for epochs in range(1, 1000):
        training = TrainingRecipe(epochs=epochs, **settings)
        cost = compute.of(training)
        if cost > budget * (1 + 1e-9):
            break
        found = (epochs, cost)
    return found


def with_assistant(recipe: DistillRecipe, model: str, compute: Compute, budget: float) -> tuple[list[str], float]:
    """Settings of a run that trains an assistant as it trains the student, with half of the compute; what both cost."""
    wish = ModelRecipe(model, recipe.student.training, recipe.student.stem)
    plain = schedules(recipe)[PLAIN]
    assistants, spent = epochs_for(Compute(recipe, wish), plain, budget / 2)
    students, cost = epochs_for(compute, plain, budget - spent)
    training = cast("dict[str, Any]", told(wish.training)) | {"epochs": assistants}
    settings = [f"assistant.model={model}", f"assistant.stem={wish.stem}"]
    settings += [f"assistant.training.{key}={value}" for key, value in training.items()]
    return [*settings, f"{STAGE}.epochs={students}"], spent + cost


def distill(options: argparse.Namespace, out: Path, settings: list[str], reuse: Path | None) -> dict[str, Any]:
    """The JSON document of a run."""
    words = [options.recipe, "--out", str(out), "--resume", "--json"]
    words += [] if options.data is None else [f"--data={options.data}"]
    words += [] if reuse is None else [f"--reuse={reuse}"]
    words += [f"--set={setting}" for setting in (*options.set, *settings)]
    done = subprocess.run([sys.executable, "-m", "kdedge", "distill", *words], stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    """Every schedule with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--assistant", metavar="MODEL", help="its net, in size between teacher and student")
    parser.add_argument("--out", type=Path, help="kept, and gone on with; a temporary folder by default")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    plans = {}
    compute = Compute(recipe, recipe.student)
    budget = compute.of(TrainingRecipe(epochs=recipe.student.training.epochs))
    for name, settings in schedules(recipe).items():
        epochs, cost = epochs_for(compute, settings, budget)
        plans[name] = [f"{STAGE}.{key}={value}" for key, value in settings.items()] + [f"{STAGE}.epochs={epochs}"]
        print(f"{name}: {epochs} epochs, {cost / budget:.3f} of the compute", flush=True)
    if options.assistant is not None:
        plans["assistant"], cost = with_assistant(recipe, options.assistant, compute, budget)
        print(f"assistant: {cost / budget:.3f} of the compute, {' '.join(plans['assistant'])}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.out or Path(temporary), plans)


def run(options: argparse.Namespace, out: Path, plans: dict[str, list[str]]) -> None:
    """Train, and print what came out."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in plans}
    for seed in options.seeds:
        first: Path | None = None
        for number, (name, settings) in enumerate(plans.items()):
            folder = out / f"seed{seed}-{number}"
            done = distill(options, folder, [f"seed={seed}", "qat.training.epochs=0", *settings], first)
            first = first or folder
            found[name].append(done)
    plain = found[PLAIN]
    count = plain[0]["metrics"]["student_float"]["n"]
    print(f"{options.recipe}, {len(options.seeds)} seeds, {count} test samples")
    for name, runs in found.items():
        scores = {key: [r["metrics"]["student_float"][key] for r in runs] for key in ("accuracy", "f1_macro")}
        words = ", ".join(f"{key} {said(values)}" for key, values in scores.items())
        gains = [
            100 * (a - b["metrics"]["student_float"]["accuracy"])
            for a, b in zip(scores["accuracy"], plain, strict=True)
        ]
        seconds = [trained(r) / trained(p) for r, p in zip(runs, plain, strict=True)]
        more = "" if name == PLAIN else f"; gain {said(gains, 2)} points; time {said(seconds, 3)} of plain"
        print(f"  {name}: {words}{more}")


def trained(run: dict[str, Any]) -> float:
    """Seconds of the student's training, and of its assistant's."""
    return float(run["time_s"]["student"] + run["time_s"].get("assistant", 0.0))


def said(values: list[float], digits: int = 4) -> str:
    """Mean ± standard deviation (n-1)."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
