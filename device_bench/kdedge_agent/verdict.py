"""One word for the condition of a run, with reasons and cures in plain words.

In this order, the first that holds: ``undervoltage`` (the supply sagged), ``throttled`` (the processor was slowed
down), ``noisy`` where other work took the processor away, ``drifting`` (the last third differs from the first),
``noisy`` (wide spread), ``steady``. A cause that was seen stands before an effect that it may have had. That starts of
the worker differ from each other is neither drift nor noise: it is remarked, and the intervals hold it.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from kdedge_agent import cpufreq, neighbours
from kdedge_agent.between_starts import split
from kdedge_agent.cooldown import hottest
from kdedge_agent.drift import drift
from kdedge_agent.order_statistics import percentile
from kdedge_agent.remarks import busy_remarks, condition_remarks, starts_remarks

DRIFT_RATIO = 0.05
"""Medians of first and last third that differ by more than this, and by more than their intervals, are a drift."""
NOISE_P90 = 0.30
"""p90 above p50 by more than this share is noisy."""
NOISE_IQR = 0.15
"""A middle half of the samples wider than this share of p50 is noisy."""
FREQUENCY_DROP = 0.10
"""The processor's clock under load sank by more than this share of what it was."""
_MIN_GLANCES = 2
"""So many glances of a third tell its clock by themselves."""
WAITED = 0.05
"""The worker stood ready without a processor for more than this share of the timed seconds."""
STOLEN = 0.05
"""The host of a virtual machine kept more than this share of the measured processors for itself."""

_THROTTLE = ("frequency_capped", "throttled", "soft_temperature_limit")
_COOL = "Cool the board (heat sink, fan, a pause before the run) or lower its clock"

Snapshot = Mapping[str, Any]


def decide(
    samples_s: Sequence[float],
    before: Snapshot,
    after: Snapshot,
    during: Sequence[Snapshot] = (),
    cpu_count: Optional[int] = None,
    work: Optional[Mapping[str, Any]] = None,
    cpus: Optional[Sequence[int]] = None,
    starts: Sequence[int] = (),
) -> Tuple[str, List[str]]:
    """Verdict and its reasons.

    Args:
        samples_s: Latencies in seconds, in order.
        before: :func:`kdedge_agent.facts.snapshot` before the run.
        after: The same right after timing.
        during: :func:`kdedge_agent.facts.glance` while the clock ran.
        cpu_count: Processors of the device, to judge the load by.
        work: What else ran meanwhile (:func:`kdedge_agent.neighbours.compare`), and ``waited_s`` of the worker.
        cpus: Processors that were measured; None where that is not known.
        starts: How many samples each start of the worker has; empty for one start.
    """
    other = work or {}
    medians = [percentile(sorted(part), 0.5) for part in split(samples_s, starts)] if len(starts) > 1 else []
    taken = _taken(samples_s, other, cpus)
    found = [
        ("undervoltage", _undervoltage(before, after, during)),
        ("throttled", _throttled(before, after, during, cpus) + _slowed(during, _became_slower(samples_s, starts))),
        ("noisy", taken),
        ("drifting", _drifting(samples_s, during, starts)),
        ("noisy", _noisy(_levelled(samples_s, starts, medians), "" if taken else neighbours.named(other, cpus))),
    ]
    reasons = [reason for _, said in found for reason in said]
    reasons += condition_remarks(before, cpu_count, cpus) + starts_remarks(medians)
    reasons += [] if taken else busy_remarks(other, cpus)
    for word, said in found:
        if said:
            return word, reasons
    return "steady", [_steady(samples_s, starts), *reasons]


def of_power_window(
    samples_s: Sequence[float],
    before: Snapshot,
    after: Snapshot,
    cpus: Optional[Sequence[int]],
    calls: float,
    window_s: float,
) -> List[str]:
    """Remarks where the window of the power was slowed down, or ran at another pace than what was timed.

    Args:
        samples_s: Timed latencies in seconds.
        before: Snapshot after timing.
        after: Snapshot after the window.
        cpus: As in :func:`decide`.
        calls: In the window.
        window_s: Its length.
    """
    said = _undervoltage(before, after, []) + _throttled(before, after, [], cpus)
    if calls > 0 and samples_s:
        pace = window_s / calls / (math.fsum(samples_s) / len(samples_s)) - 1
        if abs(pace) > DRIFT_RATIO:
            word = "longer" if pace > 0 else "shorter"
            said.append(f"a call took {abs(pace):.0%} {word} than in the timing, so that the energy is of another pace")
    return [f"remark: in the power window {reason}" for reason in said]


