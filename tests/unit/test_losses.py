from __future__ import annotations

import math

import pytest
import torch
from kdedge.errors import ModelError
from kdedge.losses import (
    attention_loss,
    cross_entropy,
    decoupled_kd,
    hidden_cosine,
    hidden_mse,
    marginal_smoothing,
    softened_kl,
    top_logits,
)
from torch import Tensor, nn
from torch.nn import functional


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_softened_kl_is_the_formula() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[0.5, 1.0, 3.0]])
    temperature = 3.0
    p = [math.exp(v / temperature) for v in teacher[0].tolist()]
    q = [math.exp(v / temperature) for v in student[0].tolist()]
    kl = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    assert float(softened_kl(student, teacher, temperature)) == pytest.approx(9 * kl, rel=1e-5)


def test_the_gradient_keeps_its_size_over_temperatures() -> None:
    """With T² the gradient tends to (student − teacher) / classes as T grows (Hinton et al. 2015, eq. 4)."""
    student = torch.tensor([[1.0, 2.0, -3.0]], requires_grad=True)
    teacher = torch.tensor([[0.5, 1.0, -1.5]])
    softened_kl(student, teacher, 1000.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    expected = (student.detach() - teacher - (student.detach() - teacher).mean()) / 3
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-3)


def test_a_student_equal_to_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(4, 10)
    assert float(softened_kl(logits, logits.clone(), 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_one_hot_labels_are_the_labels_themselves() -> None:
    logits = draw(6, 5)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    rows = functional.one_hot(labels, 5).float()
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(cross_entropy(logits, rows, smoothing), cross_entropy(logits, labels, smoothing))


def test_mixed_labels_weigh_the_cross_entropies_of_their_classes() -> None:
    logits, own, other = draw(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 2, 0])
    mixed = 0.7 * functional.one_hot(own, 5) + 0.3 * functional.one_hot(other, 5)
    expected = 0.7 * cross_entropy(logits, own) + 0.3 * cross_entropy(logits, other)
    torch.testing.assert_close(cross_entropy(logits, mixed), expected)


def test_smoothing_takes_the_labels_towards_a_uniform_distribution() -> None:
    logits, labels = draw(4, 5), torch.tensor([0, 1, 2, 3])
    smoothed = 0.9 * functional.one_hot(labels, 5) + 0.1 / 5
    expected = -(smoothed * functional.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), expected)


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    return decoupled_kd(student, teacher, labels, temperature=temperature, alpha=alpha, beta=beta)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_parts_add_up_to_plain_distillation_sample_by_sample(temperature: float) -> None:
    student, teacher = 4 * draw(32, 7), 4 * draw(32, 7, seed=1)
    labels = torch.arange(32) % 7
    sure = functional.softmax(teacher / temperature, 1)
    for row in range(32):
        one = slice(row, row + 1)
        tckd = dkd(student[one], teacher[one], labels[one], temperature, 1.0, 0.0)
        nckd = dkd(student[one], teacher[one], labels[one], temperature, 0.0, 1.0)
        whole = tckd + (1 - sure[row, labels[row]]) * nckd
        torch.testing.assert_close(whole, softened_kl(student[one], teacher[one], temperature), rtol=1e-4, atol=1e-6)


def test_decoupled_parts_are_the_divergences_of_their_definition() -> None:
    student, teacher, labels = draw(8, 5), draw(8, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0, 2, 4])
    tckd, nckd = 0.0, 0.0
    for row, label in enumerate(labels.tolist()):
        q, p = (functional.softmax(logits[row].double() / 2, 0) for logits in (student, teacher))
        binary = [torch.stack([x[label], 1 - x[label]]) for x in (q, p)]
        rest = [torch.cat([x[:label], x[label + 1 :]]) / (1 - x[label]) for x in (q, p)]
        tckd += float((binary[1] * (binary[1] / binary[0]).log()).sum()) / 8
        nckd += float((rest[1] * (rest[1] / rest[0]).log()).sum()) / 8
    assert float(dkd(student, teacher, labels, 2.0, 1.0, 0.0)) == pytest.approx(4 * tckd, rel=1e-4)
    assert float(dkd(student, teacher, labels, 2.0, 0.0, 1.0)) == pytest.approx(4 * nckd, rel=1e-4)
    assert float(dkd(student, teacher, labels, 2.0, 0.5, 3.0)) == pytest.approx(4 * (0.5 * tckd + 3 * nckd), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 100.0, 10_000.0])
