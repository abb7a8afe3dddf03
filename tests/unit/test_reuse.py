from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kdedge.distillation import DistillResult, distill
from kdedge.errors import UserError
from kdedge.files import read_json, sha256_file
from kdedge.recipe_file import load_recipe
from kdedge.stage_hashes import stage_hashes

SHORT = [
    "data.image_size=8", "teacher.model=mlp", "teacher.training.epochs=2", "student.model=mlp",
    "student.training.epochs=2", "qat.training.epochs=1", "qat.calibration_batches=2",
]  # fmt: skip


def run(out: Path, *settings: str, **options: Any) -> DistillResult:
    return distill(load_recipe("digits", [*SHORT, *settings]), out=out, **options)


def finished(out: Path) -> dict[str, Any]:
    stages: dict[str, Any] = read_json(out / "state.json")["finished"]
    return stages


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    run(out)
    return out


def reused(out: Path) -> set[str]:
    return {stage for stage, figures in finished(out).items() if "reused_from" in figures}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("tolerance.agreement=0.9", {"teacher", "student", "qat"}),
        ("qat.teacher=teacher", {"teacher", "student"}),
        ("student.training.learning_rate=0.002", {"teacher"}),
        ("distillation.alpha=0.3", {"teacher"}),
        ("teacher.training.epochs=1", set()),
        ("seed=3", set()),
        ("data.image_size=12", set()),
    ],
)
def test_what_would_be_trained_alike_is_taken_over(
    first: Path, tmp_path: Path, setting: str, expected: set[str]
) -> None:
    result = run(tmp_path / "run", setting, reuse=first)
    assert reused(tmp_path / "run") == expected
    again = run(tmp_path / "whole", setting)
    assert result.metrics == again.metrics
    for name in ("student.safetensors", "student-int8.safetensors"):
        assert sha256_file(tmp_path / "run" / "bundle" / name) == sha256_file(tmp_path / "whole" / "bundle" / name)


def test_another_kind_of_student_leaves_the_teacher_what_it_is() -> None:
    hashes = [
        stage_hashes(load_recipe("digits", [*SHORT, f"student.model={model}"]), "data", None, "cpu")
        for model in ("mlp", "resnet18")
    ]
    assert hashes[0]["teacher"] == hashes[1]["teacher"]
    assert hashes[0]["student"] != hashes[1]["student"]
    assert hashes[0]["qat"] != hashes[1]["qat"]


@pytest.mark.parametrize(
    ("setting", "same"),
    [("image_size=192", False), ("channels=1", False), ("on_corrupt=skip", False), ("loader_threads=3", True)],
)
def test_streamed_images_of_another_size_are_other_data(setting: str, same: bool) -> None:
    """Their fingerprint is of files, whatever is made of them."""
    hashes = [
        stage_hashes(load_recipe("imagenet-resnet50-mobilenetv2", settings), "data", None, "cpu")
        for settings in ([], [f"data.{setting}"])
    ]
    assert (hashes[0] == hashes[1]) is same
    assert all((hashes[0][stage] == hashes[1][stage]) is same for stage in hashes[0])


def test_a_users_function_is_known_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_net_of_this_test.py"
    recipe = load_recipe("digits", [*SHORT, f"student.model={module.stem}:build"])
    found = []
    for code in ("def build(classes, shape): ...\n", "def build(classes, shape): return None\n"):
        module.write_text(code)
        found.append(stage_hashes(recipe, "data", None, "cpu"))
    assert found[0]["student"] != found[1]["student"]
    assert found[0]["teacher"] == found[1]["teacher"]
    module.unlink()
    assert stage_hashes(recipe, "data", None, "cpu")["student"] not in (found[0]["student"], found[1]["student"])


def test_a_student_on_labels_alone_is_none_that_follows_a_teacher(first: Path, tmp_path: Path) -> None:
    run(tmp_path / "alone", "distillation.alpha=0", reuse=first)
    assert reused(tmp_path / "alone") == set()
    run(tmp_path / "again", "distillation.alpha=0", "teacher.training.epochs=3", reuse=tmp_path / "alone")
    assert "student" in reused(tmp_path / "again")


def test_a_teacher_is_known_by_its_content(first: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    run(tmp_path / "other", "teacher.training.epochs=1")
    (first / "teacher").rename(teacher)
    try:
        run(tmp_path / "a", teacher=str(teacher))
        run(tmp_path / "b", teacher=str(teacher), reuse=tmp_path / "a")
        assert reused(tmp_path / "b") == {"student", "qat"}
        moved = tmp_path / "moved"
        teacher.rename(moved)
        (tmp_path / "other" / "teacher").rename(teacher)
        run(tmp_path / "c", teacher=str(teacher), reuse=tmp_path / "a")
        assert reused(tmp_path / "c") == set()
    finally:
        (tmp_path / "moved").rename(first / "teacher")


def test_a_folder_without_a_run_and_the_run_itself_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is kept there"):
        run(tmp_path / "run", reuse=tmp_path / "nothing")
    with pytest.raises(UserError, match="the run itself"):
        run(first, resume=True, reuse=first)