def _levelled(samples_s: Sequence[float], starts: Sequence[int], medians: Sequence[float]) -> Sequence[float]:
    """The samples as shares of their start's median, so that what is left is what differs within starts."""
    if not medians or min(medians) <= 0:
        return samples_s
    return [sample / median for part, median in zip(split(samples_s, starts), medians) for sample in part]


def _flags(snapshot: Snapshot) -> List[str]:
    return list((snapshot.get("throttle") or {}).get("set") or [])


def _raised(before: Snapshot, after: Snapshot, during: Sequence[Snapshot], flag: str) -> bool:
    """The flag was up in one of the looks at the board, or went up between two of them.

    ``since_boot`` is the firmware's word for what it has not been told to forget: where the kernel's hwmon driver has
    it forget at each of its polls, it may be gone again at the last look.
    """
    since = f"{flag}_since_boot"
    looks = [_flags(look) for look in (before, *during, after)]
    if any(flag in flags for flags in looks):
        return True
    return any(since in now and since not in then for then, now in zip(looks, looks[1:]))


def _undervoltage(before: Snapshot, after: Snapshot, during: Sequence[Snapshot]) -> List[str]:
    if not _raised(before, after, during, "undervoltage"):
        return []
    return [
        "the supply voltage was too low during the run. "
        "Use the board's own power supply and a short cable (a Raspberry Pi 5 wants 5 V, 5 A)"
    ]


def _throttled(
    before: Snapshot, after: Snapshot, during: Sequence[Snapshot], cpus: Optional[Sequence[int]]
) -> List[str]:
    reasons = [
        f"the firmware reports {flag.replace('_', ' ')} during the run. {_COOL}"
        for flag in _THROTTLE
        if _raised(before, after, during, flag)
    ]
    for name, state in (after.get("cooling") or {}).items():
        if state > 0:
            reasons.append(f"the kernel slows the processor down ({name} at {state}). {_COOL}")
    counts = before.get("throttle_count"), after.get("throttle_count")
    if counts[0] is not None and counts[1] is not None and counts[1] > counts[0]:
        reasons.append(f"the processor was throttled {counts[1] - counts[0]} times during the run. {_COOL}")
    for policy, entry in (after.get("frequency") or {}).items():
        was = ((before.get("frequency") or {}).get(policy) or {}).get("limit_hz")
        now = entry.get("limit_hz")
        if was and now and now < was and cpufreq.has_any(entry.get("cpus"), cpus):
            reasons.append(f"the clock limit of {policy} sank from {was / 1e6:.0f} to {now / 1e6:.0f} MHz. {_COOL}")
    return reasons


def _became_slower(samples_s: Sequence[float], starts: Sequence[int]) -> bool:
    found = drift(samples_s, starts)
    return found is not None and found["ratio"] is not None and bool(found["ratio"] > 1 + DRIFT_RATIO)


def _slowed(during: Sequence[Snapshot], became_slower: bool) -> List[str]:
    """The clock that the worker ran at, first third of the glances against the last.

    Clocks of other processors say nothing: they sink where those have nothing to do. One glance a third is a moment's
    clock, and counts where the latencies say the same.
    """
    clocks = [found for found in map(_own_clock, during) if found is not None]
    third = len(clocks) // 3
    if third < (1 if became_slower else _MIN_GLANCES):
        return []
    (was, first), (now, last) = max(clocks[:third]), max(clocks[-third:])
    if now >= (1 - FREQUENCY_DROP) * was:
        return []
    whose = first if first == last else f"{first}, then {last}"
    return [f"the clock of {whose} sank from {was / 1e6:.0f} to {now / 1e6:.0f} MHz under load. {_COOL}"]


def _own_clock(look: Snapshot) -> Optional[Tuple[int, str]]:
    """The fastest clock in Hz among the policies the worker's threads ran on, and whose; None where none is told."""
    clocks: Mapping[str, int] = look.get("frequency_hz") or {}
    own = look.get("worker_policies")
    found = [(hertz, policy) for policy, hertz in clocks.items() if hertz > 0 and (own is None or policy in own)]
    return max(found, default=None)


