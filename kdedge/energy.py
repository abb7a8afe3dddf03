"""Joules of a training run, with the method that measured them, or the reason why there are none.

Zeus reads the counters: NVML for NVIDIA GPUs, RAPL for CPUs (readable by root only since CVE-2020-8694).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Energy:
    """Energy of one window.

    Attributes:
        energy_j: Joules of all devices read, None where none could be.
        sources: The counters that were read, such as ``cpu-0 (RAPL)``.
        reason: Why there is no figure.
    """

    energy_j: float | None
    sources: tuple[str, ...] = ()
    reason: str | None = None


class EnergyMeter:
    """Windows of energy, one at a time, over whatever counters this machine lets us read."""

    def __init__(self) -> None:
        self._monitor: Any = None
        self.sources: tuple[str, ...] = ()
        self.reason: str | None = None
        zeus_log = logging.getLogger("zeus")
        level = zeus_log.level
        zeus_log.setLevel(logging.CRITICAL)  # that there is no counter is said once, by us, with the reason
        try:
            from zeus.monitor import ZeusMonitor

            monitor = ZeusMonitor(approx_instant_energy=True)
        except Exception as error:  # a missing driver shows as many kinds of error across Zeus's back ends
            self.reason = f"no energy counter: {type(error).__name__}: {error}"
        else:
            gpus = [f"gpu-{index} (NVML)" for index in monitor.gpu_indices]
            cpus = [f"cpu-{index} (RAPL)" for index in monitor.cpu_indices]
            self.sources = (*gpus, *cpus)
            if self.sources:
                self._monitor = monitor
            else:
                self.reason = (
                    "no energy counter on this machine: no NVIDIA GPU (NVML), and no readable CPU counter "
                    "(RAPL under /sys/class/powercap, which only root may read)"
                )
        finally:
            zeus_log.setLevel(level)

    def begin(self, window: str) -> None:
        """Start a window."""
        if self._monitor is not None:
            self._monitor.begin_window(window)

    def end(self, window: str) -> Energy:
        """End a window and read it."""
        if self._monitor is None:
            return Energy(None, (), self.reason)
        measured = self._monitor.end_window(window)
        joules = sum(measured.gpu_energy.values()) + sum((measured.cpu_energy or {}).values())
        return Energy(float(joules), self.sources)
