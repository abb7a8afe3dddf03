"""Seconds and joules of a run add up: every process, every stage, and no other run's."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kdedge.distillation import DistillResult, distill
from kdedge.energy import EnergyMeter
from kdedge.progress import Silent
from kdedge.ranks import Ranks
from kdedge.recipe_file import load_recipe
from kdedge.run_figures import run_figures
from kdedge.teacher_cache import build, memory
from kdedge.teacher_cache.build import Built
from kdedge.teacher_cache.layout import BATCH_SAMPLES

RECIPE = [
    "teacher.training.epochs=1", "student.training.epochs=2", "qat.training.epochs=0", "distillation.cached_views=2",
]  # fmt: skip
SHARED = [*RECIPE, "distillation.cache=shared"]
COUNTER = "cpu-0 (a counter of the test)"


class Counter:
    """Another joule for every window."""

    def __init__(self) -> None:
        self._windows = itertools.count(1)

    def begin_window(self, name: str) -> None:
        """Nothing to keep."""

    def end_window(self, name: str) -> Any:
        """As Zeus says it."""
        return SimpleNamespace(gpu_energy={}, cpu_energy={0: float(next(self._windows))})


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: EnergyMeter) -> None:
        self._monitor, self.sources, self.reason = Counter(), (COUNTER,), None

    monkeypatch.setattr(EnergyMeter, "__init__", begin)


def run(folder: Path, *settings: str, **options: Any) -> DistillResult:
    recipe = load_recipe("vectors-mlp", [*SHARED, *settings])
    return distill(recipe, out=folder / options.pop("out", "run"), cache_dir=folder / "caches", **options)


@pytest.mark.usefixtures("metered")
def test_a_cache_that_was_built_in_two_goes_has_no_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, batches = build._Work._logits, itertools.count(1)

    def killed(self: Any, *args: Any) -> torch.Tensor:
        if next(batches) * BATCH_SAMPLES > self.cache.layout.samples + BATCH_SAMPLES:  # in its second view
            raise KeyboardInterrupt
        return logits(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build._Work, "_logits", killed)
        run(tmp_path)
    result = run(tmp_path, resume=True)
    assert result.energy_j["cache"] is None
    assert result.energy_j["total"] is None
    assert "a part of the cache was there" in result.unmeasured["energy_j.cache"]
    assert result.energy_j["student"] is not None
    assert result.time_s["total"] == sum(seconds for stage, seconds in result.time_s.items() if stage != "total")


@pytest.mark.usefixtures("metered")
def test_what_another_run_spent_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    assert list(first.energy_j) == ["teacher", "cache", "student", "total"]
    assert first.energy_j["total"] == sum((1.0, 2.0, 3.0))
    assert first.bundle.manifest["energy_sources"] == [COUNTER]
    assert first.bundle.manifest["reused"] == {}

    second = run(tmp_path, "student.training.learning_rate=0.01", out="second", reuse=tmp_path / "run")
    assert second.energy_j == {"student": 2.0, "total": 2.0}  # the second window: the first looked at the cache
    assert second.time_s["total"] == second.time_s["student"]
    (taken,) = second.bundle.manifest["reused"].items()
    assert taken[0] == "teacher"
    assert taken[1]["from"] == str(tmp_path / "run")
    assert (taken[1]["time_s"], taken[1]["energy_j"]) == (first.time_s["teacher"], 1.0)

    def none(self: EnergyMeter) -> None:
        self._monitor, self.sources, self.reason = None, (), "no counter here"

    monkeypatch.setattr(EnergyMeter, "__init__", none)
    again = run(tmp_path, resume=True)
    assert again.energy_j == first.energy_j
    assert again.bundle.manifest["energy_sources"] == [COUNTER]


@pytest.mark.usefixtures("metered")
def test_a_shard_that_is_built_again_is_added(tmp_path: Path) -> None:
    first = run(tmp_path)
    (view,) = (tmp_path / "caches").rglob("view-001.safetensors")
    view.write_bytes(view.read_bytes()[:-1] + b"x")
    (tmp_path / "run" / "checkpoints" / "student.safetensors").unlink()
    again = run(tmp_path, resume=True)
    assert first.energy_j["cache"] == 2.0
    assert again.energy_j["cache"] == 2.0 + 1.0
    assert again.time_s["cache"] > first.time_s["cache"]


class Two(Ranks):
    """The first of two ranks; what the other one says is known."""

    other = torch.tensor([[0.0, 4.0, 2.5]], dtype=torch.float64)

    def rows(self, mine: torch.Tensor) -> torch.Tensor:
        """Both."""
        return torch.cat([mine, self.other])


def test_a_cache_counts_whichever_rank_built_it() -> None:
    late = Built(views=2, found_shards=4, built_shards=0, time_s=0.1)
    assert late.by_all(Two()) == Built(views=2, found_shards=0, built_shards=4, time_s=2.5)
    assert late.by_all(Ranks()) == late


def test_a_stage_of_unknown_joules_says_why_and_others_do_not() -> None:
    known: dict[str, Any] = {"time_s": 2.0, "energy_j": 30.0, "energy_reason": None, "energy_sources": [COUNTER]}
    unknown: dict[str, Any] = {"time_s": 3.0, "energy_j": None, "energy_reason": "no counter", "energy_sources": []}
    figures = run_figures({"teacher": {**unknown, "reused_from": "runs/a"}, "student": known})
    assert figures["energy_j"] == {"student": 30.0, "total": 30.0}
    assert figures["unmeasured"] == {}
    assert figures["reused"]["teacher"]["energy_reason"] == "no counter"
    assert run_figures({"student": known, "qat": unknown})["unmeasured"]["energy_j.total"] == "no counter"


def test_a_note_on_memory_counts_the_views_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Said(Silent):
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    monkeypatch.setattr(memory, "NOTED_BYTES", 1)
    recipe = load_recipe("vectors-mlp", [*RECIPE, "distillation.cached_views=50"])
    distill(recipe, out=tmp_path / "run", progress=Said())
    (note,) = [line for line in Said.lines if "of memory" in line]
    assert "the teacher's logits of 2 views take" in note
