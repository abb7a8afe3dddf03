"""A device that was taken over: a real connection, and at its end an interpreter that lies."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdedge.errors import DeviceError, WireError
from tests.device.runs import quick
from tests.device.sshd import Sshd
from tests.meters import logger

from kdedge_agent.run_record import RunRecord
from kdedge_bench.check import check_device
from kdedge_bench.devices import Device
from kdedge_bench.scoring import Scored
from kdedge_bench.setup_plan import plan_setup


def lying_python(folder: Path, *, looks: str | None = None, agent: str | None = None) -> str:
    """An interpreter on the device that answers for itself where it is told to, and is a Python otherwise.

    Args:
        folder: Where to put it.
        looks: Shell command instead of looking around.
        agent: Python program instead of the agent.
    """
    (folder / "agent.py").write_text(agent or "")
    wrapper = folder / "python"
    real = f'{sys.executable} "$@"'
    # It looks around as Python does, but names itself as the interpreter to go on with.
    looked = looks or f"""{real} | sed 's#"python": "[^"]*"#"python": "{wrapper}"#'"""
    run = f"{sys.executable} {folder}/agent.py" if agent else real
    wrapper.write_text(f'#!/bin/sh\ncase "$1$2" in *agent-*.pyz) {run} ;; -c*statvfs*) {looked} ;; *) {real} ;; esac\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ("yes kdedge", "bytes where one line was asked for"),
        ("echo nothing to see", "cannot look around"),
        ("echo 'kdedge-answer {'", "cannot look around"),
        ("echo 'kdedge-answer {}'", "lacks or distorts"),
        ("""echo 'kdedge-answer {"python": "-c", "version": [3, 11, 2], "cache": "/x", "free_bytes": 1}'""", "path"),
        ("printf '\\033[2J\\033]0;pwned\\007gone\\n' >&2; exit 1", "gone"),
    ],
)
def test_lies_before_the_agent(board: Sshd, onnx_file: Path, tmp_path: Path, looks: str, words: str) -> None:
    device = board.device(python=lying_python(tmp_path, looks=looks))
    with pytest.raises(DeviceError, match=words) as caught:
        quick(onnx_file, device, tmp_path / "runs")
    assert str(caught.value).isprintable()
    assert board.left_over() == {}


PROBED = {"onnxruntime": {"available": True, "version": "1", "formats": ["onnx"], "reason": None}}


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"runtimes": {"onnxruntime": {"available": True, "formats": 5}}}, "did not name its runtimes"),
        ({"runtimes": {"onnxruntime": 7}}, "did not name its runtimes"),
        ({"runtimes": None}, "did not name its runtimes"),
        ({"facts": {"memory": {"available_bytes": 10**400}}}, "no message"),
        ({"facts": {"memory": {"available_bytes": -5}}}, "the kernel does not say"),
    ],
)
def test_lies_to_a_check(board: Sshd, tmp_path: Path, lie: dict[str, Any], words: str) -> None:
    answer = {"type": "result", "runtimes": PROBED, "facts": {}, **lie}
    report = check_device(lying_device(board, tmp_path, answer, agent_version="1\nok    login"))
    assert [words in check.text for check in report.checks if check.name in ("agent", "memory")].count(True) == 1
    assert all(check.text.isprintable() for check in report.checks)


@pytest.mark.parametrize(
    "lie", [{"free_bytes": 10**400}, {"machine": "\x1b]0;pwned\x07mips"}, {"libc": ["\x1b[31mx", "\u202e1"]}]
)
def test_lies_about_the_system(board: Sshd, tmp_path: Path, lie: dict[str, Any]) -> None:
    sound = {"python": sys.executable, "version": [3, 11, 2], "cache": str(board.cache), "free_bytes": 1}
    (tmp_path / "answer").write_text(f"kdedge-answer {json.dumps({**sound, **lie})}\n")
    device = board.device(python=lying_python(tmp_path, looks=f"cat {tmp_path}/answer"))
    with pytest.raises(WireError, match="the device named a") as caught:
        plan_setup(device)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    assert [check.ok for check in check_device(device).checks if check.name == "python"] == [False]


@pytest.fixture(scope="module")
def true_answer(board: Sshd, onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an honest agent answers, by way of the record it became."""
    record: RunRecord = quick(onnx_file, board.device(), tmp_path_factory.mktemp("honest"))
    return {"type": "result", **{k: v for k, v in record.to_dict().items() if k != "artifact"}}


