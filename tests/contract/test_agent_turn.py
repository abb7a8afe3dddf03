"""Two agents of one device: they take turns, and a dead one is no obstacle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.agent_tools import AgentProcess, make_onnx, run_request

from kdedge_agent import turn
from kdedge_agent.errors import AgentFailure


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_onnx(tmp_path / "net.onnx")


def never(seconds: float, text: str) -> None:
    raise AssertionError(f"it waits {seconds} s: {text}")


def test_the_second_waits_for_the_first(tmp_path: Path, model: Path) -> None:
    with AgentProcess(tmp_path) as first, AgentProcess(tmp_path) as second:
        first.send({"type": "measure", "request": run_request(model, min_duration_s=3.0)})
        first.wait_for_phase("timing")
        answer = second.ask({"type": "measure", "request": run_request(model, wait_s=60.0)})
        assert answer["type"] == "result"
        waited = [message["text"] for message in second.progress if message["phase"] == "waiting"]
        assert waited and f"process {first.process.pid}" in waited[0]
        assert "for the device itself, since 20" in waited[0]
        ended = first.answer()
        assert ended["facts"]["after"]["monotonic_s"] <= answer["facts"]["before"]["monotonic_s"]
    assert list((tmp_path / ".cache" / "kdedge").glob("turn-*")) == []


def test_who_will_not_wait_is_told_for_whom_it_is_busy(tmp_path: Path, model: Path) -> None:
    with AgentProcess(tmp_path) as first, AgentProcess(tmp_path) as second:
        first.send({"type": "measure", "request": run_request(model, min_duration_s=60.0)})
        first.wait_for_phase("timing")
        answer = second.ask({"type": "measure", "request": run_request(model, wait_s=0.0)})
        assert (answer["type"], answer["kind"]) == ("error", "busy")
        assert f"process {first.process.pid}" in answer["message"]
        # The turn goes with whoever holds it, however that one ends.
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        answer = second.ask({"type": "measure", "request": run_request(model, wait_s=0.0)})
        assert answer["type"] == "result"


def test_the_command_says_for_whom_it_is_busy(tmp_path: Path, model: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CACHE_HOME", None)
    words = ["bench", str(model), "--wait", "0", "--no-power", "--out", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "kdedge", *words]
    with turn.taken(tmp_path / ".cache" / "kdedge", 0.0, never):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr
    assert f"process {os.getpid()}" in " ".join(done.stderr.split())
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_that_nobody_holds_is_no_obstacle(tmp_path: Path) -> None:
    place = turn._place(tmp_path)
    place.write_text('{"client": "10.0.0.1", "since": "then", "pid": 1}')
    with turn.taken(tmp_path, 0.0, never):
        assert f'"pid": {os.getpid()}' in place.read_text()
    assert not place.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"client": 1}', "\udcff"])
def test_a_holder_that_does_not_say_who_it_is(content: str, tmp_path: Path) -> None:
    place = turn._place(tmp_path)
    place.write_bytes(content.encode("utf-8", "surrogateescape"))
    code = "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); "
    holder = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)", str(place)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    waits: list[float] = []

    def pause(seconds: float, text: str) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    try:
        with pytest.raises(AgentFailure, match="by whom is not known"), turn.taken(tmp_path, 0.5, pause):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert 0.4 < sum(waits) <= 0.51


def test_where_nothing_can_be_written_nothing_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with turn.taken(tmp_path / "file" / "folder", 0.0, never):
        pass
