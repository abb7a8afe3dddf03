"""A real agent in a process of its own: what it answers, what it survives, what it leaves behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
import zipapp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.agent_tools import (
    SOURCE,
    SYSFS,
    AgentProcess,
    is_running,
    kill,
    make_onnx,
    make_tflite,
    run_request,
    sha256,
    wait_until_gone,
)

from kdedge_agent.protocol import MAX_LINE_BYTES
from kdedge_agent.record import build_record
from kdedge_agent.run_record import VERDICTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent's process tests look into Linux's /proc")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_onnx(tmp_path_factory.mktemp("onnx") / "small.onnx")


@pytest.fixture(scope="module")
def tflite_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tflite(tmp_path_factory.mktemp("tflite") / "small.tflite")


def fake_runtime(folder: Path, body: str, name: str = "onnxruntime") -> dict[str, str]:
    """Environment in which a runtime is another package: the boundary at which a runtime misbehaves."""
    package = folder / "fake"
    package.mkdir()
    (package / f"{name}.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([str(package), str(SOURCE)])}


def test_hello(agent: AgentProcess) -> None:
    assert agent.hello["type"] == "hello"
    assert agent.hello["protocol"] == 1
    assert agent.hello["work_dir"] == str(agent.cache)
    assert Path(agent.hello["scratch_dir"]).is_dir()


def test_facts(agent: AgentProcess) -> None:
    answer = agent.ask({"type": "facts", "id": "f1"})
    assert (answer["type"], answer["of"], answer["id"]) == ("result", "facts", "f1")
    assert answer["facts"]["cpu_count"] == os.cpu_count()
    assert (answer["facts"]["power_source"] is None) == bool(answer["facts"]["power_reason"])


def test_probe_says_what_imports_and_why_not(agent: AgentProcess) -> None:
    runtimes = agent.ask({"type": "probe"})["runtimes"]
    assert set(runtimes) == {"onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert runtimes["onnxruntime"]["available"]
    assert runtimes["onnxruntime"]["version"]
    for entry in runtimes.values():
        assert entry["available"] or entry["reason"]


def test_bye(agent: AgentProcess) -> None:
    scratch = Path(agent.hello["scratch_dir"])
    agent.send({"type": "bye"})
    assert agent.process.wait(30) == 0
    assert not scratch.exists()
    assert agent.stderr() == ""


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_measures_a_real_model(agent: AgentProcess, kind: str, onnx_model: Path, tflite_model: Path) -> None:
    model = onnx_model if kind == "onnx" else tflite_model
    answer = agent.ask({"type": "measure", "request": run_request(model, repetitions=1200)})
    assert answer["type"] == "result", answer
    record = build_record(
        answer,
        device="local",
        device_kind="local",
        run_id="r",
        created_at="2026-01-01T00:00:00+00:00",
        artifact={"path": str(model), "format": kind},
        versions={"kdedge": "0"},
    )
    latency = record.latency_s
    assert latency["n"] == len(latency["samples"]) >= 1200
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert latency["ci95"]["p50"][0] <= latency["p50"] <= latency["ci95"]["p50"][1]
    assert record.load_s is not None
    assert record.first_inference_s is not None
    memory = record.memory_bytes
    assert memory["peak"] == max(memory[p] for p in ("start", "import", "load", "first", "steady"))
    assert memory["start"] < memory["import"] <= memory["load"]
    assert memory["pss"] > memory["private_dirty"] > 0
    assert record.verdict in VERDICTS
    assert record.verdict_reasons
    assert "CPU" in record.runtime["provider"]
    assert record.unmeasured["power_w"] == "not asked for"
    assert record.facts["before"]["monotonic_s"] < record.facts["after"]["monotonic_s"]
    phases = [message["phase"] for message in agent.progress]
    assert phases[0] == "verify"
    assert {"import", "load", "first", "warm-up", "timing"} <= set(phases)
    assert agent.workers() == []


def test_several_requests_of_one_session_are_answered_in_order(agent: AgentProcess, onnx_model: Path) -> None:
    agent.send({"type": "measure", "id": 1, "request": run_request(onnx_model)})
    agent.send({"type": "facts", "id": 2})
    agent.send({"type": "nonsense"})
    assert [agent.answer().get("id") for _ in range(3)] == [1, 2, None]


def test_scores_samples_with_the_devices_own_kernels(agent: AgentProcess, tmp_path: Path, tflite_model: Path) -> None:
    from kdedge_agent import runtimes, tensors

    images = np.random.default_rng(0).normal(size=(70, 3, 8, 8)).astype("<f4")
    session = runtimes.load(str(tflite_model), "tflite")
    logits = tensors.logits(session, images, session.metadata())
    raw = tmp_path / "samples.raw"
    images.tofile(raw)
    request = {
        "artifact": str(tflite_model),
        "artifact_sha256": sha256(tflite_model),
        "format": "tflite",
        "samples": str(raw),
        "samples_sha256": sha256(raw),
        "shape": list(images.shape),
        "dtype": "float32",
    }
    answer = agent.ask({"type": "score", "request": request})
    assert answer["predictions"] == logits.argmax(axis=1).tolist() and "outputs" not in answer
    assert answer["n"] == 70
    answer = agent.ask({"type": "score", "request": {**request, "returns": "outputs"}})
    sent = b"".join(map(base64.b64decode, answer["outputs"]))
    assert np.array_equal(np.frombuffer(sent, "<f4").reshape(70, -1), logits) and "predictions" not in answer
    raw.write_bytes(raw.read_bytes()[:-1] + b"\0")
    assert agent.ask({"type": "score", "request": request})["kind"] == "artifact"


def test_pixels_are_normalised_on_the_device(agent: AgentProcess, tmp_path: Path, onnx_model: Path) -> None:
    from kdedge_agent import runtimes, tensors

    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8)).astype(np.uint8)
    session = runtimes.load(str(onnx_model), "onnx")
    metadata = session.metadata()
    expected = tensors.logits(session, tensors.normalise(pixels, metadata), metadata).argmax(axis=1).tolist()
    raw = tmp_path / "samples.raw"
    pixels.tofile(raw)
    request = {
        "artifact": str(onnx_model),
        "artifact_sha256": sha256(onnx_model),
        "format": "onnx",
        "samples": str(raw),
        "samples_sha256": sha256(raw),
        "shape": list(pixels.shape),
        "dtype": "uint8",
    }
    answer = agent.ask({"type": "score", "request": request})
    assert answer["predictions"] == expected


def test_removes_only_its_own(agent: AgentProcess, tmp_path: Path) -> None:
    (agent.cache / "artifacts").mkdir(parents=True)
    (agent.cache / "artifacts" / "m.onnx").write_text("x")
    (tmp_path / "precious").write_text("keep")
    refused = agent.ask({"type": "remove", "paths": [str(tmp_path / "precious")]})
    assert (refused["type"], refused["kind"]) == ("error", "refused")
    answer = agent.ask({"type": "remove", "paths": [str(agent.cache / "artifacts")]})
    assert answer["removed"] == [str(agent.cache / "artifacts")]
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"artifact": "/nowhere/m.onnx"}, "artifact", "No such file"),
        ({"artifact_sha256": "0" * 64}, "artifact", "damaged"),
        ({"runtime": "tflite-runtime"}, "refused", "opens no onnx"),
        ({"threads": 0}, "protocol", "threads"),
        ({"surprise": 1}, "protocol", "surprise"),
    ],
)
def test_a_bad_request_is_answered_and_the_session_goes_on(
    agent: AgentProcess, onnx_model: Path, change: dict[str, Any], kind: str, said: str
) -> None:
    answer = agent.ask({"type": "measure", "request": {**run_request(onnx_model), **change}})
    assert (answer["type"], answer["kind"]) == ("error", kind)
    assert said in answer["message"]
    assert "\n" not in answer["message"]
    assert agent.ask({"type": "facts"})["type"] == "result"


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_half_an_artifact_is_refused(
    agent: AgentProcess, tmp_path: Path, kind: str, onnx_model: Path, tflite_model: Path
) -> None:
    whole = onnx_model if kind == "onnx" else tflite_model
    half = tmp_path / f"half.{kind}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    answer = agent.ask({"type": "measure", "request": run_request(half)})
    assert (answer["type"], answer["kind"]) == ("error", "refused")
    assert "half" in answer["message"]
    assert answer["cure"]


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path, tflite_model: Path) -> None:
    """The boundary that is faked: an interpreter that finds no such package."""
    body = "raise ModuleNotFoundError('none', name='tflite_runtime')\n"
    environment = fake_runtime(tmp_path, body, "tflite_runtime")
    with AgentProcess(tmp_path, environment=environment) as agent:
        answer = agent.ask({"type": "measure", "request": run_request(tflite_model, runtime="tflite-runtime")})
    assert (answer["type"], answer["kind"]) == ("error", "runtime-missing")
    assert "tflite-runtime" in answer["message"]
    assert "pip install tflite-runtime" in answer["cure"]


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_runtime_that_dies_on_import_is_reported(tmp_path: Path, onnx_model: Path, number: signal.Signals) -> None:
    environment = fake_runtime(tmp_path, f"import os\nos.kill(os.getpid(), {int(number)})\n")
    with AgentProcess(tmp_path, environment=environment) as agent:
        probed = agent.ask({"type": "probe"})["runtimes"]
        assert f"died with signal {number.name} while importing onnxruntime" in probed["onnxruntime"]["reason"]
        assert probed["ai-edge-litert"]["available"]
        answer = agent.ask({"type": "measure", "request": run_request(onnx_model)})
        assert (answer["type"], answer["kind"]) == ("error", "runtime-died")
        assert f"died with signal {number.name} while importing" in answer["message"]
        assert answer["cure"]
        assert agent.ask({"type": "facts"})["type"] == "result"


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGKILL])
def test_a_runtime_that_dies_while_timing_is_reported(
    agent: AgentProcess, onnx_model: Path, number: signal.Signals
) -> None:
    """The real runtime, in the midst of real work, and a real signal."""
    agent.send({"type": "measure", "request": run_request(onnx_model, min_duration_s=120.0)})
    agent.wait_for_phase("timing")
    (worker,) = agent.workers()
    kill(worker, number)
    answer = agent.answer()
    assert (answer["type"], answer["kind"]) == ("error", "runtime-died")
    assert f"died with signal {number.name} while timing with onnxruntime" in answer["message"]
    assert agent.ask({"type": "facts"})["type"] == "result"


def test_what_a_runtime_prints_does_not_reach_the_wire(tmp_path: Path, onnx_model: Path) -> None:
    """Python's print, and a write to file descriptor 1 as C++ does it; then a failure with a traceback."""
    body = "import os\nprint('hello')\nos.write(1, b'{\"type\":\"result\"}\\n')\n"
    body += "raise RuntimeError('illegal\\nmoon phase')\n"
    with AgentProcess(tmp_path, environment=fake_runtime(tmp_path, body)) as agent:
        answer = agent.ask({"type": "measure", "request": run_request(onnx_model)})
    assert (answer["type"], answer["kind"]) == ("error", "runtime-missing")
    assert "RuntimeError: illegal" in answer["message"]


