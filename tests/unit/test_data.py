from __future__ import annotations

import contextlib
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdedge.data.images import ImageSet
from kdedge.data.splits import SPLITS, load_data, load_evaluation
from kdedge.errors import DataError
from kdedge.recipe import DataRecipe
from PIL import Image

RECIPE = DataRecipe(name="-", image_size=8)


def make_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (10, 8), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


def rows(data: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def test_digits_are_split_without_overlap_and_always_alike() -> None:
    splits = load_data(DataRecipe(name="digits", image_size=8, test_fraction=0.33))
    parts = (splits.train, splits.validation, splits.test)
    assert sum(map(len, parts)) == 1797
    assert len(splits.test) >= 300
    assert splits.labels == tuple("0123456789")
    for part in parts:
        assert set(part.labels.tolist()) == set(range(10))
    # Two of the 1,797 images could be alike; none are, so images can stand for samples here.
    assert not rows(splits.train) & rows(splits.test)
    assert not rows(splits.train) & rows(splits.validation)
    assert not rows(splits.validation) & rows(splits.test)
    again = load_data(DataRecipe(name="digits", image_size=8, test_fraction=0.33))
    assert again.fingerprint == splits.fingerprint
    other = load_data(DataRecipe(name="digits", image_size=8, test_fraction=0.33, split_seed=1))
    assert other.fingerprint != splits.fingerprint


def test_a_limit_takes_evenly_from_the_classes_and_leaves_the_other_splits_alone() -> None:
    whole = load_data(DataRecipe(name="digits", image_size=8))
    some = load_data(DataRecipe(name="digits", image_size=8, train_limit=200))
    assert len(some.train) == 200
    counts = torch.bincount(some.train.labels)
    assert counts.max() - counts.min() <= 4
    assert torch.equal(some.test.images, whole.test.images)
    assert torch.equal(some.validation.images, whole.validation.images)


@pytest.mark.parametrize("limit", [3, 4, 7, 11, 28, 29])
def test_a_limit_is_met_exactly_with_a_sample_of_each_class(tmp_path: Path, limit: int) -> None:
    folder = make_folder(tmp_path / "d", {"few": 3, "many": 41, "some": 10}, size=(8, 8))
    recipe = DataRecipe(name="-", image_size=8, test_fraction=0.4, train_limit=limit)
    train = load_data(recipe, str(folder)).train
    assert len(train) == limit and set(train.labels.tolist()) == {0, 1, 2}


def test_a_limit_below_the_number_of_classes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5, "c": 5})
    with pytest.raises(DataError, match=r"data\.train_limit is 2, and there are 3 classes"):
        load_data(DataRecipe(name="-", image_size=8, train_limit=2), str(folder))


def test_class_folders_become_labels_in_order_and_images_are_cropped(tmp_path: Path) -> None:
    splits = load_data(RECIPE, str(make_folder(tmp_path / "d", {"cat": 10, "ant": 6, "dog": 8})))
    assert splits.labels == ("ant", "cat", "dog")
    assert splits.train.images.shape[1:] == (3, 8, 8)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 24
    assert splits.train.images.dtype == torch.uint8


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    make_folder(tmp_path / "d" / "train", {"a": 10, "b": 10})
    make_folder(tmp_path / "d" / "test", {"a": 3, "b": 4})
    splits = load_data(RECIPE, str(tmp_path / "d"))
    assert len(splits.test) == 7
    assert len(splits.train) + len(splits.validation) == 20


def test_a_validation_split_that_serves_as_test_is_not_tuned_on(tmp_path: Path) -> None:
    make_folder(tmp_path / "d" / "train", {"a": 10, "b": 10})
    make_folder(tmp_path / "d" / "validation", {"a": 3, "b": 4}, seed=1)
    splits = load_data(RECIPE, str(tmp_path / "d"))
    assert len(splits.test) == 7
    assert len(splits.train) + len(splits.validation) == 20
    assert not rows(splits.validation) & rows(splits.test)


@pytest.mark.parametrize(
    "there", [("train",), ("train", "test"), ("train", "validation"), ("train", "validation", "test")], ids="-".join
)
def test_evaluation_sees_the_split_that_training_made(there: tuple[str, ...], tmp_path: Path) -> None:
    for number, part in enumerate(there):
        root = tmp_path / "d" if there == ("train",) else tmp_path / "d" / part
        make_folder(root, {"a": 10 + number, "b": 8 + number})
    splits = load_data(RECIPE, str(tmp_path / "d"))
    for split in SPLITS:
        again = load_evaluation(RECIPE, str(tmp_path / "d"), split, ("a", "b"))
        assert torch.equal(again.images, splits.split(split).images), split
        assert torch.equal(again.labels, splits.split(split).labels), split
    swapped = load_evaluation(RECIPE, str(tmp_path / "d"), "test", ("b", "a"))
    assert torch.equal(swapped.labels, 1 - splits.test.labels)


