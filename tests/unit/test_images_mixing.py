from __future__ import annotations

import pytest
import torch
from kdedge.images.augment import epoch_views
from kdedge.images.mixing import EpochMixes, epoch_mixes
from kdedge.recipe import AugmentRecipe
from kdedge.teacher_cache.memory import TeacherCache
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 7
PLAIN = AugmentRecipe(crop_padding=0, horizontal_flip=False)
FULL = AugmentRecipe(crop_padding=3, horizontal_flip=True, rotation_deg=10.0, cutout=4)


def images(count: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, 15, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mixes(
    count: int = 16,
    augment: AugmentRecipe = PLAIN,
    *,
    seed: int = 0,
    stage: str = "student",
    epoch: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    probability: float = 1.0,
) -> EpochMixes:
    views = epoch_views(count, augment, seed, stage, epoch)
    labels = torch.arange(count) % CLASSES
    return epoch_mixes(
        views, labels, CLASSES, seed, stage, epoch,
        mixup_alpha=mixup, cutmix_alpha=cutmix, probability=probability,
    )  # fmt: skip


@pytest.mark.parametrize("augment", [PLAIN, FULL], ids=["plain", "augmented"])
def test_a_mix_does_not_depend_on_its_batch_or_the_order(augment: AugmentRecipe) -> None:
    data, of = images(), mixes(augment=augment, mixup=0.4, cutmix=1.0)
    everything, labels = of.apply(data, torch.arange(16))
    for index in (torch.tensor([5]), torch.tensor([9, 5, 0]), torch.tensor([15, 14, 5, 2, 1])):
        some, their_labels = of.apply(data, index)
        torch.testing.assert_close(some, everything[index], rtol=0, atol=0)
        torch.testing.assert_close(their_labels, labels[index], rtol=0, atol=0)


def test_mixes_are_fixed_by_seed_stage_and_epoch_and_differ_between_them() -> None:
    data, index = images(), torch.arange(16)
    first = mixes(mixup=0.4, cutmix=1.0).apply(data, index)
    torch.testing.assert_close(mixes(mixup=0.4, cutmix=1.0).apply(data, index), first, rtol=0, atol=0)
    for other in (
        mixes(mixup=0.4, cutmix=1.0, epoch=1),
        mixes(mixup=0.4, cutmix=1.0, stage="qat"),
        mixes(mixup=0.4, cutmix=1.0, seed=1),
    ):
        assert not torch.equal(first[1], other.apply(data, index)[1])


def test_each_sample_is_the_partner_of_one() -> None:
    assert sorted(mixes(50, mixup=1.0).partner.tolist()) == list(range(50))


def test_mixup_blends_both_views_and_labels_by_one_share() -> None:
    data, index = images(), torch.arange(16)
    of = mixes(augment=FULL, mixup=1.0)
    mixed, labels = of.apply(data, index)
    views = of.views.apply(data, index)
    assert mixed.dtype == labels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(16))
    for sample, partner in enumerate(of.partner.tolist()):
        share = of.own_share[sample]
        torch.testing.assert_close(mixed[sample], share * views[sample] + (1 - share) * views[partner])
        expected = share if of.labels[sample] != of.labels[partner] else torch.tensor(1.0)
        torch.testing.assert_close(labels[sample, of.labels[sample]], expected)


def test_cutmix_puts_in_a_box_whose_area_is_the_partners_share() -> None:
    data, index = images(64), torch.arange(64)
    of = mixes(64, cutmix=1.0)
    mixed, labels = of.apply(data, index)
    assert mixed.dtype == torch.uint8
    areas = []
    for sample, partner in enumerate(of.partner.tolist()):
        foreign = (mixed[sample] != data[sample]).any(0)
        assert torch.equal(mixed[sample][:, foreign], data[partner][:, foreign])
        rows, columns = foreign.any(1), foreign.any(0)
        box = rows.unsqueeze(1) & columns
        assert torch.equal(mixed[sample][:, box], data[partner][:, box])
        areas.append(float(box.float().mean()))
        if of.labels[sample] != of.labels[partner]:
            assert float(labels[sample, of.labels[partner]]) == pytest.approx(areas[-1], abs=1e-6)
    assert max(areas) > 0.5
    assert min(areas) < 0.1


def test_what_is_not_mixed_stays_bit_for_bit() -> None:
    data, index = images(), torch.arange(16)
    for of in (mixes(augment=FULL), mixes(augment=FULL, mixup=0.2, cutmix=1.0, probability=0.0)):
        mixed, labels = of.apply(data, index)
        assert torch.equal(mixed, of.views.apply(data, index))
        assert torch.equal(labels, functional.one_hot(of.labels, CLASSES).float())
        assert torch.equal(of.partner, index)


def test_a_share_of_the_samples_is_mixed_half_of_them_by_each() -> None:
    of = mixes(4000, mixup=1.0, cutmix=1.0, probability=0.6)
    blended, cut = of.own_share < 1, of.cut_share > 0
    assert not (blended & cut).any()
    assert abs(int(blended.sum()) - 1200) < 120
    assert abs(int(cut.sum()) - 1200) < 120
    alone = ~(blended | cut)
    assert torch.equal(of.partner[alone], torch.arange(4000)[alone])


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    for share in (mixes(20_000, mixup=alpha).own_share, mixes(20_000, cutmix=alpha).cut_share):
        assert share.isfinite().all()
        assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_cached_logits_are_those_of_the_very_mix_that_the_student_sees() -> None:
    """The second epoch of a view comes in another order and other batches, and asks the teacher nothing."""
    data, of = images(), mixes(augment=FULL, mixup=0.4, cutmix=1.0)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 15 * 17, CLASSES)).requires_grad_(False)
    cache, asked = TeacherCache(1, 16), []

    def step(index: Tensor) -> tuple[Tensor, Tensor]:
        pixels, _ = of.apply(data, index)

        def compute(part: Tensor) -> Tensor:
            asked.extend(index[part].tolist())
            logits: Tensor = teacher(pixels[part] / 255)
            return logits

        return cache.logits(0, index, compute), teacher(pixels / 255)

    for size, order in ((4, torch.arange(16)), (3, torch.arange(16).flip(0))):
        for index in torch.split(order, size):
            replayed, fresh = step(index)
            torch.testing.assert_close(replayed, fresh, rtol=2e-3, atol=2e-3)
    assert asked == list(range(16))
