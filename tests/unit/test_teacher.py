from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kdedge import models
from kdedge.bundle import Bundle
from kdedge.data.images import ImageSet
from kdedge.data.splits import DataSplits, load_data
from kdedge.errors import BundleError, ModelError
from kdedge.images.preprocessing import ImagePreprocessing, measure_preprocessing
from kdedge.recipe import DistillRecipe
from kdedge.recipe_file import load_recipe
from kdedge.teacher import find_teacher
from kdedge.written_teacher import save_teacher

Splits = DataSplits[ImageSet]


@pytest.fixture(scope="module")
def recipe() -> DistillRecipe:
    return load_recipe("digits", ["data.image_size=16", "teacher.model=mlp"])


@pytest.fixture(scope="module")
def splits(recipe: DistillRecipe) -> Splits:
    return load_data(recipe.data)


@pytest.fixture(scope="module")
def preprocessing(splits: Splits) -> ImagePreprocessing:
    return measure_preprocessing(splits.train.images)


def fewer(splits: Splits) -> Splits:
    return dataclasses.replace(splits, labels=splits.labels[:7])


@pytest.fixture
def saved(tmp_path: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing) -> Path:
    torch.manual_seed(0)
    net = models.build(recipe.teacher, models.TEACHERS, 10, preprocessing.inputs[0].shape)
    save_teacher(tmp_path / "teacher", net, recipe.teacher, splits, preprocessing)
    return tmp_path / "teacher"


