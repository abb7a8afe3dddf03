"""The ImageNet recipe at 224 px on a handful of photographs: training, QAT, both exports with parity, evaluation.

The photographs are one a class, too few to split: train, validation and test are links to the same ones. So the scores
say how well the nets remember them, nothing about unseen images; what is shown is that the whole path runs on real
photographs, streamed from disk, and how near the artifacts stay to their student. Epochs, batches and rates are set
for so few images, everything else is the recipe's. Printed: what was set, scores with n, parity, seconds by stage.

Run: python benchmarks/imagenet_sample.py FOLDER [--epochs 60] [--teacher-epochs 2] [--qat-epochs 3] [--out DIR]
     FOLDER has one sub-folder a class, such as ../shared/data/imagenet-sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = "imagenet-resnet50-mobilenetv2"


def kdedge(*words: object) -> Any:
    """The JSON document of one command, also where a check failed (exit code 1); its progress goes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "kdedge", *map(str, words), "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def settings(options: argparse.Namespace) -> list[str]:
    """What the recipe does not say as it stands."""
    return [
        f"teacher.training.epochs={options.teacher_epochs}",
        "teacher.training.batch_size=25",
        "teacher.training.learning_rate=0.02",
        f"student.training.epochs={options.epochs}",
        "student.training.batch_size=25",
        "student.training.learning_rate=0.05",
        "student.training.ema_decay=0.9",
        "distillation.alpha=0.5",  # the teacher hardly knows more than its student
        f"qat.training.epochs={options.qat_epochs}",
        "qat.training.batch_size=25",
        "qat.alpha=0.5",
    ]


def run(options: argparse.Namespace, out: Path) -> None:
    """All of it, in ``out``; what is finished there is not run again."""
    data = out / "photographs"
    for split in ("train", "validation", "test"):
        data.mkdir(parents=True, exist_ok=True)
        if not (data / split).exists():
            (data / split).symlink_to(options.folder.resolve(), target_is_directory=True)
    sets = settings(options)
    done = kdedge("distill", RECIPE, "--data", data, "--out", out / "run", "--resume", *(f"--set={s}" for s in sets))
    print(f"{RECIPE} with {', '.join(sets)}")
    for role, scores in done["metrics"].items():
        print(f"  {role:<14} accuracy {scores['accuracy']:.4f}  macro F1 {scores['f1_macro']:.4f}  n={scores['n']}")
    for format_ in ("onnx", "tflite"):
        artifact = out / f"student-int8.{format_}"
        exported = kdedge("export", done["bundle"], "--format", format_, "--out", artifact)
        if "error" in exported:
            print(f"  int8 {format_:<9} refused: {exported['error']['what']}")
            continue
        parity = exported["parity"]
        evaluated = kdedge("eval", artifact, "--data", data)
        scores = evaluated["metrics"]
        print(
            f"  int8 {format_:<9} accuracy {scores['accuracy']:.4f}  macro F1 {scores['f1_macro']:.4f}  "
            f"n={evaluated['n']}  agreement {parity['agreement']:.4f}  float ops {exported['float_ops'] or 'none'}"
        )
    print("  seconds:", ", ".join(f"{stage} {value:.0f}" for stage, value in done["time_s"].items()))


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/data/imagenet-sample"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--qat-epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="keeps the run, and goes on with one that is there")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"skipped: no photographs in {options.folder}")
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options, options.out or Path(folder))


if __name__ == "__main__":
    main()
