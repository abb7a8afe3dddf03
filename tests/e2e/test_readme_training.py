"""README's commands that train, as they stand there but for the length of the training."""

from __future__ import annotations

import inspect
import shlex
import sys
from pathlib import Path

import kdedge
import pytest
from tests.conftest import ROOT
from tests.e2e.readme import TRAINING, run

# Long trainings run with the same words, few epochs and a small student; what they reach is measured, or tested
# elsewhere: the demo's test trains the digits in full.
DIGITS = ["student.model=tests.small_nets:Mobile", "student.training.epochs=2", "qat.training.epochs=1"]
SHORTENED = {
    "cifar10-cpu": [
        "teacher.model=mlp", "teacher.training.epochs=0", "teacher.training.start_depth=1",
        "student.training.epochs=0", "qat.training.epochs=0"
    ],
    "sst2-minilm-cpu": [
        "data.train_limit=64", "teacher.training.epochs=0", "student.training.epochs=1", "qat.training.epochs=0"
    ],
    "digits": ["teacher.training.epochs=1", *DIGITS],
    "mine.toml": ["teacher.training.epochs=1", *DIGITS],
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("line", TRAINING)
def test_a_command(line: str, readme_folder: Path) -> None:
    words = shlex.split(line.replace("torchrun ", "torch.distributed.run "))
    if "../shared/data" in line:
        data = ROOT.parent / "shared" / "data"
        if not data.is_dir():
            pytest.skip(f"../shared/data is not there: {line!r} was not run")
        words = [word.replace("../shared/data", str(data)) for word in words]
    for recipe, overrides in SHORTENED.items():
        if f"kdedge distill {recipe} " in f"{line} ":
            words += [f"--set={override}" for override in overrides]
    if line.startswith("torchrun "):  # what processes reach together: tests/e2e/test_ranks.py
        words.append("--set=data.train_limit=200")
    done = run([sys.executable, "-m", *words], readme_folder)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_packages_own_example(tmp_path: Path) -> None:
    """As it stands in `kdedge/__init__.py`, with a recipe that takes seconds."""
    from tests.conftest import SMALL

    text = inspect.getdoc(kdedge) or ""
    code = "\n".join(line[4:] for line in text.split("::\n")[1].splitlines() if line.startswith("    "))
    code = code.replace('load_recipe("digits")', f'load_recipe("digits", {SMALL!r})')
    done = run([sys.executable, "-c", f"from pathlib import Path\n{code}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/digits/report.html").exists()
