"""What a recipe reaches, by the commands that users type: teacher, student alone, student distilled, int8, artifacts.

For each seed: `kdedge distill` twice (as the recipe says, and with distillation.alpha=0: the same student on labels
alone), `kdedge export` and `kdedge eval` for both formats. A seed's figures are kept as a JSON file in
``benchmarks/results/RECIPE`` with the recipe's hash, the versions and the machine; a seed that is there is not run
again. Then prints one markdown table over all seeds of this recipe: accuracies on the test split, seconds, versions.
Long: as long as the recipe. Interrupted, it goes on where it was.

Run: python benchmarks/recipe_table.py cifar10-cpu --data ../shared/data/cifar10 --out runs/cifar10 [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdedge.files import write_json
from kdedge.recipe_file import load_recipe

RESULTS = Path(__file__).parent / "results"
ROLES = ("teacher", "student alone (labels)", "student, distilled", "student, int8 (torch)", "int8 ONNX", "int8 TFLite")


def kdedge(*words: str) -> dict[str, Any]:
    """The JSON document of one command; its progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "kdedge", *words, "--json"], stdout=subprocess.PIPE, check=True)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, export and score one seed: accuracy by role, parity, seconds by stage, where and with what."""
    out: Path = options.out / f"seed{seed}"
    common = [options.recipe, f"--data={options.data}", f"--set=seed={seed}", "--resume"]
    distilled = kdedge("distill", *common, "--out", str(out / "distilled"))
    labels_only = ["--set=distillation.alpha=0", "--set=qat.training.epochs=0"]
    alone = kdedge("distill", *common, *labels_only, "--out", str(out / "alone"))
    metrics = distilled["metrics"]
    accuracy = {
        ROLES[0]: metrics["teacher"]["accuracy"],
        ROLES[1]: alone["metrics"]["student_float"]["accuracy"],
        ROLES[2]: metrics["student_float"]["accuracy"],
        ROLES[3]: metrics["student_int8"]["accuracy"],
    }
    parity = {}
    for role, format_ in ((ROLES[4], "onnx"), (ROLES[5], "tflite")):
        artifact = str(out / f"student-int8.{format_}")
        parity[format_] = kdedge("export", distilled["bundle"], "--format", format_, "--out", artifact)["parity"]
        accuracy[role] = kdedge("eval", artifact, f"--data={options.data}")["metrics"]["accuracy"]
    manifest = json.loads((Path(distilled["bundle"]) / "manifest.json").read_text())
    return {
        "seed": seed,
        "recipe_sha256": load_recipe(options.recipe).sha256,
        "n": metrics["student_int8"]["n"],
        "accuracy": accuracy,
        "parity": parity,
        "time_s": {"distilled": distilled["time_s"], "alone": alone["time_s"]},
        "energy_j": distilled["energy_j"],
        "unmeasured": distilled["unmeasured"],
        "versions": manifest["versions"],
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """What the seconds were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    flags = set(info.split())
    model = re.search(r"model name\s*:\s*(.*)", info)
    return {
        "architecture": platform.machine(),
        "processor": model.group(1) if model else platform.processor(),
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "bfloat16": sorted(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
    }


def table(recipe: str, runs: list[dict[str, Any]]) -> str:
    """The markdown table and the lines under it."""
    lines = [f"| {recipe}, {runs[0]['n']} test images | accuracy, {len(runs)} seed(s) |", "|---|---|"]
    for role in ROLES:
        lines.append(f"| {role} | {mean_and_spread([run['accuracy'][role] for run in runs], 4)} |")
    gains = [100 * (run["accuracy"][ROLES[2]] - run["accuracy"][ROLES[1]]) for run in runs]
    seconds = [run["time_s"]["distilled"]["total"] for run in runs]
    first = runs[0]
    stages = ", ".join(f"{k} {v:.0f} s" for k, v in first["time_s"]["distilled"].items() if k != "total")
    lines += [
        "",
        f"Distilling gains {mean_and_spread(gains, 2)} points over labels alone, seed by seed.",
        f"Training: {mean_and_spread(seconds, 0)} s; seed {first['seed']}: {stages}.",
        f"Smallest agreement of an artifact with the int8 student: "
        f"{min(p['agreement'] for run in runs for p in run['parity'].values()):.4f}.",
        f"torch {first['versions']['torch']}, Python {first['versions']['python']}; {first['machine']}",
    ]
    return "\n".join(lines)


def mean_and_spread(values: list[float], digits: int) -> str:
    """``mean ± standard deviation`` (n-1); the value alone where there is one."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    """Run the seeds that are missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="none: print what was measured before")
    options = parser.parse_args()
    folder = RESULTS / options.recipe
    wanted = load_recipe(options.recipe).sha256
    for seed in options.seeds:
        path = folder / f"seed{seed}.json"
        if path.exists() and json.loads(path.read_text())["recipe_sha256"] == wanted:
            continue
        write_json(path, one_seed(options, seed))
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    runs = [run for run in runs if run["recipe_sha256"] == wanted]
    print(table(options.recipe, runs) if runs else f"no seed of this {options.recipe} was measured yet")


if __name__ == "__main__":
    main()
