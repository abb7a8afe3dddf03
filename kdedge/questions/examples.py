"""Questions as examples: windows of tokens to train on, and exact match and F1 of the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdedge.data.questions import Question
from kdedge.examples import InMemory
from kdedge.questions.metrics import AnswerMetrics, score_answers
from kdedge.questions.windows import QuestionWindows, decode


@dataclass(frozen=True)
class QuestionPart:
    """Questions of one split as they were read.

    Attributes:
        questions: N of them.
    """

    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def labels(self) -> Tensor:
        """No classes: zeros, int64 [N]."""
        return torch.zeros(len(self), dtype=torch.int64)

    @property
    def groupings(self) -> tuple[Tensor, Tensor]:
        """int64 [N] each: questions on one article, or where none is named on one text; and questions on one text.

        Those of a group stay on one side of a split; the second grouping is for sets of few articles.
        """
        of_articles = [question.title or question.context for question in self.questions]
        return _numbered(of_articles), _numbered([question.context for question in self.questions])

    def take(self, index: Tensor) -> QuestionPart:
        """The samples at ``index``, int64 [M]."""
        return QuestionPart(tuple(self.questions[row] for row in index.tolist()))

    def fingerprint(self) -> bytes:
        """SHA-256 over texts, questions and answers."""
        rows = [(q.context, q.question, q.answers, q.answer_starts) for q in self.questions]
        return hashlib.sha256(json.dumps(rows).encode()).digest()


def _numbered(keys: Sequence[str]) -> Tensor:
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.int64)


@dataclass(frozen=True)
class QuestionExamples(InMemory):
    """Windows over the contexts of questions; a window is a sample in training, a question in scoring.

    Attributes:
        windows: W of them.
        questions: That the windows belong to.
        n_best: See ``questions.decode``.
        max_answer_length: See ``questions.decode``.
    """

    windows: QuestionWindows
    questions: tuple[Question, ...]
    n_best: int
    max_answer_length: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The token tensors."""
        return self.windows.tokens.columns

    @property
    def labels(self) -> Tensor:
        """First and last token of the answer: int64 [W, 2]."""
        return torch.stack([self.windows.starts, self.windows.ends], dim=1)

    def take(self, index: Tensor) -> QuestionExamples:
        """The windows at ``index``, int64 [M]; to be trained or calibrated on, since questions may be torn."""
        return QuestionExamples(self.windows.take(index), self.questions, self.n_best, self.max_answer_length)

    def score(self, logits: Tensor) -> AnswerMetrics:
        """Exact match and F1 of logits [W, 2, L] of all windows."""
        answers = decode(
            logits,
            self.windows,
            self.questions,
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
            unanswerable=any(not question.answers for question in self.questions),
        )
        return score_answers([answer.text for answer in answers], self.questions)
