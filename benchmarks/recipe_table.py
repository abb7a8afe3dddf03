"""What a recipe reaches, by the commands that users type: teacher, student alone, student distilled, int8, artifacts.

Runs `kdedge distill` twice (as the recipe says, and with distillation.alpha=0: the same student on labels alone),
`kdedge export` and `kdedge eval` for both formats, and prints one markdown table of accuracies on the test split with
seconds and versions. Long: as long as the recipe. Interrupted, it goes on where it was.

Run: python benchmarks/recipe_table.py cifar10-cpu --data ../shared/data/cifar10 --out runs/cifar10 [--seeds 0]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROLES = ("teacher", "student alone (labels)", "student, distilled", "student, int8 (torch)", "int8 ONNX", "int8 TFLite")


def kdedge(*words: str) -> dict[str, Any]:
    """The JSON document of one command; its progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "kdedge", *words, "--json"], stdout=subprocess.PIPE, check=True)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def one_seed(options: argparse.Namespace, seed: int) -> tuple[dict[str, float], dict[str, float], int]:
    """(accuracy by role, seconds by stage, n) of one seed."""
    out: Path = options.out / f"seed{seed}"
    common = [options.recipe, f"--data={options.data}", f"--set=seed={seed}"]
    common += [f"--set={override}" for override in options.set]
    resume = ["--resume"]  # a finished run gives its results again, a fresh folder starts
    distilled = kdedge("distill", *common, "--out", str(out / "distilled"), *resume)
    labels_only = ["--set=distillation.alpha=0", "--set=qat.training.epochs=0"]
    alone = kdedge("distill", *common, *labels_only, "--out", str(out / "alone"), *resume)
    metrics = distilled["metrics"]
    found = {
        ROLES[0]: metrics["teacher"]["accuracy"],
        ROLES[1]: alone["metrics"]["student_float"]["accuracy"],
        ROLES[2]: metrics["student_float"]["accuracy"],
        ROLES[3]: metrics["student_int8"]["accuracy"],
    }
    for role, format_ in ((ROLES[4], "onnx"), (ROLES[5], "tflite")):
        artifact = str(out / f"student-int8.{format_}")
        kdedge("export", distilled["bundle"], "--format", format_, "--out", artifact)
        scored = kdedge("eval", artifact, f"--data={options.data}")
        found[role] = scored["metrics"]["accuracy"]
    return found, distilled["time_s"], metrics["student_int8"]["n"]


def main() -> None:
    """Train, export, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    runs = [one_seed(options, seed) for seed in options.seeds]
    n = runs[0][2]
    print(f"| {options.recipe}, test images: {n} | accuracy |\n|---|---|")
    for role in ROLES:
        values = [accuracy[role] for accuracy, _, _ in runs]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"| {role} | {statistics.mean(values):.4f}{spread} |")
    seconds = [time_s["total"] for _, time_s, _ in runs]
    stages = ", ".join(f"{stage} {value:.0f} s" for stage, value in runs[0][1].items() if stage != "total")
    print(f"\nSeeds: {len(runs)}. Training of the distilled student: {statistics.mean(seconds):.0f} s ({stages}).")
    import torch

    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")


if __name__ == "__main__":
    main()