def thirds(during: Sequence[Snapshot]) -> Optional[Dict[str, Any]]:
    """Temperature and clock beside the latencies of the first third of the run and of the last.

    Returns:
        {first, last: {temperature_c: mean of the hottest processor zone, frequency_hz: mean by policy}}, each None or
        empty where the device does not tell; None for fewer than two glances.
    """
    if len(during) < 2:
        return None
    third = max(1, len(during) // 3)
    return {"first": _condition(during[:third]), "last": _condition(during[-third:])}


def _condition(glances: Sequence[Snapshot]) -> Dict[str, Any]:
    heat = [hot for hot in (hottest(glance.get("temperature_c") or {}) for glance in glances) if hot is not None]
    clocks: Dict[str, List[int]] = {}
    for glance in glances:
        for policy, hertz in (glance.get("frequency_hz") or {}).items():
            clocks.setdefault(policy, []).append(hertz)
    return {
        "temperature_c": round(sum(heat) / len(heat), 2) if heat else None,
        "frequency_hz": {policy: round(sum(values) / len(values)) for policy, values in clocks.items()},
    }


def _in_words(condition: Mapping[str, Any]) -> str:
    """``61.2 °C, 1500 MHz``; empty where the device tells neither."""
    heat = condition["temperature_c"]
    words = [] if heat is None else [f"{heat:.1f} °C"]
    words += [f"{'/'.join(f'{hz / 1e6:.0f}' for hz in sorted(set(condition['frequency_hz'].values())))} MHz"]
    return ", ".join(word for word in words if word != " MHz")


def _drifting(samples_s: Sequence[float], during: Sequence[Snapshot], starts: Sequence[int]) -> List[str]:
    found = drift(samples_s, starts)
    if found is None or found["ratio"] is None:
        return []
    several = len(starts) > 1
    if abs(found["ratio"] - 1) > DRIFT_RATIO and found["significant"]:
        change, whose = found["ratio"] - 1, ("the last third's", "the first third's")
    elif several and found["inside"]["significant"] and abs(found["inside"]["ratio"] - 1) > DRIFT_RATIO:
        change, whose = found["inside"]["ratio"] - 1, ("within its starts the last third's", "the first third's")
    else:
        return []
    cure = (
        "It was still speeding up: set a fixed clock with --governor performance, or measure for longer (--seconds)"
        if change < 0
        else "It was slowing down: cool the board (heat sink, fan, --cool-down 45C), or measure for longer (--seconds)"
    )
    beside = thirds(during)
    words_beside = [] if beside is None else [_in_words(beside["first"]), _in_words(beside["last"])]
    at = f" ({words_beside[0]}, then {words_beside[1]})" if all(words_beside) and words_beside else ""
    words = f"{abs(change):.1%} {'longer' if change > 0 else 'shorter'}"
    return [f"{whose[0]} median time is {words} than {whose[1]}{at}. {cure}"]


def _taken(samples_s: Sequence[float], work: Mapping[str, Any], cpus: Optional[Sequence[int]]) -> List[str]:
    """Other work had the processor while the worker stood ready."""
    reasons = []
    timed_s = sum(samples_s)
    waited_s = work.get("waited_s")
    if waited_s is not None and timed_s > 0 and waited_s > WAITED * timed_s:
        share = min(1.0, waited_s / timed_s)
        reasons.append(f"the processor was taken away for {share:.0%} of the timed seconds{_by(work, cpus)}")
    stolen = work.get("stolen_share")
    if stolen is not None and stolen > STOLEN:
        reasons.append(
            f"the host of this virtual machine kept {stolen:.0%} of the processor for itself. Measure on real "
            "hardware, or when the host is at rest"
        )
    return reasons


def _by(work: Mapping[str, Any], cpus: Optional[Sequence[int]]) -> str:
    """Who took it, and the cure."""
    others = neighbours.named(work, cpus)
    if others:
        return f" by {others}. Stop it, or keep it away with --pin and taskset"
    hidden = " by processes that do not show in /proc" if "processes" in work else ""
    return f"{hidden}. Stop other work on the device, or measure on another processor (--pin)"


def _noisy(samples_s: Sequence[float], others: str) -> List[str]:
    ordered = sorted(samples_s)
    p25, p50, p75, p90 = (percentile(ordered, q) for q in (0.25, 0.5, 0.75, 0.9))
    if p50 <= 0:
        return []
    reasons = []
    if p90 / p50 - 1 > NOISE_P90:
        reasons.append(f"p90 lies {p90 / p50 - 1:.0%} above p50")
    if (p75 - p25) / p50 > NOISE_IQR:
        reasons.append(f"the middle half of the samples spreads over {(p75 - p25) / p50:.0%} of p50")
    who = f" ({others})" if others else ""
    cure = f"Stop other work on the device{who}, and set a fixed clock (--governor performance)"
    return [f"{', and '.join(reasons)}. {cure}"] if reasons else []


def _steady(samples_s: Sequence[float], starts: Sequence[int]) -> str:
    found = drift(samples_s, starts)
    if found is not None and len(starts) > 1:
        found = found["inside"]
    if found is None or found["ratio"] is None or found["significant"] is None:
        return f"nothing spoke against it in {len(samples_s)} samples, too few to tell a drift"
    of = f" of the {len(starts)} starts" if len(starts) > 1 else ""
    return f"first and last third{of} agree within {abs(found['ratio'] - 1):.1%}, n = {len(samples_s)}"
