from __future__ import annotations

from pathlib import Path

import torch
from kdedge.distillation import distill
from kdedge.recipe_file import load_recipe

DKD = (
    "teacher.model=tests.small_nets:Mobile",
    "teacher.training.epochs=2",
    "student.model=tests.small_nets:Mobile",
    "student.training.epochs=3",
    "distillation.loss=dkd",
    "qat.teacher=student",
    "qat.alpha=1",
    "qat.training.epochs=1",
    "qat.training.optimizer=sgd",
    "qat.training.learning_rate=0.02",
)


def test_qat_keeps_a_student_that_dkd_trained(tmp_path: Path) -> None:
    # By DKD the loss of this QAT goes to 11 and the accuracy to chance; by KL it stays below 0.01.
    torch.set_num_threads(1)
    metrics = distill(load_recipe("digits", DKD), out=tmp_path / "run").metrics
    trained, int8 = (metrics[name] for name in ("student_float", "student_int8"))
    assert trained is not None and int8 is not None
    assert trained.leading[1] > 0.7 and int8.leading[1] > trained.leading[1] - 0.02
