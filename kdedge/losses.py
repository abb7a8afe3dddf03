"""Losses: one function each, with its formula and its paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    T² keeps the gradient's size independent of T (Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2).

    Args:
        student: Logits float [N, classes].
        teacher: Logits float [N, classes], no gradient wanted.
        temperature: T > 0.

    Returns:
        Scalar, nats.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def distillation_loss(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    *,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mix alpha · softened_kl + (1 − alpha) · cross-entropy; the cross-entropy alone where there is no teacher.

    Args:
        student: Logits float [N, classes].
        labels: int64 [N].
        teacher: Logits float [N, classes] or None.
        temperature: T of the softened logits.
        alpha: Weight of the teacher in [0, 1].
        label_smoothing: Of the cross-entropy (Szegedy et al. 2016).

    Returns:
        Scalar, nats.
    """
    hard = functional.cross_entropy(student.float(), labels, label_smoothing=label_smoothing)
    if teacher is None or alpha == 0:
        return hard
    soft = softened_kl(student.float(), teacher.float(), temperature)
    return torch.lerp(hard, soft, alpha)
