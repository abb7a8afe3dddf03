"""Mean power of a window from a sensor's readings, with its 95% interval by cause.

Causes, each as the half-width of a 95% interval in watts; independent, hence added in squares (JCGM 100:2008, 5.1.2):

- ``sampling``: a varying power, or a noisy sensor, was looked at now and then. Batch means (Schmeiser, Batch size
  effects in the analysis of simulation output, Operations Research 30, 1982): means of 10 to 20 blocks of neighbours
  scatter as far as neighbours do resemble each other; what remains of their likeness is corrected as that of an
  autoregression of order 1. A few steps from one level to another are part of the power and are taken out first:
  each of them leaves its height for three quarters of a period, more than 95% of what random moments of reading do.
- ``resolution``: the sensor's readings have steps; noise finer than a step does not average them out. For noise of
  standard deviation s the mean of a quantiser of step q is off by at most the sum over k of
  q/(k pi) exp(-2 pi^2 k^2 s^2/q^2), and never by more than q/2 (Widrow and Kollar, Quantization Noise, 2008, ch. 6).
- ``timing``: a held value is between nothing and one period old. Of a counter of joules this is the only error: the
  window begins and ends within intervals of it.
- ``beat``: bursts of power at the rate of the inferences, read at a rate that goes into it: the readings then see
  one part of the burst only, and look steady.
- ``gaps``: while the sensor did not answer the power lay anywhere between the extremes that it gave.

The sensor's own calibration is in none of them.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from statistics import mean, median
from typing import Dict, List, Sequence, Tuple

from kdedge_agent.sensor_rate import SensorRate

CAUSES = ("sampling", "resolution", "timing", "beat", "gaps")
MIN_READINGS = 4
"""Fewer readings in a window give no interval, hence no figure."""
MAX_GAP_SHARE = 0.2
"""A sensor that was gone for more of the window than this has not measured it."""
_MANY_VALUES = 10
_MOST_STEPS = 4
_HARMONICS = 8
_JITTER = 0.01
"""Of the duration of one inference: what real machines have at least (relative standard deviation)."""


def t975(freedom: int) -> float:
    """The 97.5% point of Student's distribution (Abramowitz and Stegun 26.7.5; within 0.5% from 3 degrees on)."""
    z = 1.959963984540054
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3 + g4 / freedom**4


def together(half_widths: Sequence[float]) -> float:
    """Half-width of the sum of independent errors."""
    return math.sqrt(math.fsum(half * half for half in half_widths))


# sampling