def lying_device(
    board: Sshd,
    folder: Path,
    answer: dict[str, Any],
    *,
    scratch_dir: str = "/../../etc",
    agent_version: str = "0.1.0",
) -> Device:
    """A device whose agent greets as it should and then gives this answer to everything."""
    (folder / "answer.json").write_text(json.dumps(answer))
    hello = {"type": "hello", "protocol": 1, "agent_version": agent_version, "python": "3.11"}
    hello["scratch_dir"] = scratch_dir
    program = (
        "import sys\n"
        f"print({json.dumps(hello)!r}, flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'bye' in line: break\n"
        f"    print(open({str(folder / 'answer.json')!r}).read(), flush=True)\n"
    )
    return board.device(python=lying_python(folder, agent=program))


LIES: list[tuple[str, dict[str, Any]]] = [
    ("another artifact", {"artifact_sha256": "0" * 64}),
    ("no samples", {"latency_s": {"samples": [], "warmup_samples": []}}),
    ("samples that are text", {"latency_s": {"samples": ["1"], "warmup_samples": []}}),
    ("negative time", {"latency_s": {"samples": [-1.0], "warmup_samples": []}}),
    ("endless time", {"latency_s": {"samples": [1e999], "warmup_samples": []}}),
    ("latency is a list", {"latency_s": [1, 2]}),
    ("starts that are a number", {"latency_s": {"samples": [1.0], "warmup_samples": [], "starts": 3}}),
    ("starts of other samples", {"latency_s": {"samples": [1.0], "warmup_samples": [], "starts": [{"n": 2}]}}),
    (
        "more starts than were asked for",
        {"latency_s": {"samples": [1.0] * 2, "warmup_samples": [], "starts": [{"n": 1, "warmup_n": 0}] * 2}},
    ),
    ("unknown verdict", {"verdict": "excellent"}),
    ("reasons are numbers", {"unmeasured": {"power_w": 7}}),
    ("no runtime", {"runtime": {}}),
    ("negative memory", {"memory_bytes": {"peak": -5, "steady": 1}}),
    ("memory is text", {"memory_bytes": {"peak": "much", "steady": 1}}),
    ("load time is an object", {"load_s": {}}),
    ("threads are text", {"threads": "four"}),
]


@pytest.mark.parametrize(("what", "lie"), LIES, ids=[what for what, _ in LIES])
def test_lies_in_the_record(
    board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any], what: str, lie: dict[str, Any]
) -> None:
    device = lying_device(board, tmp_path, {**true_answer, **lie})
    with pytest.raises(WireError) as caught:
        quick(onnx_file, device, tmp_path / "runs")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert list((tmp_path / "runs").iterdir()) == []


HALVES = base64.b64encode(np.full((2, 3), 0.5, "<f4").tobytes()).decode()
OUTPUT_LIES: list[tuple[str, dict[str, Any]]] = [
    ("no outputs", {}),
    ("outputs in one text", {"outputs": HALVES}),
    ("outputs that are numbers", {"outputs": [0.5]}),
    ("outputs in no base64", {"outputs": ["*" * 16]}),
    ("outputs of fewer samples", {"outputs": [base64.b64encode(b"1234").decode()]}),
    ("outputs that are empty", {"outputs": [""]}),
    ("outputs that are not numbers", {"outputs": [base64.b64encode(b"\xff" * 16).decode()]}),
]


@pytest.mark.parametrize(("what", "lie"), OUTPUT_LIES, ids=[what for what, _ in OUTPUT_LIES])
def test_lies_in_the_outputs(
    board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any], what: str, lie: dict[str, Any]
) -> None:
    tokens = {"input_ids": np.ones((2, 4), np.int32)}
    asked = Scored(tokens, lambda outputs: {"n": len(outputs), "f1": float(outputs.mean())})
    device = lying_device(board, tmp_path, {**true_answer, **lie}, scratch_dir=str(tmp_path))
    with pytest.raises(WireError, match="outputs") as caught:
        quick(onnx_file, device, tmp_path / "runs", accuracy_data=asked)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    (kept,) = (tmp_path / "runs").iterdir()
    assert json.loads(kept.read_text())["accuracy"] is None, "what was measured before the lie stays"


