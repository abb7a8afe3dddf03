from __future__ import annotations

import math

import pytest
import torch
from kdedge.losses import distillation_loss, softened_kl


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


def test_alpha_mixes_the_two_losses() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(8, 5), torch.randn(8, 5), torch.randint(0, 5, (8,))

    def loss(alpha: float) -> float:
        return float(distillation_loss(student, labels, teacher, temperature=2.0, alpha=alpha))

    assert loss(0.0) == pytest.approx(float(torch.nn.functional.cross_entropy(student, labels)))
    assert loss(1.0) == pytest.approx(float(softened_kl(student, teacher, 2.0)))
    assert loss(0.25) == pytest.approx(0.75 * loss(0.0) + 0.25 * loss(1.0), rel=1e-6)


def test_a_student_equal_to_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(4, 10)
    assert float(softened_kl(logits, logits.clone(), 3.0)) == pytest.approx(0.0, abs=1e-6)
