"""What the agent's way of measuring adds: to p50 against a bare loop over the runtime, and to memory.

Time: both sides run the same model on the same input in one process, on one session of the runtime: two sessions of one
file differ by what memory each of them got (the 10 ms model by up to 7%, see below), which is nobody's doing. The bare
side is what a user would write: the runtime's own API, two readings of the clock, a list. The agent's side is its
session and its timing loop. Blocks of the two alternate (which one begins alternates too), so that what the machine
does besides falls on both. The ratio of a pair is agent p50 / bare p50; printed is the median over the pairs with its
95% interval, for models of about 0.1, 1 and 10 ms.

So that the agent's own settings of a session count too, the same is printed for sessions that agent and bare side load
anew, in turn, for each of ``--loads`` ratios. They say little of one model: hence their interval is what is judged.

Memory: the peak of the agent's worker process less that of a process which does nothing but import the runtime, load
the same model and call it as often; the median of several starts of each. The agent itself is another process, which
waits meanwhile; its peak is printed beside.

    python benchmarks/agent_overhead.py [--pairs 40] [--block-s 0.25] [--loads 20] [--starts 3] [--json]

It exits with 1 if a median ratio (of own sessions the whole interval) exceeds 1.05 (0.1 ms) or 1.01 (1 and 10 ms), or
a worker needs more than 8 MB above the bare runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from tests.agent_tools import AgentProcess, make_onnx, make_tflite, run_request

from kdedge_agent import runtimes, statistics, tensors, timing

LIMITS = {0.0001: 1.05, 0.001: 1.01, 0.01: 1.01}
"""Of the ratio, for a model of about so many seconds."""
MEMORY_LIMIT_BYTES = 8_000_000
MEMORY_CALLS = 1000
_WIDTH, _TRIAL_SIZE = 64, 64

BARE_MEMORY = {
    "onnx": """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
binding = session.io_binding()
shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
binding.bind_cpu_input(session.get_inputs()[0].name, numpy.zeros(shape, numpy.float32))
binding.bind_output(session.get_outputs()[0].name, "cpu")
call = lambda: session.run_with_iobinding(binding)
""",
    "tflite": """
import sys
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
call = interpreter.invoke
""",
}
"""What a user would write; after ``_SAY_PEAK`` it says its own peak."""
_SAY_PEAK = """
for _ in range(int(sys.argv[2])):
    call()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def load_onnx(path: Path) -> Any:
    """ONNX Runtime's session of one thread on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_tflite(path: Path) -> Any:
    """LiteRT's interpreter of one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def bare_onnx(session: Any, image: np.ndarray[Any, Any]) -> Callable[[int], list[int]]:
    """ONNX Runtime's session as its documentation binds inputs and outputs for benchmarks."""
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, image)
    binding.bind_output(session.get_outputs()[0].name, "cpu")

    def loop(count: int) -> list[int]:
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            session.run_with_iobinding(binding)
            samples.append(time.perf_counter_ns() - begin)
        return samples

    return loop


