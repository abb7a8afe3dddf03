"""How much memory a training takes: more with the batch, not with the data set.

`kdedge distill` trains teacher, student and int8 student, one epoch each, from streamed JPEGs, as a user starts it. The
photographs stand in the folder again and again under other names, as a folder of classes and as a table in the Hub's
layout, in two sizes; the larger one with two batch sizes. Read every 20 ms from the kernel: resident memory of its own
(RssAnon), whose peak is what counts, and all that is resident. The latter holds what a Hub table has mapped from disk,
too, which the kernel takes back when it needs memory. Printed: the peaks, median and range over the rounds, and the
ratio of the larger data set to the smaller and of the larger batch to the smaller, round by round.

Run: OMP_NUM_THREADS=1 python benchmarks/training_memory.py [FOLDER] [--rounds 3] [--copies 8 64] [--batches 32 128]

It exits with 1 if the larger data set takes more than `--limit` times the memory of the smaller.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = ["student.model=mobilenet_v2", "student.width=0.35", "teacher.model=resnet18", "data.image_size=64"]
STAGES = ["teacher.training", "student.training", "qat.training"]
SETTINGS = ["data.streamed=true", "data.loader_threads=2", "data.validation_fraction=0.05", "data.test_fraction=0.05",
            "augment.crop_scale=0.25", "tolerance.int8_drop=0.9"]  # fmt: skip
POLL_S = 0.02


@dataclass(frozen=True)
class Peak:
    """The most that was resident at once, in bytes: memory of the process's own, and with mapped files."""

    own: int
    all: int


def resident(pid: int) -> Peak:
    """Now; zeros once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return Peak(0, 0)
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    fields = {name: int(amount.split()[0]) * 1024 for name, amount in pairs}
    return Peak(fields.get("RssAnon", 0), fields.get("VmRSS", 0))


def train(data: Path, out: Path, batch: int) -> Peak:
    """One whole run of the command."""
    settings = [*MODEL, *SETTINGS]
    for stage in STAGES:
        settings += [f"{stage}.epochs=1", f"{stage}.batch_size={batch}"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "kdedge", "distill", "digits", "--data", str(data), "--out", str(out), *options]
    path = out.parent / f"{out.name}.log"
    with path.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        own = all_ = 0
        while process.poll() is None:
            now = resident(process.pid)
            own, all_ = max(own, now.own), max(all_, now.all)
            time.sleep(POLL_S)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{path.read_text()[-2000:]}")
    return Peak(own, all_)


def class_folders(photographs: list[Path], copies: int, out: Path) -> Path:
    """The photographs in two classes, each one ``copies`` times, as links to the same file."""
    for number, path in enumerate(photographs):
        (out / str(number % 2)).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (out / str(number % 2) / f"{number}-{copy}{path.suffix}").symlink_to(path.resolve())
    return out


def hub_table(photographs: list[Path], copies: int, out: Path) -> Path:
    """The same as parquet."""
    import datasets

    rows = [(path.read_bytes(), number % 2) for number, path in enumerate(photographs)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})

    def generate() -> object:
        for copy in range(copies):
            for number, (content, label) in enumerate(rows):
                yield {"image": {"bytes": content, "path": f"{number}-{copy}.jpeg"}, "label": label}

    (out / "data").mkdir(parents=True)
    found = datasets.Dataset.from_generator(generate, features=features, cache_dir=str(out.parent / "made"))
    found.to_parquet(str(out / "data" / "train-00000-of-00001.parquet"))
    return out


def said(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):8.2f} [{min(values):.2f}, {max(values):.2f}]  n={len(values)}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/data/imagenet-sample"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, nargs=2, default=(8, 64))
    parser.add_argument("--batches", type=int, nargs=2, default=(32, 128))
    parser.add_argument("--limit", type=float, default=1.05)
    wishes = parser.parse_args()
    photographs = sorted(wishes.folder.glob("*/*.jp*g"))
    if not photographs:
        print(f"skipped: no photographs in {wishes.folder}")
        return 0
    few, many = wishes.copies
    small, large = wishes.batches
    cells = [(few, small), (many, small), (many, large)]
    worst = 0.0
    for layout, make in (("folder", class_folders), ("Hub table", hub_table)):
        with tempfile.TemporaryDirectory() as scratch:
            folders = {copies: make(photographs, copies, Path(scratch) / f"{copies}-copies") for copies in (few, many)}
            peaks: dict[tuple[int, int], list[Peak]] = {cell: [] for cell in cells}
            for number in range(wishes.rounds):
                for copies, batch in cells if number % 2 else cells[::-1]:
                    out = Path(scratch) / f"run-{copies}-{batch}-{number}"
                    peaks[copies, batch].append(train(folders[copies], out, batch))
        print(f"{layout}, {len(photographs)} photographs, MiB")
        for (copies, batch), found in peaks.items():
            name = f"{copies * len(photographs):>7} images, batch {batch}"
            own, all_ = ([getattr(peak, what) / 2**20 for peak in found] for what in ("own", "all"))
            print(f"  {name}: its own {said(own)}; all {said(all_)}")
        for name, above, below in (
            ("data set", (many, small), (few, small)),
            ("batch", (many, large), (many, small)),
        ):
            ratios = [a.own / b.own for a, b in zip(peaks[above], peaks[below], strict=True)]
            print(f"  larger {name} / smaller: {said(ratios)}", flush=True)
            if name == "data set":
                worst = max(worst, statistics.median(ratios))
    return int(worst > wishes.limit)


if __name__ == "__main__":
    sys.exit(main())
