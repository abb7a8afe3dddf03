from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kdedge.distillation import distill
from kdedge.errors import ModelError
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


def test_a_users_student_that_cannot_become_integers_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QAT would have said so after the teacher and the student were trained."""
    (tmp_path / "net_that_writes.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes, shape):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(shape[0], 8, 3)\n"
        "        self.head = nn.LazyLinear(classes)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x)\n"
        "        y[:, :4] = y[:, :4].relu()\n"
        "        return self.head(y.flatten(1))\n"
        "def build(classes, shape):\n"
        "    import torch\n"
        "    net = Net(classes, shape)\n"
        "    net(torch.zeros(1, *shape))\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["data.image_size=8", "teacher.model=mlp", "teacher.training.epochs=1", "student.training.epochs=1"]
    recipe = load_recipe("digits", [*settings, "student.model=net_that_writes:build"])
    with pytest.raises(ModelError, match=r"the model writes into a tensor in `y\[:, :4\] = .*net_that_writes\.py"):
        distill(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
    in_float = load_recipe("digits", [*settings, "student.model=net_that_writes:build", "qat.training.epochs=0"])
    assert distill(in_float, out=tmp_path / "float").bundle.model_name == "net_that_writes:build"