def busy(agent: AgentProcess, model: Path) -> tuple[int, Path]:
    """Bring the agent into the midst of a long measurement; its worker and its scratch folder."""
    agent.send({"type": "measure", "request": run_request(model, min_duration_s=600.0)})
    agent.wait_for_phase("timing")
    (worker,) = agent.workers()
    assert is_running(worker)
    return worker, Path(agent.hello["scratch_dir"])


def test_when_the_wire_breaks_in_a_measurement_nothing_stays(agent: AgentProcess, onnx_model: Path) -> None:
    worker, scratch = busy(agent, onnx_model)
    assert agent.close_stdin() == 1
    assert wait_until_gone([worker])
    assert not scratch.exists()


def test_when_nobody_reads_any_more_nothing_stays(agent: AgentProcess, onnx_model: Path) -> None:
    worker, scratch = busy(agent, onnx_model)
    assert agent.process.stdout is not None
    agent.process.stdout.close()
    assert agent.process.wait(30) == 1
    assert wait_until_gone([worker])
    assert not scratch.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_when_the_agent_is_told_to_leave_nothing_stays(
    agent: AgentProcess, onnx_model: Path, number: signal.Signals
) -> None:
    worker, scratch = busy(agent, onnx_model)
    kill(agent.process.pid, number)
    assert agent.process.wait(30) == 1
    assert wait_until_gone([worker])
    assert not scratch.exists()


