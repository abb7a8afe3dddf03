"""Which sensor each board has, and what its total is, on trees that are laid out as theirs are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.device import boards
from tests.device.board_totals import TOTALS

from kdedge_agent import facts, power, sysfs
from kdedge_agent.battery import find_battery
from kdedge_agent.power_source import PowerSource, SourceGone
from kdedge_agent.rapl import find_rapl


def built(board: str, root: Path) -> Path:
    boards.BOARDS[board](root)
    return root


def found(root: Path) -> PowerSource:
    source, reason = power.discover(root)
    assert source is not None, reason
    return source


@pytest.mark.parametrize(("board", "name", "rails", "total_w", "covers"), TOTALS)
def test_rails_and_total(board: str, name: str, rails: list[str], total_w: float, covers: str, tmp_path: Path) -> None:
    source = found(built(board, tmp_path))
    watts = source.read()
    assert source.name == name
    assert list(watts) == rails
    assert source.total(watts) == pytest.approx(total_w, rel=2e-3)
    assert covers in source.covers


@pytest.mark.parametrize("board", ["unknown_board", "pi4_ina3221_hat"])
def test_rails_that_no_rule_knows_give_no_total(board: str, tmp_path: Path) -> None:
    source = found(built(board, tmp_path))
    assert len(source.read()) == 2, "NC is left out"
    assert source.total(source.read()) is None
    assert "no rule knows" in source.covers


@pytest.mark.parametrize(
    ("board", "words"),
    [
        ("pi4", ["Raspberry Pi 4 Model B Rev 1.4 has no power sensor of its own", "INA219"]),
        ("laptop_charging", ["BAT0 is charging", "unplug the charger"]),
    ],
)
def test_what_is_said_where_there_is_none(board: str, words: list[str], tmp_path: Path) -> None:
    source, reason = power.discover(built(board, tmp_path))
    assert source is None
    assert all(word in str(reason) for word in words), reason


def test_nothing_at_all_says_what_to_buy(tmp_path: Path) -> None:
    assert "would measure it" in str(power.discover(tmp_path)[1])


@pytest.mark.parametrize("board", sorted(boards.BOARDS))
def test_every_tree_tells_what_the_board_is(board: str, tmp_path: Path) -> None:
    root = built(board, tmp_path)
    assert sysfs.board_model(root)
    assert facts.device_facts(root)["cpu"]
    assert facts.snapshot(root)["frequency"]["policy0"]["governor"] == "performance"


def test_several_sources_are_all_named_in_the_order_of_preference(tmp_path: Path) -> None:
    rows = power.survey(built("pi5_ina219_hat", tmp_path))
    assert [(row["name"], row["chosen"]) for row in rows] == [("pi5-pmic", True), ("ina2xx", False)]
    charging = power.survey(built("laptop_charging", tmp_path / "laptop"))
    assert [row["name"] for row in charging] == ["battery"]
    assert "unplug" in charging[0]["reason"]


def test_thor_prefers_the_input_over_the_module(tmp_path: Path) -> None:
    assert [row["name"] for row in power.survey(built("thor", tmp_path))] == ["ina238", "ina3221"]


def test_the_wall_side_of_a_pi5_is_an_estimate(tmp_path: Path) -> None:
    source = found(built("pi5", tmp_path))
    estimate = source.estimate(2.0)
    assert estimate is not None
    assert estimate["watts"] == pytest.approx(1.1451 * 2.0 + 0.5879)
    assert "calibrate" in estimate["why_estimate"]
    assert source.estimate(None) is None


def test_rapl_counts_package_and_memory(tmp_path: Path) -> None:
    source = found(built("x86_rapl", tmp_path))
    assert source.averages
    assert source.total_rails == ("package-0", "dram-0")
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    (folder / "energy_uj").write_text("1000")  # 850 µJ to the end and 1000 more: it wrapped around
    assert source.read()["package-0"] > 0
    (folder / "energy_uj").write_text("500")
    with pytest.raises(SourceGone, match="set back"):
        source.read()
    (folder / "energy_uj").write_text("700")
    assert source.read()["package-0"] > 0


def test_rapl_for_root_only_says_who_may_read_it(tmp_path: Path) -> None:
    counter = built("x86_rapl", tmp_path) / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.chmod(0)
    if os.access(counter, os.R_OK):  # root reads everything: a counter that gives an error instead
        counter.unlink()
        counter.mkdir()
    source, reason = power.discover(tmp_path)
    assert source is None
    assert "chmod a+r" in str(reason)


def test_a_charger_plugged_in_during_the_run_ends_the_readings(tmp_path: Path) -> None:
    source = found(built("laptop", tmp_path))
    (tmp_path / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    with pytest.raises(SourceGone, match="BAT0 is charging"):
        source.read()


def test_a_sensor_that_comes_back_under_another_number_is_read_again(tmp_path: Path) -> None:
    source = found(built("orin_nano", tmp_path))
    before = source.read()
    device = tmp_path / "sys/devices/platform/c240000.i2c/i2c-1/1-0040/hwmon"
    shutil.move(device / "hwmon1", device / "hwmon7")
    with pytest.raises(SourceGone):
        source.read()
    source.find_again()
    assert source.read() == before


def test_the_step_of_an_ina3221_is_that_of_its_shunt(tmp_path: Path) -> None:
    """40 µV at 5 milliohms are 8 mA, at 5 V 40 mW; 8 mV at 0.87 A are 7 mW."""
    source = found(built("orin_nano", tmp_path))
    source.read()
    assert source.steps_w()["VDD_IN"] == pytest.approx(5.0 * 0.008 + 0.008 * 0.87)


def laptop_with_two(tmp_path: Path, first: str, second: str, *, online: int = 0) -> tuple[Any, str | None]:
    supplies = tmp_path / "sys/class/power_supply"
    for name, status, power_uw in (("BAT0", first, 9_000_000), ("BAT1", second, 700_000)):
        write(supplies / name, {"type": "Battery", "status": status, "power_now": str(power_uw)})
    write(supplies / "AC", {"type": "Mains", "online": str(online)})
    write(supplies / "hidpp_battery_0", {"type": "Battery", "status": "Unknown"})  # a headset that tells no scope
    return find_battery(tmp_path)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("second", "watts"), [("Unknown", 9.0), ("Not charging", 9.0), ("Full", 9.0), ("Discharging", 9.7)]
)
def test_of_two_batteries_those_count_that_give(second: str, watts: float, tmp_path: Path) -> None:
    source, reason = laptop_with_two(tmp_path, "Discharging", second)
    assert source is not None, reason
    assert source.total(source.read()) == pytest.approx(watts)


@pytest.mark.parametrize(
    ("first", "online", "said"), [("Charging", 0, "BAT0 is charging"), ("Discharging", 1, "AC feeds")]
)
def test_a_machine_that_is_fed_is_not_measured_by_its_batteries(
    first: str, online: int, said: str, tmp_path: Path
) -> None:
    source, reason = laptop_with_two(tmp_path, first, "Discharging", online=online)
    assert source is None and said in str(reason) and "unplug the charger" in str(reason)


def test_a_rapl_domain_that_root_alone_reads_does_not_hide_the_package(tmp_path: Path) -> None:
    powercap = tmp_path / "sys/class/powercap"
    write(powercap / "intel-rapl:0", {"name": "package-0", "energy_uj": "1000", "max_energy_range_uj": "262143328850"})
    write(powercap / "intel-rapl:1", {"name": "psys", "max_energy_range_uj": "262143328850"})
    source, reason = find_rapl(tmp_path)
    assert source is not None, reason
    assert source.total_rails == ("package-0",)