def test_decoupled_distillation_stays_finite_however_sure_the_nets_are(scale: float) -> None:
    student = (scale * draw(16, 5)).requires_grad_()
    loss = dkd(student, scale * draw(16, 5, seed=1), torch.arange(16) % 5, 1.0, 1.0, 8.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert loss > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_certain_teacher_still_teaches_through_the_other_classes() -> None:
    """What plain distillation cannot: there the other classes' weight has vanished in float32."""
    teacher = torch.tensor([[200.0, 3.0, 1.0, 0.0]])
    student = torch.tensor([[200.0, 0.0, 1.0, 3.0]], requires_grad=True)
    label = torch.tensor([0])
    assert float(softened_kl(student.detach(), teacher, 1.0)) == pytest.approx(0, abs=1e-7)
    dkd(student, teacher, label, 1.0, 1.0, 1.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    gap = functional.softmax(student[:, 1:], 1) - functional.softmax(teacher[:, 1:], 1)
    torch.testing.assert_close(student.grad[:, 1:], gap.detach(), rtol=1e-4, atol=1e-6)


def test_decoupled_distillation_knows_no_constant_and_nothing_below_zero() -> None:
    student, teacher, labels = draw(8, 5), draw(8, 5, seed=1), torch.arange(8) % 5
    plain = dkd(student, teacher, labels, 3.0, 1.0, 2.0)
    moved = dkd(student + 50, teacher - torch.arange(8.0).view(-1, 1), labels, 3.0, 1.0, 2.0)
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-5)
    assert float(dkd(teacher, teacher, labels, 3.0, 1.0, 2.0)) == pytest.approx(0, abs=1e-6)
    half = dkd(student.bfloat16(), teacher.bfloat16(), labels, 3.0, 1.0, 2.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0.05)


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
REAL = MASK.bool()


def test_padding_counts_for_nothing() -> None:
    student, teacher = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    queries, keys = (draw(3, 2, 4, 4, seed=n).softmax(-1) for n in (2, 3))
    losses = [
        hidden_cosine(student, teacher, MASK),
        hidden_mse(student, teacher, MASK),
        attention_loss(queries, keys, MASK),
    ]
    student[~REAL] = torch.inf
    queries.transpose(1, 2)[~REAL] = torch.nan
    again = [
        hidden_cosine(student, teacher, REAL),
        hidden_mse(student, teacher, REAL),
        attention_loss(queries, keys, REAL),
    ]
    torch.testing.assert_close(again, losses, rtol=0, atol=0)


def test_hidden_states_are_compared_token_by_token() -> None:
    student, teacher = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    pairs = [(student[n, t], teacher[n, t]) for n in range(3) for t in range(4) if REAL[n, t]]
    cosines = [float((a @ b) / (a.norm() * b.norm())) for a, b in pairs]
    squares = [float((a - b).square().mean()) for a, b in pairs]
    assert float(hidden_cosine(student, teacher, MASK)) == pytest.approx(1 - sum(cosines) / 8, rel=1e-5)
    assert float(hidden_mse(student, teacher, MASK)) == pytest.approx(sum(squares) / 8, rel=1e-5)
    assert float(hidden_cosine(3 * teacher, teacher, MASK)) == pytest.approx(0, abs=1e-6)


def test_a_projection_of_the_hidden_states_learns_along() -> None:
    student, teacher = draw(3, 4, 5), draw(3, 4, 6, seed=1)
    projection = nn.Linear(5, 6)
    before = hidden_mse(student, teacher, MASK, projection)
    for _ in range(50):
        projection.zero_grad()
        hidden_mse(student, teacher, MASK, projection).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in projection.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad)
    assert hidden_mse(student, teacher, MASK, projection) < 0.7 * before


