"""Jobs on several devices: in parallel and bounded, in order on each, every one with its own end."""

from __future__ import annotations

import os
import queue
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kdedge.errors import CheckError, DeviceError, UnreachableError, UserError

from kdedge_bench import waiting
from kdedge_bench.devices import Device
from kdedge_bench.fleet import Job, Outcome, run_jobs
from kdedge_bench.session import OnProgress, Progress


class Log:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []

    def began(self, number: int) -> None:
        self.lines.append(("began", number))

    def told(self, number: int, progress: Progress) -> None:
        self.lines.append((progress.text, number))

    def ended(self, number: int, outcome: Outcome[Any]) -> None:
        self.lines.append(("ended", number))


def job(device: str, do: Callable[[OnProgress], Any]) -> Job[Any]:
    return Job(Device(device, "pi@host"), do)


def failing(error: Exception) -> Callable[[OnProgress], Any]:
    def do(_: OnProgress) -> Any:
        raise error

    return do


def telling(result: int) -> Callable[[OnProgress], Any]:
    def do(tell: OnProgress) -> int:
        tell(Progress("measure", None, "half"))
        return result

    return do


def test_outcomes_come_in_the_order_of_the_jobs_and_those_of_a_device_one_after_the_other() -> None:
    log = Log()
    jobs = [job(name, telling(number)) for number, name in enumerate("abab")]
    assert [outcome.result for outcome in run_jobs(jobs, log)] == [0, 1, 2, 3]
    for first, second in ((0, 2), (1, 3)):
        mine = [line for line in log.lines if line[1] in (first, second)]
        assert mine == [(word, number) for number in (first, second) for word in ("began", "half", "ended")]


def test_devices_at_once_are_bounded() -> None:
    """Three can wait for each other, so that three do run at once; a fourth never joins them."""
    together = threading.Barrier(3)
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def do(_: OnProgress) -> int:
        with lock:
            running.append(1)
            most.append(len(running))
        together.wait(60)
        with lock:
            running.pop()
        return 1

    outcomes = run_jobs([job(f"d{n}", do) for n in range(6)], Log(), at_once=3)
    assert all(outcome.result == 1 for outcome in outcomes)
    assert max(most) <= 3


def test_a_failure_is_its_own_jobs_alone() -> None:
    broken, refused = DeviceError("it broke"), UserError("no such governor")
    outcomes = run_jobs(
        [job("a", failing(broken)), job("a", lambda _: 1), job("b", failing(refused)), job("b", lambda _: 2)], Log()
    )
    assert [(outcome.result, outcome.error) for outcome in outcomes] == [
        (None, broken), (1, None), (None, refused), (2, None),
    ]  # fmt: skip


def test_a_device_out_of_reach_is_tried_once() -> None:
    away = UnreachableError("nobody there")
    tried: list[int] = []
    log = Log()
    outcomes = run_jobs(
        [job("a", failing(away)), *(job("a", lambda _: tried.append(1)) for _ in range(3)), job("b", lambda _: 1)], log
    )
    assert [outcome.error for outcome in outcomes] == [away] * 4 + [None]
    assert tried == []
    assert sorted(number for word, number in log.lines if word == "ended") == [0, 1, 2, 3, 4]


def test_a_fault_of_kdedge_is_one_line() -> None:
    outcomes = run_jobs([job("a", failing(RuntimeError("two\nlines"))), job("b", lambda _: 1)], Log())
    error = outcomes[0].error
    assert isinstance(error, CheckError) and "RuntimeError: two lines" in str(error) and error.where == "a"
    assert outcomes[1].result == 1


class Deaf:
    """A watch whose screen is gone: a pipe to ``head``, closed in the midst."""

    def began(self, number: int) -> None:
        raise BrokenPipeError

    def told(self, number: int, progress: Progress) -> None:
        raise BrokenPipeError

    def ended(self, number: int, outcome: Outcome[Any]) -> None:
        raise ValueError("I/O operation on closed file")


def test_a_watch_that_can_show_nothing_ends_no_job() -> None:
    jobs = [job(name, telling(number)) for number, name in enumerate("aaab")]
    assert [outcome.result for outcome in run_jobs(jobs, Deaf())] == [0, 1, 2, 3]


def test_ctrl_c_ends_what_runs_and_leaves_the_rest_open() -> None:
    """Each device's first job is done, its second waits for what never comes, its third never begins."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    arrived = threading.Barrier(3, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    tidied: list[str] = []
    begun: list[int] = []

    def wait(_: OnProgress) -> None:
        try:
            arrived.wait(60)
            waiting.get(queue.Queue(), 600)
        finally:
            with pytest.raises(queue.Empty):  # tidying up may wait
                waiting.get(queue.Queue(), 0.01)
            tidied.append("yes")

    try:
        jobs = [job(name, do) for name in "abc" for do in (telling(1), wait, lambda _: begun.append(1))]
        outcomes = run_jobs(jobs, Log())
    finally:
        signal.signal(signal.SIGINT, before)
    assert [outcome.result for outcome in outcomes] == [1, None, None] * 3
    assert [outcome.is_open for outcome in outcomes] == [False, True, True] * 3
    assert tidied == ["yes"] * 3 and begun == []


def test_waits_without_a_stop_are_plain_ones() -> None:
    assert list(waiting.slices(3.0)) == [3.0]
    with socket.socket() as silent, selectors.DefaultSelector() as selector:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        selector.register(silent, selectors.EVENT_READ)
        assert waiting.select(selector, 0.01) == []
        with socket.create_connection(silent.getsockname()):
            assert waiting.select(selector, 60)


def test_a_stop_ends_a_wait_once() -> None:
    stop = threading.Event()
    with waiting.stoppable(stop):
        assert sum(waiting.slices(0.5)) > 0.5 - 1e-6
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            list(waiting.slices(600))
        assert list(waiting.slices(1.0)) == [1.0]
    assert list(waiting.slices(2.0)) == [2.0]
