"""A teacher that is trained in generations: each follows the one before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from kdedge.errors import RecipeError
from kdedge.files import read_json, sha256_file, write_json
from kdedge.recipe_file import load_recipe
from kdedge.run_figures import together
from tests.unit.test_assistant import NETS, StopsIn
from tests.unit.test_reuse import finished, reused, run

TWO, THREE = "teacher.generations=2", "teacher.generations=3"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generations") / "run"
    run(out, TWO)
    return out


def hashes(out: Path) -> list[str]:
    paths = [out / "teacher" / "teacher.safetensors", *(out / "bundle" / name for name in NETS)]
    return [sha256_file(path) for path in paths]


def test_the_second_generation_teaches(two: Path) -> None:
    stages = finished(two)
    assert list(stages) == ["teacher_1", "teacher", "student", "qat"]
    first, last = two / "checkpoints" / "teacher_1.safetensors", two / "teacher" / "teacher.safetensors"
    assert sha256_file(first) != sha256_file(last)
    manifest = read_json(two / "bundle" / "manifest.json")
    assert manifest["metrics"]["teacher"] == stages["teacher"]["metrics"] != stages["teacher_1"]["metrics"]
    assert "teacher_1" not in manifest["time_s"]
    assert manifest["time_s"]["teacher"] > stages["teacher_1"]["spent"]["time_s"] > 0


def test_it_follows_the_generation_before_and_not_labels_alone(two: Path, tmp_path: Path) -> None:
    # What it follows is a key of the second generation's, not of the first's.
    run(tmp_path / "run", TWO, "distillation.alpha=0.9", reuse=two)
    assert reused(tmp_path / "run") == {"teacher_1"}
    assert hashes(tmp_path / "run")[0] != hashes(two)[0]


@pytest.mark.parametrize(("stage", "before"), [("teacher_1", []), ("teacher", ["teacher_1"])])
def test_stopped_in_a_generation_it_goes_on_to_the_same_nets(
    two: Path, tmp_path: Path, stage: str, before: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", TWO, progress=StopsIn(stage, 5))
    assert list(finished(tmp_path / "run")) == before
    run(tmp_path / "run", TWO, resume=True)
    assert hashes(tmp_path / "run") == hashes(two)


def test_a_third_generation_goes_on_from_the_second(two: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(two, tmp_path / "other"))
    state = read_json(other / "state.json")
    state["finished"]["teacher_1"]["spent"]["time_s"] = 1e6
    write_json(other / "state.json", state)
    run(tmp_path / "run", THREE, reuse=other)
    assert reused(tmp_path / "run") == {"teacher_1"}
    manifest = read_json(tmp_path / "run" / "bundle" / "manifest.json")
    assert manifest["reused"]["teacher_1"]["time_s"] == 1e6
    assert manifest["time_s"]["total"] < 1e6  # what the other run spent is not this one's
    assert list(finished(tmp_path / "run")) == ["teacher_1", "teacher_2", "teacher", "student", "qat"]


def test_the_key_is_the_teachers_alone() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.generations' must be 1 or more"):
        load_recipe("digits", ["teacher.generations=0"])
    with pytest.raises(RecipeError, match=r"unknown recipe key 'student\.generations'"):
        load_recipe("digits", ["student.generations=2"])


def test_the_joules_of_all_generations_are_known_where_those_of_each_are() -> None:
    first: dict[str, Any] = {"time_s": 2.0, "energy_j": 30.0, "energy_reason": None, "energy_sources": ["cpu-0 (RAPL)"]}
    last: dict[str, Any] = {"time_s": 3.0, "energy_j": None, "energy_reason": "no counter", "energy_sources": []}
    assert together([first, first]) == {**first, "time_s": 4.0, "energy_j": 60.0}
    assert together([first, last]) == {**first, "time_s": 5.0, "energy_j": None, "energy_reason": "no counter"}
