"""What does not make a run's verdict but explains a figure that cannot be repeated, in plain words with the cure."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from kdedge_agent import cpufreq, neighbours

BUSY_LOAD = 0.5
"""Load average before the run, as a share of the processors, above which other work is named."""
BUSY_SHARE = 0.10
"""Other work used more than this share of the measured processors."""
STARTS_SPREAD = 0.05
"""The slowest start's median lies further than this share above the fastest one's."""

Snapshot = Mapping[str, Any]


def condition_remarks(before: Snapshot, cpu_count: Optional[int], cpus: Optional[Sequence[int]] = None) -> List[str]:
    """Governor of the measured processors, and load before the run."""
    remarks = []
    governors: Dict[str, List[str]] = {}
    for policy, entry in (before.get("frequency") or {}).items():
        if entry.get("governor") not in (None, "performance") and cpufreq.has_any(entry.get("cpus"), cpus):
            governors.setdefault(entry["governor"], []).append(policy)
    for governor, policies in governors.items():
        remarks.append(
            f"remark: governor {governor} on {', '.join(policies)}. For figures that repeat: "
            "--governor performance, or "
            "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        )
    load = before.get("load_average")
    if load and cpu_count and load[0] > BUSY_LOAD * cpu_count:
        remarks.append(
            f"remark: load average {load[0]:.2f} before the run on {cpu_count} processors: "
            "other work ran, or the run before this one"
        )
    return remarks


def busy_remarks(work: Mapping[str, Any], cpus: Optional[Sequence[int]]) -> List[str]:
    """Other work beside the measurement that did not take its processor away."""
    share = work.get("others_share")
    if share is None or share <= BUSY_SHARE:
        return []
    others = neighbours.named(work, cpus)
    who = f": {others}" if others else ", in processes too short to name"
    return [f"remark: other work used {share:.0%} of the measured processors during timing{who}"]


def starts_remarks(medians_s: Sequence[float]) -> List[str]:
    """Starts of the worker that differ.

    Args:
        medians_s: Median latency of each start, in seconds.
    """
    if len(medians_s) < 2 or min(medians_s) <= 0 or max(medians_s) / min(medians_s) - 1 <= STARTS_SPREAD:
        return []
    fastest, slowest = min(medians_s), max(medians_s)
    return [
        f"remark: the medians of the {len(medians_s)} starts reach from {fastest * 1e3:.4g} to {slowest * 1e3:.4g} ms "
        f"({slowest / fastest - 1:.0%}). More --starts narrow the interval"
    ]


def of_a_batch(scenario: str, inputs: Sequence[Mapping[str, Any]]) -> List[str]:
    """One sample after the other was asked for, and the artifact takes several at a time."""
    shape = inputs[0]["shape"] if inputs else []
    if scenario != "single-stream" or len(shape) < 2 or shape[0] <= 1:
        return []
    sizes = "x".join(map(str, shape))
    return [
        f"remark: a call takes {sizes}: latency and energy are of one call. If its first dimension counts samples, "
        "measure them with --scenario offline"
    ]


def unmet(
    cooled: Optional[Mapping[str, Any]],
    governor: Optional[Mapping[str, Any]],
    threads: int,
    cpus: Optional[Sequence[int]],
) -> List[str]:
    """Conditions that were asked for and could not be had.

    Args:
        cooled: Of :func:`kdedge_agent.cooldown.cool_down`.
        governor: Report of :class:`kdedge_agent.governor.GovernorChange`.
        threads: Of the runtime.
        cpus: Processors that were measured.
    """
    remarks = []
    if cooled is not None and not cooled["reached"]:
        was = "told no temperature any more" if cooled["to_c"] is None else f"was still at {cooled['to_c']:.1f} °C"
        remarks.append(
            f"remark: after {cooled['waited_s']:.0f} s the board {was}; {cooled['target_c']:g} °C was asked for"
        )
    if governor is not None and governor["refused"]:
        words = (reason if policy == "all" else f"{policy}: {reason}" for policy, reason in governor["refused"].items())
        why = "; ".join(words)
        root = f". Root would have to run: {governor['command']}" if governor["command"] else ""
        remarks.append(f"remark: governor {governor['asked']} was not set ({why}){root}")
    if cpus is not None and threads > len(cpus):
        remarks.append(f"remark: {threads} threads shared {len(cpus)} processor(s)")
    return remarks