def sampling_w(values: Sequence[float], step_w: float = 0.0) -> float:
    """Half-width that the scatter of the readings leaves of their mean; at least 4 readings, one a sensor period."""
    n = len(values)
    count = n if n < 20 else 10 if n < 400 else 20
    rest, jumps = _levelled(values, step_w, min(_MOST_STEPS, count // 2 - 1))
    freedom = max(1, count - 1 - max(len(jumps), 1))
    blocks = [mean(rest[i * n // count : (i + 1) * n // count]) for i in range(count)]
    variance = math.fsum(block * block for block in blocks) / freedom / count * _likeness(rest, n / count)
    return together([t975(freedom) * math.sqrt(variance), *(0.75 * height / n for height in jumps)])


def _levelled(values: Sequence[float], step_w: float, most: int) -> Tuple[List[float], List[float]]:
    """Values less their level, and the heights of the steps between levels; less their trend where there is none."""
    moves = [abs(b - a) for a, b in zip(values, values[1:])]
    limit = max(6 * median(moves) / 0.954, 2.5 * step_w)
    starts = [i + 1 for i, move in enumerate(moves) if move > limit]
    edges = [0, *starts, len(values)]
    # A step that a sensor averages over, or a linear filter spreads, takes two readings: one step.
    steps = [s for i, s in enumerate(starts) if i == 0 or s - starts[i - 1] > 2]
    if not steps or len(steps) > most:
        return _detrended(values), []
    rest: List[float] = []
    levels: List[float] = []
    for begin, end in zip(edges, edges[1:]):
        level = mean(values[begin:end])
        rest += [value - level for value in values[begin:end]]
        levels.append(level)
    return rest, [abs(b - a) for a, b in zip(levels, levels[1:])]


def _detrended(values: Sequence[float]) -> List[float]:
    """Values less the straight line through them: a load that warms up is measured, not misjudged."""
    n, middle, level = len(values), (len(values) - 1) / 2, mean(values)
    slope = math.fsum((i - middle) * value for i, value in enumerate(values)) * 12 / (n * (n * n - 1))
    return [value - level - slope * (i - middle) for i, value in enumerate(values)]


def _likeness(rest: Sequence[float], block: float) -> float:
    """By how much blocks of an autoregression of order 1 understate the variance of the mean; 1 for white noise."""
    n = len(rest)
    power = math.fsum(value * value for value in rest)
    if block < 2 or power <= 0.0:
        return 1.0
    phi = math.fsum(a * b for a, b in zip(rest, rest[1:])) / power
    phi = min(phi + (1 + 3 * phi) / n, 0.95)  # the estimate is biased towards zero (Kendall, 1954)
    if phi <= 0.0:
        return 1.0
    understated: float = 2 * phi * (1 - phi**block) / (block * (1 - phi * phi))
    return 1.0 / (1.0 - understated)


# resolution


def smallest_step(values: Sequence[float]) -> float:
    """The step of readings that are multiples of one, in their unit; 0 where one reading alone tells nothing of it.

    The smallest difference of many different readings; of a few, which may lie many steps apart, the greatest common
    divisor of their millionths.
    """
    ordered = sorted(set(values))
    if len(ordered) < 2:
        return 0.0
    if len(ordered) >= _MANY_VALUES:
        return max(1e-6, min(b - a for a, b in zip(ordered, ordered[1:])))
    divisor = 0
    for value in ordered:
        divisor = math.gcd(divisor, round(abs(value) * 1e6))
    return divisor * 1e-6


def resolution_w(values: Sequence[float], step_w: float) -> float:
    """Half-width that a sensor's steps leave of the mean of its readings."""
    if step_w <= 0.0 or len(values) < 2:
        return step_w / 2
    squares = sorted((b - a) ** 2 for a, b in zip(values, values[1:]))
    calm = squares[: max(1, len(squares) * 9 // 10)]  # a tenth may be steps of the power itself
    scatter = mean(calm) / 2 / step_w**2
    # Up to a quarter may be a level between two steps and hardly any noise; beyond, Sheppard's correction holds.
    noise2 = (scatter - 1 / 12) * step_w**2 if scatter > 1 / 3 else 0.0
    fade = 2 * math.pi**2 * noise2 / step_w**2
    series = math.fsum(math.exp(-k * k * fade) / k for k in range(1, _HARMONICS + 1))
    return step_w * min(0.5, series / math.pi)


def of_rails(halves: Sequence[float]) -> float:
    """Half-width of a sum of rails whose steps are independent and anywhere: all at worst, or 1.96 deviations."""
    return min(math.fsum(halves), 1.96 * together(halves) / math.sqrt(3))


# beat


def beat_w(times: Sequence[float], values: Sequence[float], rate: SensorRate, cycles: float, seconds: float) -> float:
    """Half-width for bursts at the rate of the calls that the readings may see one part of only.

    Args:
        times: Seconds of the readings; of a sensor with a clock of its own only their period counts.
        values: Watts, one a period of the sensor.
        rate: Of the sensor.
        cycles: Calls of the runtime in the window.
        seconds: Of the window.

    A rectangular burst of height A has harmonics of at most 2A/(pi k); readings at phases x leave the share
    |mean exp(2 pi i k x)| of each in their mean. Steady readings do not bound A, for they may have missed the burst:
    the more the phases agree, the more of the mean itself is taken for it (at three phases and more they would have
    met it). Over some ten thousand inferences their own jitter mixes the phases.
    """
    n = len(values)
    per_period = cycles * rate.period_s / seconds
    if n < 2 or cycles < 1 or per_period * _JITTER**2 * n > 1.0:
        return 0.0
    locked = [_agreement(times, rate, k * cycles / seconds, n) for k in range(1, _HARMONICS + 1)]
    rest, _ = _levelled(values, 0.0, _MOST_STEPS)
    height = max(rest) - min(rest) + max(locked[0], locked[1] / 2) * mean(values)
    return min(height, math.fsum(2 / (math.pi * k) * height * share for k, share in enumerate(locked, 1)))


def _agreement(times: Sequence[float], rate: SensorRate, hz: float, n: int) -> float:
    """How far the phases of the readings agree at a frequency, from 0 (as chance would have it) to 1 (locked)."""
    if rate.held:
        turns = hz * rate.period_s
        off = max(0.0, abs(turns - round(turns)) - hz * rate.unsure_s)
        share = 1.0 if 2 * n * off <= 1.0 else 1.0 / (2 * n * off)
    else:
        share = abs(sum(cmath.exp(2j * math.pi * hz * at_s) for at_s in times)) / len(times)
    chance = 2 / math.sqrt(n)
    return max(0.0, share - chance) / (1 - chance) if chance < 1 else 0.0


# gaps


def gaps(times: Sequence[float], bounds: Tuple[float, float], usual_s: float) -> List[Tuple[float, float]]:
    """Parts of the window in which no reading came for more than four of the usual intervals."""
    begin, end = bounds
    before = [at_s for at_s in times if at_s <= begin]
    after = [at_s for at_s in times if at_s >= end]
    inside = [at_s for at_s in times if begin < at_s < end]
    stops = [before[-1] if before else begin - usual_s, *inside, after[0] if after else end + usual_s]
    return [
        (max(a + usual_s, begin), min(b, end))
        for a, b in zip(stops, stops[1:])
        if b - a > 4 * usual_s and min(b, end) > max(a + usual_s, begin)
    ]


@dataclass(frozen=True)
class MeanPower:
    """Mean watts of a window.

    Attributes:
        watts: The mean.
        error_w: 95% half-widths by cause.
        readings: New values of the sensor in the window.
        gap_s: Seconds without any reading.
    """

    watts: float
    error_w: Dict[str, float]
    readings: int
    gap_s: float

    @property
    def half_w(self) -> float:
        """Half-width of the 95% interval."""
        return together(list(self.error_w.values()))

    def answered(self, seconds: float) -> bool:
        """Whether the sensor was there for enough of a window of so many seconds."""
        return self.gap_s <= MAX_GAP_SHARE * seconds


def net_errors(load: MeanPower, before: MeanPower, after: MeanPower) -> Dict[str, float]:
    """95% half-widths in watts of the load less the mean of the idle windows, by cause.

    Both idle windows see the same step of the sensor, or nearly: their resolution is not averaged out.
    """
    idle = [{**part.error_w, "resolution": 0.0} for part in (before, after)]
    steps = [part.error_w.get("resolution", 0.0) for part in (before, after)]
    return {
        **load.error_w,
        "resolution": of_rails([load.error_w.get("resolution", 0.0), sum(steps) / 2]),
        "idle": together([half for part in idle for half in part.values()]) / 2,
        "idle_drift": abs(after.watts - before.watts) / 2,
    }


def interval(value: float, half: float) -> List[float]:
    """[low, high] about a value."""
    return [value - half, value + half]