def test_evaluation_decodes_no_more_than_its_split(tmp_path: Path) -> None:
    make_folder(tmp_path / "d" / "train", {"a": 3, "b": 3})
    make_folder(tmp_path / "d" / "test", {"a": 2, "b": 2})
    (tmp_path / "d" / "train" / "a" / "000.png").write_bytes(b"no picture")
    assert len(load_evaluation(RECIPE, str(tmp_path / "d"), "test", ("a", "b"))) == 4
    shutil.rmtree(tmp_path / "d" / "train")
    assert len(load_evaluation(RECIPE, str(tmp_path / "d"), "test", ("a", "b"))) == 4
    with pytest.raises(DataError, match="no 'train' split"):
        load_data(RECIPE, str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"no split 'dev'.*train, validation, test"):
        load_evaluation(RECIPE, str(tmp_path / "d"), "dev", ("a", "b"))


def test_one_channel(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    assert load_data(DataRecipe(name="-", image_size=8, channels=1), str(folder)).train.images.shape[1:] == (1, 8, 8)


def test_missing_folder() -> None:
    with pytest.raises(DataError, match=r"no such folder \(\./nowhere\)"):
        load_data(RECIPE, "./nowhere")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_data(RECIPE, str(tmp_path / "x"))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' has no images"):
        load_data(RECIPE, str(folder))


def test_what_tools_leave_in_folders_is_no_image(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    make_folder(folder / "a", {".ipynb_checkpoints": 2})
    (folder / "b" / "._000.png").write_bytes(b"of a Mac")
    (folder / "b" / "folder.png").mkdir()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "index.parquet").touch()
    splits = load_data(RECIPE, str(folder))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        make_folder(tmp_path / "d" / split, {"a": 5, "b": 5})
    with pytest.raises(DataError, match="'val' and 'validation' are the same split"):
        load_data(RECIPE, str(tmp_path / "d"))


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"car": 10, "plane": 10, "train": 10})
    assert load_data(RECIPE, str(folder)).labels == ("car", "plane", "train")


def test_a_folder_beside_the_splits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path / "d" / "train", {"a": 10, "b": 10})
    make_folder(tmp_path / "d" / "unlabelled", {"all": 3})
    assert load_data(RECIPE, str(tmp_path / "d")).labels == ("a", "b")
    assert "takes the splits train alone, not unlabelled" in caplog.text


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 1 class folders, at least 2"):
        load_data(RECIPE, str(make_folder(tmp_path / "d", {"a": 5})))


def test_one_corrupt_image_among_thousands_is_named_or_skipped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 1500, "b": 1500}, size=(8, 8))
    bad = folder / "b" / "0777.png"
    bad.write_bytes((folder / "b" / "000.png").read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        load_data(RECIPE, str(folder))
    assert str(bad) in str(caught.value)
    assert "data.on_corrupt=skip" in str(caught.value)
    splits = load_data(DataRecipe(name="-", image_size=8, on_corrupt="skip"), str(folder))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 3000


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "pgm", "png", "tif", "webp"])
def test_a_damaged_image_is_one_clear_line(tmp_path: Path, suffix: str) -> None:
    """Pillow raises errors of a dozen kinds; each file is cut or changed at random."""
    folder = make_folder(tmp_path / "d", {"a": 4, "b": 4})
    whole, bad = tmp_path / f"whole.{suffix}", folder / "b" / f"bad.{suffix}"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).convert("L").save(whole)
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole.read_bytes())
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        bad.write_bytes(content[: rng.integers(1, len(content) + 1)])
        with contextlib.suppress(DataError):
            load_data(RECIPE, str(folder))


def test_a_tiff_whose_tag_is_of_another_type_is_named_or_skipped(tmp_path: Path) -> None:
    """Offsets of strips as a float, over which Pillow raises TypeError."""
    folder = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    bad = folder / "b" / "bad.tif"
    Image.new("RGB", (8, 8)).save(bad)
    content = bytearray(bad.read_bytes())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    entries = range(directory + 2, directory + 2 + 12 * count, 12)
    (offsets,) = [entry for entry in entries if struct.unpack_from("<H", content, entry)[0] == 273]
    struct.pack_into("<HIf", content, offsets + 2, 11, 1, 8.0)
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"an image cannot be read \(.*bad\.tif\)") as caught:
        load_data(RECIPE, str(folder))
    assert "\n" not in str(caught.value)
    splits = load_data(DataRecipe(name="-", image_size=8, on_corrupt="skip"), str(folder))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "d" / "train", {"a": 4, "b": 4})
    make_folder(tmp_path / "d" / "test", {"a": 2, "c": 2})
    with pytest.raises(DataError, match="other classes than the rest: b, c"):
        load_data(RECIPE, str(tmp_path / "d"))


def make_parquet(folder: Path, corrupt: int | None = None) -> Path:
    import io

    import datasets

    def encode(value: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (value, value, value)).save(stream, "PNG")
        return stream.getvalue()

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    for split, count in (("train", 40), ("test", 10)):
        cells = [{"bytes": encode(n * 5), "path": None} for n in range(count)]
        if split == "test" and corrupt is not None:
            cells[corrupt]["bytes"] = b"no image"
        table = datasets.Dataset.from_dict({"img": cells, "label": [n % 2 for n in range(count)]}, features=features)
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


