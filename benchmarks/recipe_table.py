"""What a recipe reaches by the commands that users type: teacher, assistant, student alone, distilled, int8, artifacts.

For each seed: `kdedge distill` as the recipe says, and once more for the same student on labels alone; `kdedge export`
and `kdedge eval` for both formats. `--against NAME KEY=VALUE ...` adds a run with other settings, such as another loss;
what it would train alike (the teacher, with other keys of QAT the student too) is trained once. `--set` changes the
recipe for all of them, such as data.train_limit; `--teacher` takes one teacher for all seeds. A seed's figures
are kept as a JSON file under ``benchmarks/results`` with the recipe's hash, versions and machines, run by run as each
ends; what is there is not run again, and `--only alone` runs that one alone, so that the runs of a seed may come from
several days. Then prints one markdown table over all seeds that have both runs, with the rivals that all of these have:
scores on the test split, seconds, versions.
Long: as long as the recipe. Interrupted, it goes on where it was.

Run: python benchmarks/recipe_table.py vectors-mlp --out runs/vectors --seeds 0 1 2
     python benchmarks/recipe_table.py cifar10-cpu --data ../shared/data/cifar10 --out runs/cifar10 [--seeds 0 1 2]
     python benchmarks/recipe_table.py cifar10-cpu --data ... --out ... --name cifar10-cpu-5000 \
         --set data.train_limit=5000 --teacher runs/cifar10/seed0/distilled/teacher \
         --against DKD distillation.loss=dkd --against "QAT from both" qat.teacher=both
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdedge.files import write_json
from kdedge.metrics import WORDS
from kdedge.recipe_file import load_recipe

RESULTS = Path(__file__).parent / "results"
TEACHER, ASSISTANT = "teacher", "assistant"
ALONE, DISTILLED, INT8 = "student alone (labels)", "student, distilled", "student, int8 (torch)"
METRICS = {TEACHER: "teacher", ASSISTANT: "assistant", DISTILLED: "student_float", INT8: "student_int8"}
ARTIFACTS = {"onnx": "int8 ONNX", "tflite": "int8 TFLite"}
NO_TEACHER = ["distillation.alpha=0", "distillation.hidden_weight=0", "distillation.attention_weight=0"]


def kdedge(*words: str) -> dict[str, Any]:
    """The JSON document of one command; its progress, and why it failed, go to stderr."""
    done = subprocess.run([sys.executable, "-m", "kdedge", *words, "--json"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


class Seed:
    """The runs of one seed, and the file that keeps what each of them gave.

    Args:
        options: Of the command line.
        seed: Its number.
        path: The file; runs that it has are not run again, unless another recipe or teacher made them.
    """

    def __init__(self, options: argparse.Namespace, seed: int, path: Path) -> None:
        self.options, self.seed, self.path = options, seed, path
        self.out: Path = options.out / f"seed{seed}"
        blank = {"seed": seed, **identity(options), "settings": options.set}
        blank |= {"rivals": {}, "scores": {}, "parity": {}, "time_s": {}, "machines": {}}
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.figures: dict[str, Any] = kept if is_of(kept, options) else blank

    def run(self) -> None:
        """Every run that is asked for and missing."""
        runs: dict[str, Callable[[], None]] = {"distilled": self.distilled, "alone": self.alone}
        there = set(self.figures["time_s"])
        for name, *overrides in self.options.against:
            runs[name] = partial(self.rival, name, overrides)
            if self.figures["rivals"].get(name) != overrides:
                there.discard(name)
        for name, train in runs.items():
            if name not in there and self.options.only in (None, name):
                train()

    def distilled(self) -> None:
        """The recipe as it is, and both artifacts of it."""
        done = self.distill("distilled")
        scores = {role: done["metrics"][key] for role, key in METRICS.items() if key in done["metrics"]}
        parity = {}
        for format_, role in ARTIFACTS.items():
            artifact = str(self.out / f"student-int8.{format_}")
            parity[format_] = kdedge("export", done["bundle"], "--format", format_, "--out", artifact)["parity"]
            scores[role] = kdedge("eval", artifact, f"--data={self.options.data}")["metrics"]
        manifest = json.loads((Path(done["bundle"]) / "manifest.json").read_text())
        about = {"parity": parity, "n": scores[TEACHER]["n"], "versions": manifest["versions"]}
        self.keep("distilled", done, scores, **about, energy_j=done["energy_j"], unmeasured=done["unmeasured"])

    def alone(self) -> None:
        """The same student on labels alone, which needs no QAT to be compared."""
        done = self.distill("alone", *NO_TEACHER, "qat.training.epochs=0")
        self.keep("alone", done, {ALONE: done["metrics"]["student_float"]})

    def rival(self, name: str, overrides: list[str]) -> None:
        """The recipe with other settings."""
        done = self.distill(name, *overrides, reuse=self.out / "distilled")
        roles = {name: "student_float", f"{name}, int8 (torch)": "student_int8"}
        found = {role: done["metrics"][key] for role, key in roles.items()}
        self.figures["rivals"][name] = overrides
        self.keep(name, done, {role: scores for role, scores in found.items() if scores is not None})

    def distill(self, name: str, *overrides: str, reuse: Path | None = None) -> dict[str, Any]:
        """One training, or its result where it is there."""
        options = self.options
        settings = [f"--set={setting}" for setting in (f"seed={self.seed}", *options.set, *overrides)]
        spec = [] if options.teacher is None else [f"--teacher={options.teacher}"]
        spec += [] if reuse is None else [f"--reuse={reuse}"]
        common = [options.recipe, f"--data={options.data}", "--out", str(self.out / name), "--resume"]
        return kdedge("distill", *common, *settings, *spec)

    def keep(self, name: str, done: dict[str, Any], scores: dict[str, Any], **more: Any) -> None:
        """Write down what a run gave."""
        self.figures["scores"].update(scores)
        self.figures["time_s"][name] = done["time_s"]
        self.figures["machines"][name] = machine()
        self.figures.update(more)
        write_json(self.path, self.figures)


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """What makes figures comparable."""
    recipe = load_recipe(options.recipe, options.set).sha256
    return {"recipe_sha256": recipe, "teacher": options.teacher}


def is_of(kept: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether figures were made by what the command line asks for."""
    return all(kept.get(key) == value for key, value in identity(options).items()) and bool(kept)


