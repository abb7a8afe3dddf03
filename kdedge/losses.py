"""Losses: one function each, with its formula and its paper."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.errors import ModelError

SMALLEST_PROBABILITY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−Σ q · log softmax(logits) with q = (1 − ε) · labels + ε / classes, mean over the batch.

    ε is the label smoothing of Szegedy et al. 2016 (arXiv:1512.00567, section 7); labels that are distributions come
    from mixed images (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        logits: float [N, classes].
        labels: int64 [N], or float32 [N, classes] whose rows sum to 1.
        label_smoothing: ε in [0, 1).

    Returns:
        Scalar float32, nats.
    """
    return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


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


def top_logits(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits z of each row, and one value in place of all others.

    rest = T · log(Σ exp(z_i / T) / (C − k)), over the C − k other classes: with it in the place of each of them, a
    softmax at T gives the k classes their own probabilities, and the others their own mass.

    Args:
        logits: float32 [N, C].
        k: At most C.
        temperature: T > 0, at which the mass is kept.

    Returns:
        (int64 [N, k], float32 [N, k], float32 [N]): classes and logits, the largest first; rest, −inf where k = C.
    """
    values, classes = logits.topk(k, dim=1)
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, classes, False)
    mass = (logits / temperature).masked_fill(~others, -torch.inf).logsumexp(1)
    return classes, values, temperature * (mass - math.log(max(1, logits.shape[1] - k)))


def marginal_smoothing(classes: Tensor, values: Tensor, rest: Tensor, count: int) -> Tensor:
    """Logits whose softmax spreads what the top classes leave evenly over the others.

    The "marginal smoothing" of Shen & Xing 2022 (A Fast Knowledge Distillation Framework for Visual Recognition,
    arXiv:2112.01528), there of probabilities at T = 1: q_i = p_i for the k top classes, q_i = (1 − Σ p) / (C − k) for
    the others. ``softened_kl`` of these logits at the T of ``top_logits`` is the KL from that q; with k = C it is the
    KL from the whole softmax.

    Args:
        classes: int64 [N, k], see ``top_logits``.
        values: float32 [N, k].
        rest: float32 [N].
        count: C.

    Returns:
        float32 [N, C].
    """
    return rest.unsqueeze(1).repeat(1, count).scatter(1, classes, values)


def decoupled_kd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T² · (alpha · TCKD + beta · NCKD), mean over the batch (Zhao et al. 2022, arXiv:2203.08679, section 3).

    TCKD is the KL between teacher and student of the binary distribution label / any other class; NCKD the KL among
    the other classes alone. With p the teacher's probability of the label at T, TCKD + (1 − p) · NCKD is
    ``softened_kl`` without its T²: NCKD's weight is freed from a factor that vanishes where the teacher is sure. The
    paper's alpha is 1, its beta 2 to 8, and the cross-entropy is added to the whole.

    Args:
        student: Logits float [N, classes], at least 2 classes.
        teacher: Logits float [N, classes], no gradient wanted.
        labels: int64 [N].
        temperature: T > 0.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.

    Returns:
        Scalar float32, nats.
    """
    student_binary, student_others = _decoupled(student.float() / temperature, labels)
    teacher_binary, teacher_others = _decoupled(teacher.float() / temperature, labels)
    tckd = functional.kl_div(student_binary, teacher_binary, reduction="batchmean", log_target=True)
    nckd = functional.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of label and rest [N, 2], and of the other classes among themselves [N, classes − 1].

    Built from log-sum-exps, so that a probability that rounds to 0 or 1 leaves its logarithm finite.
    """
    target = labels.view(-1, 1)
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= target))
    binary = torch.cat([logits.gather(1, target), others.logsumexp(1, keepdim=True)], 1)
    return functional.log_softmax(binary, 1), functional.log_softmax(others, 1)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 − cos(student, teacher), mean over the real tokens (Sanh et al. 2019, arXiv:1910.01108, section 2).

    Args:
        student: Hidden states float [N, L, H].
        teacher: Hidden states float [N, L, H], no gradient wanted.
        mask: bool or int [N, L], 0 where a token is padding.

    Returns:
        Scalar float32 in [0, 2].

    Raises:
        ModelError: the hidden sizes differ.
    """
    _same(
        "hidden sizes",
        "Follow it by hidden_mse with a projection",
        student=student.shape[-1],
        teacher=teacher.shape[-1],
    )
    real = mask.bool()
    return 1 - functional.cosine_similarity(student[real].float(), teacher[real].float(), dim=-1).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, projection: nn.Linear | None = None) -> Tensor:
    """Mean square of student · W − teacher over the real tokens (Jiao et al. 2020, arXiv:1909.10351, section 3.1).

    Args:
        student: Hidden states float [N, L, H'].
        teacher: Hidden states float [N, L, H], no gradient wanted.
        mask: bool or int [N, L], 0 where a token is padding.
        projection: W, H' to H, trained along with the student; None where H' = H.

    Returns:
        Scalar float32.

    Raises:
        ModelError: the hidden sizes differ, or are not what the projection lies between.
    """
    real = mask.bool()
    ours = student[real].float()
    if projection is None:
        cure = "Put an nn.Linear between them as projection"
        _same("hidden sizes", cure, student=ours.shape[-1], teacher=teacher.shape[-1])
        return functional.mse_loss(ours, teacher[real].float())
    cure = "Build the projection for this pair"
    _same("hidden sizes", cure, student=ours.shape[-1], projection=projection.in_features)
    _same("hidden sizes", cure, projection=projection.out_features, teacher=teacher.shape[-1])
    return functional.mse_loss(projection(ours), teacher[real].float())


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each real token's attention, mean over tokens and heads.

    As in MiniLM (Wang et al. 2020, arXiv:2002.10957, section 3.1). TinyBERT's square error of the scores before the
    softmax is no alternative: transformers hands out what comes after it, where square errors vanish with 1 / L².

    Args:
        student: Attention probabilities float [N, heads, L, L], rows (last axis) summing to 1.
        teacher: The same of the teacher, no gradient wanted.
        mask: bool or int [N, L], 0 where a token is padding; as a key it has no weight, since the nets mask it.

    Returns:
        Scalar float32, nats.

    Raises:
        ModelError: student and teacher differ in their number of heads.
    """
    _same("attention heads", "Follow the hidden states instead", student=student.shape[1], teacher=teacher.shape[1])
    real = mask.bool()
    ours = student.transpose(1, 2)[real].float().clamp_min(SMALLEST_PROBABILITY)
    theirs = teacher.transpose(1, 2)[real].float()
    divergence = functional.kl_div(ours.log(), theirs, reduction="sum")
    return divergence / (theirs.shape[0] * theirs.shape[1])


def _same(what: str, cure: str, **sizes: int) -> None:
    """Refuse sizes that differ, each named by whose it is."""
    if len(set(sizes.values())) > 1:
        numbers = ", ".join(f"{whose} {size}" for whose, size in sizes.items())
        raise ModelError(f"{what} differ: {numbers}", cure=cure)
