from __future__ import annotations

import torch
from kdedge.counters import generator_for
from kdedge.training.order import epoch_batches


def order(samples: int, seed: int, stage: str, epoch: int) -> list[int]:
    return torch.cat(epoch_batches(samples, seed, stage, epoch, batch=10)).tolist()


def test_the_order_is_a_permutation_fixed_by_seed_stage_and_epoch() -> None:
    first = order(100, 0, "student", 2)
    assert sorted(first) == list(range(100))
    assert first == order(100, 0, "student", 2)
    others = [order(100, 0, "student", 3), order(100, 0, "teacher", 2), order(100, 1, "student", 2)]
    assert first not in others


def test_texts_of_like_length_share_a_batch_and_the_order_stays_random() -> None:
    lengths = torch.randint(5, 60, (1003,), generator=generator_for(0, "lengths"))
    plain = epoch_batches(1003, 0, "student", 0, batch=8)
    grouped = epoch_batches(1003, 0, "student", 0, batch=8, lengths=lengths)
    assert sorted(torch.cat(grouped).tolist()) == sorted(torch.cat(plain).tolist())
    assert len(set(torch.cat(grouped).tolist())) == 1000
    again = epoch_batches(1003, 0, "student", 0, batch=8, lengths=lengths)
    assert all(map(torch.equal, grouped, again))

    def padding(batches: list[torch.Tensor]) -> float:
        rows = lengths[torch.stack(batches)]
        return float((rows.amax(1, keepdim=True) - rows).float().mean())

    assert padding(grouped) < padding(plain) / 5
    means = lengths[torch.stack(grouped)].float().mean(1)
    assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(125.0)]))[0, 1])) < 0.3


def test_the_samples_that_fill_no_batch_are_of_any_length() -> None:
    lengths = torch.arange(103)
    left_out = []
    for epoch in range(40):
        used = torch.cat(epoch_batches(103, 0, "student", epoch, batch=10, lengths=lengths))
        left_out += sorted(set(range(103)) - set(used.tolist()))
    assert len(left_out) == 120
    assert 30 < sum(left_out) / 120 < 73
