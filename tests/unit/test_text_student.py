"""A student is made of its teacher: with all layers it computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kdedge import text
from kdedge.errors import ModelError
from tests import text_nets
from torch import Tensor

PAIRS = [(a, b) for a in ("bert", "distilbert") for b in ("bert", "distilbert")]


def inputs_of(net: text.TextNet) -> tuple[Tensor, Tensor]:
    """Texts whose token types are all 0."""
    (ids, mask, *_), _ = text_nets.texts(net, 6)
    return ids, mask


@pytest.mark.parametrize("of, to", PAIRS)
@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_student_of_all_layers_is_the_teacher(of: Any, to: Any, task: Any) -> None:
    teacher = text_nets.build(of, task)
    with torch.no_grad():  # layer norms and biases start alike everywhere; make them differ
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    student = text.student_of(teacher, (0, 1), to).eval()
    inputs = inputs_of(teacher)
    with torch.no_grad():
        ours, theirs = student.forward_with_states(*inputs), teacher.forward_with_states(*inputs)
    for state, other in zip(ours.hidden, theirs.hidden, strict=True):
        torch.testing.assert_close(state, other)
    if of == to or task == "question-answering":
        torch.testing.assert_close(ours.logits, theirs.logits)
    assert student.config.architecture == to and student.config.task == task


def test_token_types_stay_in_a_bert() -> None:
    teacher = text_nets.build("bert", "text-classification")
    student = text.student_of(teacher, (0, 1), "bert").eval()
    inputs, _ = text_nets.texts(teacher, 6)
    with torch.no_grad():
        torch.testing.assert_close(student(*inputs), teacher(*inputs))


def test_every_other_layer_and_a_distilbert_by_default() -> None:
    teacher = text_nets.build("bert", "text-classification", layers=5)
    student = text.student_of(teacher)
    assert student.config.architecture == "distilbert" and student.config.layers == 3 and student.training
    for index, block in zip((0, 2, 4), student.blocks(), strict=True):
        assert torch.equal(block.query.weight, list(teacher.blocks())[index].query.weight)  # type: ignore[arg-type]


def test_head_of_a_bert_becomes_that_of_a_distilbert() -> None:
    teacher = text_nets.build("bert", "text-classification")
    model = text.student_of(teacher).model
    assert torch.equal(model.pre_classifier.weight, teacher.model.bert.pooler.dense.weight)
    assert torch.equal(model.classifier.weight, teacher.model.classifier.weight)


def test_training_the_student_leaves_the_teacher_alone() -> None:
    teacher = text_nets.build("bert", "text-classification")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = text.student_of(teacher, (1,), "bert")
    text_nets.train(student, text_nets.texts(student, 64))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("layers, says", [((), "no layers"), ((0, 7), "no layer 7"), ((-1,), "no layer -1")])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelError, match=f"{says} to copy.*0 to 1"):
        text.student_of(text_nets.build("bert", "text-classification"), layers)
