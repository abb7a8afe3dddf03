"""What a recipe reaches, by the commands that users type: teacher, student alone, student distilled, int8, artifacts.

For each seed: `kdedge distill` as the recipe says, and once more for the same student on labels alone; `kdedge export`
and `kdedge eval` for both formats. `--against NAME KEY=VALUE ...` adds a run with other settings, such as another loss;
what it would train alike (the teacher, with other keys of QAT the student too) is trained once. `--set` changes the
recipe for all of them, such as data.train_limit; `--teacher` takes one teacher for all seeds. A seed's figures
are kept as a JSON file under ``benchmarks/results`` with the recipe's hash, versions and machine; what is there is not
run again. Then prints one markdown table over all seeds: scores on the test split, seconds, versions. Long: as long
as the recipe. Interrupted, it goes on where it was.

Run: python benchmarks/recipe_table.py cifar10-cpu --data ../shared/data/cifar10 --out runs/cifar10 [--seeds 0 1 2]
     python benchmarks/recipe_table.py cifar10-cpu --data ... --out ... --set data.train_limit=10000 --against dkd \
         distillation.loss=dkd
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
from kdedge.metrics import WORDS
from kdedge.recipe_file import load_recipe

RESULTS = Path(__file__).parent / "results"
TEACHER, ALONE, DISTILLED, INT8 = "teacher", "student alone (labels)", "student, distilled", "student, int8 (torch)"
ARTIFACTS = {"onnx": "int8 ONNX", "tflite": "int8 TFLite"}
NO_TEACHER = ["distillation.alpha=0", "distillation.hidden_weight=0", "distillation.attention_weight=0"]


def kdedge(*words: str) -> dict[str, Any]:
    """The JSON document of one command; its progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "kdedge", *words, "--json"], stdout=subprocess.PIPE, check=True)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, export and score one seed: scores by role, parity, seconds by stage, where and with what."""
    out: Path = options.out / f"seed{seed}"

    def distill(name: str, *overrides: str, reuse: Path | None = None) -> dict[str, Any]:
        settings = [f"--set={setting}" for setting in (f"seed={seed}", *options.set, *overrides)]
        spec = [] if options.teacher is None else [f"--teacher={options.teacher}"]
        spec += [] if reuse is None else [f"--reuse={reuse}"]
        common = [options.recipe, f"--data={options.data}", "--out", str(out / name), "--resume"]
        return kdedge("distill", *common, *settings, *spec)

    distilled = distill("distilled")
    alone = distill("alone", *NO_TEACHER, "qat.training.epochs=0")
    scores = {
        TEACHER: distilled["metrics"]["teacher"],
        ALONE: alone["metrics"]["student_float"],
        DISTILLED: distilled["metrics"]["student_float"],
        INT8: distilled["metrics"]["student_int8"],
    }
    parity = {}
    for format_, role in ARTIFACTS.items():
        artifact = str(out / f"student-int8.{format_}")
        parity[format_] = kdedge("export", distilled["bundle"], "--format", format_, "--out", artifact)["parity"]
        scores[role] = kdedge("eval", artifact, f"--data={options.data}")["metrics"]
    time_s = {"distilled": distilled["time_s"], "alone": alone["time_s"]}
    for name, *overrides in options.against:
        other = distill(name, *overrides, reuse=out / "distilled")
        time_s[name] = other["time_s"]
        for key, what in (("student_float", name), ("student_int8", f"{name}, int8 (torch)")):
            if other["metrics"][key] is not None:
                scores[what] = other["metrics"][key]
    manifest = json.loads((Path(distilled["bundle"]) / "manifest.json").read_text())
    return {
        "seed": seed,
        "recipe_sha256": load_recipe(options.recipe, options.set).sha256,
        "settings": options.set,
        "against": options.against,
        "teacher": options.teacher,
        "n": scores[TEACHER]["n"],
        "scores": scores,
        "parity": parity,
        "time_s": time_s,
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
    first = runs[0]
    figures = [name for name in WORDS if name in first["scores"][TEACHER]]
    settings = "".join(f", {setting}" for setting in first["settings"])
    lines = [
        f"| {recipe}{settings}, n = {first['n']}, {len(runs)} seed(s) | {' | '.join(WORDS[f] for f in figures)} |",
        "|---" * (1 + len(figures)) + "|",
    ]
    for role in first["scores"]:
        cells = [mean_and_spread([run["scores"][role][figure] for run in runs], 4) for figure in figures]
        lines.append(f"| {role} | {' | '.join(cells)} |")
    leading = figures[-1] if "exact_match" in figures else figures[0]
    rivals = [ALONE, *(name for name, *_ in first["against"])]
    lines.append("")
    for rival in rivals:
        gains = [100 * (run["scores"][DISTILLED][leading] - run["scores"][rival][leading]) for run in runs]
        lines.append(f"{DISTILLED} over {rival}: {mean_and_spread(gains, 2)} points of {WORDS[leading]}, seed by seed.")
    seconds = [run["time_s"]["distilled"]["total"] for run in runs]
    stages = ", ".join(f"{k} {v:.0f} s" for k, v in first["time_s"]["distilled"].items() if k != "total")
    agreement = min(parity["agreement"] for run in runs for parity in run["parity"].values())
    lines += [
        f"Training: {mean_and_spread(seconds, 0)} s; seed {first['seed']}: {stages}.",
        f"Smallest agreement of an artifact with the int8 student: {agreement:.4f}.",
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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--against", action="append", nargs="+", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--teacher", help="of all runs, as `kdedge distill --teacher` takes it")
    parser.add_argument("--name", help="of the folder of results; the recipe's name by default")
    options = parser.parse_args()
    folder = RESULTS / (options.name or options.recipe)
    wanted = {
        "recipe_sha256": load_recipe(options.recipe, options.set).sha256,
        "against": options.against,
        "teacher": options.teacher,
    }

    def is_wanted(run: dict[str, Any]) -> bool:
        return all(run.get(key) == value for key, value in wanted.items())

    for seed in options.seeds:
        path = folder / f"seed{seed}.json"
        if not (path.exists() and is_wanted(json.loads(path.read_text()))):
            write_json(path, one_seed(options, seed))
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    runs = [run for run in runs if is_wanted(run)]
    print(table(options.recipe, runs) if runs else f"no seed of this {options.recipe} was measured yet")


if __name__ == "__main__":
    main()
