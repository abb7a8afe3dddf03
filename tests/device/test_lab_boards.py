"""Boards in namespaces of their own, measured over SSH: what each has is found, totalled by its rule, and said."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.device import boards
from tests.device.board_totals import TOTALS
from tests.device.namespace import NamespacedSshd, namespaced_device
from tests.device.runs import quick
from tests.repeated import repeated

from kdedge_agent.run_record import RunRecord
from kdedge_bench.session import Progress

WITH_SENSOR = (
    "pi5", "pi4_ina219_hat", "jetson_nano", "xavier_nx_jetpack4", "xavier_nx_jetpack5", "orin_nano", "agx_orin",
)  # fmt: skip
PACKAGE_W, MEMORY_W = 12.0, 2.0


def put(path: Path, text: object) -> None:
    """Change a file that somebody may be reading: in one write, of a length that no earlier content exceeds."""
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), f"{text}".ljust(24).encode() + b"\n", 0)


@contextmanager
def counting(board: Path) -> Iterator[None]:
    """RAPL counters that count; the package's comes round after 30 J."""
    place = board / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0"
    wrap, start = 262_143_328_850, time.monotonic()

    def advance() -> None:
        seconds = time.monotonic() - start
        put(place / "energy_uj", round(wrap - 30e6 + PACKAGE_W * 1e6 * seconds) % wrap)
        put(place / "intel-rapl:0:1/energy_uj", round(MEMORY_W * 1e6 * seconds))

    advance()
    with repeated(advance, 0.005):
        yield


@pytest.fixture(scope="module")
def records(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    """A run with power on every board, all at once: they have the rates of sensors to wait for, not the processor."""
    out = tmp_path_factory.mktemp("runs")
    with ExitStack() as stack, ThreadPoolExecutor(len(WITH_SENSOR) + 2) as pool:
        servers = {
            name: stack.enter_context(namespaced_device(boards.BOARDS[name]))
            for name in ("pi4", "x86_rapl", *WITH_SENSOR)
        }
        stack.enter_context(counting(servers["x86_rapl"].tree))
        futures = {
            name: pool.submit(quick, onnx_file, server.device(), out, power=True) for name, server in servers.items()
        }
        found = {name: future.result() for name, future in futures.items()}
        assert all(server.left_over() == {} for server in servers.values())
    return found


@pytest.mark.parametrize("board", WITH_SENSOR)
def test_watts_and_joules_by_the_rule_of_the_board(board: str, records: dict[str, RunRecord]) -> None:
    _, source, rails, watts, covers = next(row for row in TOTALS if row[0] == board)
    record = records[board]
    assert record.power is not None
    assert record.power["source"] == source
    assert list(record.power["rails_w"]) == rails
    assert covers in record.power["covers"]
    assert record.power_w == pytest.approx(watts, rel=2e-3)
    seconds = record.power["window_s"] / record.power["inferences"]
    assert record.energy_j_per_inference == pytest.approx(watts * seconds, rel=0.01)
    assert record.power["net_j_per_inference"] == pytest.approx(0, abs=1e-3 * watts * seconds), "idle draws as much"
    assert record.power["window_s"] >= 100 * record.power["sensor_period_s"]


def test_a_counter_that_comes_round_during_the_run(records: dict[str, RunRecord]) -> None:
    record = records["x86_rapl"]
    assert record.power is not None
    assert record.power["source"] == "rapl"
    assert record.power["total_rails"] == ["package-0", "dram-0"]
    assert record.power["failed_readings"] == 0
    assert record.power_w == pytest.approx(PACKAGE_W + MEMORY_W, rel=0.01)


def test_a_board_without_a_sensor_says_what_to_buy(records: dict[str, RunRecord]) -> None:
    record = records["pi4"]
    assert (record.power_w, record.energy_j_per_inference) == (None, None)
    for key in ("power_w", "energy_j_per_inference"):
        assert "Raspberry Pi 4 Model B Rev 1.4 has no power sensor of its own" in record.unmeasured[key]
        assert "INA219" in record.unmeasured[key]


def test_every_board_says_what_it_is(records: dict[str, RunRecord]) -> None:
    assert records["orin_nano"].facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert records["pi5"].facts["os_release"] == "Debian GNU/Linux 13"
    assert records["x86_rapl"].facts["cpu"] == "Example CPU @ 3.00GHz"
    for name, record in records.items():
        is_jetson = name in ("jetson_nano", "xavier_nx_jetpack4", "xavier_nx_jetpack5", "orin_nano", "agx_orin")
        assert record.memory_bytes.get("gpu_shared") == (0 if is_jetson else None)
        assert record.facts["before"]["frequency"]["policy0"]["governor"] == "performance"


def changing(server: NamespacedSshd, change: Callable[[Path], None]) -> Callable[[Progress], None]:
    """Tells the progress of a run; at its first sign of timing, the board changes."""
    waiting = [change]

    def watch(progress: Progress) -> None:
        if progress.stage == "measure" and waiting:
            threading.Timer(0.5, waiting.pop(), [server.tree]).start()

    return watch


def sag(tree: Path) -> None:
    """The supply voltage drops, and the firmware lowers the clock."""
    put(tree / "vcgencmd/get_throttled", "throttled=0x50005")


def overheat(tree: Path) -> None:
    """The firmware halves the clock of a processor that is too hot."""
    put(tree / "vcgencmd/get_throttled", "throttled=0x60006")
    put(tree / "sys/class/thermal/thermal_zone0/temp", 85000)
    for name in ("scaling_cur_freq", "scaling_max_freq"):
        put(tree / "sys/devices/system/cpu/cpufreq/policy0" / name, 900_000)


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        (sag, "undervoltage", ["supply voltage was too low", "5 V, 5 A"]),
        (overheat, "throttled", ["from 1800 to 900 MHz", "throttled during the run", "heat sink"]),
    ],
)
def test_what_happens_during_a_run_is_its_verdict(
    change: Callable[[Path], None], verdict: str, words: list[str], onnx_file: Path, tmp_path: Path
) -> None:
    with namespaced_device(boards.pi4) as server:
        record = quick(onnx_file, server.device(), tmp_path, min_duration_s=3.0, progress=changing(server, change))
    assert record.verdict == verdict
    said = " ".join(record.verdict_reasons)
    assert all(word in said for word in words), said


def test_a_sensor_that_is_gone_for_a_while(onnx_file: Path, tmp_path: Path) -> None:
    """Its driver is bound anew under another number a second later: the gap is left out, and said."""

    def rebind(tree: Path) -> None:
        place = tree / "sys/devices/platform/c240000.i2c/i2c-1/1-0040"
        shutil.move(place / "hwmon", place / "gone")
        time.sleep(1)
        (place / "gone/hwmon1").rename(place / "gone/hwmon7")
        shutil.move(place / "gone", place / "hwmon")

    changed = threading.Event()

    def watch(progress: Progress) -> None:
        if "power" in progress.text and not changed.is_set():
            changed.set()
            threading.Timer(5.0, rebind, [server.tree]).start()

    with namespaced_device(boards.orin_nano) as server:
        record = quick(onnx_file, server.device(), tmp_path, power=True, progress=watch)
    assert changed.is_set() and record.power is not None
    assert record.power["failed_readings"] > 0
    assert record.power["gap_s"] == pytest.approx(1.0, abs=0.9)
    assert record.power_w == pytest.approx(4.35, rel=2e-3)
