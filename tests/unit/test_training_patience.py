from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from kdedge.training.checkpoint import load_checkpoint, save_checkpoint
from kdedge.training.patience import Patience
from torch import nn

FIGURES = [0.5, 0.7, 0.7, 0.6, 0.8, 0.75, 0.8, 0.79, 0.9]


def marked(value: float) -> nn.Module:
    """A net whose weights tell the epoch that it stands for."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        net.get_parameter("0.weight").fill_(value)
    return net


def weight(state: dict[str, torch.Tensor] | None) -> float:
    assert state is not None
    return float(state["0.weight"][0, 0])


@pytest.mark.parametrize(("patience", "stops", "best"), [(1, 3, 2), (2, 4, 2), (3, 8, 5), (4, None, 9)])
def test_it_stops_after_so_many_epochs_without_a_better_figure(patience: int, stops: int | None, best: int) -> None:
    watch = Patience(patience)
    stopped = None
    for epoch, figure in enumerate(FIGURES, start=1):
        if watch.update(epoch, figure, marked(epoch)):
            stopped = epoch
            break
    assert stopped == stops
    assert watch.best_epoch == best
    assert watch.best_value == FIGURES[best - 1]
    assert weight(watch.best_state()) == best


def test_off_it_never_stops_and_keeps_nothing() -> None:
    watch = Patience(None)
    assert not any(watch.update(epoch, 0.0, marked(0)) for epoch in range(100))
    assert watch.best_state() is None


def test_the_best_weights_are_a_copy_that_training_cannot_reach() -> None:
    watch, net = Patience(3), marked(1)
    watch.update(1, 0.5, net)
    with torch.no_grad():
        net.get_parameter("0.weight").fill_(7)
    assert weight(watch.best_state()) == 1
    state = watch.best_state()
    assert state is not None
    net.load_state_dict(state)
    assert weight(net.state_dict()) == 1


def test_a_figure_that_is_no_number_is_no_improvement() -> None:
    watch = Patience(2)
    assert [watch.update(e, f, marked(e)) for e, f in enumerate([0.1, math.nan, math.nan], 1)] == [False, False, True]
    assert watch.best_epoch == 1


@pytest.mark.parametrize("broken", range(len(FIGURES)))
def test_a_run_that_goes_on_stops_where_it_would_have(broken: int, tmp_path: Path) -> None:
    def run(watch: Patience, first: int, last: int) -> int | None:
        for epoch in range(first, last):
            if watch.update(epoch, FIGURES[epoch - 1], marked(epoch)):
                return epoch
        return None

    whole = Patience(3)
    expected = run(whole, 1, len(FIGURES) + 1)
    before = Patience(3)
    stopped = run(before, 1, broken + 1)
    save_checkpoint(tmp_path / "s.pt", {"patience": before.state_dict()})
    state = load_checkpoint(tmp_path / "s.pt")
    assert state is not None
    again = Patience(3)
    again.load_state_dict(state["patience"])
    # The figure of the last epoch may be owed or be taken in twice: the checkpoint can be older than its log line.
    stopped = stopped or run(again, max(1, broken), len(FIGURES) + 1)
    assert stopped == expected
    assert again.best_epoch == whole.best_epoch
    assert weight(again.best_state()) == weight(whole.best_state())
