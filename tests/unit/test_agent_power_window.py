"""The window that power is measured in: as long as its sensor needs, however the readings come."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kdedge_agent import power_window
from kdedge_agent.energy import MIN_PERIODS, Sampler, Windows, account
from kdedge_agent.power_source import FileSource
from kdedge_agent.run_request import RunRequest

LATE_S = 0.3
"""How long the worker takes until it begins: a busy board."""


class Worker:
    """Says what a worker says that infers once a millisecond."""

    def __init__(self) -> None:
        self.begin_s = 0.0
        self.said: list[dict[str, Any]] = []

    def send(self, command: dict[str, Any]) -> None:
        if command["type"] == "load":
            self.begin_s = time.monotonic() + command["settle_s"] + LATE_S
            self.said.append({"type": "loading", "begin_s": self.begin_s})
        else:
            end_s = time.monotonic()
            count = round((end_s - self.begin_s) * 1000)
            self.said.append(
                {"type": "loaded", "inferences": count, "batch": 1, "begin_s": self.begin_s, "end_s": end_s}
            )


class Desk:
    """The session's side of a worker."""

    def __init__(self) -> None:
        self.worker = Worker()

    def progress(self, *_: Any) -> None:
        pass

    def worker_says(self, timeout_s: float) -> dict[str, Any] | None:
        if self.worker.said and (self.worker.said[0]["type"] == "loaded" or time.monotonic() >= self.worker.begin_s):
            return self.worker.said.pop(0)
        time.sleep(min(timeout_s, 0.01))
        return None


def measured(source: FileSource) -> dict[str, Any]:
    sampler = Sampler(source)
    sampler.start()
    try:
        asked = RunRequest("net.onnx", "0" * 64, "onnx", power_window_s=0.5, idle_s=0.1)
        windows: Windows = power_window._windows(Desk(), asked, source, sampler)  # type: ignore[arg-type]
    finally:
        samples = sampler.stop()
    return account(source, samples, windows)


def test_a_window_has_a_hundred_periods_of_a_sensor_that_is_read_in_time() -> None:
    power = measured(FileSource("steady", 0.02, {"VIN": lambda: 5.0}, ["VIN"], "all"))
    assert power["sensor_periods"] >= MIN_PERIODS
    assert power["window_s"] == pytest.approx(2.04, abs=0.2), "and not many more"


def test_a_window_has_a_hundred_periods_of_a_sensor_that_answers_later_and_later() -> None:
    began = time.monotonic()

    def read() -> float:
        time.sleep(min(max(0.02, 0.01 * (time.monotonic() - began + 1)), 0.03))
        return 5.0

    power = measured(FileSource("slow", 0.02, {"VIN": read}, ["VIN"], "all"))
    assert power["sensor_period_s"] >= 0.03
    assert power["sensor_periods"] >= MIN_PERIODS
