from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import kdedge.torchvision_compat  # noqa: F401
import numpy as np
import pyarrow
import pytest
import torch
from kdedge.counters import generator_for
from kdedge.data.encoded_images import ImageFiles
from kdedge.data.image_stream import EpochCrops, LazyImageSet
from kdedge.data.images import list_class_folders, list_hub
from kdedge.errors import DataError
from kdedge.images.augment import epoch_views
from kdedge.images.mixing import epoch_mixes
from kdedge.prefetch import prefetch
from kdedge.recipe import AugmentRecipe, DataRecipe
from PIL import Image

from torchvision import transforms  # isort: skip

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet-sample"
RECIPE = DataRecipe(name="-")
CROPS = EpochCrops(0, "student", 0)


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, as shares of 255."""
    pixels = np.full((height, width, 3), 128, dtype=np.float64)
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def noise(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder(root: Path, contents: Sequence[bytes], classes: int = 2) -> Path:
    """Class folders with these files, dealt out in turn."""
    for number, content in enumerate(contents):
        path = root / f"class{number % classes}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def lazy(root: Path, recipe: DataRecipe = RECIPE) -> LazyImageSet:
    parts, _ = list_class_folders(root)
    return LazyImageSet.of(parts["train"], recipe)


@pytest.fixture
def small(tmp_path: Path) -> LazyImageSet:
    """Ten images of noise in two classes."""
    return lazy(folder(tmp_path / "small", [jpeg(noise(seed)) for seed in range(10)]))


def test_a_crop_does_not_depend_on_its_batch_or_the_order(small: LazyImageSet) -> None:
    everything = small.random_crops(torch.arange(10), CROPS, 16)
    assert everything.shape == (10, 3, 16, 16)
    assert everything.dtype == torch.uint8
    assert everything.is_contiguous(memory_format=torch.channels_last)
    for index in (torch.tensor([5]), torch.tensor([9, 5, 0])):
        assert torch.equal(small.random_crops(index, CROPS, 16), everything[index])
    for other in (EpochCrops(0, "student", 1), EpochCrops(0, "qat", 0), EpochCrops(1, "student", 0)):
        assert not torch.equal(small.random_crops(torch.arange(10), other, 16), everything)


@pytest.mark.parametrize(("width", "height"), [(150, 100), (1600, 1200), (1201, 1603)])
def test_a_crop_shows_what_its_box_holds(width: int, height: int, tmp_path: Path) -> None:
    """Also where the JPEG is decoded at a fraction of its size."""
    data = lazy(folder(tmp_path / "d", [jpeg(ramp(width, height))] * 12))
    size = 32
    found = data.random_crops(torch.arange(12), CROPS, size).double()
    places = (torch.arange(size) + 0.5) / size
    for sample in range(12):
        (left, top, right, bottom), mirrored = CROPS.draw(sample, width, height)
        columns = (left + places * (right - left)) / width * 255
        rows = (top + places * (bottom - top)) / height * 255
        columns = columns.flip(0) if mirrored else columns
        inner = slice(1, -1)  # at an edge the filter sees one side alone
        torch.testing.assert_close(found[sample, 0, 9, inner], columns.double()[inner], rtol=0, atol=3)
        torch.testing.assert_close(found[sample, 1, inner, 9], rows.double()[inner], rtol=0, atol=3)


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Means over many samples within four standard errors, and as much spread."""
    torch.manual_seed(0)
    width, height, count = 400, 300, 3000
    image = Image.new("L", (width, height))
    ours, theirs = [], []
    for sample in range(count):
        (left, top, right, bottom), _ = CROPS.draw(sample, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        ours.append((right - left, bottom - top, left, top))
        top, left, tall, wide = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((wide, tall, left, top))
    a, b = (np.array(boxes, dtype=np.float64) for boxes in (ours, theirs))
    for x, y in zip(_figures(a, width, height), _figures(b, width, height), strict=True):
        assert abs(x.mean() - y.mean()) < 4 * np.sqrt((x.var() + y.var()) / count)
        assert x.std() == pytest.approx(y.std(), rel=0.08)
    mirrored = sum(CROPS.draw(sample, width, height)[1] for sample in range(count))
    assert abs(mirrored - count / 2) < 120
    unmirrored = EpochCrops(0, "student", 0, horizontal_flip=False)
    assert not any(unmirrored.draw(sample, width, height)[1] for sample in range(50))


def _figures(boxes: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    """Share of the area, log ratio, and the crops' centres."""
    wide, tall, left, top = boxes.T
    return [wide * tall / (width * height), np.log(wide / tall), left + wide / 2, top + tall / 2]


@pytest.mark.parametrize(("width", "height"), [(900, 10), (10, 900), (1, 1), (1, 50)])
def test_images_of_extreme_shape_are_cropped_within_themselves(width: int, height: int, tmp_path: Path) -> None:
    data = lazy(folder(tmp_path / "d", [jpeg(ramp(width, height))] * 4))
    assert data.random_crops(torch.arange(4), CROPS, 8).shape == (4, 3, 8, 8)
    assert data.centre_crops(torch.arange(4), 8)[0].shape == (4, 3, 8, 8)
    for sample in range(20):
        (left, top, right, bottom), _ = CROPS.draw(sample, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_every_size_of_an_epoch_shows_the_same_crop(tmp_path: Path) -> None:
    data = lazy(folder(tmp_path / "d", [jpeg(ramp(640, 480))] * 6))
    index = torch.arange(6)
    small, large = (data.random_crops(index, CROPS, size).float() for size in (16, 64))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    torch.testing.assert_close(small[..., 1:-1, 1:-1], shrunk[..., 1:-1, 1:-1], rtol=0, atol=3)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (256, 256), (64, 64), (40, 50)])
def test_evaluation_resizes_and_crops_as_torchvision_does(size: tuple[int, int], tmp_path: Path) -> None:
    content = jpeg(noise(0, size))
    data = lazy(folder(tmp_path / "d", [content, content]))
    found, kept = data.centre_crops(torch.tensor([1, 0]), 56)
    theirs = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56)])
    expected = np.asarray(theirs(Image.open(io.BytesIO(content)).convert("RGB")))
    assert torch.equal(kept, torch.tensor([1, 0]))
    np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_image_is_read(mode: str, channels: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    image = Image.new("I;16", (30, 20), 1000) if mode == "I;16" else noise(0, (30, 20)).convert(mode)
    image.save(stream, "TIFF")
    data = lazy(folder(tmp_path / "d", [stream.getvalue()] * 2), DataRecipe(name="-", channels=channels))
    assert data.random_crops(torch.arange(2), CROPS, 8).shape == (2, channels, 8, 8)
    assert data.centre_crops(torch.arange(2), 8)[0].shape == (2, channels, 8, 8)


def test_parts_and_labels_follow_the_samples(small: LazyImageSet) -> None:
    assert len(small) == 10
    assert small.labels.tolist() == [0] * 5 + [1] * 5
    index = torch.tensor([7, 2, 5])
    part = small.take(index)
    assert part.labels.tolist() == [1, 0, 1]
    assert torch.equal(part.centre_crops(torch.arange(3), 16)[0], small.centre_crops(index, 16)[0])
    assert torch.equal(part.take(torch.tensor([1])).rows, torch.tensor([2]))
    assert part.relabelled(torch.tensor([1, 0])).labels.tolist() == [0, 1, 0]


def test_the_fingerprint_is_of_names_sizes_and_labels(tmp_path: Path) -> None:
    """Nothing is decoded: these are no images."""

    def fingerprint(*contents: bytes, classes: int = 2) -> bytes:
        root = folder(tmp_path / str(len(list(tmp_path.iterdir()))), contents, classes)
        return lazy(root).fingerprint()

    first = fingerprint(b"aa", b"bb", b"cc", b"dd")
    assert fingerprint(b"aa", b"xx", b"cc", b"dd") == first
    assert fingerprint(b"aa", b"bbb", b"cc", b"dd") != first
    assert fingerprint(b"aa", b"bb", b"cc", b"dd", b"ee") != first
    assert fingerprint(b"aa", b"bb", b"cc", b"dd", classes=4) != first
    data = lazy(folder(tmp_path / "d", [b"aa", b"bb", b"cc", b"dd"]))
    assert data.fingerprint() == first
    assert data.take(torch.tensor([1, 0, 2, 3])).fingerprint() != first
    assert data.relabelled(torch.tensor([1, 0])).fingerprint() != first
    (tmp_path / "d" / "class1" / "001.jpg").unlink()
    assert data.fingerprint() != first


def make_hub(root: Path, contents: Sequence[bytes | None]) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [None if content is None else {"bytes": content, "path": None} for content in contents]
    values = {"image": cells, "label": [n % 2 for n in range(len(contents))]}
    root.mkdir()
    datasets.Dataset.from_dict(values, features=features).to_parquet(root / "train-00000-of-00001.parquet")
    return root


def test_rows_of_a_hub_table_are_read_one_by_one(tmp_path: Path) -> None:
    contents = [jpeg(noise(seed, (200, 150))) for seed in range(20)]
    parts, names = list_hub(str(make_hub(tmp_path / "hub", contents)))
    held = pyarrow.total_allocated_bytes()
    data = LazyImageSet.of(parts["train"], RECIPE)
    assert names == ("a", "b")
    assert data.labels.tolist() == [0, 1] * 10
    names_and_sizes = [data.encoded.stamp(row) for row in range(20)]
    assert names_and_sizes == [("", len(content)) for content in contents]
    assert len(data.fingerprint()) == 32
    assert pyarrow.total_allocated_bytes() - held < sum(map(len, contents)) / 10
    paths = folder(tmp_path / "d", contents)
    files = ImageFiles(paths, [f"class{n % 2}/{n:03d}.jpg" for n in range(20)], data.labels.tolist())
    index = torch.tensor([3, 17, 0])
    for size in (32, 96):
        expected = LazyImageSet.of(files, RECIPE).random_crops(index, CROPS, size)
        assert torch.equal(data.random_crops(index, CROPS, size), expected)


def test_a_row_or_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    good = jpeg(noise(0))
    parts, _ = list_hub(str(make_hub(tmp_path / "hub", [good, good, None, good[:200], good])))
    rows = LazyImageSet.of(parts["train"], RECIPE)
    for row in (2, 3):
        with pytest.raises(DataError, match=rf"hub, split train, row {row}\).*data.on_corrupt=skip"):
            rows.random_crops(torch.tensor([0, row]), CROPS, 8)
    assert rows.encoded.stamp(2) == ("", -1)
    files = lazy(folder(tmp_path / "d", [good, b"no image", good, good]))
    (tmp_path / "d" / "class1" / "003.jpg").unlink()
    for sample, name in ((2, "001"), (3, "003")):
        with pytest.raises(DataError, match=rf"class1/{name}.jpg\).*data.on_corrupt=skip"):
            files.centre_crops(torch.tensor([sample]), 8)


def test_skipped_images_are_stood_in_for_in_training_and_left_out_of_scores(tmp_path: Path) -> None:
    contents = [jpeg(noise(seed)) for seed in range(6)]
    whole = lazy(folder(tmp_path / "whole", contents))
    contents[2] = contents[4] = b"no image"  # the second and third of class 0
    data = lazy(folder(tmp_path / "d", contents), DataRecipe(name="-", on_corrupt="skip"))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    found = data.random_crops(torch.tensor([1, 2, 3]), CROPS, 16)
    expected = whole.random_crops(torch.tensor([0, 0, 3]), CROPS, 16)
    assert torch.equal(found, expected)
    scored, kept = data.centre_crops(torch.arange(6), 16)
    assert kept.tolist() == [0, 3, 4, 5]
    assert torch.equal(scored, whole.centre_crops(kept, 16)[0])
    (measured,) = data.training_columns(torch.arange(6))
    assert torch.equal(measured, whole.centre_crops(kept, data.recipe.image_size)[0])
    with pytest.raises(DataError, match="no image could be read"):
        data.training_columns(torch.tensor([1]))
    alone = data.take(torch.tensor([1, 2, 3]))
    with pytest.raises(DataError, match="no image of a class can be read"):
        alone.random_crops(torch.tensor([0]), CROPS, 16)


def test_streamed_images_are_mixed_with_partners_that_are_decoded_along(small: LazyImageSet) -> None:
    views = epoch_views(10, AugmentRecipe(crop_padding=0, horizontal_flip=False), 0, "student", 0)
    mixes = epoch_mixes(views, small.labels, 2, 0, "student", 0, mixup_alpha=0.4, cutmix_alpha=1.0)
    everything = small.random_crops(torch.arange(10), CROPS, 16)
    whole, labels = mixes.mix(everything, everything[mixes.partner], torch.arange(10))
    index = torch.tensor([8, 1, 4])
    both = small.random_crops(torch.cat([index, mixes.partner[index]]), CROPS, 16)
    images, soft = mixes.mix(both[:3], both[3:], index)
    assert torch.equal(images, whole[index])
    assert torch.equal(soft, labels[index])


@pytest.mark.skipif(
    not PHOTOS.is_dir(), reason="../shared/data/imagenet-sample is not there: real photos are not tried"
)
def test_photographs_stream_through_threads_as_without_them() -> None:
    parts, names = list_class_folders(PHOTOS)
    data = LazyImageSet.of(parts["train"], RECIPE)
    assert len(data) == len(names) == 125
    order = torch.randperm(125, generator=generator_for(0, "order"))
    stream = prefetch(torch.split(order, 16), lambda index: data.random_crops(index, CROPS, 224), workers=2, depth=3)
    for index, images in zip(torch.split(order, 16), stream, strict=True):
        assert images.shape == (len(index), 3, 224, 224)
        assert torch.equal(images[:2], data.random_crops(index[:2], CROPS, 224))
    scored, kept = data.centre_crops(torch.arange(125), 224)
    assert scored.shape == (125, 3, 224, 224)
    assert len(kept) == 125
    assert 100 < float(scored.float().mean()) < 140
