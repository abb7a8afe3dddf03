"""``bench --meter``: a meter on the host reads a known trace while a real agent works behind a real SSH server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kdedge.errors import DataError, DeviceError, UserError
from kdedge.reporting.check import parse_record
from tests.device.conftest import StartSshd
from tests.device.runs import quick
from tests.device.sshd import Sshd
from tests.meters import Plug, Trace, logger, running_plug

from kdedge_agent.run_record import RunRecord
from kdedge_bench import metering
from kdedge_bench.devices import Device
from kdedge_bench.meters import MeterError, find_meter
from kdedge_bench.session import Progress

SKEWED_CLOCK = """
import time
_real = time.monotonic
time.monotonic = lambda: {offset_s!r} + {rate!r} * _real(){extra}
"""


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows of the length that 20 readings a second ask for, instead of 10 s."""
    monkeypatch.setattr(metering, "POWER_WINDOW_S", 4.0)
    yield


def skewed(start: StartSshd, tmp_path: Path, **clock: Any) -> Device:
    """A device whose monotonic clock is another one: the function itself is replaced when its Python starts."""
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEWED_CLOCK.format(**{"extra": "", **clock}))
    return start(environment={"PYTHONPATH": str(folder)}).device()


def measured(record: RunRecord) -> tuple[float, float, list[float]]:
    """Joules of the load window, its begin on the host's clock is not in a record: joules, seconds, interval."""
    power = record.power
    assert power is not None and record.energy_j_per_inference is not None
    low, high = power["gross_j_per_inference_ci95"]
    count = power["inferences"]
    return record.energy_j_per_inference * count, power["window_s"], [low * count, high * count]


class Windows:
    """What the device stamped, caught on its way: the test's own truth of when the load was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: dict[str, Any] = {}
        plain = metering.Metering._windows

        def caught(this: metering.Metering, answer: Any) -> Any:
            self.answer = answer["power_windows"]
            return plain(this, answer)

        monkeypatch.setattr(metering.Metering, "_windows", caught)

    @property
    def load(self) -> tuple[float, float]:
        begin, end = self.answer["load"]
        return begin, end


def test_joules_of_a_known_trace_over_ssh(
    board: Sshd, slow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server and host share a clock here, so the device's own stamps say what the true integral is."""
    trace, windows, log = Trace(), Windows(monkeypatch), tmp_path / "power.csv"
    with logger(log, trace.watts):
        record = quick(slow_file, board.device(), tmp_path / "runs", power=True, meter=f"csv:{log}")
    joules, seconds, (low, high) = measured(record)
    true = trace.joules(*windows.load)
    assert joules == pytest.approx(true, rel=0.01)
    assert low <= true <= high
    assert (high - low) / 2 < 0.05 * true
    assert record.power_w == pytest.approx(joules / seconds)

    power = record.power
    assert power is not None
    assert power["source"] == f"meter: log {log}"
    assert power["meter"]["period_s"] == pytest.approx(0.05, rel=0.3)
    assert seconds >= 100 * power["meter"]["period_s"]
    assert abs(power["clock"]["offset_s"]) <= power["clock"]["round_trip_s"][0] / 2
    assert power["net_j_per_inference"] is not None
    assert record.request["external_meter"] is True
    assert not {"power_w", "energy_j_per_inference"} & set(record.unmeasured)
    stored = json.loads((tmp_path / "runs" / f"{record.run_id}.json").read_text())
    assert parse_record(stored).power == json.loads(json.dumps(power))
    assert board.left_over() == {}


