"""Latency of kdedge's int8 files against those of other tools, and against float, in the same runtime.

MobileNetV2 at 224 and 32 pixels and the shape of DistilBERT-base (128 tokens), weights at random (the time does not
depend on them), ranges of all from the same samples. In ONNX Runtime against its own `quantize_static` (and
`quantize_dynamic` for text), in LiteRT against ai-edge-quantizer's static int8; batch 1, one thread. The files take
turns, the first one changes with each round. Printed: the median over rounds of ours / theirs (below 1: ours is faster)
with its 95% interval by bootstrap, n, sizes, and the medians in milliseconds, which belong to this machine alone.
`--profile` adds ONNX Runtime's own account of the kernels of both int8 files.

Run: OMP_NUM_THREADS=1 python benchmarks/int8_latency.py [--rounds 60] [--nets mobilenet-224 mobilenet-32 distilbert]
     [--folder KEPT] [--profile]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kdedge import models
from kdedge.bundle import Bundle, write_bundle
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.recipe import Stem
from kdedge.recipe_file import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import peers
from benchmarks.text_shapes import batch, build
from tests import text_nets

from kdedge_agent import runtimes
from kdedge_agent.onnx_session import exact_here
from kdedge_exporters import export

NETS = ("mobilenet-224", "mobilenet-32", "distilbert")
CALIBRATION = 8


def mobilenet(size: int, folder: Path) -> tuple[Bundle, list[peers.Inputs]]:
    """MobileNetV2 as it is at 224 pixels, with the recipes' stem at 32; and samples to calibrate with."""
    torch.manual_seed(0)
    recipe = load_recipe("digits")
    stem: Stem = "imagenet" if size == 224 else "cifar-stride2"
    student = dataclasses.replace(recipe.student, model="mobilenet_v2", width=1.0, stem=stem)
    recipe = dataclasses.replace(recipe, student=student, data=dataclasses.replace(recipe.data, image_size=size))
    net = models.build(student, models.STUDENTS, 10, (3, size, size)).eval()
    preprocessing = ImagePreprocessing((size, size), 3, (0.5,) * 3, (0.25,) * 3)
    bundle = write_bundle(
        folder / "bundle", recipe=recipe, student=net, prepared=None, labels=tuple(map(str, range(10))),
        preprocessing=preprocessing, data={}, results={},
    )  # fmt: skip
    images = torch.randn(CALIBRATION, 3, size, size)
    return bundle.calibrated([(images,)]), [{bundle.inputs[0].name: image[None].numpy()} for image in images]


def distilbert(folder: Path) -> tuple[Bundle, list[peers.Inputs]]:
    """DistilBERT-base with 128 tokens."""
    text_nets.LENGTH = 128
    net = build("distilbert").eval()
    inputs, _ = batch(net, CALIBRATION, 128)
    bundle = text_nets.write(folder / "bundle", net, None).calibrated([inputs])
    names = [spec.name for spec in bundle.inputs]
    rows = [
        {name: values[i : i + 1].numpy().astype(np.int32) for name, values in zip(names, inputs, strict=True)}
        for i in range(CALIBRATION)
    ]
    return bundle, rows


def files(name: str, folder: Path) -> dict[str, dict[str, Path]]:
    """Format -> who made it -> file; what is in the folder already is taken."""
    peer = {"onnx": ["ORT static", *(["ORT dynamic"] if name == "distilbert" else [])], "tflite": ["ai-edge static"]}
    made = {
        kind: {who: folder / f"{name}-{who.replace(' ', '-')}.{kind}" for who in ("ours", "float32", *others)}
        for kind, others in peer.items()
    }
    if all(path.exists() for paths in made.values() for path in paths.values()):
        return made
    with tempfile.TemporaryDirectory() as place:
        bundle, samples = distilbert(Path(place)) if name == "distilbert" else mobilenet(int(name[10:]), Path(place))
        for kind, paths in made.items():
            export(bundle, kind, samples=None, out=paths["ours"])
            export(bundle, kind, precision="float32", samples=None, out=paths["float32"])
    onnx, tflite = made["onnx"], made["tflite"]
    peers.onnxruntime_static(onnx["float32"], samples, onnx["ORT static"])
    if "ORT dynamic" in onnx:
        peers.onnxruntime_dynamic(onnx["float32"], onnx["ORT dynamic"])
    nhwc = [{key: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for key, v in row.items()} for row in samples]
    peers.ai_edge_static(tflite["float32"], nhwc, tflite["ai-edge static"])
    return made


def runner(path: Path, kind: str) -> Callable[[], object]:
    """One inference."""
    session = runtimes.load(str(path), kind, threads=1)
    generator = np.random.default_rng(0)
    arrays = []
    for info in session.inputs:
        shape = tuple(1 if size == runtimes.DYNAMIC else size for size in info.shape)
        values = generator.standard_normal(shape) if info.dtype.startswith("float") else np.ones(shape)
        arrays.append(values.astype(info.dtype))
    session.set_inputs(arrays)
    return session.invoke


def seconds(work: Callable[[], object], calls: int) -> float:
    """Wall time of a call, averaged over some."""
    started = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls


def rounds(works: dict[str, Callable[[], object]], count: int) -> list[dict[str, float]]:
    """Seconds of each, in turns; each turn lasts some 20 ms."""
    calls = {}
    for name, work in works.items():
        seconds(work, 3)
        calls[name] = max(1, int(0.02 / seconds(work, 3)))
    names = list(works)
    found = []
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        found.append({name: seconds(works[name], calls[name]) for name in order})
    return found


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """95% interval of the median, by bootstrap over rounds."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def kernels(path: Path, folder: Path) -> dict[str, tuple[int, float]]:
    """Op type -> how many kernels of it ran, and their microseconds in one inference, by ONNX Runtime's profiler."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.intra_op_num_threads = 1
    for entry in exact_here().items():  # as the agent
        options.add_session_config_entry(*entry)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = [1 if not isinstance(size, int) else size for size in value.shape]
        feeds[value.name] = np.ones(shape, np.float32 if "float" in value.type else np.int32)
    runs = 30
    for _ in range(runs):
        session.run(None, feeds)
    found: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"]].append(event["dur"])
    return {op: (len(times) // runs, sum(times) / runs) for op, times in sorted(found.items())}


def main() -> None:
    """Every net in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files are kept, to measure them again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"{platform.machine()}, Python {platform.python_version()}, 1 thread, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.nets:
            for kind, paths in files(name, folder).items():
                report(name, kind, paths, options.rounds)
                if options.profile and kind == "onnx":
                    for who in ("ours", "ORT static"):
                        print(f"  kernels, {who}: {kernels(paths[who], Path(place))}")


def report(name: str, kind: str, paths: dict[str, Path], count: int) -> None:
    """Measure and print the files of one format."""
    session = runtimes.load(str(paths["ours"]), kind, threads=1)
    print(f"{name}, {session.name} {session.version}", flush=True)
    found = rounds({who: runner(path, kind) for who, path in paths.items()}, count)
    for who, path in paths.items():
        median = statistics.median(row[who] for row in found)
        line = f"  {who:<15} {path.stat().st_size / 1e6:7.2f} MB  {1000 * median:8.3f} ms"
        if who != "ours":
            ratios = [row["ours"] / row[who] for row in found]
            low, high = interval(ratios)
            line += f"  ours / this {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] n={count}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