def is_whole(kept: dict[str, Any]) -> bool:
    """Whether it has both runs that make a row."""
    return {"distilled", "alone"} <= set(kept["time_s"])


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
    shared = [role for role in first["scores"] if all(role in run["scores"] for run in runs)]
    rows = [role for role in (TEACHER, ASSISTANT, ALONE, DISTILLED, INT8, *ARTIFACTS.values()) if role in shared]
    for role in [*rows, *(role for role in shared if role not in rows)]:
        cells = [mean_and_spread([run["scores"][role][figure] for run in runs], 4) for figure in figures]
        lines.append(f"| {role} | {' | '.join(cells)} |")
    leading = figures[-1] if "exact_match" in figures else figures[0]
    rivals = [ALONE, *(name for name in first["rivals"] if name in shared)]
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
        f"torch {first['versions']['torch']}, Python {first['versions']['python']}; {first['machines']['distilled']}",
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
    parser.add_argument("--data", help="the recipe's own by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="none: print what was measured before")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--against", action="append", nargs="+", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--teacher", help="of all runs, as `kdedge distill --teacher` takes it")
    parser.add_argument("--only", metavar="RUN", help="distilled, alone, or a NAME of --against; all by default")
    parser.add_argument("--name", help="of the folder of results; the recipe's name by default")
    options = parser.parse_args()
    options.data = options.data or load_recipe(options.recipe, options.set).data.name
    folder = RESULTS / (options.name or options.recipe)
    for seed in options.seeds:
        Seed(options, seed, folder / f"seed{seed}.json").run()
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    whole = [run for run in runs if is_of(run, options) and is_whole(run)]
    print(table(options.recipe, whole) if whole else f"no seed of this {options.recipe} was measured whole yet")


if __name__ == "__main__":
    main()
