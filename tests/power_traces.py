"""Synthetic power of known energy, and sensors that look at it as real ones do.

Power is piecewise constant, so that its integral is exact. Nothing here is taken from the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdedge_agent import energy
from kdedge_agent.energy import PowerSample, Windows
from kdedge_agent.power_source import FileSource

Array = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Power:
    """Watts ``watts[i]`` [K] from ``edges_s[i]`` [K+1] on."""

    edges_s: Array
    watts: Array

    def at(self, times_s: Array) -> Array:
        """Watts at moments [N]."""
        index = np.searchsorted(self.edges_s, times_s, side="right") - 1
        return np.asarray(self.watts[np.clip(index, 0, len(self.watts) - 1)])

    def until(self, times_s: Array) -> Array:
        """Joules [N] from the first edge until moments [N]."""
        sums = np.concatenate([[0.0], np.cumsum(self.watts * np.diff(self.edges_s))])
        return np.asarray(np.interp(times_s, self.edges_s, sums))

    def joules(self, bounds: tuple[float, float]) -> float:
        """Of a window."""
        low, high = self.until(np.asarray(bounds))
        return float(high - low)


@dataclass(frozen=True)
class Sensor:
    """How a sensor looks at power.

    Attributes:
        hz: New values a second.
        poll_hz: Readings a second; as many as new values make a sensor that converts when it is asked.
        mean_s: Seconds over which a value is the mean; 0 takes it of an instant.
        noise_w: Standard deviation of its noise.
        likeness: Correlation of the noise of neighbouring values.
        step_w: Its resolution.
        jitter: Readings lie within so much of their period: 1 as the sampler does it, 0 in lockstep.
        counter: A counter of joules, read as the mean watts since the reading before.
    """

    hz: float = 10.0
    poll_hz: float = 10.0
    mean_s: float = 0.0
    noise_w: float = 0.0
    likeness: float = 0.0
    step_w: float = 0.0
    jitter: float = 1.0
    counter: bool = False

    def _noise(self, count: int, rng: Rng) -> Array:
        noise = rng.normal(size=count)
        for i in range(1, count if self.likeness else 0):
            noise[i] = self.likeness * noise[i - 1] + np.sqrt(1 - self.likeness**2) * noise[i]
        return np.asarray(noise * self.noise_w)

    def read(self, power: Power, begin_s: float, end_s: float, seed: int) -> list[PowerSample]:
        """Readings between two moments; of a later end the first are the same."""
        moments_rng, noise_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        first, phase = moments_rng.random(2)
        count = int((end_s - begin_s) * self.poll_hz)
        cells = (np.arange(count) + 0.5 + self.jitter * (moments_rng.random(count) - 0.5)) / self.poll_hz
        times = begin_s + first / self.poll_hz * (1 - self.jitter) + cells
        if self.counter:
            watts = np.diff(power.until(times)) / np.diff(times)
            return [PowerSample(float(t), {"VIN": float(w)}) for t, w in zip(times[1:], watts, strict=True)]
        moments = times
        if self.hz < self.poll_hz:  # a clock of its own, of any phase
            moments = (
                begin_s - 2 / self.hz + phase / self.hz + np.arange(int((end_s - begin_s + 3) * self.hz + 4)) / self.hz
            )
        if self.mean_s:
            values = (power.until(moments) - power.until(moments - self.mean_s)) / self.mean_s
        else:
            values = power.at(moments)
        values = values + self._noise(len(moments), noise_rng)
        if self.step_w:
            values = np.round(values / self.step_w) * self.step_w
        if self.hz < self.poll_hz:
            values = values[np.searchsorted(moments, times, side="right") - 1]
        return [PowerSample(float(t), {"VIN": float(w)}) for t, w in zip(times, values, strict=True)]


@dataclass(frozen=True)
class Trial:
    """A run whose energy is known: source, readings, windows; joules per inference, gross and net of idle."""

    source: FileSource
    samples: list[PowerSample]
    windows: Windows
    gross_j: float
    net_j: float


Load = Callable[[Array, float, float, Rng], Array]
"""Watts at moments [N] after the load began, of a window of so many seconds, of inferences of so many seconds."""


def constant(times_s: Array, window_s: float, inference_s: float, rng: Rng) -> Array:
    """A level."""
    return np.full(len(times_s), rng.uniform(3.0, 8.0))


def steps(times_s: Array, window_s: float, inference_s: float, rng: Rng) -> Array:
    """One to three changes of level, as by a governor or by throttling."""
    levels = rng.uniform(3.0, 8.0, 4)
    at = np.sort(rng.uniform(0.0, window_s, rng.integers(1, 4)))
    return np.asarray(levels[np.searchsorted(at, times_s)])


def warming(times_s: Array, window_s: float, inference_s: float, rng: Rng) -> Array:
    """A level that creeps up as leakage does, by up to 6%."""
    tau_s = window_s * rng.uniform(0.2, 1.0)
    return np.asarray(rng.uniform(3.0, 8.0) * (1 - rng.uniform(0.0, 0.06) * np.exp(-times_s / tau_s)))


def bursts(jitter: float = 0.02, swing_w: float = 1.5) -> Load:
    """Low for a part of each inference, higher by about ``swing_w`` for the rest; durations scatter by ``jitter``."""

    def load(times_s: Array, window_s: float, inference_s: float, rng: Rng) -> Array:
        duty, low_w, more_w = rng.uniform(0.3, 0.7), rng.uniform(3.0, 5.0), swing_w * rng.uniform(0.5, 1.5)
        begin_s, span_s = float(times_s[0]), float(times_s[-1] - times_s[0])
        first = rng.random()
        lengths = inference_s * np.maximum(0.2, 1 + jitter * rng.normal(size=int(1.1 * span_s / inference_s) + 50))
        ends = begin_s + np.cumsum(lengths) - first * lengths[0]
        index = np.minimum(np.searchsorted(ends, times_s, side="right"), len(ends) - 1)
        share = 1 - (ends[index] - times_s) / lengths[index]
        return np.where(share < duty, low_w + more_w, low_w)

    return load


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    Attributes:
        load: Its power under load.
        sensor: What looks at it.
        idle_drift_w: Idle power ends within so much of where it began.
        inference_s: Seconds of an inference; None takes any from 3 to 30 ms.
        declared_s: Period that the source declares; None: that of its polling.
    """

    load: Load
    sensor: Sensor
    idle_drift_w: float = 0.0
    inference_s: float | None = None
    declared_s: float | None = None

    def trial(self, rng: Rng) -> Trial:
        """One run of the kind; its load window is as long as the agent would make it."""
        sensor, per_s = self.sensor, 1 / self.sensor.hz
        inference_s = self.inference_s or float(np.exp(rng.uniform(np.log(3e-3), np.log(3e-2))))
        settle_s, idle_s = energy.settle_s(per_s), energy.window_s(0.0, per_s, energy.MIN_IDLE_PERIODS)
        window_s = energy.window_s(0.0, per_s)
        before = (1.0 + settle_s, 1.0 + settle_s + idle_s)
        begin_s = before[1] + settle_s
        idle_0_w, idle_more_w = rng.uniform(1.8, 2.4), self.idle_drift_w * rng.uniform(-1, 1)
        load_seed, sensor_seed = (int(seed) for seed in rng.integers(2**32, size=2))
        source = FileSource("synthetic", self.declared_s or 1 / sensor.poll_hz, {"VIN": lambda: 0.0}, ["VIN"], "all")
        source.averages = sensor.counter
        for _ in range(2):  # a longer window sees what the shorter one saw, and more
            window = (begin_s, begin_s + np.ceil(window_s / inference_s) * inference_s)
            off_s = window[1] + settle_s
            after = (off_s + settle_s, off_s + settle_s + idle_s)
            span_s = after[1] + 2 * per_s
            edges = np.arange(0.0, span_s, min(1e-2, inference_s / 8 if self.grows else 1.0))
            middle = (edges[1:] + edges[:-1]) / 2
            idle_w = idle_0_w + idle_more_w * middle / span_s
            under = self.load(middle - begin_s, window_s, inference_s, np.random.default_rng(load_seed))
            power = Power(edges, np.where((middle >= before[1]) & (middle < off_s), under, idle_w))
            samples = sensor.read(power, 0.5, span_s, sensor_seed)
            if not self.grows:
                break
            window_s = energy.wanted_s(source, [s for s in samples if s.at_s <= window[1]], window)
        count = round((window[1] - window[0]) / inference_s)
        gross_j = power.joules(window)
        net_j = gross_j - Power(edges, idle_w).joules(window)
        return Trial(source, samples, Windows(before, window, after, count), gross_j / count, net_j / count)

    @property
    def grows(self) -> bool:
        """Whether the window grows until the interval is narrow: left out where it cannot matter, to save time."""
        return "bursts" in self.load.__qualname__


