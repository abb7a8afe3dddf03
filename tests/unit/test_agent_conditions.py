"""Played conditions: the real timing loop, glances and verdict; faked are clock, the board's files and the model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge_agent import facts, neighbours, timing, verdict
from kdedge_agent.cooldown import cool_down, hottest
from kdedge_agent.errors import AgentFailure
from kdedge_agent.run_record import VERDICTS

CALL_S = 0.01
RUN_S = 30.0


class Board:
    """A board whose temperature, clock and supply follow a script of the time; a call of its model passes the time.

    Attributes:
        now_s: Seconds since it was switched on.
        read_outside_of_samples: How often its files were written, which is once a glance.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 0.0
        self._noise = np.random.default_rng(4)
        self._flags = 0
        for folder in ("sys/devices/system/cpu/cpufreq/policy0", "sys/class/thermal/thermal_zone0"):
            (root / folder).mkdir(parents=True)
        (root / "sys/devices/platform/soc/soc:firmware").mkdir(parents=True)
        self.show()

    def temperature_c(self) -> float:
        return 45.0

    def clock_mhz(self) -> float:
        return 2400.0

    def flags(self) -> int:
        return 0

    def show(self) -> None:
        """Write what the kernel would show now."""
        policy = self.root / "sys/devices/system/cpu/cpufreq/policy0"
        (policy / "scaling_cur_freq").write_text(f"{self.clock_mhz() * 1000:.0f}\n")
        (policy / "scaling_max_freq").write_text("2400000\n")
        (policy / "scaling_governor").write_text("performance\n")
        zone = self.root / "sys/class/thermal/thermal_zone0"
        (zone / "type").write_text("cpu-thermal\n")
        (zone / "temp").write_text(f"{self.temperature_c() * 1000:.0f}\n")
        firmware = self.root / "sys/devices/platform/soc/soc:firmware"
        self._flags |= self.flags() << 16
        (firmware / "get_throttled").write_text(f"{self.flags() | self._flags:x}\n")

    def clock_ns(self) -> int:
        return round(self.now_s * 1e9)

    def infer(self) -> None:
        self.now_s += CALL_S * 2400 / self.clock_mhz() * (1 + 0.005 * self._noise.standard_normal())


class HeatsUp(Board):
    """Ten degrees and 15% of time between start and end, without the firmware's doing."""

    def temperature_c(self) -> float:
        return 45.0 + 20 * min(1.0, self.now_s / RUN_S)

    def infer(self) -> None:
        start = self.now_s
        super().infer()
        self.now_s += (self.now_s - start) * 0.2 * min(1.0, start / RUN_S)


class ThrottledByHalf(Board):
    """From 85 degrees on the firmware halves the clock."""

    def temperature_c(self) -> float:
        return 60.0 + 25 * min(1.0, self.now_s / (RUN_S / 2))

    def clock_mhz(self) -> float:
        return 1200.0 if self.temperature_c() >= 85 else 2400.0

    def flags(self) -> int:
        return 0b0100 if self.temperature_c() >= 85 else 0


class ThrottledInSilence(ThrottledByHalf):
    """The same on a board without the firmware's flags."""

    def flags(self) -> int:
        return 0


class Undervoltage(Board):
    """For two seconds in the middle the supply sags; the latencies show nothing."""

    def flags(self) -> int:
        return 0b0001 if RUN_S / 2 < self.now_s < RUN_S / 2 + 2 else 0


def play(board: Board, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str], list[dict[str, Any]], list[float]]:
    """Measure the board; verdict, reasons, glances and samples."""
    monkeypatch.setattr(time, "perf_counter_ns", board.clock_ns)
    during: list[dict[str, Any]] = []

    def look(done: int, last: bool) -> None:
        board.show()
        during.append({"samples": done, "last": last, **facts.glance(board.root)})

    before = facts.snapshot(board.root)
    warm = timing.warm_up(board.infer, 10.0)
    assert warm.steady
    samples = timing.time_calls(board.infer, 1000, RUN_S, look=look)
    board.show()
    monkeypatch.undo()
    word, reasons = verdict.decide(samples, before, facts.snapshot(board.root), during, 4)
    assert word in VERDICTS
    return word, reasons, during, samples


