"""The same artifact by kdedge and by the tools of the runtimes themselves, taking turns.

A .tflite file against LiteRT's own `benchmark_litert_model.py`, which its wheel brings along (`litert-benchmark`); an
.onnx file against what ONNX Runtime's profiler writes of whole inferences (`model_run`) in a plain loop. Each turn is a
process of its own, which tool begins changes from round to round. Printed: the median over the rounds of kdedge's
figure / theirs, with its 95% interval, for the figures that both give. LiteRT's tool calls the CompiledModel API where
kdedge calls the Interpreter, which tflite-runtime has too; so one more turn each loops over either API, bare, to tell a
difference of the tools from one of the APIs. The profiler writes a line for each op, so that its inferences take
longer; a turn without it shows by how much.

Run: OMP_NUM_THREADS=1 python benchmarks/side_by_side.py [ARTIFACT...] [--rounds 15] [--seconds 2]
     Without an artifact: the int8 MobileNetV2 of 224 pixels that `int8_latency.py` has, in both formats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.int8_latency import mobilenet

from kdedge_agent.order_statistics import interval
from kdedge_bench.session import bench
from kdedge_exporters import export

Figures = dict[str, float]
"""Seconds of a call, by the name of the figure."""

WARMUP_RUNS = 200

BARE = {
    "Interpreter, bare": """
import sys, time, numpy, statistics
from ai_edge_litert.interpreter import Interpreter
path, warmup, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
interpreter = Interpreter(path, num_threads=1)
interpreter.allocate_tensors()
for detail in interpreter.get_input_details():
    interpreter.set_tensor(detail["index"], numpy.zeros(detail["shape"], detail["dtype"]))
call = interpreter.invoke
""",
    "CompiledModel, bare": """
import sys, time, numpy, statistics
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.environment import Environment, EnvironmentOptions
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import CpuOptions, Options
path, warmup, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=1))
model = CompiledModel.from_file(path, environment=Environment.create(options=EnvironmentOptions()), options=options)
key = next(iter(model.get_signature_list()))
inputs = {name: model.create_input_buffer_by_name(key, name) for name in model.get_input_tensor_details(key)}
outputs = {name: model.create_output_buffer_by_name(key, name) for name in model.get_output_tensor_details(key)}
for name, detail in model.get_input_tensor_details(key).items():
    inputs[name].write(numpy.zeros(detail["shape"], detail["dtype"]))
call = lambda: model.run_by_name(key, inputs, outputs)
""",
}
LOOP = """
for _ in range(warmup):
    call()
samples = []
for _ in range(runs):
    begin = time.perf_counter()
    call()
    samples.append(time.perf_counter() - begin)
print(statistics.median(samples), statistics.fmean(samples))
"""
SESSION = """
import json, os, sys, tempfile, time, numpy, onnxruntime, statistics
from kdedge_agent.onnx_session import exact_here
path, warmup, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
for entry in exact_here().items():  # as the agent
    options.add_session_config_entry(*entry)
folder = tempfile.TemporaryDirectory()
if profiled:
    options.enable_profiling, options.profile_file_prefix = True, os.path.join(folder.name, "profile")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": numpy.float32, "tensor(uint8)": numpy.uint8, "tensor(int8)": numpy.int8,
         "tensor(int32)": numpy.int32, "tensor(int64)": numpy.int64}
feeds = {i.name: numpy.zeros([s if isinstance(s, int) else 1 for s in i.shape], kinds[i.type])
         for i in session.get_inputs()}
call = lambda: session.run(None, feeds)
"""
PROFILE = """
for _ in range(warmup + runs):
    call()
events = json.load(open(session.end_profiling()))
whole = [1e-6 * e["dur"] for e in events if e.get("cat") == "Session" and e["name"] == "model_run"][warmup:]
print(statistics.median(whole), statistics.fmean(whole))
"""


def by_kdedge(artifact: Path, seconds: float) -> tuple[Figures, int]:
    """What `kdedge bench` records, and of how many calls."""
    with tempfile.TemporaryDirectory() as folder:
        latency = bench(artifact, min_duration_s=seconds, repetitions=100, power=False, out_dir=Path(folder)).latency_s
    return {"median": latency["p50"], "mean": latency["mean"]}, int(latency["n"])


def by_litert(artifact: Path, runs: int) -> Figures:
    """What LiteRT's own tool prints, rounded to 0.01 ms by it."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        counts = [f"--num_runs={runs}", f"--warmup_runs={WARMUP_RUNS}", "--num_threads=1"]
        command = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={artifact}", *counts]
        subprocess.run([*command, f"--result_json={result}"], check=True, capture_output=True)
        found: dict[str, Any] = json.loads(result.read_text())["latency"]
    return {"median": 1e-3 * found["median_ms"], "mean": 1e-3 * found["avg_ms"]}


def by_script(script: str, artifact: Path, runs: int) -> Figures:
    """What a script prints: median and mean."""
    command = [sys.executable, "-c", script, str(artifact), str(WARMUP_RUNS), str(runs)]
    median, mean = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:])
    return {"median": median, "mean": mean}


def tools(artifact: Path, runs: int) -> dict[str, Callable[[], Figures]]:
    """Whom kdedge is compared with."""
    if artifact.suffix == ".onnx":
        profiled, bare_session = f"profiled = True\n{SESSION}{PROFILE}", f"profiled = False\n{SESSION}{LOOP}"
        return {
            "ONNX Runtime's profiler": lambda: by_script(profiled, artifact, runs),
            "session.run, bare": lambda: by_script(bare_session, artifact, runs),
        }
    bare = {name: lambda script=script: by_script(script + LOOP, artifact, runs) for name, script in BARE.items()}
    return {"benchmark_litert_model.py": lambda: by_litert(artifact, runs), **bare}


def said(ratios: list[float]) -> str:
    """Median and its 95% interval."""
    ordered = sorted(ratios)
    ends = interval(ordered, 0.5)
    return f"{statistics.median(ordered):.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else " (n too small)")


def compare(artifact: Path, rounds: int, seconds: float) -> None:
    """Measure by all, print the ratios."""
    first, runs = by_kdedge(artifact, seconds)
    print(f"{artifact.name}: {1e3 * first['median']:.3f} ms, about {runs} calls a turn, n = {rounds} rounds")
    others = tools(artifact, runs)
    ratios: dict[str, dict[str, list[float]]] = {name: {"median": [], "mean": []} for name in others}
    for number in range(rounds):
        turns = ["kdedge", *others]
        order = turns[number % len(turns) :] + turns[: number % len(turns)]
        found = {name: by_kdedge(artifact, seconds)[0] if name == "kdedge" else others[name]() for name in order}
        for name, figures in ratios.items():
            for figure, values in figures.items():
                values.append(found["kdedge"][figure] / found[name][figure])
    for name, figures in ratios.items():
        words = ", ".join(f"{figure} {said(values)}" for figure, values in figures.items())
        print(f"  kdedge / {name}: {words}", flush=True)


def usual(folder: Path) -> list[Path]:
    """What is measured where no artifact is given."""
    bundle, _ = mobilenet(224, folder / "bundle")
    paths = [folder / f"mobilenet-224.{format_}" for format_ in ("tflite", "onnx")]
    for path in paths:
        export(bundle, path.suffix[1:], samples=None, out=path)
    return paths


def main() -> None:
    """Every artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="*", metavar="ARTIFACT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0)
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for artifact in wishes.artifacts or usual(Path(folder)):
            compare(artifact, wishes.rounds, wishes.seconds)


if __name__ == "__main__":
    main()