def test_when_the_agent_is_killed_the_worker_dies_and_the_next_agent_sweeps(
    agent: AgentProcess, onnx_model: Path, tmp_path: Path
) -> None:
    worker, scratch = busy(agent, onnx_model)
    kill(agent.process.pid, signal.SIGKILL)
    agent.process.wait(30)
    assert wait_until_gone([worker])
    with AgentProcess(tmp_path):
        assert not scratch.exists()


def test_the_wire_that_breaks_in_a_queue_of_requests(agent: AgentProcess, onnx_model: Path) -> None:
    for _ in range(20):
        agent.send({"type": "measure", "request": run_request(onnx_model, min_duration_s=600.0)})
    assert agent.close_stdin() == 1


def test_idle_end_of_stdin_is_an_orderly_end(agent: AgentProcess) -> None:
    assert agent.close_stdin() == 0


def test_a_read_only_home_is_said_and_does_not_hinder(tmp_path: Path, onnx_model: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cache").write_text("a file, where the agent wants a folder")
    with AgentProcess(home) as agent:
        assert agent.hello["scratch_dir"] is None
        assert agent.hello["scratch_reason"]
        assert agent.ask({"type": "measure", "request": run_request(onnx_model)})["type"] == "result"


def test_runs_from_a_zip_and_so_do_its_workers(tmp_path: Path, onnx_model: Path) -> None:
    source = tmp_path / "source"
    (source / "kdedge_agent").mkdir(parents=True)
    for file in (SOURCE / "kdedge_agent").glob("*.py"):
        text = file.read_text()
        if file.name == "timing.py":  # a mark by which the worker shows that it, too, runs from the archive
            assert "STEADY_SPREAD = 0.03" in text
            text = text.replace("STEADY_SPREAD = 0.03", "STEADY_SPREAD = 0.42")
        (source / "kdedge_agent" / file.name).write_text(text)
    (source / "__main__.py").write_text("from kdedge_agent.__main__ import main\nmain()\n")
    archive = tmp_path / "odd: name 'agent'.pyz"
    zipapp.create_archive(source, archive)
    with AgentProcess(tmp_path, [sys.executable, str(archive)], {"PYTHONPATH": ""}) as agent:
        answer = agent.ask({"type": "measure", "request": run_request(onnx_model)})
        assert answer["type"] == "result", answer
        assert "within 42%" in answer["latency_s"]["warmup_rule"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["facts", "measure", "score", "remove", "hello", "exec", "", "probe\0"])
MESSAGES = st.fixed_dictionaries(
    {"type": KINDS | JSON},
    optional={"request": JSON, "paths": JSON, "id": JSON, "code": JSON},
).map(lambda message: json.dumps(message).encode())
LINES = MESSAGES | st.binary(max_size=100).map(lambda line: line.replace(b"\n", b" "))


def test_whatever_comes_is_answered_with_one_line_each(agent: AgentProcess) -> None:
    """Fuzz: every line, valid or not, gets exactly one answer, and the agent stays of use."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(LINES)
    def one(line: bytes) -> None:
        agent.send_bytes(line + b"\n")
        answer = agent.answer()
        assert answer["type"] in ("result", "error")
        if answer["type"] == "error":
            assert answer["kind"] != "internal", answer
            assert "\n" not in answer["message"]

    one()
    assert agent.ask({"type": "facts", "id": 9})["id"] == 9


def test_a_line_longer_than_a_message_is_refused_and_the_next_one_read(agent: AgentProcess) -> None:
    agent.send_bytes(b'{"type":"facts","id":"' + b"a" * (MAX_LINE_BYTES + 100) + b'"}\n')
    answer = agent.answer()
    assert (answer["type"], answer["kind"]) == ("error", "protocol")
    assert "longer" in answer["message"]
    assert agent.ask({"type": "facts"})["type"] == "result"


def test_the_clock_is_the_monotonic_one(agent: AgentProcess) -> None:
    before = time.monotonic()
    answer = agent.ask({"type": "clock", "id": 3})
    assert (answer["type"], answer["of"], answer["id"]) == ("result", "clock", 3)
    assert before <= answer["clock_s"] <= time.monotonic()
    assert agent.ask({"type": "clock", "zone": "UTC"})["kind"] == "protocol"


def test_windows_are_held_and_stamped_for_a_meter_on_the_host(tmp_path: Path, onnx_model: Path) -> None:
    """Although this board has a source of its own, which is left alone."""
    path = os.pathsep.join([str(SYSFS / "pi5" / "usr" / "bin"), os.environ["PATH"]])
    request = run_request(onnx_model, power=True, power_window_s=1.0, idle_s=0.5, external_meter=True)
    with AgentProcess(tmp_path, environment={"PATH": path}) as agent:
        before = time.monotonic()
        answer = agent.ask({"type": "measure", "request": request})
        after = time.monotonic()
    assert answer["type"] == "result", answer
    assert answer["power"] is answer["power_w"] is answer["energy_j_per_inference"] is None
    assert answer["unmeasured"]["power_w"] == "left to the meter on the host"
    windows = answer["power_windows"]
    bounds = [*windows["idle_before"], *windows["load"], *windows["idle_after"]]
    assert bounds == sorted(bounds)
    assert before < bounds[0] and bounds[-1] < after
    assert windows["load"][1] - windows["load"][0] >= 1.0
    assert windows["idle_before"][1] - windows["idle_before"][0] >= 0.5
    assert windows["inferences"] > 0


def test_no_windows_are_held_without_a_meter_or_where_power_is_not_asked_for(
    agent: AgentProcess, onnx_model: Path
) -> None:
    for wishes in ({"external_meter": True, "power": False}, {"external_meter": False, "power": False}):
        answer = agent.ask({"type": "measure", "request": run_request(onnx_model, **wishes)})
        assert answer["power_windows"] is None
        assert answer["unmeasured"]["power_w"] == "not asked for"


def test_power_from_a_boards_tool_becomes_joules(tmp_path: Path, onnx_model: Path) -> None:
    """The outermost boundary is faked, a ``vcgencmd`` on PATH that answers as a Pi 5 does; all else is real."""
    path = os.pathsep.join([str(SYSFS / "pi5" / "usr" / "bin"), os.environ["PATH"]])
    request = run_request(onnx_model, power=True, power_window_s=1.0, idle_s=0.5)
    with AgentProcess(tmp_path, environment={"PATH": path}) as agent:
        answer = agent.ask({"type": "measure", "request": request})
    assert answer["type"] == "result", answer
    power = answer["power"]
    assert power["source"] == "pi5-pmic"
    assert power["window_s"] >= 10.0, "a hundred periods of a sensor of 10 Hz"
    assert len(power["rails_w"]) == 12
    watts = 2.2822219618
    assert answer["power_w"] == pytest.approx(watts)
    assert answer["energy_j_per_inference"] == pytest.approx(watts * power["window_s"] / power["inferences"])
    assert power["net_j_per_inference"] == pytest.approx(0.0, abs=1e-9), "the tool says the same under load and idle"
    assert power["failed_readings"] == 0
    assert "power_w" not in answer["unmeasured"]
    assert {"idle before", "power", "idle after"} <= {message["phase"] for message in agent.progress}
    assert answer["facts"]["before"]["throttle"] == {"raw": 0, "set": []}
    assert power["gap_s"] == 0.0
    assert power["sensor_periods"] >= 100
    assert power["idle_window_s"][0] >= 2.0, "twenty periods, though half a second was asked for"
    assert power["gross_j_per_inference_ci95"][0] <= answer["energy_j_per_inference"]
    assert [row["name"] for row in power["sources_found"] if row["chosen"]] == ["pi5-pmic"]
    assert power["reading"]["reads"] > 100
    assert power["estimate"]["watts"] == pytest.approx(1.1451 * watts + 0.5879)


FORGETFUL = """#!/bin/sh
# A Pi 5's tool whose firmware is away for the 60th to the 72nd reading.
[ "$1" = pmic_read_adc ] || exec {tool} "$1"
echo >> {count}
n=$(wc -l < {count})
if [ "$n" -ge 60 ] && [ "$n" -lt 73 ]; then echo 'error=1 error_msg="VCHI initialization failed"'; exit 255; fi
exec {tool} "$1"
"""


def test_a_sensor_that_vanishes_and_comes_back_leaves_a_gap_that_is_stated(tmp_path: Path, onnx_model: Path) -> None:
    tool = tmp_path / "bin" / "vcgencmd"
    tool.parent.mkdir()
    tool.write_text(FORGETFUL.format(tool=SYSFS / "pi5" / "usr" / "bin" / "vcgencmd", count=tmp_path / "count"))
    tool.chmod(0o755)
    request = run_request(onnx_model, power=True, power_window_s=1.0, idle_s=0.5)
    path = os.pathsep.join([str(tool.parent), os.environ["PATH"]])
    with AgentProcess(tmp_path, environment={"PATH": path}) as agent:
        answer = agent.ask({"type": "measure", "request": request})
    assert answer["type"] == "result", answer
    power = answer["power"]
    assert power["failed_readings"] == 13
    assert power["gap_s"] == pytest.approx(1.3, abs=0.4)
    assert answer["power_w"] == pytest.approx(2.2822219618)
