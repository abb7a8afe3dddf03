"""What the agent's way of timing adds: its p50 against a bare loop over the runtime, in one process.

Both sides run the same model on the same input with the same runtime. The bare side is what a user would write:
the runtime's own API, two readings of the clock, a list. The agent's side is its session and its timing loop.
Blocks of the two alternate (which one begins alternates too), so that what the machine does besides falls on both.
The ratio of a pair is agent p50 / bare p50; printed is the median over the pairs with its 95% interval.

    python benchmarks/agent_overhead.py [--pairs 40] [--block-s 0.25] [--json]

It exits with 1 if the median ratio of a model exceeds 1.02.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from tests.agent_tools import make_onnx, make_tflite

from kdedge_agent import runtimes, statistics, tensors, timing

LIMIT = 1.02


def bare_onnx(path: Path, image: np.ndarray[Any, Any]) -> Callable[[int], list[int]]:
    """ONNX Runtime as its documentation binds inputs and outputs for benchmarks."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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


def bare_tflite(path: Path, image: np.ndarray[Any, Any]) -> Callable[[int], list[int]]:
    """LiteRT's interpreter, the input set once."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)

    def loop(count: int) -> list[int]:
        samples = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            interpreter.invoke()
            samples.append(time.perf_counter_ns() - begin)
        return samples

    return loop


def compare(path: Path, pairs: int, block_s: float) -> dict[str, Any]:
    """Ratios of interleaved blocks of one model."""
    kind = path.suffix.lstrip(".")
    session = runtimes.load(str(path), kind)
    inputs = tensors.random_inputs(session, 0)
    session.set_inputs(inputs)
    bare = (bare_onnx if kind == "onnx" else bare_tflite)(path, inputs[0])
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
        "ratio": statistics.percentile(ordered, 0.5),
        "ratio_ci95": statistics.interval(ordered, 0.5),
        "ratio_min_max": [ordered[0], ordered[-1]],
        "pairs": pairs,
        "calls_a_block": count,
        "agent_p50_s": statistics.percentile(sorted(agent_p50), 0.5),
        "bare_p50_s": statistics.percentile(sorted(bare_p50), 0.5),
    }


def main() -> int:
    """Compare on three models, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block-s", type=float, default=0.25)
    parser.add_argument("--json", action="store_true")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = [
            make_onnx(Path(folder) / "conv-small.onnx", width=32, batch=1, size=32),
            make_onnx(Path(folder) / "conv-large.onnx", width=128, batch=1, size=64),
            make_tflite(Path(folder) / "dense-int8.tflite", inputs=8192, outputs=512),
        ]
        results = [compare(model, wishes.pairs, wishes.block_s) for model in models]
    hardware = {"cpu_count": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if wishes.json:
        print(json.dumps({"limit": LIMIT, "results": results, **hardware}, indent=2))
    else:
        print(f"agent p50 / bare p50 (limit {LIMIT}); {hardware}")
        for r in results:
            low, high = r["ratio_ci95"] or (float("nan"), float("nan"))
            print(
                f"{r['model']:20} {r['runtime']:22} {r['ratio']:.4f} (95% {low:.4f} to {high:.4f}; "
                f"n = {r['pairs']} pairs of {r['calls_a_block']} calls)  "
                f"{r['agent_p50_s'] * 1e3:.4f} ms / {r['bare_p50_s'] * 1e3:.4f} ms"
            )
    return 0 if all(r["ratio"] <= LIMIT for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