def test_hub_layout(tmp_path: Path) -> None:
    splits = load_data(RECIPE, str(make_parquet(tmp_path / "hub")))
    assert splits.labels == ("dark", "light")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (40, 10)
    assert set(splits.test.images[3].flatten().tolist()) == {15}


def table_on_hub(folder: Path, label: Any, **labels: list[Any]) -> Path:
    """A data set of as many small images a split as it has labels, of the feature ``label``."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": label})
    folder.mkdir()
    for split, values in labels.items():
        images = [Image.new("L", (8, 8), n) for n in range(len(values))]
        table = datasets.Dataset.from_dict({"image": images, "label": values}, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_hub_split_whose_labels_are_kept_back_counts_as_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As ImageNet's: every label of its test split is −1, and its validation split is what one tests on."""
    import datasets

    feature = datasets.ClassLabel(names=["a", "b"])
    folder = table_on_hub(tmp_path / "hub", feature, train=[0, 1] * 10, validation=[1, 0, 1], test=[-1] * 4)
    splits = load_data(RECIPE, str(folder))
    assert (len(splits.test), splits.test.labels.tolist()) == (3, [1, 0, 1])
    assert len(splits.train) + len(splits.validation) == 20
    assert "left out the test split, which comes without 'label'" in caplog.text
    assert load_evaluation(RECIPE, str(folder), "test", ("a", "b")).labels.tolist() == [1, 0, 1]


def test_hub_labels_may_be_names_and_numbers_with_gaps(tmp_path: Path) -> None:
    import datasets

    words = table_on_hub(tmp_path / "words", datasets.Value("string"), train=["cat", "dog"] * 10, test=["dog"])
    splits = load_data(RECIPE, str(words))
    assert (splits.labels, splits.test.labels.tolist()) == (("cat", "dog"), [1])
    numbers = table_on_hub(tmp_path / "numbers", datasets.Value("int64"), train=[0, 1, 7] * 10, test=[7])
    assert load_data(RECIPE, str(numbers)).labels == ("0", "1", "7")
    holes = table_on_hub(tmp_path / "holes", datasets.Value("string"), train=["cat", "dog", None] * 10)
    with pytest.raises(DataError, match=r"label None is neither a whole number nor a name \(.*split train, row 2\)"):
        load_data(RECIPE, str(holes))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_16_bits_are_taken_by_their_upper_eight(channels: int, tmp_path: Path) -> None:
    pixels = np.full((8, 8), 1000, dtype=np.uint16)
    pixels[:, 4:] = 40000
    folder = make_folder(tmp_path / "d", {"a": 6, "b": 6}, size=(8, 8))
    for number in range(6):
        Image.fromarray(pixels).save(folder / "a" / f"deep{number}.{('png', 'pgm', 'tif')[number % 3]}")
    splits = load_data(DataRecipe(name="-", image_size=8, channels=channels), str(folder))
    found = [image for image in splits.train.images if set(image.flatten().tolist()) == {3, 156}]
    assert found and torch.equal(found[0][0, 0], torch.tensor([3] * 4 + [156] * 4, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_unknown_range_are_refused(dtype: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 6, "b": 6})
    Image.fromarray(np.full((8, 8), 200, dtype=dtype)).save(folder / "b" / "deep.tif")
    with pytest.raises(DataError, match=r"pixels are 32-bit numbers of no known range: convert it .*deep\.tif"):
        load_data(RECIPE, str(folder))


def test_hub_layout_names_the_row_that_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split test, row 7"):
        load_data(RECIPE, str(make_parquet(tmp_path / "hub", corrupt=7)))


def test_hub_layout_with_a_cut_parquet_file(tmp_path: Path) -> None:
    folder = make_parquet(tmp_path / "hub")
    file = folder / "plain_text" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot load the data set"):
        load_data(RECIPE, str(folder))


@pytest.mark.skipif(
    not Path(__file__).parents[2].parent.joinpath("shared/data/imagenet-sample").is_dir(),
    reason="../shared/data/imagenet-sample is not there: real photographs in class folders are not tried",
)
def test_real_photographs_in_class_folders(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2].parent / "shared/data/imagenet-sample"
    for folder in sorted(sample.iterdir())[:6]:
        target = tmp_path / "d" / folder.name
        target.mkdir(parents=True)
        photograph = next(folder.glob("*.jpeg"))
        for number in range(3):
            shutil.copy(photograph, target / f"{number}.jpeg")
    splits = load_data(DataRecipe(name="-", image_size=64), str(tmp_path / "d"))
    assert splits.train.images.shape[1:] == (3, 64, 64)
    assert len(splits.labels) == 6


def test_test_images_that_are_trained_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "d", {"a": 12, "b": 12})
    load_data(RECIPE, str(folder))
    assert "training samples as well" not in caplog.text
    for file in [*folder.rglob("*.png")]:
        shutil.copy(file, file.with_name(f"copy-{file.name}"))
    load_data(RECIPE, str(folder))
    assert "test samples are training samples as well" in caplog.text