def test_attention_is_the_divergence_of_its_rows() -> None:
    student, teacher = draw(3, 2, 4, 4).softmax(-1), draw(3, 2, 4, 4, seed=1).softmax(-1)
    rows = (teacher * (teacher / student).log()).sum(-1).transpose(1, 2)
    torch.testing.assert_close(attention_loss(student, teacher, MASK), rows[REAL].mean())


def test_attention_that_is_exactly_zero_leaves_loss_and_gradient_finite() -> None:
    """As behind a mask of −inf, and where a softmax underflows on one side alone."""
    scores = draw(2, 3, 4, 4).masked_fill(MASK[:2, None, None, :] == 0, -torch.inf)
    scores[0, 0, 0, 1] = -1e4
    scores.requires_grad_()
    masked = draw(2, 3, 4, 4, seed=1).masked_fill(MASK[:2, None, None, :] == 0, -torch.inf)
    loss = attention_loss(scores.softmax(-1), masked.softmax(-1), MASK[:2])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_nets_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(ModelError, match=r"attention heads differ: student 12, teacher 16"):
        attention_loss(torch.ones(1, 12, 2, 2), torch.ones(1, 16, 2, 2), torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"hidden sizes differ: student 384, teacher 768.*projection"):
        hidden_cosine(torch.ones(1, 2, 384), torch.ones(1, 2, 768), torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"hidden sizes differ: student 384, teacher 768.*projection"):
        hidden_mse(torch.ones(1, 2, 384), torch.ones(1, 2, 768), torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"hidden sizes differ: student 384, projection 312"):
        hidden_mse(torch.ones(1, 2, 384), torch.ones(1, 2, 768), torch.ones(1, 2), nn.Linear(312, 768))
    with pytest.raises(ModelError, match=r"hidden sizes differ: projection 512, teacher 768"):
        hidden_mse(torch.ones(1, 2, 384), torch.ones(1, 2, 768), torch.ones(1, 2), nn.Linear(384, 512))


def test_top_logits_keep_the_probabilities_of_their_classes_and_the_mass_of_the_others() -> None:
    """Against marginal smoothing written out: q = p for the top classes, the other mass spread evenly."""
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 12) * 4, torch.randn(5, 12, requires_grad=True)
    for temperature in (1.0, 3.0):
        p = torch.softmax(teacher / temperature, 1)
        top = p.topk(4).indices
        q = ((1 - p.gather(1, top).sum(1, keepdim=True)) / 8).repeat(1, 12).scatter(1, top, p.gather(1, top))
        kept = marginal_smoothing(*top_logits(teacher, 4, temperature), 12)
        torch.testing.assert_close(torch.softmax(kept / temperature, 1), q)
        log_student = torch.log_softmax(student / temperature, 1)
        by_hand = temperature**2 * (q * (q.log() - log_student)).sum(1).mean()
        torch.testing.assert_close(softened_kl(student, kept, temperature), by_hand)


def test_all_logits_kept_are_the_whole_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 12), torch.randn(5, 12)
    kept = marginal_smoothing(*top_logits(teacher, 12, 3.0), 12)
    assert torch.equal(kept, teacher)
    assert torch.equal(softened_kl(student, kept, 3.0), softened_kl(student, teacher, 3.0))


def test_fewer_logits_lose_information_monotonically() -> None:
    """The divergence of what is kept from the whole teacher falls to zero as more of it is kept."""
    torch.manual_seed(0)
    teacher = torch.randn(50, 30) * 3
    lost = [
        float(softened_kl(marginal_smoothing(*top_logits(teacher, k, 2.0), 30), teacher, 2.0)) for k in range(1, 31)
    ]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.1
    assert abs(lost[-1]) < 1e-6