def test_a_steady_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, reasons, during, samples = play(Board(tmp_path), monkeypatch)
    assert (word, len(reasons)) == ("steady", 1)
    assert "n = " in reasons[0]
    assert len(samples) >= 1000
    assert sum(samples) >= RUN_S
    assert RUN_S / 2 < len(during) < RUN_S + 3, "a glance for about every second"
    assert (during[0]["samples"], during[-1]["samples"], during[-1]["last"]) == (0, len(samples), True)


def test_a_board_that_heats_up_drifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, reasons, during, _ = play(HeatsUp(tmp_path), monkeypatch)
    assert word == "drifting"
    assert "longer than the first third's" in reasons[0]
    assert "°C, 2400 MHz, then 6" in reasons[0], "temperature and clock of both thirds stand beside it"
    assert "--cool-down" in reasons[0]
    beside = verdict.thirds(during)
    assert beside is not None
    assert beside["last"]["temperature_c"] - beside["first"]["temperature_c"] > 8
    assert beside["last"]["frequency_hz"] == {"policy0": 2_400_000_000}


def test_a_board_throttled_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, reasons, _, _ = play(ThrottledByHalf(tmp_path), monkeypatch)
    assert word == "throttled"
    text = " ".join(reasons)
    assert "the firmware reports throttled" in text
    assert "from 2400 to 1200 MHz under load" in text
    assert "heat sink" in text


def test_a_clock_that_is_halved_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, reasons, _, samples = play(ThrottledInSilence(tmp_path), monkeypatch)
    assert word == "throttled"
    assert "from 2400 to 1200 MHz under load" in reasons[0]
    assert max(samples) > 1.9 * min(samples), "no sample is trimmed"


def test_a_supply_that_sags_for_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word, reasons, during, _ = play(Undervoltage(tmp_path), monkeypatch)
    assert word == "undervoltage"
    assert "power supply" in reasons[0]
    assert sum("undervoltage" in glance["throttle"]["set"] for glance in during) in (1, 2, 3)


def test_between_the_two_readings_of_a_sample_nothing_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that takes a whole second shows in no sample, and neither does the call after it."""
    board = Board(tmp_path)
    monkeypatch.setattr(time, "perf_counter_ns", board.clock_ns)
    looks, cold = [], [0]

    def look(done: int, last: bool) -> None:
        board.now_s += 1.0
        looks.append(done)
        cold[0] = 1

    def infer() -> None:
        board.now_s += CALL_S + 0.5 * cold[0]
        cold[0] = 0

    samples = timing.time_calls(infer, 10, 5.0, look=look)
    assert len(looks) >= 5
    assert max(samples) == pytest.approx(CALL_S)


def test_looks_become_rarer_on_long_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path)
    monkeypatch.setattr(time, "perf_counter_ns", board.clock_ns)
    looks: list[int] = []

    def minute() -> None:
        board.now_s += 60.0

    timing.time_calls(minute, 1, 86400.0, look=lambda done, _: looks.append(done))
    assert len(looks) < 800


@pytest.mark.skipif(sys.platform != "linux", reason="processors and /proc of Linux")
def test_a_real_neighbour_on_the_same_processor_is_named() -> None:
    """A real busy process and a real measured one share one processor; nothing is faked."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # it inherits the processor
    try:
        time.sleep(0.2)
        census, waits, begin_s, used = neighbours.census(Path("/")), timing.waited_s(), time.monotonic(), os.times()
        samples = timing.time_calls(lambda: sum(range(2000)), 1000, 1.0)
        seconds, now = time.monotonic() - begin_s, os.times()
        after = neighbours.census(Path("/"))
        own_s = now.user + now.system - used.user - used.system
        work = neighbours.compare(census, after, seconds, [cpu], [os.getpid()], own_s)
        work["waited_s"] = timing.longest_wait_s(waits, timing.waited_s())
        word, reasons = verdict.decide(samples, {}, {}, [], 4, work, [cpu])
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, allowed)
    assert word == "noisy"
    assert "the processor was taken away for" in reasons[0]
    assert work["others_share"] > 0.2
    share = (after.processes[busy.pid].cpu_s - census.processes[busy.pid].cpu_s) / seconds
    if share > neighbours.MIN_SHARE and share >= min(entry["share"] for entry in work["processes"]):
        assert f"(pid {busy.pid}, " in reasons[0]
        assert f"of processor {cpu})" in reasons[0]
    else:  # this machine is so busy that others took more than the one that was started for it
        assert work["processes"] or share <= neighbours.MIN_SHARE


