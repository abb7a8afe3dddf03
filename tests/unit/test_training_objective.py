from __future__ import annotations

import pytest
import torch
from kdedge.losses import attention_loss, decoupled_kd, hidden_cosine, softened_kl
from kdedge.recipe import DistillationRecipe
from kdedge.training.objective import Objective, Outputs, share_right
from torch.nn import functional

torch.manual_seed(0)
LABELS = torch.randint(0, 5, (6,))
STUDENT, TEACHER = torch.randn(6, 5), torch.randn(6, 5)
HARD = functional.cross_entropy(STUDENT, LABELS)


def test_the_labels_alone_without_guides() -> None:
    assert Objective()(Outputs(STUDENT), LABELS, None) == HARD
    assert Objective(DistillationRecipe(alpha=0.9))(Outputs(STUDENT), LABELS, None) == HARD
    assert not Objective().needs_guides


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_alpha_mixes_labels_and_softened_logits(loss: str) -> None:
    wish = DistillationRecipe(2.0, 0.3, loss=loss)  # type: ignore[arg-type]
    soft = softened_kl(STUDENT, TEACHER, 2.0)
    if loss == "dkd":
        soft = decoupled_kd(STUDENT, TEACHER, LABELS, temperature=2.0, alpha=1.0, beta=8.0)
    got = Objective(wish)(Outputs(STUDENT), LABELS, Outputs(TEACHER))
    torch.testing.assert_close(got, 0.7 * HARD + 0.3 * soft)


def test_start_and_end_are_choices_of_their_own() -> None:
    logits, teacher = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    labels = torch.randint(0, 7, (3, 2))
    got = Objective(DistillationRecipe(2.0, 0.5))(Outputs(logits), labels, Outputs(teacher))
    halves = [
        0.5 * functional.cross_entropy(logits[:, side], labels[:, side])
        + 0.5 * softened_kl(logits[:, side], teacher[:, side], 2.0)
        for side in (0, 1)
    ]
    torch.testing.assert_close(got, (halves[0] + halves[1]) / 2)
    assert share_right(functional.one_hot(labels, 7).float(), labels) == 1.0


def test_states_of_a_shallow_student_are_matched_with_those_of_a_deep_teacher() -> None:
    """Embeddings with embeddings, layers 1 and 2 of 2 with layers 2 and 4 of 4; the same for attention."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    hidden = [torch.randn(2, 4, 8) for _ in range(5)]
    attention = [torch.softmax(torch.randn(2, 2, 4, 4), -1) for _ in range(4)]
    own_hidden = [torch.randn(2, 4, 8) for _ in range(3)]
    own_attention = [torch.softmax(torch.randn(2, 2, 4, 4), -1) for _ in range(2)]
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    wish = DistillationRecipe(alpha=0.0, hidden_weight=2.0, attention_weight=0.5)
    got = Objective(wish)(
        Outputs(logits, tuple(own_hidden), tuple(own_attention)),
        labels,
        Outputs(logits, tuple(hidden), tuple(attention)),
        mask,
    )
    far = sum(hidden_cosine(own_hidden[m], hidden[n], mask) for m, n in ((0, 0), (1, 2), (2, 4))) / 3
    away = sum(attention_loss(own_attention[m], attention[n], mask) for m, n in ((0, 1), (1, 3))) / 2
    torch.testing.assert_close(got, functional.cross_entropy(logits, labels) + 2.0 * far + 0.5 * away)


def test_mixed_labels_count_by_their_largest_part() -> None:
    labels = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    assert share_right(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), labels) == 0.5
    torch.testing.assert_close(
        Objective()(Outputs(torch.zeros(2, 3)), labels, None), torch.log(torch.tensor(3.0)), rtol=1e-5, atol=1e-6
    )
