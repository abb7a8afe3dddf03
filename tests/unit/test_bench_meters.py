"""Each kind of meter against a real counterpart: a growing file, a pipe, a plug on loopback, an instrument on a pty."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kdedge.errors import DataError, DeviceError, KdedgeError, UserError
from tests.meters import Plug, logger, running_plug, scpi_instrument
from tests.tapo_plug import PASSWORD, USER, TapoPlug, running_tapo

from kdedge_bench.collector import Collector
from kdedge_bench.meters import METERS, Meter, MeterError, Reading, find_meter
from kdedge_bench.meters import kasa as kasa_module
from kdedge_bench.meters import tapo as tapo_module
from kdedge_bench.meters.logged import CsvMeter, StdinMeter

try:
    import serial  # noqa: F401
except ImportError:
    HAS_SERIAL = False
else:
    HAS_SERIAL = True
needs_serial = pytest.mark.skipif(
    not HAS_SERIAL, reason="NOT TESTED: SCPI meters, pyserial is not installed (pip install 'kdedge[scpi]')"
)


def first(meter: Meter, count: int) -> list[Reading]:
    """The first readings of a meter, by a collector as in a run."""
    with Collector(meter) as collector:
        until = time.monotonic() + 30
        while len(collector.so_far()) < count:
            if collector.failure is not None:
                raise collector.failure
            assert time.monotonic() < until, "too few readings"
            time.sleep(0.01)
        return collector.so_far()


@pytest.mark.parametrize("spec", ["", "csv", "csv:", "kasa:", "volts:x", "stdin:x", "CSV:file"])
def test_an_unknown_meter_names_those_that_are(spec: str) -> None:
    with pytest.raises(UserError, match="csv:FILE, kasa:HOST, scpi:PORT, tapo:HOST, stdin"):
        find_meter(spec)


@pytest.mark.parametrize(
    "spec", ["kasa:host:nowhere", "kasa::9999", "kasa:host:99999", "scpi:@9600", "scpi:/dev/x@fast"]
)
def test_an_impossible_place_is_refused_before_anything_is_opened(spec: str) -> None:
    with pytest.raises(UserError, match=r"Use (kasa|scpi):"):
        find_meter(spec)


def test_every_kind_says_what_it_covers() -> None:
    for word in METERS:
        assert find_meter(f"{word}:place").covers
    assert "at the wall, with the loss of its power supply" in find_meter("kasa:10.0.0.7").covers


def test_a_growing_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    begin_s = time.monotonic()
    with logger(path, lambda t_s: 2.0 + t_s - begin_s, hz=50):
        meter = CsvMeter(str(path))
        readings = first(meter, 20)
    for t_s, watts in readings:
        assert watts == pytest.approx(2.0 + t_s - begin_s, abs=0.01)
    assert meter.time_error_s < 1.0


def test_what_a_file_held_before_is_checked_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("1000,1\n1001,2\n")
    meter = CsvMeter(str(path))
    with Collector(meter) as collector:
        with path.open("a") as file:
            file.write(f"{time.time()},7")  # half a line is none yet
            file.flush()
            time.sleep(0.1)
            assert collector.so_far() == []
            file.write("\n")
        deadline = time.monotonic() + 10
        while not collector.so_far() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [watts for _, watts in collector.so_far()] == [7.0]

    path.write_text("1000,1\n999,2\n")
    with pytest.raises(DataError, match="line 2"):
        CsvMeter(str(path)).open()


def test_a_file_that_is_not_there_says_to_start_the_logger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Start the logger first"):
        CsvMeter(str(tmp_path / "none.csv")).open()


def test_a_wall_clock_that_is_set_during_the_run_ends_the_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which only the clock's own function can play: no test may set the machine's clock."""
    path, real = tmp_path / "power.csv", time.time
    path.write_text("")
    with Collector(CsvMeter(str(path))) as collector:
        monkeypatch.setattr(time, "time", lambda: real() + 3.0)
        path.write_text(f"{time.time()},1\n")
        with pytest.raises(MeterError, match=r"was set by 3\.0 s during the run.*run it again"):
            collector.period_s()


def test_whole_seconds_are_less_certain(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("")
    meter = CsvMeter(str(path))
    with Collector(meter) as collector:
        with path.open("a") as file:
            file.writelines(f"{int(time.time()) + step - 6},1\n" for step in range(6))
        assert collector.period_s() == 1.0
    assert meter.time_error_s >= 1.0


def test_a_pipe_by_name_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="--meter stdin"):
        CsvMeter(str(tmp_path / "pipe")).open()


def grown(path: Path, more: Callable[[], str]) -> KdedgeError:
    """What ends the readings of a file to which ``more`` is appended."""
    path.write_text(f"{time.time() - 1},1\n")
    with Collector(CsvMeter(str(path))) as collector:
        with path.open("a") as file:
            file.write(more())
        with pytest.raises(KdedgeError) as caught:
            collector.period_s()
    return caught.value


