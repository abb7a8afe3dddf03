"""What a run's folder refuses, keeps and gives back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kdedge.distillation import DistillResult, distill
from kdedge.errors import KdedgeError, ModelError, RecipeError, UserError
from kdedge.files import read_json, sha256_file, write_json
from kdedge.progress import Silent
from kdedge.recipe_file import load_recipe

SHORT = ["teacher.training.epochs=1", "student.training.epochs=2", "qat.training.epochs=1"]


def run(out: Path, *settings: str, **options: Any) -> DistillResult:
    return distill(load_recipe("vectors-mlp", [*SHORT, *settings]), out=out, **options)


def contents(folder: Path) -> dict[str, str]:
    """Every file but the lock, by its hash."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    run(out)
    return out


@pytest.fixture
def there(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resume": True}, "--resume goes on with a run, --overwrite begins another"),
        ({"reuse": "."}, "--overwrite would take away what --reuse names"),
        ({"teacher": "teacher"}, "--overwrite would take away what --teacher names"),
        ({"teacher": "no-such-teacher"}, "no-such-teacher"),
    ],
)
def test_a_mistake_beside_overwrite_loses_nothing(there: Path, options: dict[str, Any], said: str) -> None:
    before = contents(there)
    given = {name: there / value if (there / str(value)).exists() else value for name, value in options.items()}
    if "teacher" in given:
        given["teacher"] = str(given["teacher"])
    with pytest.raises(KdedgeError, match=said):
        run(there, overwrite=True, **given)
    assert contents(there) == before


def test_what_is_overwritten_goes_with_the_first_stage_that_takes_its_place(there: Path) -> None:
    before = contents(there)
    result = run(there, "seed=1", overwrite=True)
    after = contents(there)
    assert set(after) == set(before)
    assert after["bundle/student.safetensors"] != before["bundle/student.safetensors"]
    assert result.bundle.recipe.seed == 1


def test_overwritten_twice_it_still_lies_aside_until_a_stage_is_finished(there: Path) -> None:
    """Stopped in the first stage with a checkpoint, and begun anew with a mistake in the command."""
    before = contents(there)

    class Stops(Silent):
        def step(self, done_steps: int, **figures: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(there, "seed=1", overwrite=True, progress=Stops())
    assert (there / "checkpoints/teacher.pt").exists()
    with pytest.raises(KdedgeError, match="no-such-teacher"):
        run(there, overwrite=True, teacher="no-such-teacher")
    assert contents(there) == before


def test_a_mistake_leaves_no_run_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KdedgeError, match="no-such-teacher"):
        run(out, teacher="no-such-teacher")
    assert contents(out) == {}
    assert run(out).bundle.path == out / "bundle", "the command, put right, is not refused"


def test_two_processes_do_not_train_in_one_folder(there: Path) -> None:
    holder = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(there / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        with pytest.raises(UserError, match="another process trains in this folder"):
            run(there, resume=True)
    finally:
        child.communicate("\n")
    run(there, resume=True)


def unfinished(folder: Path, *stages: str) -> None:
    """As if the run had been stopped before these stages."""
    state = read_json(folder / "state.json")
    for stage in stages:
        del state["finished"][stage]
        (folder / f"checkpoints/{stage}.safetensors").unlink()
    write_json(folder / "state.json", state)


def test_a_teacher_that_changed_in_place_is_noticed(trained: Path, tmp_path: Path) -> None:
    teacher, out = Path(shutil.copytree(trained / "teacher", tmp_path / "given")), tmp_path / "run"
    run(out, teacher=str(teacher))
    unfinished(out, "qat")
    run(tmp_path / "other", "seed=5")
    shutil.copy(tmp_path / "other/teacher/teacher.safetensors", teacher)
    with pytest.raises(UserError, match="what stage 'teacher' is made of is not what it was"):
        run(out, teacher=str(teacher), resume=True)


def test_a_student_whose_module_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        from torch import nn
        def student(classes, shape):
            return nn.Sequential(nn.Linear(shape[0], 8), nn.{}(), nn.Linear(8, classes))
    """
    module, out = tmp_path / "changing_student.py", tmp_path / "run"
    module.write_text("\n".join(line[8:] for line in source.format("ReLU").splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    run(out, "qat.training.epochs=0", student="changing_student:student")
    unfinished(out, "student")
    module.write_text("\n".join(line[8:] for line in source.format("Tanh").splitlines()))
    with pytest.raises(UserError, match="what stage 'student' is made of"):
        run(out, "qat.training.epochs=0", student="changing_student:student", resume=True)


@pytest.mark.parametrize("file", ["teacher/teacher.safetensors", "checkpoints/student.safetensors"])
def test_a_flipped_byte_is_not_trained_on(there: Path, tmp_path: Path, file: str) -> None:
    unfinished(there, "qat")
    path = there / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not what its stage wrote"):
        run(there, resume=True)
    with pytest.raises(ModelError, match="not what its stage wrote"):
        run(tmp_path / "other", reuse=there)


def test_what_killed_saves_left_is_removed(there: Path) -> None:
    for name in (".state.json.abc.part", "checkpoints/.student.pt.x1.part", ".bundle.part/student.safetensors"):
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_bytes(b"half")
    run(there, resume=True)
    assert not [name for name in contents(there) if ".part" in name]


def test_resume_where_no_run_is_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    class Screen(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    run(tmp_path / "typo", resume=True, progress=Screen())
    assert any("holds no run yet: it begins anew" in line for line in said)


def test_a_net_that_cannot_grow_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    grows = ["student.training.start_depth=0.5", "student.training.epochs=2"]
    settings = ["data.image_size=16", "student.model=mlp", *grows]
    with pytest.raises(RecipeError, match="no residual blocks"):
        distill(load_recipe("digits", settings), out=tmp_path / "run")
    assert contents(tmp_path / "run") == {}
