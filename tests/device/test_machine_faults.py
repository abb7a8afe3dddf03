"""What no namespace can do to a device, done to one in qemu: a lossy link, another time of day, a reboot, a panic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kdedge.errors import WireError
from tests.device.runs import failure, quick, running
from tests.lab.device_tree import PI4
from tests.lab.machine import Machine, booted

pytestmark = pytest.mark.lab

# The host's patience with a silent machine; SSH itself gives up after three questions at intervals of 10 s.
SILENCE_S = 20.0
LIMIT_S = 60.0
"""Within so many seconds a run has ended whose device is gone."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine for all tests of this module; the last one destroys it."""
    with booted(PI4) as booted_machine:
        yield booted_machine


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated processor on a host that is busy is far slower to start than any board."""
    monkeypatch.setattr("kdedge_bench.transport._CONNECT_S", 120)
    monkeypatch.setattr("kdedge_bench.channel.GREETING_S", 300.0)


def is_usable_again(machine: Machine, artifact: Path, out: Path) -> None:
    """Nothing of an earlier run is left, and the next one works."""
    assert machine.left_over(60) == {}
    assert machine.partial_files() == []
    assert list(out.glob("*.json")) == []
    assert quick(artifact, machine.device(), out).latency_s["n"] >= 20


def test_a_slow_and_lossy_link(machine: Machine, onnx_file: Path, tmp_path: Path) -> None:
    """100 ms more for every packet, and one in twenty lost: slower, and nothing is missing."""
    machine.run("tc qdisc add dev eth0 root netem delay 100ms loss 5%")
    try:
        record = quick(onnx_file, machine.device(), tmp_path, repetitions=300)
        sent = machine.run("tc -s qdisc show dev eth0")
    finally:
        machine.run("tc qdisc del dev eth0 root")
    assert "delay 100ms loss 5%" in sent
    dropped = int(sent.split("dropped")[1].split(",")[0])
    assert dropped > 0, "nothing was lost, so nothing was tested"
    assert record.latency_s["n"] >= 300 and len(record.latency_s["samples"]) == record.latency_s["n"]
    assert machine.left_over() == {}


@pytest.mark.parametrize(
    ("harm", "mend", "words"), [("pull_cable", "plug_cable", ""), ("freeze", "thaw", "no sign of life")]
)
def test_a_cable_that_is_pulled_and_a_machine_that_freezes(
    harm: str, mend: str, words: str, machine: Machine, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdedge_bench.process.SILENCE_S", SILENCE_S)
    with running(onnx_file, machine.device(), tmp_path, "timing", arrive_s=300) as future:
        getattr(machine, harm)()
        began = time.monotonic()
        error = failure(future, LIMIT_S + 30)
        assert time.monotonic() - began < LIMIT_S
        getattr(machine, mend)()
    assert isinstance(error, WireError), error
    assert error.exit_code == 3
    assert words in str(error)
    is_usable_again(machine, onnx_file, tmp_path)


@pytest.mark.parametrize("jump_s", [40 * 86400, -7200])
def test_a_clock_that_jumps(jump_s: int, machine: Machine, onnx_file: Path, tmp_path: Path) -> None:
    """As when NTP reaches a board without a clock of its own: no figure follows, and what is in use stays."""
    with running(onnx_file, machine.device(), tmp_path, "timing", arrive_s=300, min_duration_s=30.0) as future:
        before_s = float(machine.run("date +%s"))
        machine.run(f"date -s @$(($(date +%s) + ({jump_s})))")
        after_s = float(machine.run("date +%s"))
        assert not future.done(), "the clock was set too late"
        record = future.result(300)
    assert abs(after_s - before_s - jump_s) < 60, "the clock was not set"
    samples = record.latency_s["samples"]
    assert len(samples) == record.latency_s["n"]
    assert min(samples) > 0 and 15 < sum(samples) < 60, "the times of its calls are those of 30 s"
    assert max(samples) < 10
    assert [path.stem for path in tmp_path.glob("*.json")] == [record.run_id]
    assert machine.left_over(60) == {} and machine.partial_files() == []
    assert quick(onnx_file, machine.device(), tmp_path).latency_s["n"] >= 20


def test_a_machine_that_reboots(
    machine: Machine, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, as after a drop of its supply; having no clock of its own, it comes up at an old time.

    Nothing on it could tidy up. The next run does.
    """
    monkeypatch.setattr("kdedge_bench.process.SILENCE_S", SILENCE_S)
    with running(onnx_file, machine.device(), tmp_path, "timing", arrive_s=300) as future:
        machine.run("(sleep 1; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &")
        error = failure(future, LIMIT_S + 30)
    assert isinstance(error, WireError), error
    assert error.exit_code == 3
    assert str(error).count("\n") == 0 and "lab" in str(error)
    machine.wait_until_up()
    assert float(machine.run("cut -d. -f1 /proc/uptime")) < 300, "it did not reboot"
    assert machine.pids() == {}
    assert list(tmp_path.glob("*.json")) == []
    assert quick(onnx_file, machine.device(), tmp_path / "next").latency_s["n"] >= 20
    assert machine.left_over(60) == {} and machine.partial_files() == []


def test_a_kernel_that_panics(
    machine: Machine, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of the module: of this machine nothing is left."""
    monkeypatch.setattr("kdedge_bench.process.SILENCE_S", SILENCE_S)
    with running(onnx_file, machine.device(), tmp_path, "timing", arrive_s=300) as future:
        machine.run("(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &")
        error = failure(future, LIMIT_S + 30)
    assert "Kernel panic" in machine.log()
    assert isinstance(error, WireError), error
    assert error.exit_code == 3
    assert str(error).count("\n") == 0 and "lab" in str(error)
    assert list(tmp_path.glob("*.json")) == []