def test_work_beside_the_measured_processor_is_a_remark() -> None:
    work = {
        "processes": [{"pid": 7, "name": "cc1plus", "share": 0.9, "processor": 2}],
        "others_share": 0.3,
        "stolen_share": 0.0,
        "waited_s": 0.001,
    }
    word, reasons = verdict.decide([0.01] * 100, {}, {}, [], 4, work, None)
    assert word == "steady"
    assert "cc1plus (pid 7, 90% of processor 2)" in reasons[-1]


def test_what_ran_beside_several_starts_is_weighed_by_their_seconds() -> None:
    cc = {"pid": 7, "name": "cc1plus", "share": 0.8, "processor": 2}
    first = {"processes": [cc], "others_share": 0.4, "stolen_share": None}
    second = {"processes": [{**cc, "share": 0.4}, {**cc, "pid": 8}], "others_share": 0.0, "stolen_share": 0.0}
    work = neighbours.merged([(3.0, first), (1.0, second)])
    assert work["processes"] == [{**cc, "share": 0.7}, {**cc, "pid": 8, "share": 0.2}]
    assert work["others_share"] == pytest.approx(0.3)
    assert work["stolen_share"] is None
    assert neighbours.merged([(3.0, first)]) == first


def test_a_host_that_takes_time_from_its_virtual_machine_is_noise() -> None:
    work = {"processes": [], "others_share": 0.0, "stolen_share": 0.2, "waited_s": None}
    word, reasons = verdict.decide([0.01] * 100, {}, {}, [], 4, work, [0])
    assert word == "noisy"
    assert "virtual machine kept 20%" in reasons[0]


def test_cool_down_waits_for_the_temperature(tmp_path: Path) -> None:
    board = HeatsUp(tmp_path)
    board.now_s = RUN_S
    board.show()
    rests: list[str] = []

    def rest(seconds: float, text: str) -> None:
        rests.append(text)
        board.now_s -= 5.0  # it cools as it heated
        board.show()

    found = cool_down(None, 50.0, tmp_path, rest)
    assert found["reached"] is True
    assert (found["from_c"], found["to_c"]) == (65.0, pytest.approx(48.3, abs=2))
    assert "65.0 °C" in rests[0]


def test_cool_down_has_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Board(tmp_path)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def rest(seconds: float, text: str) -> None:
        clock[0] += seconds

    found = cool_down(None, 30.0, tmp_path, rest)
    assert found["reached"] is False
    assert found["waited_s"] == pytest.approx(600.0)
    assert cool_down(2.5, None, tmp_path, rest)["waited_s"] == pytest.approx(2.5)


def test_cool_down_without_a_sensor_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(AgentFailure, match="no temperature") as caught:
        cool_down(None, 40.0, tmp_path, lambda seconds, text: None)
    assert caught.value.kind == "request"
    assert cool_down(0.01, None, tmp_path, lambda seconds, text: time.sleep(seconds))["to_c"] is None


def test_the_hottest_zone_is_the_processors() -> None:
    assert hottest({"gpu-thermal": 70.0, "cpu-thermal": 50.0, "CPU-therm": 55.0}) == 55.0
    assert hottest({"acpitz": 40.0, "iwlwifi": 45.0}) == 45.0
    assert hottest({}) is None