def test_the_offset_of_a_skewed_clock_is_found_and_the_joules_stay_true(
    start: StartSshd, slow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset_s, rate = 54321.0, 1.0002
    device = skewed(start, tmp_path, offset_s=offset_s, rate=rate)
    trace, windows, log = Trace(), Windows(monkeypatch), tmp_path / "power.csv"
    asked_s = time.monotonic()
    with logger(log, trace.watts):
        record = quick(slow_file, device, tmp_path / "runs", power=True, meter=f"csv:{log}")
    joules, _, (low, high) = measured(record)
    begin_s, end_s = ((moment - offset_s) / rate for moment in windows.load)
    true = trace.joules(begin_s, end_s)
    assert joules == pytest.approx(true, rel=0.01)
    assert low <= true <= high
    assert record.power is not None
    clock = record.power["clock"]
    run_s = time.monotonic() - asked_s
    skew_s = offset_s + (rate - 1) * asked_s
    assert skew_s - clock["uncertainty_s"] <= clock["offset_s"] <= skew_s + (rate - 1) * run_s + clock["uncertainty_s"]
    assert clock["drift"] == pytest.approx(rate - 1, abs=sum(clock["round_trip_s"]) / 4)


def test_a_devices_clock_that_jumps_leaves_no_figure(start: StartSshd, slow_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    jump = f" + (5.0 if __import__('os').path.exists({str(moved)!r}) else 0.0)"
    device = skewed(start, tmp_path, offset_s=10.0, rate=1.0, extra=jump)
    log = tmp_path / "power.csv"

    def watch(progress: Progress) -> None:
        if progress.text.startswith("power"):
            moved.touch()

    with logger(log, lambda _: 3.0):
        record = quick(slow_file, device, tmp_path / "runs", power=True, meter=f"csv:{log}", progress=watch)
    assert record.power_w is record.energy_j_per_inference is None
    assert "jumped by +5.0" in record.unmeasured["power_w"]
    assert record.latency_s["n"] >= 20


@pytest.mark.parametrize("when", ["power", "idle before"])
def test_a_meter_that_falls_silent_costs_the_figure_and_not_the_run(
    board: Sshd, slow_file: Path, tmp_path: Path, when: str
) -> None:
    silent, log = threading.Event(), tmp_path / "power.csv"

    def watch(progress: Progress) -> None:
        if progress.text.startswith(when):
            silent.set()

    with logger(log, lambda _: 3.0, until=silent):
        record = quick(slow_file, board.device(), tmp_path / "runs", power=True, meter=f"csv:{log}", progress=watch)
    assert record.power_w is record.energy_j_per_inference is None
    assert "its readings end" in record.unmeasured["power_w"]
    assert record.unmeasured["energy_j_per_inference"] == record.unmeasured["power_w"]
    assert record.power is not None and record.power["gross_j_per_inference"] is None
    assert record.latency_s["n"] >= 20


def test_a_meter_that_falls_silent_after_the_load_costs_the_net_figure_alone(
    board: Sshd, slow_file: Path, tmp_path: Path
) -> None:
    silent, log = threading.Event(), tmp_path / "power.csv"

    def watch(progress: Progress) -> None:
        if progress.text.startswith("idle after"):
            threading.Timer(0.2, silent.set).start()

    with logger(log, lambda _: 3.0, until=silent):
        record = quick(slow_file, board.device(), tmp_path / "runs", power=True, meter=f"csv:{log}", progress=watch)
    assert record.power_w == pytest.approx(3.0)
    assert record.power is not None and record.power["net_j_per_inference"] is None
    assert "too few readings while the device was idle" in record.unmeasured["power.net_j_per_inference"]
    assert record.power["net_j_per_inference_ci95"] is None


def test_junk_in_the_midst_of_a_run_is_the_reason(board: Sshd, slow_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "power.csv"

    def watch(progress: Progress) -> None:
        if progress.text.startswith("idle before"):
            with log.open("a") as file:
                file.write("battery low\n")

    with logger(log, lambda _: 3.0):
        record = quick(slow_file, board.device(), tmp_path / "runs", power=True, meter=f"csv:{log}", progress=watch)
    assert record.power_w is None
    assert "battery low" in record.unmeasured["power_w"] and "line " in record.unmeasured["power_w"]


def test_a_plug_at_the_wall_of_this_machine(slow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdedge_bench.meters import kasa

    monkeypatch.setattr(kasa, "RENEWED_S", 0.05)  # a real one takes a second, and a window of 100 s
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with running_plug(Plug(lambda _: 2.5)) as plug:
        meter = find_meter(f"kasa:127.0.0.1:{plug.port}")  # as a meter of one's own is given
        record = quick(slow_file, "local", tmp_path / "runs", power=True, meter=meter, meter_accuracy=0.01)
    power = record.power
    assert power is not None
    assert power["source"] == f"meter: kasa plug HS110(EU) at 127.0.0.1:{plug.port}"
    assert "at the wall, with the loss of its power supply" in power["covers"]
    assert record.power_w == pytest.approx(2.5)
    assert power["error_j"]["accuracy"] == pytest.approx(0.01 * 2.5 * power["window_s"])
    low, high = power["load_w_ci95"]
    assert high - 2.5 == pytest.approx(2.5 - low) and 0.025 <= high - 2.5 < 0.1
    assert power["net_j_per_inference"] == pytest.approx(0.0, abs=1e-6), "load and idle are the same to this plug"


@pytest.mark.parametrize(
    ("wishes", "error", "said"),
    [
        ({"meter": "volts:x"}, UserError, "unknown meter"),
        ({"meter": "csv:nowhere.csv"}, UserError, "Start the logger first"),
        ({"meter": "kasa:127.0.0.1:1"}, DeviceError, "does not answer"),
        ({"meter": "stdin", "power": False}, UserError, "Leave one of the two out"),
        ({"meter": "csv:x", "meter_accuracy": 1.5}, UserError, "0.01 for ±1%"),
    ],
)
def test_a_meter_that_cannot_be_is_told_before_the_device_is_touched(
    board: Sshd, onnx_file: Path, tmp_path: Path, wishes: dict[str, Any], error: type[Exception], said: str
) -> None:
    nowhere = replace(board.device(), port=1)
    with pytest.raises(error, match=said):
        quick(onnx_file, nowhere, tmp_path, **{"power": True, **wishes})


def test_a_silent_or_slow_meter_is_told_before_the_run(
    board: Sshd, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdedge_bench import collector

    monkeypatch.setattr(collector, "FIRST_READINGS_S", 0.5)
    log = tmp_path / "power.csv"
    log.write_text("timestamp,watts\n1760000000,3\n")
    with pytest.raises(MeterError, match=r"0 readings in 0.5 s.*Start it or its logger first"):
        quick(onnx_file, board.device(), tmp_path, power=True, meter=f"csv:{log}")
    log.write_text("timestamp;watts\n")
    with pytest.raises(DataError, match="line 1"):
        quick(onnx_file, board.device(), tmp_path, power=True, meter=f"csv:{log}")
    monkeypatch.setattr(metering, "MAX_PERIOD_S", 0.01)
    with logger(log, lambda _: 3.0), pytest.raises(MeterError, match=r"a reading only every 0\.0"):
        monkeypatch.setattr(collector, "FIRST_READINGS_S", 30.0)
        quick(onnx_file, board.device(), tmp_path, power=True, meter=f"csv:{log}")


def test_the_command_with_a_pipe(onnx_file: Path, tmp_path: Path) -> None:
    """As a user does it: a program's lines go into standard input, the figure and its source come out."""
    script = "import sys, time\nwhile True:\n  print(f'{time.time()},3.25', flush=True)\n  time.sleep(0.05)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as logs:
        words = ["bench", str(onnx_file), "--repetitions", "20", "--min-duration", "0", "--meter", "stdin"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "kdedge", *words, "--out", str(tmp_path)],
                stdin=logs.stdout, capture_output=True, text=True, timeout=300, check=False,
                env={**os.environ, "HOME": str(tmp_path)},
            )  # fmt: skip
        finally:
            logs.kill()
    assert done.returncode == 0, done.stderr
    assert "3.250 W (meter: log on standard input: whatever the logged meter measures)" in done.stdout
    assert re.search(r"energy +gross [0-9.]+ mJ \[[0-9.]+, [0-9.]+\].* per inference", done.stdout)
    assert "not its accuracy" in done.stdout