def test_without_a_spec_the_recipes_own_is_built_to_be_trained(
    recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    assert find_teacher(None, recipe, splits, preprocessing).to_train == recipe.teacher
    assert find_teacher("resnet18", recipe, splits, preprocessing).name == "resnet18"


def test_a_teacher_that_kdedge_wrote(
    saved: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    images = torch.rand(3, *preprocessing.inputs[0].shape)
    by_folder = find_teacher(str(saved), recipe, splits, preprocessing)
    by_file = find_teacher(str(saved / "teacher.safetensors"), recipe, splits, preprocessing)
    assert by_folder.to_train is None
    assert torch.equal(by_folder.net.eval()(images), by_file.net.eval()(images))


def test_classes_in_another_order_are_put_right(
    saved: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    backwards = dataclasses.replace(splits, labels=splits.labels[::-1])
    images = torch.rand(3, *preprocessing.inputs[0].shape)
    ours = find_teacher(str(saved), recipe, splits, preprocessing).net.eval()(images)
    theirs = find_teacher(str(saved), recipe, backwards, preprocessing).net.eval()(images)
    assert torch.equal(theirs, ours.flip(1))


def test_wrong_number_of_classes_names_both(
    saved: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    with pytest.raises(ModelError, match="the teacher has 10 classes, the data has 7"):
        find_teacher(str(saved), recipe, fewer(splits), preprocessing)


def test_a_state_dict_of_torch_is_read_without_running_code(
    tmp_path: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    net = models.build(recipe.teacher, models.TEACHERS, 10, preprocessing.inputs[0].shape)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "t.pt")
    assert find_teacher(str(tmp_path / "t.pt"), recipe, splits, preprocessing).to_train is None
    with pytest.raises(ModelError, match="the teacher has 10 classes, the data has 7"):
        find_teacher(str(tmp_path / "t.pt"), recipe, fewer(splits), preprocessing)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        find_teacher(str(tmp_path / "evil.pt"), recipe, splits, preprocessing)
    assert not (tmp_path / "ran").exists()


def test_a_bundles_float_student_teaches(
    small_bundle: Bundle, tmp_path: Path, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    """The way of a chain: teacher → assistant → student (Mirzadeh et al. 2020), a run for each."""
    recipe = small_bundle.recipe
    data = load_data(recipe.data)
    found = find_teacher(str(small_bundle.path), recipe, data, small_bundle.preprocessing)
    assert (found.name, found.to_train) == ("tests.small_nets:Mobile", None)
    (images,) = small_bundle.preprocessing.prepare((data.test.images[:50],))
    expected = small_bundle.float_student()(images)
    with torch.no_grad():
        assert torch.equal(found.net.eval()(images), expected)
    with pytest.raises(ModelError, match="the teacher has 10 classes, the data has 7"):
        find_teacher(str(small_bundle.path), recipe, fewer(data), small_bundle.preprocessing)
    with pytest.raises(ModelError, match=r"wants inputs of \(3, 32, 32\), the recipe gives \(3, 16, 16\)"):
        find_teacher(str(small_bundle.path), recipe, splits, preprocessing)
    damaged = shutil.copytree(small_bundle.path, tmp_path / "damaged")
    (damaged / "student.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"student\.safetensors"):
        find_teacher(str(damaged), recipe, data, small_bundle.preprocessing)


def test_a_teacher_sees_its_inputs_as_it_was_trained_with(
    saved: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    """Other data have another mean and deviation: the run's are taken back before the teacher looks."""
    pixels = splits.test.images[:20]
    ours = dataclasses.replace(preprocessing, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    same = find_teacher(str(saved), recipe, splits, preprocessing).net.eval()
    behind = find_teacher(str(saved), recipe, splits, ours).net.eval()
    with torch.no_grad():
        expected = same(preprocessing.normalise(pixels))
        torch.testing.assert_close(behind(ours.normalise(pixels)), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(same(ours.normalise(pixels)), expected, atol=1e-2)


def test_weights_of_another_net_are_refused(
    saved: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing, tmp_path: Path
) -> None:
    torch.save(models.build(recipe.teacher, models.TEACHERS, 10, (3, 8, 8)).state_dict(), tmp_path / "t.pt")
    with pytest.raises(ModelError, match="do not fit the teacher's net"):
        find_teacher(str(tmp_path / "t.pt"), recipe, splits, preprocessing)
    weights = saved / "teacher.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the teacher"):
        find_teacher(str(saved), recipe, splits, preprocessing)


def test_an_unknown_teacher(recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing) -> None:
    with pytest.raises(ModelError, match="no teacher 'resnet51'"):
        find_teacher("resnet51", recipe, splits, preprocessing)
    with pytest.raises(ModelError, match="torchvision knows no 'resnet50:NOPE'"):
        find_teacher("resnet50:NOPE", recipe, splits, preprocessing)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet with random weights in the Hub's layout, as ``from_pretrained`` reads it."""
    import kdedge.torchvision_compat  # noqa: F401
    from transformers import ResNetConfig, ResNetForImageClassification

    names = {n: str((n + 3) % 10) for n in range(10)}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.id2label, config.label2id = names, {v: k for k, v in names.items()}
    folder = tmp_path_factory.mktemp("hub") / "model"
    ResNetForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "do_resize": true,'
        ' "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "crop_pct": 0.875}'
    )
    return folder


def test_a_hugging_face_teacher_behind_its_own_preprocessing(
    hub_folder: Path, recipe: DistillRecipe, splits: Splits, preprocessing: ImagePreprocessing
) -> None:
    from transformers import ResNetForImageClassification

    teacher = find_teacher(str(hub_folder), recipe, splits, preprocessing)
    assert teacher.to_train is None
    images = splits.test.images[:5]
    with torch.no_grad():
        ours = teacher.net.eval()(preprocessing.normalise(images))
        theirs_input = (images.float() / 255 - 0.5) / 0.25
        theirs_input = torch.nn.functional.interpolate(theirs_input, (24, 24), mode="bilinear", antialias=True)
        reference: Any = ResNetForImageClassification.from_pretrained(hub_folder)
        theirs = reference.eval()(pixel_values=theirs_input).logits
    order = [(int(label) - 3) % 10 for label in splits.labels]
    torch.testing.assert_close(ours, theirs[:, order], rtol=1e-3, atol=1e-3)
    with pytest.raises(ModelError, match="the teacher has 10 classes, the data has 7"):
        find_teacher(str(hub_folder), recipe, fewer(splits), preprocessing)


def renamed(folder: Path, names: list[str], to: Path) -> str:
    """The same checkpoint with other names of its classes."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    (to / "config.json").write_text(json.dumps(config))
    return str(to)


def test_a_hugging_face_teachers_classes_are_matched_by_name_or_loudly_by_number(
    hub_folder: Path,
    recipe: DistillRecipe,
    splits: Splits,
    preprocessing: ImagePreprocessing,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    images = preprocessing.normalise(splits.test.images[:5])

    def logits(names: list[str], ours: list[str], place: str) -> torch.Tensor:
        named = dataclasses.replace(splits, labels=tuple(ours))
        net = find_teacher(renamed(hub_folder, names, tmp_path / place), recipe, named, preprocessing).net.eval()
        with torch.no_grad():
            found: torch.Tensor = net(images)
        return found

    plain = logits(words, words, "plain")
    assert torch.equal(logits([word.upper() for word in words[::-1]], words, "upper"), plain.flip(1))
    assert torch.equal(logits([f"LABEL_{n}" for n in range(10)], words, "numbered"), plain)
    assert "by number" not in caplog.text
    assert torch.equal(logits([f"n{n}" for n in range(10)], words, "foreign"), plain)
    assert "the teacher's classes are matched with the data's by number: 'ant' is 'n0'" in caplog.text
    with pytest.raises(ModelError, match=r"the teacher's classes are ant, bee, .* the data's wasp, bee"):
        logits(words, ["wasp", *words[1:]], "partly")


def test_torchvisions_weights_see_images_as_they_were_trained_with(
    recipe: DistillRecipe, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the download is replaced: the weights are random, net and preprocessing torchvision's own."""
    import kdedge.torchvision_compat  # noqa: F401
    from torch.nn import functional
    from torchvision import models as tv

    torch.manual_seed(0)
    own = tv.resnet18()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: own.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: own.state_dict())
    many = dataclasses.replace(splits, labels=tuple(map(str, range(1000))))
    ours = ImagePreprocessing((16, 16), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    found = find_teacher("resnet18:IMAGENET1K_V1", recipe, many, ours)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    theirs = ImagePreprocessing((224, 224), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).normalise(pixels)
    expected = own.eval()(functional.interpolate(theirs, (224, 224), mode="bilinear", antialias=True))
    with torch.no_grad():
        torch.testing.assert_close(found.net.eval()(ours.normalise(pixels)), expected, rtol=1e-3, atol=1e-3)
