"""Rows of random samples out of a teacher's cache: what a batch of 128 costs, by how it is read.

Three ways: the cache's own mapping (one indexing operation, and pages handed back to the kernel), safetensors'
``get_slice`` (a call a row), and one indexing operation for each shard that a batch touches, as shards in files of
their own would need. All rows lie in the page cache. The three take turns batch by batch; printed: the median over the
batches of each way's time / the mapping's, with the quartiles.

Run: OMP_NUM_THREADS=1 python benchmarks/teacher_cache_reads.py [--samples 200000] [--classes 1000] [--batches 200]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
from kdedge.teacher_cache.layout import SHARD_SAMPLES, Layout
from kdedge.teacher_cache.view_file import ViewFile

BATCH = 128


def main() -> None:
    """Fill a view, read it in three ways, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=200)
    given = parser.parse_args()
    layout = Layout(given.samples, given.classes)
    random = np.random.default_rng(0)
    batches = [random.permutation(given.samples)[:BATCH] for _ in range(given.batches)]
    with tempfile.TemporaryDirectory() as folder:
        view = ViewFile(Path(folder), layout, "benchmark", 0)
        view.create()
        rows = random.standard_normal((SHARD_SAMPLES, given.classes)).astype("<f2")
        for shard in range(layout.shards):
            view.write(shard, [rows[: len(layout.shard(shard))]])
        mapped, columns = view.rows(), np.memmap(view.path, "<f2", "r", len(layout.header("benchmark", 0)))
        table = columns.reshape(given.samples, given.classes)
        parts = [table[at : at + SHARD_SAMPLES] for at in range(0, given.samples, SHARD_SAMPLES)]
        with safetensors.safe_open(view.path, "np") as file:
            sliced = file.get_slice("logits")
            ways: dict[str, Callable[[npt.NDArray[np.int64]], object]] = {
                "one mapping a view": mapped.take,
                "safetensors get_slice": lambda index: [sliced[i : i + 1] for i in index.tolist()],
                "a file a shard": lambda index: by_shard(parts, index),
            }
            print(f"{given.samples} samples, {given.classes} classes, {BATCH} rows, {given.batches} batches,")
            print(f"{platform.machine()}, {os.cpu_count()} processors, numpy {np.__version__},", end=" ")
            print(f"safetensors {safetensors.__version__}")
            for index in batches:  # into the page cache
                mapped.take(index)
            times: dict[str, list[float]] = {name: [] for name in ways}
            for index in batches:
                for name, way in ways.items():
                    times[name].append(seconds(way, index))
            own = next(iter(times.values()))
            for name, found in times.items():
                low, middle, high = statistics.quantiles([a / b for a, b in zip(found, own, strict=True)], n=4)
                print(f"{name:<22} {middle:.2f} [{low:.2f}, {high:.2f}] of the mapping's time")


def seconds(way: Callable[[npt.NDArray[np.int64]], object], index: npt.NDArray[np.int64]) -> float:
    """Of one call."""
    started = time.perf_counter()
    way(index)
    return time.perf_counter() - started


def by_shard(parts: list[npt.NDArray[np.float16]], index: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """The rows at ``index``, gathered shard by shard."""
    out = np.empty((len(index), parts[0].shape[1]), parts[0].dtype)
    shards = index // SHARD_SAMPLES
    for shard in np.unique(shards):
        here = shards == shard
        out[here] = parts[shard][index[here] % SHARD_SAMPLES]
    return out


if __name__ == "__main__":
    main()
