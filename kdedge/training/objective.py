"""What a stage minimises: cross-entropy with the labels, and what the guides add to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from kdedge.losses import (
    attention_loss,
    cross_entropy,
    decoupled_kd,
    hidden_cosine,
    hidden_mse,
    softened_kl,
)
from kdedge.recipe import DistillationRecipe


class States(Protocol):
    """What a net computed on the way to its logits."""

    @property
    def logits(self) -> Tensor:
        """As the net returns them."""

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """Float [N, L, H] each: embeddings, then the output of every layer."""

    @property
    def attention(self) -> tuple[Tensor, ...]:
        """Float [N, heads, L, L] each: a layer's probabilities."""


@dataclass(frozen=True)
class Outputs:
    """Logits of a net, and its states where they were asked for; itself a ``States`` without any."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


LABELS_ALONE = DistillationRecipe(alpha=0.0)


@dataclass(frozen=True)
class Objective:
    """A loss: (1 − alpha)·CE(labels) + alpha·(loss of the softened logits) + weights · (losses of states).

    Attributes:
        wish: Temperature, weights and kinds of the losses; by default the labels alone.
        label_smoothing: Of the cross-entropy.
    """

    wish: DistillationRecipe = LABELS_ALONE
    label_smoothing: float = 0.0

    @property
    def needs_states(self) -> bool:
        """Whether hidden states or attention probabilities are compared."""
        return self.wish.hidden_weight > 0 or self.wish.attention_weight > 0

    @property
    def needs_guides(self) -> bool:
        """Whether anything of the guides counts."""
        return self.wish.alpha > 0 or self.needs_states

    def __call__(
        self,
        student: States,
        labels: Tensor,
        guide: States | None,
        mask: Tensor | None = None,
        projection: nn.Linear | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            student: Of the net that is trained: logits float [N, classes], or [N, k, L] with k labels a sample.
            labels: int64 [N] or [N, k], or float32 [N, classes].
            guide: Of the guides, no gradient wanted; None leaves the cross-entropy alone.
            mask: [N, L], 1 for a token, where states are compared.
            projection: Student's hidden states to the guide's width, where the widths differ.

        Returns:
            Scalar, nats.
        """
        logits, targets = rows(student.logits), labels if labels.is_floating_point() else labels.reshape(-1)
        hard = cross_entropy(logits.float(), targets, self.label_smoothing)
        if guide is None or not self.needs_guides:
            return hard
        wish, total = self.wish, hard
        if wish.alpha:
            total = hard.lerp(self._soft(logits.float(), targets, rows(guide.logits).float()), wish.alpha)
        if wish.hidden_weight:
            pairs = list(_matched(student.hidden, guide.hidden))
            losses = [self._hidden(own, theirs, cast(Tensor, mask), projection) for own, theirs in pairs]
            total = total + wish.hidden_weight * sum(losses, start=total.new_zeros(())) / len(pairs)
        if wish.attention_weight:
            pairs = list(_matched((total, *student.attention), (total, *guide.attention)))[1:]
            losses = [attention_loss(own, theirs, cast(Tensor, mask)) for own, theirs in pairs]
            total = total + wish.attention_weight * sum(losses, start=total.new_zeros(())) / len(pairs)
        return total

    def _soft(self, student: Tensor, labels: Tensor, guide: Tensor) -> Tensor:
        wish = self.wish
        if wish.loss == "kd":
            return softened_kl(student, guide, wish.temperature)
        weights = {"alpha": wish.dkd_alpha, "beta": wish.dkd_beta}
        return decoupled_kd(student, guide, labels, temperature=wish.temperature, **weights)

    def _hidden(self, own: Tensor, theirs: Tensor, mask: Tensor, projection: nn.Linear | None) -> Tensor:
        if self.wish.hidden_loss == "mse":
            return hidden_mse(own, theirs, mask, projection)
        return hidden_cosine(own, theirs, mask)


def rows(logits: Tensor) -> Tensor:
    """Logits [N, classes] as they are, [N, k, L] as [N·k, L]: every row is a choice of its own."""
    return logits.reshape(-1, logits.shape[-1])


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose arg-max is the label, of a mixed label its largest part; in [0, 1]."""
    targets = labels.argmax(1) if labels.is_floating_point() else labels.reshape(-1)
    return float((rows(logits).argmax(1) == targets).float().mean())


def _matched(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of states: embeddings with embeddings, layer m of M with the teacher's m·N/M (Jiao et al. 2020)."""
    layers, theirs = len(student) - 1, len(teacher) - 1
    for number, state in enumerate(student):
        yield state, teacher[round(number * theirs / layers) if layers else theirs]
