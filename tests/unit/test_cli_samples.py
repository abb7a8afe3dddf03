from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kdedge.cli import samples
from kdedge.data.image_stream import LazyImageSet
from kdedge.data.splits import load_evaluation
from kdedge.distillation import distill
from kdedge.errors import DataError
from kdedge.evaluation import evaluate
from kdedge.recipe import DataRecipe
from kdedge.recipe_file import load_recipe
from PIL import Image

from kdedge_bench import scoring
from kdedge_exporters import export
from kdedge_exporters.artifact import load_artifact

SETTINGS = ["data.image_size=32", "data.channels=3", "data.streamed=true", "data.loader_threads=2",
            "data.validation_fraction=0.2", "augment.crop_padding=4", "augment.rotation_deg=0", "teacher.model=mlp",
            "teacher.training.epochs=1", "student.model=mlp", "student.training.epochs=1",
            "qat.training.epochs=0"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark, of sizes of their own."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, level in (("bright", 190), ("dark", 60)):
        (folder / name).mkdir()
        for number in range(30):
            pixels = np.clip(generator.normal(level, 40, (60, 50 + number, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_all_takes_every_sample_of_data_without_splits(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe, labels = DataRecipe(name=str(photos)), ("bright", "dark")
    assert len(load_evaluation(recipe, str(photos), "all", labels)) == 60
    assert not caplog.messages
    # Whoever brings test data of his own learns that a part of them is scored.
    assert len(load_evaluation(recipe, str(photos), "test", labels)) == 16
    (said,) = caplog.messages
    assert "those 16 of its 60 samples" in said and "--split all" in said
    # The data that the net was trained on are split as they were in training, without a word.
    caplog.clear()
    assert len(load_evaluation(recipe, None, "test", labels)) == 16
    assert not caplog.messages


def test_splits_of_their_own_are_not_scored_together(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / split)
    with pytest.raises(DataError, match=r"splits of its own.*--split: (train, test|test, train)"):
        load_evaluation(DataRecipe(name=str(tmp_path)), None, "all", ("bright", "dark"))


def test_an_artifact_of_streamed_images_is_scored_on_the_pixels_of_its_student(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = distill(load_recipe("digits", SETTINGS), out=tmp_path / "run", data=str(photos)).bundle
    assert bundle.preprocessing.to_dict()["short_side"] == 37
    of_bundle = samples.for_bundle(bundle, None, "test")
    made = export(
        bundle,
        "onnx",
        precision="float32",
        samples=(bundle.preprocessing.prepare(of_bundle.data.columns), of_bundle.data.labels),
    )
    artifact = load_artifact(made.artifact)
    assert artifact.metadata is not None
    assert artifact.metadata["preprocessing"] == bundle.preprocessing.to_dict()
    found = samples.for_artifact(artifact.metadata, made.artifact, str(photos), "test")
    assert isinstance(found.data, LazyImageSet)
    assert torch.equal(found.data.columns[0], of_bundle.data.columns[0])
    assert found.preprocessing == bundle.preprocessing
    assert evaluate(bundle.float_student(), found.data, found.preprocessing).n == len(found.data)

    monkeypatch.setattr(samples, "DECODED_BATCH", 3)
    sent = samples.for_device(found, made.artifact)
    for _ in range(2):  # once for every device
        pieces = list(scoring.pieces(sent))
        assert [piece.shape[0] for piece, _ in pieces] == [3] * 6 + [2]
        assert np.array_equal(np.concatenate([piece.values for piece, _ in pieces]), found.data.columns[0].numpy())
        assert [label for _, labels in pieces for label in labels] == found.data.labels.tolist()
