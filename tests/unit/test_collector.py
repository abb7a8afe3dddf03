from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from kdedge.collector import few_collections


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_rarer_inside_and_as_before_afterwards() -> None:
    gc.set_threshold(700, 11, 12)
    with few_collections():
        assert gc.get_threshold() == (50_000, 11, 12)
    assert gc.get_threshold() == (700, 11, 12)


def test_as_before_after_an_error_too() -> None:
    gc.set_threshold(700, 11, 12)
    with pytest.raises(ZeroDivisionError), few_collections():
        raise ZeroDivisionError
    assert gc.get_threshold() == (700, 11, 12)


@pytest.mark.parametrize("threshold", [0, 90_000], ids=["off", "rarer"])
def test_what_its_user_chose_is_not_made_more_frequent(threshold: int) -> None:
    gc.set_threshold(threshold, 11, 12)
    with few_collections():
        assert gc.get_threshold() == (threshold, 11, 12)


def test_as_a_decorator_it_serves_every_call() -> None:
    gc.set_threshold(700, 11, 12)
    inside = few_collections()(gc.get_threshold)
    assert [inside(), inside()] == [(50_000, 11, 12)] * 2
    assert gc.get_threshold() == (700, 11, 12)