def bare_tflite(interpreter: Any, image: np.ndarray[Any, Any]) -> Callable[[int], list[int]]:
    """LiteRT's interpreter, the input set once."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)

    def loop(count: int) -> list[int]:
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            interpreter.invoke()
            samples.append(time.perf_counter_ns() - begin)
        return samples

    return loop


def conv_of(folder: Path, target_s: float) -> Path:
    """A convolution net whose call takes about so long here: the side of its image follows from two trials."""
    path, side = folder / f"conv-{target_s * 1e3:g}ms.onnx", _TRIAL_SIZE
    for _ in range(2):
        session = runtimes.load(str(make_onnx(path, width=_WIDTH, batch=1, size=side)), "onnx")
        session.set_inputs(tensors.random_inputs(session, 0))
        taken_s = statistics.percentile(sorted(timing.warm_up(session.invoke, 2.0).samples_s), 0.5)
        side = max(8, round(side * (target_s / taken_s) ** 0.5))
    return make_onnx(path, width=_WIDTH, batch=1, size=side)


def compare(path: Path, limit: float, pairs: int, block_s: float) -> dict[str, Any]:
    """Ratios of interleaved blocks of one model."""
    kind = path.suffix.lstrip(".")
    session: Any = runtimes.load(str(path), kind)
    inputs = tensors.random_inputs(session, 0)
    session.set_inputs(inputs)
    bare = bare_onnx(session._session, inputs[0]) if kind == "onnx" else bare_tflite(session._interpreter, inputs[0])
    warm = timing.warm_up(session.invoke, 5.0)
    bare(len(warm.samples_s))
    count = max(20, int(block_s / statistics.percentile(sorted(warm.samples_s), 0.5)))
    ratios, agent_p50, bare_p50 = [], [], []
    for pair in range(pairs):
        seconds: dict[str, float] = {}
        for side in ("agent", "bare") if pair % 2 else ("bare", "agent"):
            if side == "agent":
                samples = timing.time_calls(session.invoke, count, 0.0)
            else:
                samples = timing.seconds(bare(count))
            seconds[side] = statistics.percentile(sorted(samples), 0.5)
        agent_p50.append(seconds["agent"])
        bare_p50.append(seconds["bare"])
        ratios.append(seconds["agent"] / seconds["bare"])
    ordered = sorted(ratios)
    return {
        "model": path.name,
        "runtime": f"{session.name} {session.version}",
        "limit": limit,
        "ratio": statistics.percentile(ordered, 0.5),
        "ratio_ci95": statistics.interval(ordered, 0.5),
        "ratio_min_max": [ordered[0], ordered[-1]],
        "pairs": pairs,
        "calls_a_block": count,
        "agent_p50_s": statistics.percentile(sorted(agent_p50), 0.5),
        "bare_p50_s": statistics.percentile(sorted(bare_p50), 0.5),
    }


def compare_loads(path: Path, limit: float, loads: int, block_s: float) -> dict[str, Any]:
    """Ratios of p50 of sessions that each side loads for itself; which one loads and runs first alternates."""
    kind = path.suffix.lstrip(".")
    ratios = []
    for load in range(loads):
        p50: dict[str, float] = {}
        agents: Any = runtimes.load(str(path), kind) if load % 2 else None
        own = (load_onnx if kind == "onnx" else load_tflite)(path)
        agents = agents or runtimes.load(str(path), kind)
        inputs = tensors.random_inputs(agents, 0)
        agents.set_inputs(inputs)
        bare = (bare_onnx if kind == "onnx" else bare_tflite)(own, inputs[0])
        warm = timing.warm_up(agents.invoke, 0.5)
        count = max(20, int(block_s / statistics.percentile(sorted(warm.samples_s), 0.5)))
        bare(count)
        for side in ("agent", "bare") if load % 2 else ("bare", "agent"):
            taken = timing.time_calls(agents.invoke, count, 0.0) if side == "agent" else timing.seconds(bare(count))
            p50[side] = statistics.percentile(sorted(taken), 0.5)
        ratios.append(p50["agent"] / p50["bare"])
    ordered = sorted(ratios)
    return {
        "model": path.name,
        "limit": limit,
        "ratio": statistics.percentile(ordered, 0.5),
        "ratio_ci95": statistics.interval(ordered, 0.5),
        "ratio_min_max": [ordered[0], ordered[-1]],
        "loads": loads,
    }


def peak_of(status: Path) -> int:
    """VmHWM, in bytes, of a process that still runs."""
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def bare_peak(path: Path) -> int:
    """Peak bytes of a process that does nothing but run the model."""
    code = BARE_MEMORY[path.suffix.lstrip(".")] + _SAY_PEAK
    command = [sys.executable, "-c", code, str(path), str(MEMORY_CALLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024


def agent_peaks(path: Path, home: Path) -> tuple[int, int]:
    """Peak bytes of a worker that measures the model, and of its agent."""
    with AgentProcess(home) as agent:
        request = run_request(path, repetitions=MEMORY_CALLS)
        answer = agent.ask({"type": "measure", "request": request})
        return int(answer["memory_bytes"]["peak"]), peak_of(Path(f"/proc/{agent.process.pid}/status"))


def memory(path: Path, home: Path, starts: int) -> dict[str, Any]:
    """Medians over several starts of each side, which take turns."""
    rows = [(bare_peak(path), *agent_peaks(path, home)) for _ in range(starts)]
    bare, worker, agent = (sorted(column)[len(rows) // 2] for column in zip(*rows, strict=True))
    figures = {"bare_peak_bytes": bare, "worker_peak_bytes": worker, "agent_process_peak_bytes": agent}
    return {"model": path.name, "starts": starts, "above_bare_bytes": worker - bare, **figures}


def _print(results: list[dict[str, Any]], loaded: list[dict[str, Any]], memories: list[dict[str, Any]]) -> None:
    print("agent p50 / bare p50 on one session")
    for r in results:
        low, high = r["ratio_ci95"] or (float("nan"), float("nan"))
        print(
            f"{r['model']:18} {r['runtime']:22} {r['ratio']:.4f} (limit {r['limit']}; 95% {low:.4f} to {high:.4f}; "
            f"n = {r['pairs']} pairs of {r['calls_a_block']} calls)  "
            f"{r['agent_p50_s'] * 1e3:.4f} ms / {r['bare_p50_s'] * 1e3:.4f} ms"
        )
    print("agent p50 / bare p50, each on sessions of its own")
    for r in loaded:
        low, high = r["ratio_ci95"] or (float("nan"), float("nan"))
        least, most = r["ratio_min_max"]
        print(
            f"{r['model']:18} {r['ratio']:.4f} (95% {low:.4f} to {high:.4f}; {least:.4f} to {most:.4f} over "
            f"{r['loads']} loads)"
        )
    print(f"memory of the worker above the bare runtime (limit {MEMORY_LIMIT_BYTES / 1e6:.0f} MB)")
    for m in memories:
        print(
            f"{m['model']:18} {m['above_bare_bytes'] / 1e6:+.2f} MB ({m['worker_peak_bytes'] / 1e6:.1f} less "
            f"{m['bare_peak_bytes'] / 1e6:.1f}; median of {m['starts']} starts); the agent's own process "
            f"{m['agent_process_peak_bytes'] / 1e6:.1f} MB"
        )


def main() -> int:
    """Compare on models of three durations, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block-s", type=float, default=0.25)
    parser.add_argument("--loads", type=int, default=20)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense = make_tflite(folder / "dense-int8.tflite", inputs=8192, outputs=512)
        models = {dense: LIMITS[0.0001], **{conv_of(folder, target): limit for target, limit in LIMITS.items()}}
        results = [compare(*model, wishes.pairs, wishes.block_s) for model in models.items()]
        loaded = [compare_loads(*model, wishes.loads, wishes.block_s) for model in models.items()]
        memories = [memory(model, folder, wishes.starts) for model in (dense, folder / "conv-0.1ms.onnx")]
    hardware = {"cpu_count": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if wishes.json:
        limits = {"memory_limit_bytes": MEMORY_LIMIT_BYTES}
        print(
            json.dumps({**limits, "results": results, "own_sessions": loaded, "memory": memories, **hardware}, indent=2)
        )
    else:
        print(hardware)
        _print(results, loaded, memories)
    slow = any(r["ratio"] > r["limit"] for r in results)
    slow |= any(r["ratio_ci95"] is not None and r["ratio_ci95"][0] > r["limit"] for r in loaded)
    return 1 if slow or any(m["above_bare_bytes"] > MEMORY_LIMIT_BYTES for m in memories) else 0


if __name__ == "__main__":
    sys.exit(main())
