from __future__ import annotations

import torch
from kdedge.images.augment import epoch_views
from kdedge.recipe import AugmentRecipe

FULL = AugmentRecipe(crop_padding=3, horizontal_flip=True, rotation_deg=10.0, cutout=6)


def images(count: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_view_does_not_depend_on_its_batch_or_the_order() -> None:
    data, views = images(), epoch_views(16, FULL, 0, "student", 3)
    everything = views.apply(data, torch.arange(16))
    for index in (torch.tensor([5]), torch.tensor([9, 5, 0]), torch.tensor([15, 14, 5, 2])):
        torch.testing.assert_close(views.apply(data[index], index), everything[index], rtol=0, atol=0)


def test_views_differ_between_epochs_stages_and_seeds() -> None:
    data, index = images(), torch.arange(16)
    first = epoch_views(16, FULL, 0, "student", 0).apply(data, index)
    for other in (
        epoch_views(16, FULL, 0, "student", 1),
        epoch_views(16, FULL, 0, "qat", 0),
        epoch_views(16, FULL, 1, "student", 0),
    ):
        assert not torch.equal(first, other.apply(data, index))


def test_a_crop_is_a_window_of_the_reflected_image() -> None:
    data = images(64)
    padding = 2
    views = epoch_views(64, AugmentRecipe(crop_padding=padding, horizontal_flip=False), 0, "s", 0)
    cropped = views.apply(data, torch.arange(64))
    padded = torch.nn.functional.pad(data.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
    seen = set()
    for sample in range(64):
        places = [
            (y, x)
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            if torch.equal(cropped[sample], padded[sample, :, y : y + 16, x : x + 16])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15  # of 25 places


def test_flip_turns_about_half_and_no_augmentation_changes_nothing() -> None:
    data, index = images(400), torch.arange(400)
    nothing = AugmentRecipe(crop_padding=0, horizontal_flip=False)
    assert torch.equal(epoch_views(400, nothing, 0, "s", 0).apply(data, index), data)
    flipped = epoch_views(400, AugmentRecipe(crop_padding=0), 0, "s", 0).apply(data, index)
    mirrored = sum(torch.equal(flipped[i], data[i].flip(2)) for i in range(400))
    unchanged = sum(torch.equal(flipped[i], data[i]) for i in range(400))
    assert mirrored + unchanged == 400
    assert 150 < mirrored < 250


def test_rotation_keeps_a_disc_and_turns_a_bar() -> None:
    y, x = torch.meshgrid(torch.arange(33) - 16.0, torch.arange(33) - 16.0, indexing="ij")
    disc = ((x**2 + y**2) < 100).to(torch.uint8).mul(255).expand(1, 1, 33, 33)
    bar = (x.abs() < 2).to(torch.uint8).mul(255).expand(1, 1, 33, 33)
    views = epoch_views(1, AugmentRecipe(crop_padding=0, horizontal_flip=False, rotation_deg=90.0), 3, "s", 0)
    index = torch.tensor([0])
    assert (views.apply(disc, index) - disc.float()).abs().mean() < 8
    assert (views.apply(bar, index) - bar.float()).abs().mean() > 12
