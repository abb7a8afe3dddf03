"""Scores of a task: classification by accuracy and macro F1; each data set knows which of them are its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import kdedge.torchvision_compat  # noqa: F401  (torchmetrics imports torchvision where it is installed)

from torch import Tensor  # isort: skip


class Scores(Protocol):
    """Figures of one net on one split, each in [0, 1], higher is better."""

    @property
    def n(self) -> int:
        """Samples scored."""

    @property
    def leading(self) -> tuple[str, float]:
        """Name and value of the figure that decides: gates, patience, the line on the screen."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; ``n`` among them."""


@dataclass(frozen=True)
class Metrics:
    """Scores of a classifier on one split.

    Attributes:
        n: Samples scored.
        accuracy: Share of samples whose arg-max is the label, in [0, 1].
        f1_macro: Unweighted mean of the F1 of every class that occurs, in [0, 1].
    """

    n: int
    accuracy: float
    f1_macro: float

    @property
    def leading(self) -> tuple[str, float]:
        """The accuracy."""
        return "accuracy", self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """Accuracy and macro F1 of logits [N, classes] against labels int64 [N], to 6 digits (torchmetrics: float32)."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    return Metrics(
        n=len(labels),
        accuracy=round(float(multiclass_accuracy(predicted, labels, classes, average="micro")), 6),
        f1_macro=round(float(multiclass_f1_score(predicted, labels, classes, average="macro")), 6),
    )


WORDS = {"accuracy": "accuracy", "f1_macro": "F1", "exact_match": "exact match", "f1": "F1"}
"""Name in the records -> word on the screen."""


def in_words(scores: dict[str, Any]) -> str:
    """``accuracy 0.9876, F1 0.9871`` from ``Scores.to_dict()``'s values."""
    return ", ".join(f"{word} {scores[name]:.4f}" for name, word in WORDS.items() if name in scores)


def scores_from_dict(data: dict[str, Any]) -> Scores:
    """The scores that ``to_dict`` gave."""
    if "exact_match" in data:
        from kdedge.questions.metrics import AnswerMetrics

        return AnswerMetrics(int(data["n"]), float(data["exact_match"]), float(data["f1"]))
    return Metrics(int(data["n"]), float(data["accuracy"]), float(data["f1_macro"]))
