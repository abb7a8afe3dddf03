"""What `kdedge export` takes for a MobileNetV2 (10 classes), both formats, as a user runs it, on one core.

Each run is a process of its own: import, capture, translation, and parity on 592 images in every runtime installed.
Prints seconds of CPU and wall, peak memory, n and spread, and by Python's profiler where a run spends its time (which
makes it some 1.5 times slower, so that only the shares count). Nothing is cached between runs.

Beside each run, in turns, the same one without what saves time: a student that torch.export follows anew for parity,
and Python's collector of cycles at its usual pace (``kdedge/collector.py``). Printed is the ratio of their CPU seconds.

Run: OMP_NUM_THREADS=1 python benchmarks/export_time.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from kdedge import models, quantize
from kdedge.bundle import write_bundle
from kdedge.data.splits import load_data
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.recipe_file import load_recipe

FORMATS = ("onnx", "tflite")
# Where a stage begins, by file and function.
STAGES = {
    "capture for int8 (torch.export)": ("quantize/prepare.py", "prepare_qat"),
    "translation to ONNX (torch.onnx)": ("kdedge_exporters/onnx.py", "_translate"),
    "our passes over ONNX": ("kdedge_exporters/onnx_passes.py", "to_integer_form"),
    "translation to TFLite (litert-torch)": ("kdedge_exporters/tflite.py", "_translate"),
    "parity": ("kdedge_exporters/__init__.py", "_parity"),
}

WITHOUT = """
import sys
import kdedge.bundle
import kdedge.collector
kdedge.collector._ALLOCATIONS = 0
kdedge.bundle.Bundle._prepared_once = kdedge.bundle.Bundle._prepare
sys.argv[0] = "kdedge"
from kdedge.cli.entry import main
main()
"""


@dataclass(frozen=True)
class Run:
    """One export: seconds and bytes."""

    cpu_s: float
    wall_s: float
    peak_rss_bytes: int


def bundle(folder: Path) -> Path:
    """An untrained MobileNetV2 on the digits, calibrated: exporting takes as long as for a trained one."""
    torch.manual_seed(0)
    recipe = load_recipe("digits")
    splits = load_data(recipe.data, "digits")
    channels, size = recipe.data.channels, recipe.data.image_size
    preprocessing = ImagePreprocessing((size, size), channels, (0.5,) * channels, (0.25,) * channels)
    shape = (channels, size, size)
    net = models.build(recipe.student, models.STUDENTS, 10, shape).eval()
    prepared = quantize.prepare_qat(net, (torch.zeros(2, *shape),))
    images = preprocessing.normalise(splits.train.images[:256])
    quantize.calibrate(prepared, ((part,) for part in torch.split(images, 64)))
    written = write_bundle(
        folder / "bundle", recipe=recipe, student=net, prepared=prepared, labels=splits.labels,
        preprocessing=preprocessing, data={"source": "digits"}, results={},
    )  # fmt: skip
    return written.path


def command(path: Path, format_: str, out: Path, *, saving: bool = True) -> list[str]:
    """The user's words; tolerances are those of a net that has learnt nothing."""
    wide = ["--tolerance", "1", "--agreement", "0"]
    program = ["-m", "kdedge"] if saving else ["-c", WITHOUT]
    return [*program, "export", str(path), "--format", format_, "--out", str(out), *wide]


def measured(words: list[str]) -> Run:
    """Run it and wait."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    return Run(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss * 1024)


def shares(words: list[str], folder: Path) -> dict[str, float]:
    """Seconds of each stage under the profiler, and of the whole run."""
    file = folder / "profile"
    subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", str(file), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    found = {"whole run": max(row[3] for row in stats.values())}
    for name, (path, function) in STAGES.items():
        rows = [row[3] for (where, _, called), row in stats.items() if where.endswith(path) and called == function]
        if rows:
            found[name] = sum(rows)
    return found


def main() -> None:
    """Both formats in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = bundle(folder)
        runs: dict[str, list[Run]] = {format_: [] for format_ in FORMATS}
        ratios: dict[str, list[float]] = {format_: [] for format_ in FORMATS}
        for _ in range(options.runs):
            for format_ in FORMATS:
                run, plain = (
                    measured(command(path, format_, folder / f"a.{format_}", saving=saving)) for saving in (True, False)
                )
                runs[format_].append(run)
                ratios[format_].append(plain.cpu_s / run.cpu_s)
        for format_, found in runs.items():
            cpu, wall = ([getattr(run, key) for run in found] for key in ("cpu_s", "wall_s"))
            peak = max(run.peak_rss_bytes for run in found) / 2**20
            print(
                f"{format_:<7} CPU {statistics.median(cpu):5.1f} s [{min(cpu):.1f}, {max(cpu):.1f}]  "
                f"wall {statistics.median(wall):5.1f} s [{min(wall):.1f}, {max(wall):.1f}]  "
                f"peak memory {peak:.0f} MiB  n={len(found)}"
            )
            low, middle, high = min(ratios[format_]), statistics.median(ratios[format_]), max(ratios[format_])
            print(f"        without what saves time {middle:.2f} times that CPU [{low:.2f}, {high:.2f}]")
        both = [sum(pair) for pair in zip(*([run.cpu_s for run in runs[f]] for f in FORMATS), strict=True)]
        print(f"both    CPU {statistics.median(both):5.1f} s [{min(both):.1f}, {max(both):.1f}]")
        for format_ in FORMATS:
            parts = shares(command(path, format_, folder / f"a.{format_}"), folder)
            whole = parts.pop("whole run")
            print(f"{format_}: " + ", ".join(f"{name} {100 * part / whole:.0f}%" for name, part in parts.items()))


if __name__ == "__main__":
    main()
