"""Where a student comes from: built by the recipe, out of its teacher's layers, or again from a bundle."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from torch import nn

from kdedge import models
from kdedge.errors import ModelError
from kdedge.examples import Preprocessing
from kdedge.recipe import DistillationRecipe, DistillRecipe
from kdedge.text import Architecture, TextNet, student_of
from kdedge.text.config import ARCHITECTURES
from kdedge.text.teacher import find_text_net, is_users_own, users_own_text_net, with_dropout
from kdedge.text.tokenization import TextPreprocessing


def build_student(
    recipe: DistillRecipe, classes: int, preprocessing: Preprocessing, teacher: nn.Module | None
) -> nn.Module:
    """The student before its first step.

    Args:
        recipe: Of the run.
        classes: Number of logits.
        preprocessing: What the nets of the run take.
        teacher: Of the run, whose layers a text student starts from; None where the student learns alone: then it
            starts from the layers that the recipe's teacher has before its own training.

    Raises:
        ModelError: unknown, or it does not fit the task or its teacher.
    """
    if isinstance(preprocessing, TextPreprocessing):
        return _text_student(recipe, classes, preprocessing, teacher)
    return models.build(recipe.student, models.STUDENTS, classes, preprocessing.inputs[0].shape)


def rebuild_student(
    recipe: DistillRecipe, classes: int, preprocessing: Preprocessing, description: dict[str, Any] | None
) -> nn.Module:
    """A net like the student of a bundle, with other weights.

    Args:
        recipe: The bundle's.
        classes: Number of logits.
        preprocessing: The bundle's.
        description: What a text net says of itself; None for other nets.

    Raises:
        ModelError: this kdedge cannot build it.
    """
    if description is not None:
        return TextNet.from_description(description)
    return build_student(recipe, classes, preprocessing, None)


def preprocessing_of(student: nn.Module, preprocessing: Preprocessing) -> Preprocessing:
    """What the student takes: that of the run, without token types where the student does not look at them."""
    if isinstance(student, TextNet) and isinstance(preprocessing, TextPreprocessing):
        return dataclasses.replace(preprocessing, token_types=student.config.token_types > 0)
    return preprocessing


def projection(student: nn.Module, teacher: nn.Module | None, wish: DistillationRecipe) -> nn.Linear | None:
    """What takes the student's hidden states to the teacher's width; None where the widths are equal.

    Raises:
        ModelError: one of the two has no states to compare, or the losses do not fit their sizes.
    """
    for role, net in (("student", student), ("teacher", teacher)):
        if not isinstance(net, TextNet):
            raise ModelError(
                f"the {role} is no text net of kdedge, so it has no hidden states and attention to follow",
                cure="Set distillation.hidden_weight and distillation.attention_weight to 0",
            )
    ours, theirs = (cast(TextNet, net).config for net in (student, teacher))
    if wish.attention_weight and ours.heads != theirs.heads:
        raise ModelError(
            f"the student has {ours.heads} attention heads, the teacher {theirs.heads}",
            cure="Set distillation.attention_weight to 0",
        )
    if not wish.hidden_weight or ours.hidden == theirs.hidden:
        return None
    if wish.hidden_loss == "cosine":
        raise ModelError(
            f"the student's hidden states are {ours.hidden} wide, the teacher's {theirs.hidden}",
            cure="Set distillation.hidden_loss to mse, which projects them",
        )
    return nn.Linear(ours.hidden, theirs.hidden)


def _text_student(
    recipe: DistillRecipe, classes: int, preprocessing: TextPreprocessing, teacher: nn.Module | None
) -> nn.Module:
    wish = recipe.student
    if is_users_own(wish.model):
        return users_own_text_net(wish.model, classes, preprocessing)
    if wish.model not in ARCHITECTURES:
        return with_dropout(find_text_net(wish.model, recipe.task, classes, preprocessing).net, wish.dropout)
    if not isinstance(teacher, TextNet):
        teacher = find_text_net(recipe.teacher.model, recipe.task, classes, preprocessing).net
    return with_dropout(student_of(teacher, wish.layers, cast(Architecture, wish.model)), wish.dropout)
