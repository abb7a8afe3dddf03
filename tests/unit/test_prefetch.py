from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from kdedge.prefetch import prefetch


def left_over() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kdedge-prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert left_over() == []


def slow_for_even(number: int) -> int:
    time.sleep(0.02 if number % 2 == 0 else 0)
    return number * 10


@pytest.mark.parametrize(("workers", "depth"), [(1, 0), (1, 2), (3, 2), (3, 8), (2, 100)])
def test_results_come_in_order(workers: int, depth: int) -> None:
    found = list(prefetch(range(12), slow_for_even, workers=workers, depth=depth))
    assert found == [number * 10 for number in range(12)]


def test_nothing_to_do() -> None:
    assert list(prefetch([], slow_for_even, workers=2, depth=2)) == []


def test_batches_are_taken_no_sooner_than_needed() -> None:
    taken = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    for result in prefetch(endless(), slow_for_even, workers=2, depth=3):
        assert len(taken) <= result / 10 + 1 + 3
        if result == 200:
            break
    assert left_over() == []


class Result:
    """Something whose life can be watched."""


def test_no_more_results_are_alive_than_the_depth_allows() -> None:
    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    counts = []

    def decode(number: int) -> Result:
        result = Result()
        alive.add(result)
        counts.append(len(alive))
        return result

    for _ in prefetch(range(50), decode, workers=2, depth=4):
        time.sleep(0.002)  # so that the workers could run ahead
        counts.append(len(alive))
    assert 4 <= max(counts) <= 4 + 2


def test_workers_are_busy_while_a_result_is_in_use() -> None:
    begun = threading.Event()

    def decode(number: int) -> int:
        if number == 1:
            begun.set()
        return number

    stream = prefetch(range(3), decode, workers=1, depth=1)
    assert next(stream) == 0
    assert begun.wait(5)
    stream.close()


def test_an_error_comes_in_its_batchs_turn() -> None:
    def decode(number: int) -> int:
        if number == 3:
            raise ValueError("batch 3")
        return number

    stream = prefetch(range(1000), decode, workers=2, depth=4)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="batch 3"):
        next(stream)
    assert left_over() == []


def test_an_error_of_whoever_uses_the_results_leaves_no_thread() -> None:
    def use() -> None:
        for result in prefetch(itertools.count(), slow_for_even, workers=2, depth=4):
            if result == 30:
                raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError, match="not finite") as caught:
        use()
    assert left_over() == []  # though the traceback still holds the frame of the loop
    del caught


def test_ctrl_c_while_a_result_is_waited_for_leaves_no_thread() -> None:
    waiting = threading.Event()

    def decode(number: int) -> int:
        if number == 2:
            waiting.set()
            time.sleep(0.5)
        return number

    def press() -> None:
        waiting.wait(5)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    begun = []

    def noted(number: int) -> int:
        begun.append(number)
        return decode(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in prefetch(range(1000), noted, workers=1, depth=4):
                pass
    finally:
        signal.signal(signal.SIGINT, before)
    finger.join()
    assert left_over() == []
    assert max(begun) == 2
