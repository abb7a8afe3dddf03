"""Where a teacher of text comes from: the Hub, a folder, an installed package, an architecture, or the user's code."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from kdedge.errors import ModelError
from kdedge.inputs import output_count
from kdedge.recipe import Task
from kdedge.text import PACKAGE, Pretrained, TextNet, from_config, from_pretrained
from kdedge.text.config import TextTask
from kdedge.text.tokenization import TextPreprocessing

BASES: dict[str, dict[str, Any]] = {
    "bert-base": {"architecture": "bert"},
    "distilbert-base": {"architecture": "distilbert"},
    "bert-small": {"architecture": "bert", "layers": 4, "hidden": 512, "heads": 8, "intermediate": 2048},
    "bert-tiny": {"architecture": "bert", "layers": 2, "hidden": 128, "heads": 2, "intermediate": 512},
}
"""Shapes by name (Devlin et al. 2019; Turc et al. 2019, arXiv:1908.08962), with random weights."""


def find_text_net(model: str, task: Task, classes: int, preprocessing: TextPreprocessing) -> Pretrained:
    """The text net of a recipe's or a user's name.

    Args:
        model: A Hub name, a folder, ``package:NAME``, or one of ``BASES``.
        task: Which head.
        classes: Logits of a text.
        preprocessing: What the net must have embeddings and positions for.

    Raises:
        ModelError: unknown, or it does not fit.
    """
    head = cast(TextTask, task)
    if model in BASES:
        net = from_config(task=head, classes=classes, **{"vocab_size": preprocessing.vocab_size, **BASES[model]})
        found = Pretrained(net, fresh_head=True, labels=())
    else:
        found = from_pretrained(model, head, classes)
    check_fits(found.net, preprocessing, model)
    return found


def find_text_teacher(
    model: str, task: Task, labels: tuple[str, ...], preprocessing: TextPreprocessing
) -> tuple[nn.Module, bool]:
    """The teacher, and whether it has to be trained first.

    Raises:
        ModelError: unknown, or of other classes than the data.
    """
    classes = output_count(labels)
    if is_users_own(model):
        return users_own_text_net(model, classes, preprocessing), True
    found = find_text_net(model, task, classes, preprocessing)
    if not found.fresh_head and task == "text-classification":
        reorder(found.net, label_order(found.labels, labels, model))
    return found.net, found.fresh_head


def is_users_own(model: str) -> bool:
    """Whether a name is ``module:function``."""
    return ":" in model and not model.startswith(PACKAGE)


def check_fits(net: TextNet, preprocessing: TextPreprocessing, name: str) -> None:
    """Refuse a text net that has no embedding for a token or a position of the data.

    Raises:
        ModelError: with both numbers.
    """
    tokens, vocab_size, max_positions = preprocessing.vocab_size, net.config.vocab_size, net.config.max_positions
    if tokens > vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, the net has embeddings for {vocab_size}",
            where=name,
            cure="Set text.tokenizer to the one that the net was trained with",
        )
    if preprocessing.max_length > max_positions:
        raise ModelError(
            f"text.max_length is {preprocessing.max_length}, the net has {max_positions} positions",
            where=name,
            cure=f"Set text.max_length to {max_positions} at most",
        )


def label_order(theirs: Sequence[str], ours: Sequence[str], where: object) -> list[int]:
    """Where each of our classes stands among a checkpoint's, by name where both have names, else by number.

    Raises:
        ModelError: another number of classes, or other names.
    """
    if len(theirs) != len(ours):
        raise ModelError(
            f"the teacher has {len(theirs)} classes, the data has {len(ours)}",
            where=where,
            cure="Give a teacher trained for these classes, or a base encoder",
        )
    lower = [name.lower() for name in theirs]
    if {name.lower() for name in ours} == set(lower):
        return [lower.index(name.lower()) for name in ours]
    numbered = [f"label_{number}" for number in range(len(theirs))]
    if lower == numbered or all(name.isdigit() for name in ours):
        return list(range(len(ours)))
    raise ModelError(
        f"the teacher's classes are {', '.join(theirs[:6])}, the data's {', '.join(ours[:6])}",
        where=where,
        cure="Name the data's classes as the teacher does, or give another teacher (for text a base encoder)",
    )


def users_own_text_net(spec: str, classes: int, preprocessing: TextPreprocessing) -> nn.Module:
    """What the user's ``module:function(classes, length, vocab_size)`` returns: inputs of tokens -> logits.

    Raises:
        ModelError: not there, it fails, or its logits have another shape.
    """
    module_name, _, function = spec.partition(":")
    try:
        builder = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise ModelError(
            f"cannot import '{module_name}': {error}", where=spec, cure="Run from its folder or set PYTHONPATH"
        ) from error
    except AttributeError:
        raise ModelError(f"module '{module_name}' has no '{function}'", where=spec) from None
    try:
        net = builder(classes, preprocessing.max_length, preprocessing.vocab_size)
        with torch.no_grad():
            logits: Any = net.eval()(*(spec.example(2) for spec in preprocessing.inputs))
    except Exception as error:
        raise ModelError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module) or not isinstance(logits, torch.Tensor) or logits.shape[:2] != (2, classes):
        raise ModelError(f"{spec} does not return logits of {classes} classes (start and end for questions)")
    return net


def with_dropout(net: nn.Module, rate: float | None) -> nn.Module:
    """The net with one rate in all of its dropouts; None leaves them as they are."""
    if rate is not None:
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
    return net


def reorder(net: TextNet, order: list[int]) -> None:
    """Put the rows of the last layer into the order of the data's classes."""
    layer = cast(nn.Linear, cast(Any, net.model).classifier)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order].clone())
        layer.bias.copy_(layer.bias[order].clone())
