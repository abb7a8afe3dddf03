from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.agent_tools import SYSFS

from kdedge_agent import ina, pmic, power, rapl
from kdedge_agent.power_source import PowerSource, SourceGone

BOARDS = [
    ("pi5", "pi5-pmic", 12, 2.28222),
    ("pi4-ina219", "ina2xx", 1, 3.12),
    ("jetson-nano", "ina3221", 3, 2.243),
    ("xavier-nx", "ina3221", 3, 4.35504),
    ("orin-nano", "ina3221", 3, 4.24688),
    ("agx-xavier", "ina3221", 6, 4.9),
    ("jetson-thor", "ina238", 1, 32.361),
]


def found(board: str) -> PowerSource:
    source, reason = power.discover(SYSFS / board)
    assert source is not None, reason
    assert reason is None
    return source


@pytest.mark.parametrize(("board", "name", "rails", "total_w"), BOARDS)
def test_total_of_each_board_by_its_rule(board: str, name: str, rails: int, total_w: float) -> None:
    source = found(board)
    assert source.name == name
    watts = source.read()
    assert list(watts) == list(source.rails)
    assert len(watts) == rails
    assert source.total(watts) == pytest.approx(total_w, rel=1e-5)


def test_agx_orins_memory_rail_is_fed_from_another_and_counts_once() -> None:
    source = found("agx-orin")
    assert set(source.rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}  # NC is left out
    assert source.total(source.read()) == pytest.approx(19.16 * (0.165 + 0.041) + 5.056 * 0.652)
    assert "VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0" in source.covers


def test_a_board_that_no_rule_knows_gives_rails_and_no_total() -> None:
    source = found("unknown-board")
    assert source.read() == pytest.approx({"VBUS": 3.0, "V3V3": 0.396})
    assert source.total(source.read()) is None
    assert source.described()["total_rails"] == []


def test_the_sum_channels_of_the_ina3221_are_no_rails() -> None:
    assert found("orin-nano").rails == ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")


def test_the_sensors_own_interval_is_the_period() -> None:
    assert found("pi4-ina219").period_s == pytest.approx(0.02)  # 17 ms, and no faster than 50 readings a second
    assert found("jetson-nano").period_s == pytest.approx(0.1)


def test_the_hat_is_named_by_its_place_on_the_bus() -> None:
    assert found("pi4-ina219").rails == ("ina219 at 1-0040",)


def test_a_hat_on_an_unknown_board_gets_no_total(tmp_path: Path) -> None:
    root = tmp_path / "board"
    shutil.copytree(SYSFS / "pi4-ina219", root, symlinks=True)
    (root / "proc/device-tree/model").write_text("Example Systems SBC-9\0")
    source, _ = ina.find_ina2xx(root)
    assert source is not None
    assert source.total(source.read()) is None


def test_pi4_has_no_sensor_and_says_what_to_buy() -> None:
    source, reason = power.discover(SYSFS / "pi4")
    assert source is None
    assert reason is not None
    assert "Raspberry Pi 4 Model B Rev 1.4 has no power sensor of its own" in reason
    assert "kdedge bench --meter" in reason
    assert "INA219" in reason


def test_nothing_at_all_gives_the_reason(tmp_path: Path) -> None:
    source, reason = power.discover(tmp_path)
    assert source is None
    assert "no power sensor is here" in (reason or "")


def test_pmic_pairs_volts_with_amperes_by_prefix() -> None:
    text = (SYSFS / "pi5/vcgencmd/pmic_read_adc").read_text()
    watts = pmic.parse_pmic(text)
    assert len(watts) == 12
    assert "EXT5V" not in watts  # volts only
    assert watts["VDD_CORE"] == pytest.approx(0.87674 * 0.8974594)


def test_pmic_that_stops_answering_is_gone_not_zero(tmp_path: Path) -> None:
    root = tmp_path / "pi5"
    shutil.copytree(SYSFS / "pi5", root)
    source, _ = pmic.find_pi5_pmic(root)
    assert source is not None
    (root / "vcgencmd/pmic_read_adc").unlink()
    with pytest.raises(SourceGone, match="Command not registered"):
        source.read()


def test_a_pi5_without_the_tool_says_so(tmp_path: Path) -> None:
    root = tmp_path / "pi5"
    shutil.copytree(SYSFS / "pi5", root)
    (root / "usr/bin/vcgencmd").unlink()
    source, reason = power.discover(root)
    assert source is None
    assert "no vcgencmd" in (reason or "")


def test_a_sensor_that_vanishes_is_gone_not_zero(tmp_path: Path) -> None:
    root = tmp_path / "orin"
    shutil.copytree(SYSFS / "orin-nano", root)
    source, _ = power.discover(root)
    assert source is not None
    (root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input").unlink()
    with pytest.raises(SourceGone, match="curr1_input"):
        source.read()


class Clock:
    """Nanoseconds that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def domains(root: Path) -> dict[str, Path]:
    return {"package-0": root / "sys/class/powercap/intel-rapl:0", "dram-0": root / "sys/class/powercap/intel-rapl:0:1"}


def test_rapl_is_the_mean_since_the_last_reading_and_wraps_around(tmp_path: Path) -> None:
    root = tmp_path / "x86"
    shutil.copytree(SYSFS / "x86-rapl", root)
    clock = Clock()
    source = rapl.Rapl(domains(root), clock)
    # The package stands 850 µJ below its end: 2 J further it reads 1,999,150.
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("1999150\n")
    (root / "sys/class/powercap/intel-rapl:0:1/energy_uj").write_text("7500000\n")
    clock.now_ns = 500_000_000
    watts = source.read()
    assert watts == pytest.approx({"package-0": 4.0, "dram-0": 1.0})
    assert source.total(watts) == pytest.approx(5.0)
    assert "not the board" in source.covers


def test_rapl_domains_of_one_package_and_no_mmio_twin() -> None:
    assert found("x86-rapl").rails == ("package-0", "core-0", "dram-0")
    assert found("x86-rapl").total_rails == ("package-0", "dram-0")


def test_rapl_for_root_only_says_who_may_read_it(tmp_path: Path) -> None:
    root = tmp_path / "x86"
    shutil.copytree(SYSFS / "x86-rapl", root)
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.chmod(0)
    if os.access(counter, os.R_OK):  # root reads everything: a counter that gives an error instead
        counter.unlink()
        counter.mkdir()
    source, reason = power.discover(root)
    assert source is None
    assert reason is not None
    assert "energy_uj" in reason
    assert "chmod a+r" in reason
