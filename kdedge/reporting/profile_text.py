"""A record's profile in lines: which types of op and which ops take the time, and what runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdedge.reporting.check import is_number
from kdedge.reporting.text import plain

_SHOWN = 6
_MOST = 40


def profile_lines(profile: Mapping[str, Any], calls: str = "inferences") -> list[str]:
    """Lines about the ``profile`` part of a record, as far as it tells; a device may have sent anything.

    Args:
        profile: That part.
        calls: What was profiled, in the plural: one call of ``offline`` is a batch.
    """
    return [*_times(profile, calls), *_delegates(profile.get("delegates"))]


@dataclass(frozen=True)
class OpRow:
    """The ops of one type, as text.

    Attributes:
        op: The type.
        provider: What runs them.
        count: How many there are.
        mean: Milliseconds of a call (an inference, or a batch of ``offline``) that they take.
        share: Of the time of all ops.
    """

    op: str
    provider: str
    count: str
    mean: str
    share: str


def op_rows(profile: Mapping[str, Any]) -> tuple[OpRow, ...]:
    """A row for each type of op that a profile has times of, the longest first."""
    return tuple(
        OpRow(
            plain(entry.get("op")),
            plain(entry.get("provider")),
            plain(entry.get("count")),
            f"{1e3 * entry['mean_s']:.3f} ms",
            f"{100 * entry['share']:.1f}%",
        )
        for entry in _entries(profile.get("by_op"))[:_MOST]
    )


def _times(profile: Mapping[str, Any], calls: str) -> list[str]:
    inference_s, ops_s, runs = (profile.get(key) for key in ("inference_s", "ops_s", "runs"))
    by_op = _entries(profile.get("by_op"))
    if not is_number(inference_s) or not is_number(ops_s) or not by_op:
        return []
    providers = sorted({plain(entry.get("provider")) for entry in by_op})
    types = [f"{plain(e.get('op'))} {plain(e.get('count'))}× {100 * e['share']:.0f}%" for e in by_op[:_SHOWN]]
    ops = [
        f"{plain(entry.get('name'))} {1e3 * entry['mean_s']:.3f} ms" for entry in _entries(profile.get("ops"))[:_SHOWN]
    ]
    return [
        f"{1e3 * ops_s:.3f} of {1e3 * inference_s:.3f} ms in ops, by {', '.join(providers)}"
        f" (mean of {plain(runs)} profiled {calls})",
        f"by type: {', '.join(types)}",
        f"longest: {', '.join(ops)}",
    ]


def _entries(found: object) -> list[Mapping[str, Any]]:
    """What of a list is an entry with its figures."""
    return [
        entry
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, Mapping) and is_number(entry.get("mean_s")) and is_number(entry.get("share"))
    ]


def _delegates(found: object) -> list[str]:
    if not isinstance(found, Mapping):
        return []
    taken, left = (found.get(key) for key in ("delegated", "left"))
    if not isinstance(taken, Mapping) or not isinstance(left, Mapping):
        return []
    rest = ", ".join(f"{plain(op)} {plain(count)}×" for op, count in left.items()) or "none"
    count = sum(number for number in taken.values() if isinstance(number, int))
    parts = plain(found.get("partitions"))
    return [f"{count} ops run by a delegate in {parts} part(s); left to the runtime: {rest}"]
