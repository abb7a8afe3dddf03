"""Inside the process that measures a student in torch: one bundle, one JSON document on stdout, the end.

``python -m kdedge_bench.torch_worker BUNDLE PRECISION THREADS REPETITIONS MIN_DURATION_S``. The memory of this process
is what the record reports, so nothing heavy is imported before the phase it belongs to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from kdedge_agent.memory import PhaseMemory
from kdedge_agent.wire import claim_stdout

WARMUP_MAX_S = 5.0


def measure(path: str, precision: str, threads: int, repetitions: int, min_duration_s: float) -> dict[str, Any]:
    """What the agent's worker measures of an artifact, of a student in torch: latency of batch 1, memory by phase."""
    memory = PhaseMemory()
    memory.end("start")
    import torch
    from kdedge.bundle import Bundle

    from kdedge_agent import facts, timing

    torch.set_num_threads(threads)
    memory.end("import")
    begin = time.perf_counter()
    bundle = Bundle.load(path)
    net = bundle.int8_program() if precision == "int8" else bundle.float_student()
    load_s = time.perf_counter() - begin
    memory.end("load")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *bundle.input_shape, generator=generator).contiguous(memory_format=torch.channels_last)

    def invoke() -> None:
        net(image)

    during: list[dict[str, Any]] = []

    def look(done: int, _: bool) -> None:
        during.append({"samples": done, **facts.glance(worker=os.getpid())})

    with torch.inference_mode():
        first_s = timing.time_once(invoke)
        memory.end("first")
        warm = timing.warm_up(invoke, WARMUP_MAX_S)
        waits = timing.waited_s()
        samples = timing.time_calls(invoke, repetitions, min_duration_s, look=look)
        waited_s = timing.longest_wait_s(waits, timing.waited_s())
    memory.end("steady")
    sizes, reasons = memory.result()
    return {
        "runtime": {"name": "torch", "version": torch.__version__},
        "load_s": load_s,
        "first_inference_s": first_s,
        "latency_s": {
            "samples": samples,
            "warmup_samples": warm.samples_s,
            "warmup_steady": warm.steady,
            "warmup_rule": warm.rule,
            "waited_s": waited_s,
        },
        "during": during,
        "memory_bytes": sizes,
        "unmeasured": reasons,
    }


def main() -> None:
    """Measure and print."""
    path, precision, threads, repetitions, min_duration_s = sys.argv[1:]
    wire = claim_stdout()  # what libraries print goes to stderr
    result = measure(path, precision, int(threads), int(repetitions), float(min_duration_s))
    with wire:
        wire.write(json.dumps(result).encode())


if __name__ == "__main__":
    main()
