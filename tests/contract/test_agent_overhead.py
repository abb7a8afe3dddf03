"""The overhead benchmark runs and says what it claims to say; its figures are for quiet machines, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agent_overhead.py"


def test_prints_a_ratio_with_n_and_spread_for_each_model() -> None:
    command = [sys.executable, str(SCRIPT), "--pairs", "6", "--block-s", "0.01", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    assert {result["runtime"].split()[0] for result in answer["results"]} == {"onnxruntime", "ai-edge-litert"}
    for result in answer["results"]:
        low, high = result["ratio_ci95"]
        assert 0 < low <= result["ratio"] <= high
        assert result["pairs"] == 6
    assert (done.returncode == 0) == all(result["ratio"] <= answer["limit"] for result in answer["results"])
