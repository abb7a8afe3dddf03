"""BERT-base to DistilBERT-base with random weights: what a training step, an export and an inference cost.

Each shape in turn, 128 tokens, one thread; what is compared runs interleaved in one process. Printed, with n, median
and spread: seconds of a float step and of a QAT step and their ratio, with observers on and with frozen ranges (lower
is better); peak memory of a process that runs float steps, and of one that runs QAT steps; seconds of an export; size
of the files; latency float / int8 (higher is better) in ONNX Runtime and LiteRT.

Run: OMP_NUM_THREADS=1 python benchmarks/text_shapes.py [--pairs 5] [--calls 15] [--batch 8] [--shapes bert distilbert]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from kdedge import quantize, text
from kdedge.inputs import examples
from tests import text_nets
from torch import Tensor, nn

from kdedge_agent import runtimes
from kdedge_exporters import export, load_artifact

TASK: Literal["text-classification"] = "text-classification"
RUNTIMES = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(name: str, values: list[float], digits: int = 2) -> None:
    """One line."""
    spread = f"[{min(values):.{digits}f}, {max(values):.{digits}f}]"
    print(f"  {name:<44} median {statistics.median(values):.{digits}f}  {spread}  n={len(values)}", flush=True)


def build(shape: str) -> text.TextNet:
    """BERT-base, or the DistilBERT of its layers 0, 2, 4, 6, 8, 10."""
    torch.manual_seed(0)
    teacher = text.from_config("bert", TASK)
    return teacher if shape == "bert" else text.student_of(teacher)


def batch(net: text.TextNet, size: int, length: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random texts of half to the whole length, and labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, net.config.vocab_size, (size, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (size, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    inputs = (ids * mask, mask, torch.zeros_like(ids))[: len(net.inputs(length))]
    return inputs, torch.randint(0, 2, (size,), generator=generator)


class Step:
    """One training step of a net, with AdamW."""

    def __init__(self, net: nn.Module, data: tuple[tuple[Tensor, ...], Tensor]) -> None:
        self.net, (self.inputs, self.labels) = net.train(), data
        self.optimizer = torch.optim.AdamW(net.parameters(), 2e-5)

    def __call__(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(*self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def peak_bytes(shape: str, size: int, length: int, quantised: bool) -> int:
    """Peak memory of this process, which must be a fresh one, after two training steps."""
    torch.set_num_threads(1)
    net: nn.Module = build(shape)
    data = batch(net, size, length)  # type: ignore[arg-type]
    if quantised:
        net = quantize.prepare_qat(net.eval(), examples(net.inputs(length), 2))  # type: ignore[operator]
    step = Step(net, data)
    step()
    step()
    # Not ru_maxrss: a child's begins with what its parent held.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def training(shape: str, options: argparse.Namespace) -> tuple[text.TextNet, torch.fx.GraphModule]:
    """Print what steps cost; returns the net and its quantised graph."""
    net = build(shape)
    data = batch(net, options.batch, options.length)
    prepared = quantize.prepare_qat(net.eval(), examples(net.inputs(options.length), 2))
    print(f"  calibration on one batch: {seconds(lambda: quantize.calibrate(prepared, [data[0]])):.1f} s")
    floats, quantised = Step(net, data), Step(prepared, data)
    for name, observing in (("observers on", True), ("ranges frozen", False)):
        quantize.set_observers(prepared, observing)
        floats()
        quantised()
        times = [(seconds(floats), seconds(quantised)) for _ in range(options.pairs)]
        if observing:
            show("float step, s", [a for a, _ in times])
        show(f"QAT step, {name}, s", [b for _, b in times])
        show(f"QAT / float step, {name}", [b / a for a, b in times])
    return net.eval(), prepared.eval()


def latency(paths: dict[str, Path], kind: str, data: dict[str, Any], calls: int) -> None:
    """Print the latencies of a format's two files, and their ratio by interleaved calls."""
    sessions = {precision: runtimes.load(str(path), kind, threads=1) for precision, path in paths.items()}
    for session in sessions.values():
        session.set_inputs([data[info.name] for info in session.inputs])
        for _ in range(3):
            session.invoke()
    times = [{name: seconds(session.invoke) for name, session in sessions.items()} for _ in range(calls)]
    version = next(iter(sessions.values())).version
    for precision in sessions:
        show(f"{RUNTIMES[kind]} {version} {precision}, ms", [1000 * entry[precision] for entry in times], 1)
    show(f"{RUNTIMES[kind]} float32 / int8", [entry["float32"] / entry["int8"] for entry in times])


def artifacts(net: text.TextNet, prepared: torch.fx.GraphModule, options: argparse.Namespace, folder: Path) -> None:
    """Print what exports cost, their sizes, how near they are, and how fast."""
    text_nets.LENGTH = options.length
    bundle = text_nets.write(folder / "bundle", net, prepared)
    inputs, _ = batch(net, 16, options.length)
    with torch.no_grad():
        logits = prepared(*inputs).numpy()
    step = quantize.qparams(prepared)[-1].scale[0]
    data = {spec.name: x[:1].numpy().astype(np.int32) for spec, x in zip(bundle.inputs, inputs, strict=True)}
    for kind in RUNTIMES:
        paths = {}
        for precision in ("float32", "int8"):
            started = time.perf_counter()
            made = export(bundle, kind, precision=precision, samples=None)
            paths[precision] = made.artifact
            print(f"  {kind} {precision}: {made.size_bytes / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
        found = load_artifact(paths["int8"]).predict([tensor.numpy() for tensor in inputs])
        difference = np.abs(found - logits) / step
        print(f"  {kind} int8 from torch's int8: mean {difference.mean():.3f}, max {difference.max():.1f} steps, n=16")
        latency(paths, kind, data, options.calls)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--shapes", nargs="+", default=["bert", "distilbert"], choices=["bert", "distilbert"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batch {options.batch}, {options.length} tokens; torch {torch.__version__}, 1 thread, {platform.machine()}")
    for shape in options.shapes:
        print(f"{shape}-base shape")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            for name, quantised in (("float", False), ("QAT", True)):
                size = fresh.apply(peak_bytes, (shape, options.batch, options.length, quantised))
                print(f"  peak memory of {name} steps: {size / 1e9:.2f} GB", flush=True)
        net, prepared = training(shape, options)
        with tempfile.TemporaryDirectory() as folder:
            artifacts(net, prepared, options, Path(folder))


if __name__ == "__main__":
    main()
