from __future__ import annotations

import torch
from kdedge.counters import generator_for
from kdedge.training.order import epoch_order


def test_the_order_is_a_permutation_fixed_by_seed_stage_and_epoch() -> None:
    order = epoch_order(100, 0, "student", 2)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, 0, "student", 2))
    assert not torch.equal(order, epoch_order(100, 0, "student", 3))
    assert not torch.equal(order, epoch_order(100, 0, "teacher", 2))
    assert not torch.equal(order, epoch_order(100, 1, "student", 2))


def test_texts_of_like_length_share_a_batch_and_the_order_stays_random() -> None:
    lengths = torch.randint(5, 60, (1003,), generator=generator_for(0, "lengths"))
    plain = epoch_order(1003, 0, "student", 0, batch=8)
    grouped = epoch_order(1003, 0, "student", 0, batch=8, lengths=lengths)
    assert sorted(grouped.tolist()) == list(range(1003))
    assert torch.equal(grouped, epoch_order(1003, 0, "student", 0, batch=8, lengths=lengths))
    assert not torch.equal(grouped, epoch_order(1003, 0, "student", 1, batch=8, lengths=lengths))

    def padding(order: torch.Tensor) -> float:
        rows = lengths[order[:1000]].view(-1, 8)
        return float((rows.amax(1, keepdim=True) - rows).float().mean())

    assert padding(grouped) < padding(plain) / 5
    means = lengths[grouped[:1000]].view(-1, 8).float().mean(1)
    assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(125.0)]))[0, 1])) < 0.3


def test_the_samples_that_fill_no_batch_are_of_any_length() -> None:
    lengths = torch.arange(103)
    last = [epoch_order(103, 0, "student", epoch, batch=10, lengths=lengths)[100:] for epoch in range(40)]
    assert 30 < torch.cat(last).float().mean() < 73
