"""Several starts of the worker in one measurement: real processes, one after the other."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.agent_tools import SOURCE, AgentProcess, kill, make_onnx, run_request

from kdedge_agent.observe import relay
from kdedge_agent.record import build_record
from kdedge_agent.run_record import RunRecord
from kdedge_agent.server import Desk
from kdedge_agent.wire import Sender
from kdedge_agent.workdir import Scratch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_onnx(tmp_path / "net.onnx")


def listed_workers(folder: Path) -> tuple[Path, dict[str, str]]:
    """A file that gets a line of every worker that starts, and the environment for that."""
    hook, seen = folder / "hook", folder / "workers"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        f"import os, sys\nif '--worker' in sys.orig_argv:\n    open({str(seen)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    )
    return seen, {"PYTHONPATH": os.pathsep.join([str(hook), str(SOURCE)])}


def recorded(answer: dict[str, Any]) -> RunRecord:
    assert answer["type"] == "result", answer
    return build_record(
        answer,
        device="local",
        device_kind="local",
        run_id="r",
        created_at="2026-01-01T00:00:00+00:00",
        artifact={},
        versions={},
    )


def test_every_start_is_a_process_of_its_own_and_they_share_the_work(tmp_path: Path, model: Path) -> None:
    seen, environment = listed_workers(tmp_path)
    with AgentProcess(tmp_path, environment=environment) as agent:
        record = recorded(agent.ask({"type": "measure", "request": run_request(model, starts=3, repetitions=700)}))
        assert agent.workers() == []
    assert len(set(seen.read_text().split())) == 3
    latency = record.latency_s
    starts = latency["starts"]
    assert [start["n"] for start in starts] == [234, 234, 234] and latency["n"] == 702
    assert sum(start["warmup_n"] for start in starts) == len(latency["warmup_samples"])
    assert record.starts == 3 and record.request["starts"] == 3
    assert sorted(start["load_s"] for start in starts)[1] == record.load_s
    assert sorted(start["first_inference_s"] for start in starts)[1] == record.first_inference_s
    assert max(start["peak_rss_bytes"] for start in starts) == record.memory_bytes["peak"]
    assert latency["ci95_method"]["p50"] == "t over starts"
    glances = [glance["samples"] for glance in record.facts["during"]]
    assert glances == sorted(glances) and {0, 234, 468, 702} <= set(glances)


def test_seconds_are_shared_and_power_and_profile_measured_once(tmp_path: Path, model: Path) -> None:
    request = run_request(
        model, starts=2, repetitions=2, min_duration_s=1.0, profile=True, power=True, external_meter=True,
        power_window_s=0.5, idle_s=0.2,
    )  # fmt: skip
    with AgentProcess(tmp_path) as agent:
        answer = agent.ask({"type": "measure", "request": request})
    record = recorded(answer)
    first = record.latency_s["starts"][0]["n"]
    for own in (record.latency_s["samples"][:first], record.latency_s["samples"][first:]):
        assert sum(own) >= 0.5
    assert record.profile is not None and record.profile["ops"]
    assert answer["power_windows"]["inferences"] > 0
    assert "2 starts" in record.unmeasured["latency_s.ci95.p50"]


def test_progress_is_a_share_of_all_starts(tmp_path: Path) -> None:
    wire = io.BytesIO()
    desk = Desk(Sender(wire), Scratch(tmp_path))
    relay(desk, {"type": "progress", "phase": "timing", "done": 5, "total": 10}, start=1, starts=3)
    told = json.loads(wire.getvalue())
    assert (told["done"], told["total"]) == (15, 30)


def test_a_start_that_dies_ends_the_measurement_and_nothing_stays(tmp_path: Path, model: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        agent.send({"type": "measure", "request": run_request(model, starts=2, min_duration_s=6.0)})
        agent.wait_for_phase("timing")
        (first,) = agent.workers()
        until = time.monotonic() + 60.0
        while (second := agent.workers()) in ([], [first]):
            assert time.monotonic() < until
            time.sleep(0.02)
        kill(second[0], signal.SIGSEGV)
        answer = agent.answer()
        assert (answer["type"], answer["kind"]) == ("error", "runtime-died")
        assert agent.workers() == []
        assert agent.ask({"type": "facts"})["type"] == "result"


def test_more_starts_than_there_may_be_are_refused(tmp_path: Path, model: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        answer = agent.ask({"type": "measure", "request": run_request(model, starts=51)})
    assert (answer["type"], answer["kind"]) == ("error", "protocol")
    assert "starts: from 1 to 50" in answer["message"]


def test_the_command_says_how_many_starts_its_figures_are_of(tmp_path: Path, model: Path) -> None:
    words = [
        "bench",
        str(model),
        "--no-power",
        "--repetitions",
        "30",
        "--seconds",
        "0",
        "--out",
        str(tmp_path / "runs"),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CACHE_HOME", None)
    for more, said in (
        (["--starts", "3"], "(n=30, 3 starts, 95% intervals by t over starts)"),
        (["--starts", "2"], "(n=30, 2 starts, no 95% intervals: 2 starts do not tell"),
        ([], "(n=30, "),
    ):
        command = [sys.executable, "-m", "kdedge", *words, *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        assert said in done.stdout, done.stdout
        assert (" starts" in done.stdout) == bool(more)
