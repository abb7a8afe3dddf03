"""How far joules by a meter on the host may be off, and whether its readings cover the window at all.

Bounds, not guesses, where one can be given: a step of power of unknown moment between two readings, clocks, silence.
They are added up, not their squares: most of them push the same way in every reading of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from kdedge_agent import energy
from kdedge_agent.statistics import moments

MIN_READINGS = 10
MAX_SILENT_SHARE = 0.1
SILENT_PERIODS = 3.0
PARTS = 10
_Z95 = 1.96
_T95_9 = 2.262
"""97.5% quantile of Student's t with 9 degrees of freedom: ten parts' means."""

Point = tuple[float, float]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Budget:
    """Half-widths in joules of what makes the energy of the load window uncertain.

    Attributes:
        edges: Between the readings around each end of the window, power may step at any moment.
        clock: Both clocks and the meter's stamps: a shift of the window, and an error of its length.
        silence: Gaps between readings of more than three periods.
        noise: 95% interval of what the readings do not say about the time between them, and of their own noise.
        accuracy: The meter's own; None where nobody states it, and then it is not in the sum.
    """

    edges: float
    clock: float
    silence: float
    noise: float
    accuracy: float | None

    @classmethod
    def of(
        cls,
        readings: Sequence[Point],
        load: Bounds,
        period_s: float,
        shift_s: float,
        clock_s: float,
        accuracy: float | None,
    ) -> Budget:
        """The budget of a load window that the readings cover.

        Args:
            readings: (seconds, watts) in order, on the clock of ``load``.
            load: Begin and end of the window.
            period_s: Between two readings, usually.
            shift_s: How far window and readings may be shifted against each other.
            clock_s: How far each end of the window may be off by the clocks alone.
            accuracy: Of the meter, as a share of its reading.
        """
        begin, end = load
        near = [watts for t_s, watts in readings if begin - 2 * period_s <= t_s <= end + 2 * period_s]
        spread_w = max(near) - min(near)
        joules = energy.integrate(readings, begin, end) or 0.0
        gaps = _gaps(readings, load)
        silent_s = sum(gap for gap in gaps if gap > SILENT_PERIODS * period_s)
        return cls(
            edges=spread_w * (_gap_at(readings, begin) + _gap_at(readings, end)) / 2,
            clock=spread_w * shift_s + 2 * clock_s * joules / (end - begin),
            silence=spread_w * silent_s / 2,
            noise=noise_j(readings, load),
            accuracy=None if accuracy is None else accuracy * joules,
        )

    @property
    def total(self) -> float:
        """The half-width of the energy of the window, in joules."""
        return self.edges + self.clock + self.silence + self.noise + (self.accuracy or 0.0)

    def watts(self, window_s: float) -> dict[str, float]:
        """Each part that is known, as watts of the window."""
        return {cause: joules / window_s for cause, joules in asdict(self).items() if joules is not None}

    def to_dict(self) -> dict[str, float | None]:
        """Each part and the total, in joules."""
        return {**asdict(self), "total": self.total}


def noise_j(readings: Sequence[Point], bounds: Bounds) -> float:
    """95% half-width of the energy of a window by its readings' noise, in joules.

    The variance of a reading is that of its departure from the line between its neighbours (Gasser, Sroka and
    Jennen-Steinmetz, Biometrika 73, 1986): what power does slowly is no noise, what it does faster than the meter
    reads is. A reading stands for half the time to each of its neighbours.
    """
    inside = [point for point in readings if bounds[0] <= point[0] <= bounds[1]]
    squares, weights = [], []
    for (t0, w0), (t1, w1), (t2, w2) in zip(inside, inside[1:], inside[2:], strict=False):
        share = (t2 - t1) / (t2 - t0)
        departure_w = share * w0 + (1 - share) * w2 - w1
        squares.append(departure_w**2 / (share**2 + (1 - share) ** 2 + 1))
        weights.append(((t2 - t0) / 2) ** 2)
    return _Z95 * math.sqrt(sum(squares) / len(squares) * sum(weights)) if squares else 0.0


def mean_error_w(readings: Sequence[Point], bounds: Bounds) -> float:
    """95% half-width, in watts, of the mean power of a window as that of a time like it: of idle, for the load's time.

    By Student's t over the means of ten parts, each by the estimator itself: neighbouring readings are not
    independent, parts nearly are. With fewer than two readings a part it is half of their range.
    """
    inside = [watts for t_s, watts in readings if bounds[0] <= t_s <= bounds[1]]
    if len(inside) < 2 * PARTS:
        return (max(inside) - min(inside)) / 2 if inside else 0.0
    step = (bounds[1] - bounds[0]) / PARTS
    edges = [bounds[0] + part * step for part in range(PARTS + 1)]
    means = [(energy.integrate(readings, a, b) or 0.0) / step for a, b in pairwise(edges)]
    deviation = moments(means)[1] or 0.0
    return _T95_9 * deviation / math.sqrt(PARTS)


def ci95(
    power: Mapping[str, Any], budget: Budget, readings: Sequence[Point], windows: energy.Windows
) -> dict[str, list[float]]:
    """Intervals of the figures that are there: ``load_w_ci95``, ``gross_`` and ``net_j_per_inference_ci95``."""
    window_s, count = power["window_s"], power["inferences"]
    load_w, gross_j = power["load_w"], power["gross_j_per_inference"]
    half_w, half_j = budget.total / window_s, budget.total / count
    found = {
        "load_w_ci95": [max(0.0, load_w - half_w), load_w + half_w],
        "gross_j_per_inference_ci95": [max(0.0, gross_j - half_j), gross_j + half_j],
    }
    net_j = power["net_j_per_inference"]
    if net_j is not None:
        idle_w = sum(mean_error_w(readings, bounds) for bounds in (windows.idle_before, windows.idle_after)) / 2
        half_j += idle_w * window_s / count + power["net_error_j_per_inference"]
        found["net_j_per_inference_ci95"] = [net_j - half_j, net_j + half_j]
    return found


def coverage_problem(readings: Sequence[Point], load: Bounds, period_s: float) -> str | None:
    """Why the readings do not cover the window; None if they do."""
    begin, end = load
    inside = sum(begin <= t_s <= end for t_s, _ in readings)
    if not readings:
        return "it gave no reading"
    if readings[0][0] > begin:
        return f"its readings begin {readings[0][0] - begin:.1f} s after the window under load did"
    if readings[-1][0] < end:
        return f"its readings end {end - readings[-1][0]:.1f} s before the window under load does"
    silent_s = sum(gap for gap in _gaps(readings, load) if gap > SILENT_PERIODS * period_s)
    if silent_s > MAX_SILENT_SHARE * (end - begin):
        return f"it was silent for {silent_s:.1f} s of the {end - begin:.1f} s under load"
    if inside < MIN_READINGS:
        return f"it gave {inside} readings in the {end - begin:.1f} s under load; {MIN_READINGS} are needed"
    return None


def _gaps(readings: Sequence[Point], bounds: Bounds) -> list[float]:
    """Seconds of the window between neighbouring readings."""
    parts = [(max(a, bounds[0]), min(b, bounds[1])) for (a, _), (b, _) in pairwise(readings)]
    return [b - a for a, b in parts if b > a]


def _gap_at(readings: Sequence[Point], moment: float) -> float:
    """Seconds between the readings before and after a moment that lies among them."""
    return next((b - a for (a, _), (b, _) in pairwise(readings) if a <= moment <= b), 0.0)