def test_true_outputs_among_the_lies(board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any]) -> None:
    """What is refused above is refused for its lie alone."""
    asked = Scored({"input_ids": np.ones((2, 4), np.int32)}, lambda outputs: {"n": 2, "f1": float(outputs.mean())})
    device = lying_device(board, tmp_path, {**true_answer, "outputs": [HALVES]}, scratch_dir=str(tmp_path))
    record = quick(onnx_file, device, tmp_path / "runs", accuracy_data=asked)
    assert record.accuracy is not None and record.accuracy["f1"] == 0.5


WINDOWS: dict[str, Any] = {"idle_before": [0.0, 1.0], "load": [1.0, 2.0], "idle_after": [2.0, 3.0]}
WINDOWS |= {"inferences": 5, "batch": 1}
METER_LIES: list[tuple[str, dict[str, Any]]] = [
    ("no clock", {"clock_s": None}),
    ("a clock of text", {"clock_s": "noon"}),
    ("an endless clock", {"clock_s": 10**400}),
    ("no windows", {"power_windows": None}),
    ("windows that are a number", {"power_windows": 7}),
    ("a window that is missing", {"power_windows": {"load": [1.0, 2.0], "inferences": 5, "batch": 1}}),
    ("a window back in time", {"power_windows": {**WINDOWS, "load": [2.0, 1.0]}}),
    ("windows in disorder", {"power_windows": {**WINDOWS, "idle_after": [1.5, 3.0]}}),
    ("half a window", {"power_windows": {**WINDOWS, "load": [1.0]}}),
    ("windows of text", {"power_windows": {**WINDOWS, "load": ["a", "b"]}}),
    ("an endless window", {"power_windows": {**WINDOWS, "idle_after": [2.0, 10**400]}}),
    ("no inferences", {"power_windows": {**WINDOWS, "inferences": 0}}),
    ("inferences that are true", {"power_windows": {**WINDOWS, "inferences": True}}),
    ("half an inference", {"power_windows": {**WINDOWS, "inferences": 1.5}}),
    ("batches of none", {"power_windows": {**WINDOWS, "batch": 0}}),
    ("reasons that are a number", {"unmeasured": 7}),
]


@pytest.mark.parametrize(("what", "lie"), METER_LIES, ids=[what for what, _ in METER_LIES])
def test_lies_to_a_meter(
    board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any], what: str, lie: dict[str, Any]
) -> None:
    device = lying_device(board, tmp_path, {**true_answer, "clock_s": 5.0, "power_windows": WINDOWS, **lie})
    log = tmp_path / "power.csv"
    with logger(log, lambda _: 3.0, hz=50), pytest.raises(WireError, match=r"no (measurement|message)") as caught:
        quick(onnx_file, device, tmp_path / "runs", power=True, meter=f"csv:{log}")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_clock_that_stands_still_gives_no_joules(
    board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdedge_bench.metering.PATIENCE_S", 0.2)
    device = lying_device(board, tmp_path, {**true_answer, "clock_s": 5.0, "power_windows": WINDOWS})
    log = tmp_path / "power.csv"
    with logger(log, lambda _: 3.0, hz=50):
        record = quick(onnx_file, device, tmp_path / "runs", power=True, meter=f"csv:{log}")
    assert record.power_w is record.energy_j_per_inference is None
    assert record.unmeasured["power_w"]


def test_the_hosts_own_knowledge_is_not_the_devices_to_change(
    board: Sshd, onnx_file: Path, tmp_path: Path, true_answer: dict[str, Any]
) -> None:
    lie = {
        "device": "../../evil",
        "run_id": "../../evil",
        "versions": {"kdedge": "9"},
        "facts": {"cpu": "\x1b]0;pwned\x07fast"},
    }
    record = quick(onnx_file, lying_device(board, tmp_path, {**true_answer, **lie}), tmp_path / "runs")
    assert (record.device, record.artifact["path"]) == ("pi", str(onnx_file))
    assert record.run_id != "../../evil" and record.versions["kdedge"] != "9"
    assert record.facts["cpu"] == "fast"
    assert [p.parent for p in (tmp_path / "runs").iterdir()] == [tmp_path / "runs"]
