"""Jobs on several devices at once, those of one device one after the other; each ends with an outcome of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kdedge.errors import CheckError, KdedgeError, UnreachableError

from kdedge_bench import waiting
from kdedge_bench.devices import Device
from kdedge_bench.session import OnProgress, Progress
from kdedge_bench.text import one_line

AT_ONCE = 8
"""Devices at a time, unless told otherwise: this machine has a connection to hold and a file to send for each."""
_GLANCE_S = 0.1

R = TypeVar("R")


@dataclass(frozen=True)
class Job(Generic[R]):
    """One thing to do on one device.

    Attributes:
        device: Which.
        do: Does it, in a thread, and tells how far it is.
    """

    device: Device
    do: Callable[[OnProgress], R]


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """How a job ended: with a result or an error; with neither where it was stopped, or never begun."""

    result: R | None = None
    error: KdedgeError | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was stopped, or never begun."""
        return self.result is None and self.error is None


class Watch(Protocol):
    """Told what happens, one call at a time, from the threads of the devices; ``number`` is the job's place."""

    def began(self, number: int) -> None:
        """A job begins."""

    def told(self, number: int, progress: Progress) -> None:
        """How far it is."""

    def ended(self, number: int, outcome: Outcome[Any]) -> None:
        """It is done, or has failed; not called of one that was stopped."""


def run_jobs(jobs: Sequence[Job[R]], watch: Watch, *, at_once: int = AT_ONCE) -> list[Outcome[R]]:
    """Do every job, on at most ``at_once`` devices at a time.

    A failure ends its own job alone; of a device that cannot be reached the jobs that are left fail with the same
    error, untried. Ctrl-C ends what runs as it would end a single run, and leaves the rest open; a second one does not
    wait for that.

    Args:
        jobs: Those of one device are done in this order. A result of None counts as none.
        watch: Told what happens.
        at_once: Devices at a time.

    Returns:
        An outcome for each job, in the order of ``jobs``.
    """
    crew = _Crew(jobs, watch)
    by_device: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        by_device.setdefault(job.device.name, []).append(number)
    waiting_devices = deque(by_device.values())
    # Daemons, so that a second Ctrl-C can leave: the connections end with this process, and the agents with them.
    threads = [
        threading.Thread(target=crew.work, args=(waiting_devices,), name=f"fleet-{number}", daemon=True)
        for number in range(min(at_once, len(by_device)))
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(threads)
    except KeyboardInterrupt:
        crew.stop.set()
        _wait(threads)
    return crew.outcomes


class _Crew(Generic[R]):
    """What the threads share: the jobs, their outcomes, the word to stop."""

    def __init__(self, jobs: Sequence[Job[R]], watch: Watch) -> None:
        self.jobs = jobs
        self.outcomes: list[Outcome[R]] = [Outcome() for _ in jobs]
        self.stop = threading.Event()
        self._watch = watch
        self._watching = threading.Lock()

    def work(self, devices: deque[list[int]]) -> None:
        """Take one device after the other, until none is left."""
        while devices and not self.stop.is_set():
            try:
                numbers = devices.popleft()
            except IndexError:  # another thread was faster
                return
            self._on_device(numbers)

    def _on_device(self, numbers: list[int]) -> None:
        away: UnreachableError | None = None
        for number in numbers:
            if self.stop.is_set():
                return
            if away is None:
                outcome = self._done(number)
                away = outcome.error if isinstance(outcome.error, UnreachableError) else None
            else:
                outcome = Outcome(error=away)
            if outcome.is_open:
                return
            self.outcomes[number] = outcome
            self._say(self._watch.ended, number, outcome)

    def _done(self, number: int) -> Outcome[R]:
        job = self.jobs[number]
        self._say(self._watch.began, number)
        try:
            with waiting.stoppable(self.stop):
                return Outcome(job.do(lambda progress: self._say(self._watch.told, number, progress)))
        except KeyboardInterrupt:
            return Outcome()
        except KdedgeError as error:
            return Outcome(error=error)
        except Exception as error:  # a fault of kdedge ends one job, and not those of the other devices
            said = f"{type(error).__name__}: {one_line(str(error), 200)}"
            cure = "This is a fault of kdedge; alone, the job shows where"
            return Outcome(error=CheckError(f"it broke off: {said}", where=job.device.name, cure=cure))

    def _say(self, tell: Callable[..., None], *words: object) -> None:
        """Tell the watch; one that can show nothing any more (its screen was a pipe to ``head``) ends no job."""
        with self._watching, suppress(OSError, ValueError):  # ValueError: of a closed file
            tell(*words)


def _wait(threads: Sequence[threading.Thread]) -> None:
    """Until all have ended; a short sleep at a time, out of which Ctrl-C calls at once."""
    while any(thread.is_alive() for thread in threads):
        time.sleep(_GLANCE_S)
