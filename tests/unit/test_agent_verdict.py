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


def policies(*looks: dict[str, int], ran_on: list[str] | None) -> list[dict[str, Any]]:
    return [
        {"frequency_hz": {name: mhz * 10**6 for name, mhz in look.items()}, "worker_policies": ran_on} for look in looks
    ]


def test_the_clock_of_processors_that_did_not_measure_says_nothing() -> None:
    idle_sinks = [{"policy0": 3000, "policy3": mhz} for mhz in (2900, 2900, 2900, 800, 800, 800)]
    assert verdict.decide(STEADY, CALM, CALM, policies(*idle_sinks, ran_on=["policy0"]))[0] == "steady"
    word, reasons = verdict.decide(STEADY, CALM, CALM, policies(*idle_sinks, ran_on=["policy3"]))
    assert word == "throttled" and "policy3" in reasons[0]


def test_a_moments_clock_counts_where_the_latencies_say_the_same() -> None:
    three = policies({"policy0": 3000}, {"policy0": 2500}, {"policy0": 2000}, ran_on=["policy0"])
    assert verdict.decide(STEADY, CALM, CALM, three)[0] == "steady"
    slower = (np.asarray(STEADY) * np.linspace(1.0, 1.4, 600)).tolist()
    assert verdict.decide(slower, CALM, CALM, three)[0] == "throttled"


def test_a_clock_of_zero_is_none() -> None:
    looks = [{"policy0": mhz} for mhz in (1500, 1500, 1500, 1500, 0, 0)]
    assert verdict.decide(STEADY, CALM, CALM, policies(*looks, ran_on=["policy0"]))[0] == "steady"


@pytest.mark.parametrize("cpus", [[0], None])
def test_limits_and_governors_of_other_processors_are_left_out(cpus: list[int] | None) -> None:
    own = {"governor": "performance", "limit_hz": 2.4e9, "cpus": [0, 1]}
    before = {
        **CALM,
        "frequency": {"policy0": own, "policy2": {"governor": "ondemand", "limit_hz": 1.8e9, "cpus": [2]}},
    }
    after = {**CALM, "frequency": {"policy0": own, "policy2": {"limit_hz": 1.2e9, "cpus": [2]}}}
    word, reasons = verdict.decide(STEADY, before, after, cpus=cpus)
    assert word == ("steady" if cpus else "throttled")
    assert ("ondemand" in " ".join(reasons)) is (cpus is None)


def test_a_flag_that_the_firmware_was_told_to_forget_between_two_looks_counts() -> None:
    calm = {"frequency_hz": {}, "temperature_c": {}, "throttle": {"raw": 0, "set": []}}
    seen = {**calm, "throttle": {"raw": 1 << 16, "set": ["undervoltage_since_boot"]}}
    assert verdict.decide(STEADY, CALM, CALM, [calm, seen, calm])[0] == "undervoltage"


def test_a_few_noisy_samples_are_no_drift() -> None:
    wide = np.random.default_rng(0)
    words = [verdict.decide((1 + 0.05 * wide.normal(size=12)).tolist(), CALM, CALM)[0] for _ in range(200)]
    assert "drifting" not in words
    assert "too few to tell a drift" in verdict.decide([1.0] * 12, CALM, CALM)[1][0]


def test_the_power_window_is_judged_by_itself() -> None:
    calm = {**CALM, "frequency": {"policy0": {"limit_hz": 2.4e9, "cpus": [0]}}}
    assert verdict.of_power_window(STEADY, calm, calm, [0], 10_000, 10.0) == []
    slow = {**calm, "frequency": {"policy0": {"limit_hz": 1.2e9, "cpus": [0]}}}
    said = verdict.of_power_window(STEADY, calm, slow, [0], 5_000, 10.0)
    assert "in the power window the clock limit of policy0 sank from 2400 to 1200 MHz" in said[0]
    assert "100% longer than in the timing" in said[1]
