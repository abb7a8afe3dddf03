"""Energy by the kernel's own drivers of current monitors, against a power trace whose joules are known exactly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.device.runs import quick
from tests.lab.device_tree import AGX_ORIN, AGX_THOR, PI4
from tests.lab.machine import Machine, booted
from tests.lab.trace import Playback, Trace, playing

from kdedge_agent.run_record import RunRecord
from kdedge_bench.session import Progress

pytestmark = pytest.mark.lab
_log = logging.getLogger(__name__)

# A few steps that stand out of the noise, or small bursts: of what varies more the agent wants minutes to see.
STEPS = Trace(levels_w=(4.4, 11.6))
STEPS_OF_A_PI = Trace(levels_w=(3.4, 6.6))
STEPS_OF_A_THOR = Trace(levels_w=(28.0, 44.0))
BURSTS = Trace(levels_w=(8.0,), burst_w=0.4)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated processor on a host that is busy is far slower than any board."""
    monkeypatch.setattr("kdedge_bench.transport._CONNECT_S", 120)
    monkeypatch.setattr("kdedge_bench.channel.GREETING_S", 300.0)
    monkeypatch.setattr("kdedge_bench.process.SILENCE_S", 300.0)


@pytest.fixture(scope="module")
def orin() -> Iterator[Machine]:
    """A Jetson AGX Orin, as far as its device tree and its INA3221 go."""
    with booted(AGX_ORIN) as machine:
        yield machine


@pytest.fixture(scope="module")
def pi() -> Iterator[Machine]:
    """A Raspberry Pi 4 with an INA219 in its supply line."""
    with booted(PI4) as machine:
        yield machine


@pytest.fixture(scope="module")
def thor() -> Iterator[Machine]:
    """A Jetson AGX Thor with the INA238 at its input."""
    with booted(AGX_THOR) as machine:
        yield machine


def check_energy(record: RunRecord, playback: Playback, most: float) -> dict[str, float]:
    """The joules under load are those that were played, within ``most`` of them and within the stated interval."""
    power = record.power
    assert power is not None and power["gross_j_per_inference"] is not None, record.unmeasured
    begin_s, end_s = power["window_monotonic_s"]
    true_j = playback.energy_j(begin_s, end_s)
    measured_j = power["gross_j_per_inference"] * power["inferences"]
    low_j, high_j = (bound * power["inferences"] for bound in power["gross_j_per_inference_ci95"])
    error = measured_j / true_j - 1
    said = {
        "window_s": end_s - begin_s, "true_j": true_j, "measured_j": measured_j, "error": error,
        "ci95_low_j": low_j, "ci95_high_j": high_j, "readings": power["readings"],
    }  # fmt: skip
    _log.info("%s, half-widths in W: %s", said, power["error_w"])
    assert abs(error) <= most, said
    assert low_j <= true_j <= high_j, said
    return said


def spread_w(record: RunRecord, playback: Playback) -> float:
    """By how much the power that was played varied under load."""
    assert record.power is not None
    watts = playback.watts(*record.power["window_monotonic_s"])
    return max(watts) - min(watts)


def test_joules_by_an_ina3221(orin: Machine, onnx_file: Path, tmp_path: Path) -> None:
    with playing(orin, STEPS) as playback:
        record = quick(onnx_file, orin.device(), tmp_path, power=True)
    assert record.power is not None
    assert record.power["source"] == "ina3221"
    assert record.power["total_rails"] == [rail.label for rail in AGX_ORIN.rails]
    assert "VIN_SYS_5V0 is the I/O rail" in record.power["covers"]
    assert record.facts["machine"] == "aarch64"
    assert spread_w(record, playback) > 6
    check_energy(record, playback, most=0.01)
    assert orin.left_over() == {}


def test_joules_of_a_tflite_file_by_an_ina219_in_the_supply_line(
    pi: Machine, tflite_file: Path, tmp_path: Path
) -> None:
    with playing(pi, STEPS_OF_A_PI) as playback:
        record = quick(tflite_file, pi.device(), tmp_path, power=True)
    assert record.runtime["name"] == "ai-edge-litert"
    assert record.power is not None
    assert record.power["source"] == "ina2xx"
    assert record.power["total_rails"] == ["ina219 at 0-0040"]
    assert "in the board's supply line" in record.power["covers"]
    assert record.facts["board"] == PI4.model
    assert spread_w(record, playback) > 2.5
    check_energy(record, playback, most=0.01)
    assert pi.left_over() == {}


def test_joules_by_an_ina238_at_the_input(thor: Machine, onnx_file: Path, tmp_path: Path) -> None:
    with playing(thor, STEPS_OF_A_THOR) as playback:
        record = quick(onnx_file, thor.device(), tmp_path, power=True)
    assert record.power is not None
    assert record.power["source"] == "ina238"
    assert record.power["total_rails"] == ["VIN"]
    assert record.power["covers"] == "Thor: the input rail"
    assert record.facts["board"] == AGX_THOR.model
    assert spread_w(record, playback) > 12
    check_energy(record, playback, most=0.01)
    assert thor.left_over() == {}


def once(words: str, delay_s: float, action: Callable[[], None]) -> Callable[[Progress], None]:
    """Tells the progress of a run; so long after it first says ``words`` the action is done."""
    waiting = [action]

    def watch(progress: Progress) -> None:
        if words in progress.text and waiting:
            threading.Timer(delay_s, waiting.pop()).start()

    return watch


def test_a_driver_that_is_unbound_for_a_second(orin: Machine, onnx_file: Path, tmp_path: Path) -> None:
    """The kernel takes the sensor away and gives it back; the gap is said, and the interval grows to hold it."""
    driver = f"/sys/bus/i2c/drivers/{orin.board.driver}"
    gone: list[str] = []

    def rebind() -> None:
        command = f"echo 0-0040 >{driver}/unbind; ls {driver}; sleep 1; echo 0-0040 >{driver}/bind; ls {driver}"
        gone.append(orin.run(command))

    with playing(orin, BURSTS) as playback:
        record = quick(
            onnx_file, orin.device(), tmp_path, power=True, progress=once("power", 1.0, rebind)
        )  # fmt: skip
    assert len(gone) == 1 and gone[0].split().count("0-0040") == 1, "unbound, and bound again"
    assert record.power is not None
    assert record.power["failed_readings"] > 0
    assert 0.8 < record.power["gap_s"] < 0.2 * record.power["window_s"]
    check_energy(record, playback, most=0.03)
    assert orin.left_over() == {}
