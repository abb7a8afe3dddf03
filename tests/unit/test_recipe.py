from __future__ import annotations

from pathlib import Path

import pytest
from kdedge.errors import RecipeError
from kdedge.recipe_file import load_recipe, recipe_from_dict, shipped_recipes

MINIMAL = """
name = "own"
description = "a recipe of mine"
[data]
name = "digits"
[teacher]
model = "resnet18"
[teacher.training]
epochs = 1
[student]
model = "mlp"
[student.training]
epochs = 1
[qat.training]
epochs = 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load_and_survive_the_manifest(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert "\n" not in recipe.description


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.student.model, recipe.distillation.temperature) == ("mlp", 3.0)


def test_the_hash_follows_values_alone(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, MINIMAL))
    assert load_recipe(write(tmp_path, "# a comment\n" + MINIMAL)).sha256 == plain.sha256
    assert load_recipe(write(tmp_path, MINIMAL), ["seed=1"]).sha256 != plain.sha256


def test_a_value_at_its_default_is_not_part_of_the_hash(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, MINIMAL))
    assert load_recipe(write(tmp_path, MINIMAL), ["distillation.temperature=3", "task=image-classification"]) == plain
    assert load_recipe(write(tmp_path, MINIMAL), ["distillation.temperature=3"]).sha256 == plain.sha256
    for override in (
        "student.layers=[0]",
        "augment.mixup_alpha=0.2",
        "student.training.patience=3",
    ):
        assert load_recipe(write(tmp_path, MINIMAL), [override]).sha256 != plain.sha256


def test_layers_are_a_list_of_whole_numbers() -> None:
    assert load_recipe("digits", ["student.layers=[0, 2, 4]"]).student.layers == (0, 2, 4)
    for wrong in ("[0, -1]", "3", "[0.5]", "['a']", "[]"):
        with pytest.raises(RecipeError, match=r"'student.layers'"):
            load_recipe("digits", [f"student.layers={wrong}"])


def test_overrides_take_toml_values_and_bare_words() -> None:
    recipe = load_recipe("digits", ["student.training.epochs=3", "student.model=mlp", "distillation.alpha=1"])
    assert (recipe.student.training.epochs, recipe.student.model, recipe.distillation.alpha) == (3, "mlp", 1.0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student.trainning.epochs=3", "Did you mean 'student.training'?"),
        ("student.training.epoch=3", "Did you mean 'student.training.epochs'?"),
        ("student.training.epochs=3.5", "'student.training.epochs' is 3.5"),
        ("student.training.epochs=true", "'student.training.epochs' is True"),
        ("student.training.learning_rate=0", "'student.training.learning_rate' must be above 0"),
        ("student.training.optimizer=sdg", "one of 'adam', 'adamw', 'sgd'"),
        ("distillation.temperature=-1", "'distillation.temperature' must be above 0"),
        ("data.channels=2", "'data.channels' must be 1 or 3"),
        ("student.stem=tiny", "'imagenet', 'cifar', 'cifar-stride2'"),
        ("seed", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("name.first=3", "is a value, not a table"),
        ("name=..", "'name' must be a word: it names the run's folder"),
        ("name=.", "'name' must be a word"),
        ("name='a\\b'", "'name' must be a word without"),
        ("distillation.temperature=inf", "'distillation.temperature' is inf"),
        ("student.training.learning_rate=nan", "'student.training.learning_rate' is nan"),
        ("student.training.weight_decay=1" + 400 * "0", "'student.training.weight_decay' is inf"),
        ("augment.mixup_alpha=inf", "It must be a finite number"),
        ("student.dropout=nan", "'student.dropout' is nan"),
        ("data.split_seed=-1", "'data.split_seed' must lie in [0, 2^63)"),
        ("data.split_seed=9223372036854775808", "'data.split_seed' must lie in [0, 2^63)"),
        ("student.training.start_size=64", "'student.training.start_size' has no effect: data.image_size is 32"),
    ],
)
def test_a_bad_override_is_one_clear_line(override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'qat\.training\.start_size' has no effect: only images grow"):
        load_recipe("vectors-mlp", ["qat.training.start_size=16"])
    own = MINIMAL.replace('model = "mlp"', 'model = "my_nets:small"\nwidth = 0.5')
    with pytest.raises(RecipeError, match=r"'student\.width' has no effect: the function 'my_nets:small'"):
        load_recipe(write(tmp_path, own))
    for key in ("stem=cifar", "width=0.5", "dropout=0.1"):
        for role in ("teacher", "student"):
            with pytest.raises(RecipeError, match=rf"'{role}\.{key.partition('=')[0]}' has no effect"):
                load_recipe("digits", [f"{role}.model=my_nets:small", f"{role}.{key}"])
    # What the file has for the net that it names does not stand in the way of another.
    assert load_recipe("digits", ["student.model=my_nets:small"]).student.dropout == 0.0
    assert load_recipe("digits", ["student.training.start_size=32"]).student.training.start_size == 32


@pytest.mark.parametrize(
    ("recipe", "override", "why"),
    [
        ("digits", "text.max_length=64", "it is of texts"),
        ("digits", "augment.crop_scale=0.5", "it is of streamed images"),
        ("digits", "data.loader_threads=2", "it is of streamed images"),
        ("digits", "distillation.dkd_beta=4.0", "the loss is 'kd'"),
        ("digits", "student.training.momentum=0.8", "the optimizer is 'adamw'"),
        ("imagenet-resnet50-mobilenetv2", "augment.cutout=8", "it is of images in memory"),
        ("sst2-minilm-cpu", "text.doc_stride=32", "it is of questions"),
        ("sst2-minilm-cpu", "data.image_size=64", "it is of images"),
        ("squad-minilm-cpu", "augment.mixup_alpha=0.2", "it is of images"),
        ("vectors-mlp", "text.max_length=64", "it is of texts"),
        ("vectors-mlp", "data.on_corrupt=skip", "it is of images"),
    ],
)
def test_a_key_of_other_data_is_refused(recipe: str, override: str, why: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"'{key}' has no effect: {why}"):
        load_recipe(recipe, [override])


def test_what_the_file_says_of_streamed_images_may_idle_when_an_override_turns_them_off() -> None:
    recipe = load_recipe("imagenet-resnet50-mobilenetv2", ["data.streamed=false"])
    assert not recipe.data.streamed


def test_what_a_bundle_was_made_of_can_be_read_whatever_it_changed() -> None:
    kept = load_recipe("digits").to_dict()
    kept["student"]["training"]["start_size"] = 64
    assert recipe_from_dict(kept).student.training.start_size == 64


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'digits'"):
        load_recipe("digit")


def test_a_missing_key_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'student.model' is missing"):
        load_recipe(write(tmp_path, MINIMAL.replace('model = "mlp"', "")))
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(write(tmp_path, "name = "))
