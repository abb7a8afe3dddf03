"""One word for the condition of a run, with reasons and cures in plain words.

In this order, the first that holds: ``undervoltage`` (the supply sagged), ``throttled`` (the processor was slowed
down), ``drifting`` (the last third differs from the first), ``noisy`` (wide spread), ``steady``.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from kdedge_agent import statistics

DRIFT_RATIO = 0.05
"""Medians of first and last third that differ by more than this, and by more than their intervals, are a drift."""
NOISE_P90 = 0.30
"""p90 above p50 by more than this share is noisy."""
NOISE_IQR = 0.15
"""A middle half of the samples wider than this share of p50 is noisy."""
FREQUENCY_DROP = 0.10
"""The processor's clock under load sank by more than this share of what it was."""
BUSY_LOAD = 0.5
"""Load average before the run, as a share of the processors, above which other work is named."""

_THROTTLE = ("frequency_capped", "throttled", "soft_temperature_limit")
_COOL = "Cool the board (heat sink, fan, a pause before the run) or lower its clock"

Snapshot = Mapping[str, Any]


def decide(
    samples_s: Sequence[float],
    before: Snapshot,
    after: Snapshot,
    during: Sequence[Snapshot] = (),
    cpu_count: Optional[int] = None,
) -> Tuple[str, List[str]]:
    """Verdict and its reasons.

    Args:
        samples_s: Latencies in seconds, in order.
        before: :func:`kdedge_agent.facts.snapshot` before the run.
        after: The same right after timing.
        during: :func:`kdedge_agent.facts.glance` while the clock ran.
        cpu_count: Processors of the device, to judge the load by.
    """
    found = {
        "undervoltage": _undervoltage(before, after, during),
        "throttled": _throttled(before, after, during),
        "drifting": _drifting(samples_s),
        "noisy": _noisy(samples_s),
    }
    reasons = [reason for reasons in found.values() for reason in reasons]
    reasons += _remarks(before, cpu_count)
    for word, said in found.items():
        if said:
            return word, reasons
    return "steady", [_steady(samples_s), *reasons]


def _flags(snapshot: Snapshot) -> List[str]:
    return list((snapshot.get("throttle") or {}).get("set") or [])


def _raised(before: Snapshot, after: Snapshot, during: Sequence[Snapshot], flag: str) -> bool:
    """The flag was up in one of the looks at the board, or went up between the first and the last."""
    since = f"{flag}_since_boot"
    if any(flag in _flags(look) for look in (before, after, *during)):
        return True
    return since in _flags(after) and since not in _flags(before)


def _undervoltage(before: Snapshot, after: Snapshot, during: Sequence[Snapshot]) -> List[str]:
    if not _raised(before, after, during, "undervoltage"):
        return []
    return [
        "the supply voltage was too low during the run. "
        "Use the board's own power supply and a short cable (a Raspberry Pi 5 wants 5 V, 5 A)"
    ]


def _throttled(before: Snapshot, after: Snapshot, during: Sequence[Snapshot]) -> List[str]:
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
        if was and now and now < was:
            reasons.append(f"the clock limit of {policy} sank from {was / 1e6:.0f} to {now / 1e6:.0f} MHz. {_COOL}")
    return reasons + _slowed(during)


def _slowed(during: Sequence[Snapshot]) -> List[str]:
    """The clock under load, first third of the glances against the last."""
    third = len(during) // 3
    if third < 1:
        return []
    reasons = []
    for policy in during[0].get("frequency_hz") or {}:
        first = [g["frequency_hz"][policy] for g in during[:third] if policy in g["frequency_hz"]]
        last = [g["frequency_hz"][policy] for g in during[-third:] if policy in g["frequency_hz"]]
        if first and last and max(last) < (1 - FREQUENCY_DROP) * max(first):
            was, now = max(first) / 1e6, max(last) / 1e6
            reasons.append(f"the clock of {policy} sank from {was:.0f} to {now:.0f} MHz under load. {_COOL}")
    return reasons


def _drifting(samples_s: Sequence[float]) -> List[str]:
    thirds = statistics.drift(samples_s)
    if thirds is None or thirds["ratio"] is None or thirds["significant"] is False:
        return []
    if abs(thirds["ratio"] - 1) <= DRIFT_RATIO:
        return []
    faster = thirds["ratio"] < 1
    cure = (
        "It was still speeding up: raise the warm-up or set the governor to performance"
        if faster
        else "It was slowing down: cool the board, or measure for longer until it settles"
    )
    change = thirds["ratio"] - 1
    words = f"{abs(change):.1%} {'longer' if change > 0 else 'shorter'}"
    return [f"the last third's median time is {words} than the first third's. {cure}"]


def _noisy(samples_s: Sequence[float]) -> List[str]:
    ordered = sorted(samples_s)
    p25, p50, p75, p90 = (statistics.percentile(ordered, q) for q in (0.25, 0.5, 0.75, 0.9))
    if p50 <= 0:
        return []
    reasons = []
    if p90 / p50 - 1 > NOISE_P90:
        reasons.append(f"p90 lies {p90 / p50 - 1:.0%} above p50")
    if (p75 - p25) / p50 > NOISE_IQR:
        reasons.append(f"the middle half of the samples spreads over {(p75 - p25) / p50:.0%} of p50")
    return [f"{', and '.join(reasons)}. Stop other work on the device, and set a fixed clock"] if reasons else []


def _remarks(before: Snapshot, cpu_count: Optional[int]) -> List[str]:
    """What does not make the verdict but explains a figure that cannot be repeated."""
    remarks = []
    governors: Dict[str, List[str]] = {}
    for policy, entry in (before.get("frequency") or {}).items():
        if entry.get("governor") not in (None, "performance"):
            governors.setdefault(entry["governor"], []).append(policy)
    for governor, policies in governors.items():
        remarks.append(
            f"remark: governor {governor} on {', '.join(policies)}. For figures that repeat: "
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        )
    load = before.get("load_average")
    if load and cpu_count and load[0] > BUSY_LOAD * cpu_count:
        remarks.append(f"remark: load average {load[0]:.2f} before the run on {cpu_count} processors: other work ran")
    return remarks


def _steady(samples_s: Sequence[float]) -> str:
    thirds = statistics.drift(samples_s)
    if thirds is None or thirds["ratio"] is None:
        return f"nothing spoke against it in {len(samples_s)} samples"
    return f"first and last third agree within {abs(thirds['ratio'] - 1):.1%}, n = {len(samples_s)}"
