from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.agent_tools import SYSFS

from kdedge_agent import facts, verdict

RNG = np.random.default_rng(5)
STEADY = RNG.normal(1e-3, 1e-5, 600).tolist()
CALM: dict[str, Any] = {"throttle": {"raw": 0, "set": []}, "frequency": {}, "cooling": {}, "load_average": [0.1, 0, 0]}


def with_flags(*flags: str) -> dict[str, Any]:
    return {**CALM, "throttle": {"raw": 1, "set": list(flags)}}


def glances(*mhz: int) -> list[dict[str, Any]]:
    return [{"frequency_hz": {"policy0": value * 10**6}, "temperature_c": {}} for value in mhz]


def test_steady() -> None:
    word, reasons = verdict.decide(STEADY, CALM, CALM, [], 4)
    assert word == "steady"
    assert len(reasons) == 1
    assert "n = 600" in reasons[0]


@pytest.mark.parametrize(
    ("before", "after", "word", "said"),
    [
        (CALM, with_flags("undervoltage"), "undervoltage", "power supply"),
        (CALM, with_flags("undervoltage_since_boot"), "undervoltage", "power supply"),
        (CALM, with_flags("throttled", "undervoltage"), "undervoltage", "throttled"),
        (CALM, with_flags("soft_temperature_limit"), "throttled", "heat sink"),
        (CALM, with_flags("frequency_capped_since_boot"), "throttled", "frequency capped"),
        (CALM, {**CALM, "cooling": {"thermal-cpufreq-0 (cooling_device0)": 2}}, "throttled", "slows the processor"),
        ({**CALM, "throttle_count": 17}, {**CALM, "throttle_count": 20}, "throttled", "3 times"),
        (
            {**CALM, "frequency": {"policy0": {"limit_hz": 2.4e9}}},
            {**CALM, "frequency": {"policy0": {"limit_hz": 1.5e9}}},
            "throttled",
            "from 2400 to 1500 MHz",
        ),
    ],
)
def test_conditions_of_the_board(before: dict[str, Any], after: dict[str, Any], word: str, said: str) -> None:
    got, reasons = verdict.decide(STEADY, before, after)
    assert got == word
    assert said in " ".join(reasons)


def test_a_flag_that_was_up_only_while_the_clock_ran_counts() -> None:
    seen = {"frequency_hz": {}, "temperature_c": {}, "throttle": {"raw": 1, "set": ["undervoltage"]}}
    old = with_flags("undervoltage_since_boot")
    assert verdict.decide(STEADY, old, old, [seen])[0] == "undervoltage"


def test_flags_from_before_this_run_do_not_count() -> None:
    old = with_flags("undervoltage_since_boot", "throttled_since_boot")
    assert verdict.decide(STEADY, old, old)[0] == "steady"


def test_a_clock_that_sinks_under_load_is_throttling() -> None:
    word, reasons = verdict.decide(STEADY, CALM, CALM, glances(2400, 2400, 2400, 2000, 1500, 1500))
    assert word == "throttled"
    assert "from 2400 to 1500 MHz under load" in reasons[0]


def test_a_clock_that_rises_from_idle_is_not() -> None:
    assert verdict.decide(STEADY, CALM, CALM, glances(1500, 2400, 2400, 2400, 2400, 2400))[0] == "steady"


def test_heating_up_is_drifting() -> None:
    slower = (np.asarray(STEADY) * np.linspace(1.0, 1.3, 600)).tolist()
    word, reasons = verdict.decide(slower, CALM, CALM)
    assert word == "drifting"
    assert "slowing down" in reasons[0]


def test_a_governor_that_still_climbs_is_drifting_the_other_way() -> None:
    faster = (np.asarray(STEADY) * np.linspace(1.3, 1.0, 600)).tolist()
    word, reasons = verdict.decide(faster, CALM, CALM)
    assert word == "drifting"
    assert "still speeding up" in reasons[0]
    assert "--governor performance" in reasons[0]


def test_a_neighbour_is_noise() -> None:
    disturbed = np.asarray(STEADY).copy()
    disturbed[::4] *= 2.0
    word, reasons = verdict.decide(disturbed.tolist(), CALM, CALM)
    assert word == "noisy"
    assert "other work" in reasons[0]


def test_governor_and_load_are_remarked_without_a_verdict() -> None:
    busy = {**CALM, "frequency": {"policy0": {"governor": "ondemand"}}, "load_average": [3.5, 1, 1]}
    word, reasons = verdict.decide(STEADY, busy, CALM, [], 4)
    assert word == "steady"
    text = " ".join(reasons)
    assert "governor ondemand on policy0" in text
    assert "scaling_governor" in text
    assert "load average 3.50" in text


def test_the_pi4_of_the_fixture_is_under_voltage() -> None:
    seen = facts.snapshot(SYSFS / "pi4")
    word, reasons = verdict.decide(STEADY, seen, seen)
    assert word == "undervoltage"
    assert any("throttled" in reason for reason in reasons)


def test_one_sample_is_enough_for_a_verdict() -> None:
    assert verdict.decide([1e-3], CALM, CALM)[0] == "steady"


def test_starts_that_differ_are_remarked_and_are_neither_drift_nor_noise() -> None:
    apart = (np.asarray(STEADY) * np.repeat([1.0, 1.1, 1.25], 200)).tolist()
    assert verdict.decide(apart, CALM, CALM)[0] == "drifting"  # as of one start
    word, reasons = verdict.decide(apart, CALM, CALM, starts=[200] * 3)
    assert word == "steady"
    assert "of the 3 starts agree within" in reasons[0] and "n = 600" in reasons[0]
    assert "remark: the medians of the 3 starts reach from" in reasons[1]
    assert len(verdict.decide(STEADY, CALM, CALM, starts=[200] * 3)[1]) == 1


def test_heating_up_over_several_starts_is_drifting() -> None:
    slower = (np.asarray(STEADY) * np.linspace(1.0, 1.3, 600)).tolist()
    word, reasons = verdict.decide(slower, CALM, CALM, starts=[120] * 5)
    assert word == "drifting"
    assert "slowing down" in reasons[0]


def test_starts_that_each_drift_are_drifting_although_the_run_ends_as_it_began() -> None:
    each = (np.asarray(STEADY) * np.tile(np.linspace(1.2, 1.0, 120), 5)).tolist()
    word, reasons = verdict.decide(each, CALM, CALM, starts=[120] * 5)
    assert word == "drifting"
    assert "within its starts" in reasons[0] and "speeding up" in reasons[0]


def test_noise_within_starts_is_noise() -> None:
    disturbed = np.asarray(STEADY).copy()
    disturbed[::4] *= 2.0
    assert verdict.decide(disturbed.tolist(), CALM, CALM, starts=[200] * 3)[0] == "noisy"
