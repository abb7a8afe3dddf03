"""Runs that are looked at, or disturbed, while they go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdedge_agent.run_record import RunRecord
from kdedge_bench.devices import Device
from kdedge_bench.session import Progress, bench


def quick(artifact: Path, device: Device | str, out_dir: Path, **options: Any) -> RunRecord:
    """The shortest run that is one."""
    wishes: dict[str, Any] = {"repetitions": 20, "min_duration_s": 0.0, "power": False, "out_dir": out_dir}
    return bench(artifact, device, **{**wishes, **options})


@contextmanager
def running(
    artifact: Path, device: Device, out_dir: Path, until: str, *, arrive_s: float = 60.0, **options: Any
) -> Iterator[Future[RunRecord]]:
    """A long run in a thread; the block begins when its progress says ``until``, within ``arrive_s`` seconds."""
    reached = threading.Event()
    arrived: list[Progress] = []

    def watch(progress: Progress) -> None:
        if progress.stage == until or progress.text.startswith(until):
            arrived.append(progress)
            reached.set()

    def run() -> RunRecord:
        try:
            return quick(artifact, device, out_dir, **{"min_duration_s": 300.0, "progress": watch, **options})
        finally:
            reached.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        reached.wait(arrive_s)
        if not arrived:
            raise AssertionError(f"the run never came to {until!r}: {future.result(timeout=60)}")
        yield future


def failure(future: Future[RunRecord], seconds: float = 60.0) -> BaseException:
    """How a run ended that could not end well."""
    error = future.exception(timeout=seconds)
    if error is None:
        raise AssertionError("the run ended well")
    return error


def progress_log() -> tuple[list[Progress], Callable[[Progress], None]]:
    """A list, and the function that fills it."""
    seen: list[Progress] = []
    return seen, seen.append
