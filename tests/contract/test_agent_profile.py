"""Profiles by the runtimes themselves: which ops take the time, what runs them, and providers that run nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdedge.reporting.profile_text import profile_lines
from tests.agent_tools import make_tflite
from tests.device.models import write_onnx
from tests.device.runs import quick

from kdedge_agent import op_profile, runtimes
from kdedge_agent.runtimes import RuntimeRefused
from kdedge_bench.devices import LOCAL


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "net.onnx", layers=3, width=32, size=16)


def loaded(path: Path, **options: Any) -> runtimes.Session:
    """Ready to run on zeros."""
    session = runtimes.load(str(path), path.suffix[1:], **options)
    session.set_inputs([np.zeros(info.shape, info.dtype) for info in session.inputs])
    return session


def test_onnx_runtime_names_every_kernel_and_what_ran_it(onnx_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    folder.mkdir()
    found, missing = loaded(onnx_file).profile(folder)
    assert missing == {} and list(folder.iterdir()) == []
    assert found["runs"] > 1
    counts = {entry["op"]: entry["count"] for entry in found["by_op"]}
    assert sum(count for op, count in counts.items() if "Conv" in op) == 3
    assert len(found["ops"]) == sum(counts.values())
    assert {entry["provider"] for entry in found["ops"]} == {"CPUExecutionProvider"}
    assert sum(entry["share"] for entry in found["by_op"]) == pytest.approx(1)
    assert sum(entry["mean_s"] for entry in found["ops"]) == pytest.approx(found["ops_s"])
    assert 0 < found["ops_s"] < found["inference_s"]
    times = [entry["mean_s"] for entry in found["by_op"]]
    assert times == sorted(times, reverse=True) and "Conv" in found["by_op"][0]["op"]


def test_the_first_runs_do_not_count(tmp_path: Path) -> None:
    def run(duration: int) -> list[dict[str, Any]]:
        args = {"op_name": "Conv", "provider": "CPUExecutionProvider"}
        node = {"cat": "Node", "name": "c_kernel_time", "dur": duration, "args": args}
        other = {"cat": "Node", "name": "c_fence_before", "dur": 9, "args": args}
        return [node, other, {"cat": "Session", "name": "model_run", "dur": duration + 2}]

    path = tmp_path / "trace.json"
    begun = {"cat": "Session", "name": "session_initialization", "dur": 5}
    path.write_text(json.dumps([begun, *run(900), *run(10), *run(30)]))
    found = op_profile.from_trace(path, skipped_runs=1)
    assert (found["runs"], found["inference_s"], found["ops_s"]) == (2, pytest.approx(22e-6), pytest.approx(20e-6))
    path.write_text(json.dumps(run(900)))
    assert op_profile.from_trace(path, skipped_runs=1)["ops"] == []


def test_litert_says_what_its_delegate_took_over(tmp_path: Path) -> None:
    found, missing = loaded(make_tflite(tmp_path / "net.tflite")).profile(tmp_path)
    assert found["ops"] is None and "gives no times" in missing["ops"]
    delegates = found["delegates"]
    assert delegates["partitions"] >= 1 and sum(delegates["delegated"].values()) >= 1
    assert delegates["left"] == {}


def test_ops_between_two_delegated_parts_are_left() -> None:
    def op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
        return {"index": index, "op_name": name, "inputs": np.array(inputs), "outputs": np.array(outputs)}

    ops = [
        op(0, "CONV_2D", [0, 10, -1], [1]),
        op(1, "ADD", [1, 1], [2]),
        op(2, "CUSTOM", [2], [3]),
        op(3, "CONV_2D", [3, 11], [4]),
        op(4, "DELEGATE", [0, 10], [2]),
        op(5, "DELEGATE", [3, 11], [4]),
    ]
    assert op_profile.delegated(ops) == {
        "partitions": 2, "delegated": {"CONV_2D": 2, "ADD": 1}, "left": {"CUSTOM": 1}
    }  # fmt: skip
    assert op_profile.delegated(ops[:4])["delegated"] == {}


def test_a_provider_that_is_not_there_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeRefused, match=r"no execution provider 'cuda'.*It has .*CPUExecutionProvider"):
        loaded(onnx_file, provider="cuda")
    assert loaded(onnx_file, provider="cpu").provider == "CPUExecutionProvider"
    with pytest.raises(RuntimeRefused, match="has no execution providers"):
        loaded(make_tflite(tmp_path / "net.tflite"), provider="cpu")


def test_a_provider_that_is_there_and_runs_nothing_is_an_error(onnx_file: Path, tmp_path: Path) -> None:
    import onnxruntime

    idle = [name for name in onnxruntime.get_available_providers() if name == "AzureExecutionProvider"]
    if not idle:
        pytest.skip("NOT TESTED: this onnxruntime has no provider but the CPU's")
    with pytest.raises(RuntimeRefused, match=r"(ran no op with|did not apply) AzureExecutionProvider"):
        loaded(onnx_file, provider="azure").profile(tmp_path)


def test_a_record_holds_the_profile_where_it_was_asked_for(onnx_file: Path, tmp_path: Path) -> None:
    asked, plain = (quick(onnx_file, LOCAL, tmp_path / "runs", profile=flag) for flag in (True, False))
    assert asked.profile is not None and "profile" not in asked.unmeasured
    lines = profile_lines(asked.profile)
    assert len(lines) == 3 and "CPUExecutionProvider" in lines[0] and "Conv" in lines[1]
    assert plain.profile is None and plain.unmeasured["profile"] == "measured by --profile"


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"inference_s": "1", "ops_s": 1.0, "by_op": [{}]},
        {"inference_s": 1.0, "ops_s": 1.0, "by_op": [{"mean_s": 1.0, "share": 1.0}, 7], "ops": "none", "runs": {}},
        {"inference_s": 1.0, "ops_s": 1.0, "by_op": [{"op": "\x1b[2J", "mean_s": 1.0, "share": 1.0}]},
        {"delegates": {"delegated": {"\x1b[31mADD": 1}, "left": {"MUL\n": "many"}, "partitions": []}},
        {"delegates": {"delegated": 3}},
    ],
)
def test_whatever_a_device_sends_is_printable(profile: dict[str, Any]) -> None:
    assert all(line.isprintable() for line in profile_lines(profile))