_PLAIN = Sensor(noise_w=0.05)

KINDS: dict[str, Kind] = {
    "constant": Kind(constant, _PLAIN),
    "constant, no noise": Kind(constant, Sensor()),
    "steps": Kind(steps, _PLAIN),
    "warming load": Kind(warming, _PLAIN),
    "bursts": Kind(bursts(), _PLAIN),
    "strong bursts": Kind(bursts(swing_w=3.0), _PLAIN),
    "bursts in step with the sensor": Kind(bursts(0.0), _PLAIN, inference_s=0.01),
    "noise": Kind(constant, Sensor(noise_w=0.15)),
    "noise, neighbours alike": Kind(constant, Sensor(noise_w=0.05, likeness=0.6)),
    "sensor of 1 Hz, held": Kind(warming, Sensor(hz=1.0, noise_w=0.05)),
    "sensor of 3 Hz, mean, held": Kind(steps, Sensor(hz=3.0, poll_hz=20.0, mean_s=1 / 3, noise_w=0.03)),
    "sensor of 10 Hz, mean": Kind(bursts(), Sensor(mean_s=0.1, noise_w=0.03)),
    "sensor of 30 Hz": Kind(steps, Sensor(hz=30.0, poll_hz=30.0, noise_w=0.05)),
    "sensor of 100 Hz": Kind(bursts(), Sensor(hz=100.0, poll_hz=100.0, noise_w=0.05)),
    "counter": Kind(bursts(), Sensor(poll_hz=20.0, hz=20.0, jitter=0.1, counter=True)),
    "readings in lockstep": Kind(bursts(), replace(_PLAIN, jitter=0.0)),
    "drifting idle": Kind(constant, _PLAIN, idle_drift_w=0.3),
    "steps of 20 mW": Kind(constant, Sensor(step_w=0.02)),
    "steps of 100 mW, noise": Kind(warming, Sensor(step_w=0.1, noise_w=0.06)),
}
"""What the estimator must be right about within 1%, and within its interval."""

LOCKED: dict[str, Kind] = {
    "readings and bursts in lockstep": Kind(bursts(0.0, 3.0), replace(_PLAIN, jitter=0.0), inference_s=0.01),
    "bursts in step with a held sensor": Kind(
        bursts(0.0), Sensor(hz=2.0, poll_hz=10.0, noise_w=0.02), inference_s=0.05
    ),
}
"""What no readings can tell: the interval must say so."""
