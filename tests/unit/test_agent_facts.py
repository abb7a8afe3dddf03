from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.agent_tools import SYSFS

from kdedge_agent import facts


@pytest.mark.parametrize(
    ("board", "model", "l4t", "mode"),
    [
        ("pi5", "Raspberry Pi 5 Model B Rev 1.0", None, None),
        ("jetson-nano", "NVIDIA Jetson Nano Developer Kit", "32.7.4", "0 (MAXN)"),
        ("xavier-nx", "NVIDIA Jetson Xavier NX Developer Kit", "35.4.1", "8 (MODE_20W_6CORE)"),
        ("orin-nano", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3", "2 (MAXN_SUPER)"),
        ("x86-rapl", "LENOVO 20XW0055GE", None, None),
    ],
)
def test_board_release_and_power_mode(board: str, model: str, l4t: str | None, mode: str | None) -> None:
    found = facts.device_facts(SYSFS / board)
    assert (found["board"], found["l4t"], found["power_mode"]) == (model, l4t, mode)


def test_frequencies_are_hz_and_temperatures_celsius() -> None:
    seen = facts.snapshot(SYSFS / "xavier-nx")
    assert seen["frequency"]["policy2"] == {
        "governor": "schedutil",
        "cpus": [2],
        "current_hz": 1_190_400_000,
        "limit_hz": 1_420_800_000,
        "max_hz": 1_907_200_000,
    }
    assert seen["temperature_c"] == {"CPU-therm": 44.5, "GPU-therm": 43.0}
    assert seen["memory"]["nvmap_used_bytes"] == 65536 * 1024
    assert seen["load_average"] == [0.12, 0.08, 0.03]
    assert seen["disk_free_bytes"] > 0


def test_throttle_bits_from_the_kernels_file_are_decoded() -> None:
    assert facts.throttle_flags(SYSFS / "pi4") == {
        "raw": 0x50005,
        "set": ["undervoltage", "throttled", "undervoltage_since_boot", "throttled_since_boot"],
    }


def test_throttle_bits_from_vcgencmd_where_the_kernel_has_no_file(tmp_path: Path) -> None:
    root = tmp_path / "pi5"
    shutil.copytree(SYSFS / "pi5", root)
    (root / "vcgencmd/get_throttled").write_text("throttled=0xe0008\n")
    assert facts.throttle_flags(root)["set"] == [
        "soft_temperature_limit",
        "frequency_capped_since_boot",
        "throttled_since_boot",
        "soft_temperature_limit_since_boot",
    ]


def test_other_boards_say_why_they_have_no_flags() -> None:
    flags = facts.throttle_flags(SYSFS / "orin-nano")
    assert flags["raw"] is None
    assert "Raspberry Pi" in flags["reason"]


def test_x86_throttling_and_cooling() -> None:
    seen = facts.snapshot(SYSFS / "x86-rapl")
    assert seen["throttle_count"] == 17
    assert seen["cooling"] == {"Processor (cooling_device0)": 0}


def test_processor_models() -> None:
    assert str(facts.device_facts(SYSFS / "x86-rapl")["cpu"]).startswith("11th Gen Intel")
    assert facts.device_facts(SYSFS / "jetson-nano")["cpu"] == "ARMv8 Processor rev 1 (v8l)"


def test_an_empty_tree_gives_none_and_no_error(tmp_path: Path) -> None:
    found = {**facts.device_facts(tmp_path), **facts.snapshot(tmp_path), **facts.glance(tmp_path)}
    assert found["board"] is None
    assert found["frequency"] == {}
    json.dumps(found, allow_nan=False)


def test_this_machine_answers() -> None:
    found = facts.device_facts()
    assert found["cpu_count"] >= 1
    assert found["python"]
    json.dumps({**found, **facts.snapshot()}, allow_nan=False)


def test_a_glance_takes_flags_from_the_kernel_or_from_vcgencmd() -> None:
    assert facts.glance(SYSFS / "pi4")["throttle"]["raw"] == 0x50005
    assert facts.glance(SYSFS / "pi5")["throttle"] == {"raw": 0, "set": []}  # its tree has vcgencmd alone
    assert facts.glance(SYSFS / "orin-nano")["throttle"] == {"raw": None, "set": []}


def test_a_glance_is_frequencies_and_temperatures() -> None:
    seen = facts.glance(SYSFS / "orin-nano")
    assert seen["frequency_hz"] == {"policy0": 729_600_000, "policy4": 729_600_000}
    assert seen["temperature_c"]["cpu-thermal"] == pytest.approx(47.718)