def test_junk_that_is_appended_later_names_its_line(tmp_path: Path) -> None:
    error = grown(tmp_path / "power.csv", lambda: f"{time.time()},1\nCtrl-C\n")
    assert isinstance(error, DataError)
    assert "line 3" in str(error)


@pytest.mark.parametrize(("off_s", "said"), [(7200, "in the future"), (-7200, "old")])
def test_a_logger_in_another_time_zone_is_found_out(tmp_path: Path, off_s: float, said: str) -> None:
    path = tmp_path / "power.csv"
    path.write_text("")
    with Collector(CsvMeter(str(path))) as collector:
        path.write_text(f"{time.time() + off_s},1\n")
        with pytest.raises(MeterError, match=rf"7200 s {said}.*clock"):
            collector.period_s()


def test_a_logger_whose_clock_is_ahead_is_less_certain(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("")
    meter = CsvMeter(str(path))
    with Collector(meter) as collector:
        for _ in range(6):
            with path.open("a") as file:
                file.write(f"{time.time() + 2.0},1\n")
            time.sleep(0.05)
        collector.period_s()
    assert 1.0 < meter.time_error_s < 2.1


def test_a_file_that_shrinks_ends_the_readings(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text(f"{time.time() - 1},1\n" * 1)
    with Collector(CsvMeter(str(path))) as collector:
        path.write_text("")
        with pytest.raises(MeterError, match="cut short"):
            collector.period_s()


def test_a_pipe_is_read_until_it_ends() -> None:
    ours, theirs = os.pipe()
    now = time.time()
    with Collector(StdinMeter(ours)) as collector, os.fdopen(theirs, "w") as pipe:
        for step in range(6):
            pipe.write(f"{now + step / 100},2.5\n")
            pipe.flush()
        assert collector.period_s() == pytest.approx(0.01, abs=1e-4)
    os.close(ours)
    assert len(collector.so_far()) == 6


def test_a_pipe_that_ends_too_early_says_so() -> None:
    ours, theirs = os.pipe()
    with Collector(StdinMeter(ours)) as collector:
        os.write(theirs, f"{time.time()},2.5\n".encode())
        os.close(theirs)
        with pytest.raises(MeterError, match="1 readings and then ended"):
            collector.period_s()
    os.close(ours)


def test_a_terminal_is_no_meter() -> None:
    ours, theirs = os.openpty()
    try:
        with pytest.raises(UserError, match="Pipe its logger"):
            StdinMeter(theirs).open()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("in_milliwatts", [True, False])
def test_a_plug_says_its_watts(monkeypatch: pytest.MonkeyPatch, in_milliwatts: bool) -> None:
    monkeypatch.setattr(kasa_module, "RENEWED_S", 0.05)  # so that the test does not take as long as a real plug
    with running_plug(Plug(lambda _: 4.321, in_milliwatts=in_milliwatts)) as plug:
        meter = find_meter(f"kasa:127.0.0.1:{plug.port}")
        readings = first(meter, 5)
    assert meter.name == f"kasa plug HS110(EU) at 127.0.0.1:{plug.port}"
    assert [watts for _, watts in readings] == pytest.approx([4.321] * len(readings))
    assert 0.025 <= meter.time_error_s < 5.0
    times = [t_s for t_s, _ in readings]
    assert times == sorted(times)


def test_a_plug_without_a_meter_is_refused() -> None:
    plain = Plug(lambda _: 1.0, model="HS100(EU)", feature="TIM")
    with running_plug(plain) as plug, pytest.raises(MeterError, match=r"HS100\(EU\) has no energy meter.*KP115"):
        find_meter(f"kasa:127.0.0.1:{plug.port}").open()


def test_a_plug_that_is_not_there_tells_of_stdin() -> None:
    with running_plug(Plug(lambda _: 1.0)) as plug:
        port = plug.port
    with pytest.raises(DeviceError, match=r"Connection refused.*--meter stdin") as caught:
        find_meter(f"kasa:127.0.0.1:{port}").open()
    assert caught.value.exit_code == 3


def test_a_plug_that_says_no_watts_is_refused() -> None:
    broken = Plug(lambda _: float("nan"), in_milliwatts=False)
    with running_plug(broken) as plug, pytest.raises(MeterError, match="said no watts"):
        find_meter(f"kasa:127.0.0.1:{plug.port}").open()


def test_lost_packets_leave_a_gap_and_a_dead_plug_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kasa_module, "RENEWED_S", 0.02)
    with running_plug(Plug(lambda _: 1.0)) as plug, Collector(find_meter(f"kasa:127.0.0.1:{plug.port}")) as collector:
        collector.period_s()
        plug.drop = 2
        before = plug.asked
        deadline = time.monotonic() + 20
        while plug.asked < before + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert plug.drop == 0
        assert collector.failure is None
        plug.drop = 100
        while collector.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "does not answer" in str(collector.failure)


def test_hostile_plugs_are_refused() -> None:
    class Liar(Plug):
        def reply(self, question: dict[str, object]) -> dict[str, object]:
            return {"system": [1, 2], "emeter": None}

    with running_plug(Liar(lambda _: 1.0)) as plug, pytest.raises(MeterError, match="does not know system"):
        find_meter(f"kasa:127.0.0.1:{plug.port}").open()


@pytest.fixture
def tapo_plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[TapoPlug]:
    pytest.importorskip("tapo", reason="NOT TESTED: Tapo plugs, tapo is not installed (pip install 'kdedge[tapo]')")
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: Tapo plugs, the emulated one needs the openssl program")
    monkeypatch.setattr(tapo_module, "RENEWED_S", 0.1)
    monkeypatch.setenv("KDEDGE_TAPO_USER", USER)
    monkeypatch.setenv("KDEDGE_TAPO_PASSWORD", PASSWORD)
    with running_tapo(TapoPlug(lambda _: 4.321)) as plug:
        yield plug


def test_a_tapo_plug_says_its_watts(tapo_plug: TapoPlug) -> None:
    meter = find_meter(f"tapo:127.0.0.1:{tapo_plug.port}")
    readings = first(meter, 4)
    assert meter.name == f"tapo plug P110 at 127.0.0.1:{tapo_plug.port}"
    assert [watts for _, watts in readings] == pytest.approx([4.321] * len(readings))
    assert meter.time_error_s >= 0.05
    assert PASSWORD not in f"{meter.name}{meter.covers}"


def test_a_tapo_plug_refuses_another_account(tapo_plug: TapoPlug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEDGE_TAPO_PASSWORD", "wrong")
    with (
        pytest.raises(MeterError, match="KDEDGE_TAPO_PASSWORD") as caught,
        Collector(find_meter(f"tapo:127.0.0.1:{tapo_plug.port}")),
    ):
        pass
    assert "wrong" not in str(caught.value)
    assert tapo_plug.asked == []


def test_a_tapo_plug_without_an_account_says_what_to_set(tapo_plug: TapoPlug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDEDGE_TAPO_USER")
    with pytest.raises(UserError, match="Set KDEDGE_TAPO_USER and KDEDGE_TAPO_PASSWORD"):
        find_meter(f"tapo:127.0.0.1:{tapo_plug.port}").open()


def answering(watts: str | None) -> Callable[[str], str | None]:
    return {"*IDN?": "RIGOL,DP832,DP8A1,00.01", "MEAS:POW?": watts}.get


@needs_serial
def test_an_instrument_on_a_serial_line() -> None:
    with scpi_instrument(answering("2.718E+00")) as port:
        meter = find_meter(f"scpi:{port}@115200")
        readings = first(meter, 4)
    assert meter.name == f"SCPI meter RIGOL DP832 at {port}"
    assert [watts for _, watts in readings][:4] == [2.718] * 4


@needs_serial
@pytest.mark.parametrize("answer", ["9.9E37", "OVERLOAD", "-1", "nan", ""])
def test_an_instrument_that_says_no_watts(answer: str) -> None:
    with scpi_instrument(answering(answer)) as port, pytest.raises(MeterError, match="MEAS:POW\\? was answered with"):
        find_meter(f"scpi:{port}").open()


@needs_serial
def test_an_instrument_that_does_not_speak_scpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge_bench.meters.scpi.TIMEOUT_S", 0.2)
    with scpi_instrument(lambda _: None) as port, pytest.raises(MeterError, match=r"did not answer \*IDN\? within"):
        find_meter(f"scpi:{port}").open()


@needs_serial
def test_a_port_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"port cannot be opened.*dialout"):
        find_meter("scpi:/dev/tty-none").open()


@pytest.mark.parametrize(
    ("spec", "library", "extra"), [("scpi:/dev/ttyUSB0", "serial", "scpi"), ("tapo:10.0.0.7", "tapo", "tapo")]
)
def test_without_its_library_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, spec: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as Python marks what cannot be imported
    with pytest.raises(UserError, match=rf"pip install 'kdedge\[{extra}\]'") as caught:
        find_meter(spec).open()
    assert "\n" not in str(caught.value)


def test_whatever_a_meter_of_ones_own_raises_is_a_reason() -> None:
    class Broken:
        name, covers, accuracy, time_error_s = "broken", "nothing", None, 0.0

        def open(self) -> None: ...

        def close(self) -> None: ...

        def readings(self, stop: threading.Event) -> list[Reading]:
            raise ZeroDivisionError("volts by nothing")

    with Collector(Broken()) as collector, pytest.raises(MeterError, match="ZeroDivisionError: volts by nothing"):  # type: ignore[arg-type]
        collector.period_s()
