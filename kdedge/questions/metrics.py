"""Exact match and F1 of answers, by the rules of SQuAD's official scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import kdedge.torchvision_compat  # noqa: F401  (torchmetrics imports torchvision where it is installed)
from kdedge.data.questions import Question


@dataclass(frozen=True)
class AnswerMetrics:
    """Scores of one reader on one split.

    Attributes:
        n: Questions scored.
        exact_match: Share of questions whose answer is one of the gold answers, in [0, 1].
        f1: Mean over the questions of the best F1 of the answer's words against a gold answer's, in [0, 1].
    """

    n: int
    exact_match: float
    f1: float

    @property
    def leading(self) -> tuple[str, float]:
        """F1."""
        return "f1", self.f1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> AnswerMetrics:
    """Exact match and F1 of one answer a question, to 6 digits.

    Both compare words in lower case without ASCII punctuation and the articles a, an, the; of several gold answers the
    best counts (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1). An empty answer is right where there is no gold
    one. An answer and a gold answer of which nothing is left agree in both scores, as in the scorer of SQuAD v2.0;
    that of v1.1 gives such a pair an F1 of 0.

    Args:
        answers: N texts, empty for no answer.
        questions: One or more questions, each with its gold answers.
    """
    from torchmetrics.functional.text.squad import squad

    exact, f1 = [], []
    for answer, question in zip(answers, questions, strict=True):
        # torchmetrics fails on an empty list of gold answers. It also adds up in float32, which over 20,000 questions
        # is off in the fifth digit; so it gets one question at a time.
        gold: dict[str, str | dict[str, list[str] | list[int]]]
        gold = {"id": "-", "answers": {"text": list(question.answers) or [""]}}
        scores = squad({"id": "-", "prediction_text": answer}, gold)
        exact.append(float(scores["exact_match"]) / 100)
        f1.append(float(scores["f1"]) / 100)
    return AnswerMetrics(len(questions), round(fmean(exact), 6), round(fmean(f1), 6))
