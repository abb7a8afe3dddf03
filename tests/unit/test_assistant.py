"""A recipe with a teacher assistant: it follows the teacher, the student follows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kdedge.bundle import Bundle
from kdedge.errors import RecipeError
from kdedge.files import read_json, sha256_file, write_json
from kdedge.progress import Silent
from kdedge.recipe_file import load_recipe
from kdedge.reporting.page import report
from kdedge.teacher_cache.ahead import build_ahead
from tests.unit.report_records import fleet, write_record
from tests.unit.test_reuse import finished, reused, run

ASSISTANT = ("assistant.model=mlp", "assistant.training.epochs=2")
NETS = ("student.safetensors", "student-int8.safetensors")


class StopsIn(Silent):
    """Somebody presses Ctrl-C in a stage, after some steps of it."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage, self._steps, self._at = stage, steps, ""

    def begin(self, stage: str, total_steps: int, done_steps: int) -> None:
        self._at = stage

    def step(self, done_steps: int, *, epoch: int, loss: float, accuracy: float, samples_per_s: float) -> None:
        if self._at == self._stage and done_steps == self._steps:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "run"
    run(out, *ASSISTANT)
    return out


def hashes(out: Path) -> list[str]:
    return [sha256_file(out / "bundle" / name) for name in NETS]


def test_the_assistant_is_trained_between_teacher_and_student(chain: Path) -> None:
    stages = finished(chain)
    assert list(stages) == ["teacher", "assistant", "student", "qat"]
    manifest = Bundle.load(chain / "bundle").manifest
    assert manifest["metrics"]["assistant"] == stages["assistant"]["metrics"]
    assert manifest["time_s"]["assistant"] > 0
    assert Bundle.load(chain / "bundle").recipe.assistant is not None


def test_the_student_follows_the_assistant_and_not_the_teacher(chain: Path, tmp_path: Path) -> None:
    """Two runs whose teachers differ and whose assistants are the same net end in the same student."""
    other = tmp_path / "other"
    run(other, *ASSISTANT, "teacher.training.epochs=1")
    assert hashes(other) != hashes(chain)
    state = read_json(other / "state.json")
    for stage in ("student", "qat"):
        del state["finished"][stage]
    del state["finished"]["assistant"]["sha256"]  # it shall take another net for its own
    write_json(other / "state.json", state)
    name = "checkpoints/assistant.safetensors"
    (other / name).write_bytes((chain / name).read_bytes())
    run(other, *ASSISTANT, "teacher.training.epochs=1", resume=True)
    assert hashes(other) == hashes(chain)


def test_a_run_without_an_assistant_is_another_run(chain: Path, tmp_path: Path) -> None:
    run(tmp_path / "plain", reuse=chain)
    assert reused(tmp_path / "plain") == {"teacher"}
    assert hashes(tmp_path / "plain") != hashes(chain)
    assert "assistant" not in Bundle.load(tmp_path / "plain" / "bundle").manifest["metrics"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("assistant.training.learning_rate=0.002", {"teacher"}),
        ("student.training.learning_rate=0.002", {"teacher", "assistant"}),
    ],
)
def test_the_assistant_of_another_run_is_taken_over(
    chain: Path, tmp_path: Path, setting: str, expected: set[str]
) -> None:
    run(tmp_path / "run", *ASSISTANT, setting, reuse=chain)
    assert reused(tmp_path / "run") == expected


def test_stopped_in_the_assistant_it_goes_on_to_the_same_student(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *ASSISTANT, progress=StopsIn("assistant", 5))
    assert list(finished(tmp_path / "run")) == ["teacher"]
    run(tmp_path / "run", *ASSISTANT, resume=True)
    assert hashes(tmp_path / "run") == hashes(chain)


def test_the_shared_cache_holds_the_assistants_logits(tmp_path: Path) -> None:
    views = ("distillation.cached_views=1", "distillation.cache=shared")
    caches = tmp_path / "caches"
    for name in ("run", "again"):
        run(tmp_path / name, *ASSISTANT, *views, cache_dir=caches)
    assert "cache" in finished(tmp_path / "run") and "cache" not in finished(tmp_path / "again")
    assert hashes(tmp_path / "run") == hashes(tmp_path / "again")
    run(tmp_path / "other", *ASSISTANT, *views, "assistant.training.epochs=1", cache_dir=caches)
    assert "cache" in finished(tmp_path / "other")
    recipe = load_recipe("digits", [*ASSISTANT, *views])
    with pytest.raises(RecipeError, match="the student follows the recipe's assistant"):
        build_ahead(recipe, data=None, teacher=None, cache_dir=tmp_path, progress=Silent())


def test_the_labels_alone_need_no_assistant(tmp_path: Path) -> None:
    run(tmp_path / "run", *ASSISTANT, "distillation.alpha=0", "qat.teacher=student")
    assert list(finished(tmp_path / "run")) == ["student", "qat"]


def test_the_page_shows_the_assistant(chain: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "records", fleet()[0])
    shutil.copytree(chain / "bundle", tmp_path / "bundle")
    page = report([tmp_path], tmp_path / "page.html")
    assert "teacher assistant" in page.read_text(encoding="utf-8")
