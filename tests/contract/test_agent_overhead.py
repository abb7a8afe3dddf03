"""The overhead benchmark runs and says what it claims to say; its figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agent_overhead.py"


def test_prints_a_ratio_with_n_and_spread_for_each_model_and_the_memory() -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--pairs",
        "6",
        "--block-s",
        "0.01",
        "--loads",
        "6",
        "--starts",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    results, memories = answer["results"], answer["memory"]
    assert {result["runtime"].split()[0] for result in results} == {"onnxruntime", "ai-edge-litert"}
    assert [result["limit"] for result in results] == [1.05, 1.05, 1.01, 1.01]
    for result in results:
        low, high = result["ratio_ci95"]
        assert 0 < low <= result["ratio"] <= high
        assert result["pairs"] == 6
    for found in memories:
        assert found["worker_peak_bytes"] - found["bare_peak_bytes"] == found["above_bare_bytes"]
        assert found["above_bare_bytes"] <= answer["memory_limit_bytes"], (
            "memory does not depend on how busy it is here"
        )
        assert found["agent_process_peak_bytes"] < 64e6
    loaded = answer["own_sessions"]
    assert [result["loads"] for result in loaded] == [6] * 4
    within = all(result["ratio"] <= result["limit"] for result in results)
    within &= all(result["ratio_ci95"] is None or result["ratio_ci95"][0] <= result["limit"] for result in loaded)
    assert (done.returncode == 0) == within
