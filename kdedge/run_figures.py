"""What a run left: its bundle, scores, seconds and joules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdedge.bundle import Bundle
from kdedge.energy import Energy
from kdedge.metrics import Scores


@dataclass(frozen=True)
class DistillResult:
    """What a run left.

    Attributes:
        bundle: The opened bundle.
        metrics: ``teacher``, ``student_float``, ``student_int8`` on the test split, and ``assistant`` where the recipe
            has one; None where a net was not trained.
        time_s: Seconds by stage that this run trained, and their ``total``; of ``cache``, without what a killed process
            spent. What ``reuse`` took over stands in the bundle's manifest, as ``reused``.
        energy_j: Joules by the same stages, and their ``total``; None where unmeasured.
        unmeasured: Why a figure is None.
    """

    bundle: Bundle
    metrics: dict[str, Scores | None]
    time_s: dict[str, float]
    energy_j: dict[str, float | None]
    unmeasured: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "bundle": str(self.bundle.path),
            "metrics": {name: None if m is None else m.to_dict() for name, m in self.metrics.items()},
            "time_s": self.time_s,
            "energy_j": self.energy_j,
            "unmeasured": self.unmeasured,
        }


def run_figures(finished: dict[str, Any]) -> dict[str, Any]:
    """Seconds and joules by stage, as the manifest keeps them; what another run spent is told apart.

    Args:
        finished: Stage -> figures, as ``RunFolder`` keeps them.
    """
    trained = {stage: f for stage, f in finished.items() if "time_s" in f and "reused_from" not in f}
    reused = {stage: f for stage, f in finished.items() if "reused_from" in f}
    time_s = {stage: float(f["time_s"]) for stage, f in trained.items()}
    energy_j = {stage: f["energy_j"] for stage, f in trained.items()}
    measured = [j for j in energy_j.values() if j is not None]
    whole = len(measured) == len(energy_j) and bool(measured)
    unmeasured = {f"energy_j.{stage}": f["energy_reason"] for stage, f in trained.items() if f["energy_j"] is None}
    if not whole:
        unmeasured["energy_j.total"] = next(iter(unmeasured.values()), "nothing was trained")
    return {
        "time_s": {**time_s, "total": sum(time_s.values())},
        "energy_j": {**energy_j, "total": sum(measured) if whole else None},
        "energy_sources": _sources(trained.values()),
        "reused": {stage: {"from": f["reused_from"], **_cost_in(f.get("spent", f))} for stage, f in reused.items()},
        "unmeasured": unmeasured,
    }


_COST = ("time_s", "energy_j", "energy_reason", "energy_sources")


def cost(time_s: float, energy: Energy) -> dict[str, Any]:
    """Seconds and joules of a stage, as ``RunFolder`` keeps them."""
    sources = list(energy.sources) if energy.energy_j is not None else []
    return dict(zip(_COST, (time_s, energy.energy_j, energy.reason, sources), strict=True))


def _cost_in(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in _COST if key in figures}


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds and joules of a stage that was trained in parts; the joules are known where those of every part are."""
    energy_j = [part["energy_j"] for part in parts]
    return {
        "time_s": sum(part["time_s"] for part in parts),
        "energy_j": None if None in energy_j else sum(energy_j),
        "energy_reason": next((part["energy_reason"] for part in parts if part["energy_j"] is None), None),
        "energy_sources": _sources(parts),
    }


def _sources(parts: Iterable[dict[str, Any]]) -> list[str]:
    """What measured the joules of any part."""
    return list(dict.fromkeys(source for part in parts for source in part.get("energy_sources", ())))
