"""Sentences and questions as examples: tokens to train on, and the scores of their task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdedge.examples import InMemory
from kdedge.metrics import Metrics, score
from kdedge.text.tokenization import TokenSet


@dataclass(frozen=True)
class SentenceExamples(InMemory):
    """Tokens of N sentences or pairs, and their classes.

    Attributes:
        tokens: Of N rows.
        labels: int64 [N].
    """

    tokens: TokenSet
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The token tensors."""
        return self.tokens.columns

    def take(self, index: Tensor) -> SentenceExamples:
        """The samples at ``index``, int64 [M]."""
        return SentenceExamples(self.tokens.take(index), self.labels[index])

    def score(self, logits: Tensor) -> Metrics:
        """Accuracy and macro F1 of logits [N, classes]."""
        return score(logits, self.labels)
