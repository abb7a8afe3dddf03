from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kdedge.recipe import DistillRecipe
from kdedge.recipe_file import load_recipe, recipe_from_dict, shipped_recipes
from kdedge.recipe_text import attribute_texts, recipe_toml


def keys(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Every key of the recipe, dotted, tables too."""
    hints = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        yield prefix + spec.name
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from keys(hints[spec.name], f"{prefix}{spec.name}.")


def comments(text: str) -> dict[str, str]:
    """Dotted key -> the comment above it; keys that are commented out too."""
    found, above, table = {}, "", ""
    for line in text.splitlines():
        key = line.removeprefix("# ").partition(" = ")[0] if " = " in line else ""
        if line.startswith("["):
            table = line.strip("[]") + "."
            found[table.rstrip(".")], above = above, ""
        elif line.startswith("# [") and line.endswith("] (not set)"):
            found[line[3:].partition("]")[0]], above = above, ""
        elif key.isidentifier():
            found[table + key], above = above, ""
        else:
            above = f"{above} {line.removeprefix('#').strip()}".strip() if line else ""
    return found


def reread(folder: Path, text: str) -> DistillRecipe:
    path = folder / "shown.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_what_is_shown_is_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    again = reread(tmp_path, recipe_toml(recipe))
    assert again == recipe and again.sha256 == recipe.sha256


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_key_is_there_with_a_comment(name: str) -> None:
    said = comments(recipe_toml(load_recipe(name)))
    assert sorted(said) == sorted(keys(DistillRecipe))
    assert all(said.values()), [key for key, comment in said.items() if not comment]


def test_a_recipe_far_from_the_defaults_survives(tmp_path: Path) -> None:
    overrides = [
        "student.layers=[0, 2, 4]", "student.dropout=0.1", "seed=7",
        "qat.training.weight_decay=1e-12", "assistant.model=resnet18", "assistant.training.epochs=3",
        "student.training.gradient_clip=1e300", "data.on_corrupt=skip",
    ]  # fmt: skip
    recipe = load_recipe("digits", overrides)
    recipe = dataclasses.replace(recipe, description="a \"b\" \\ # 'c'\n[d]\t→ \x00")
    assert reread(tmp_path, recipe_toml(recipe)) == recipe


def test_a_key_without_a_value_is_commented_out_and_can_be_filled_in(tmp_path: Path) -> None:
    text = recipe_toml(load_recipe("sst2-bert-distilbert"))
    assert "# tokenizer = (not set)" in text.splitlines()
    assert "None" not in text
    filled = text.replace("# tokenizer = (not set)", 'tokenizer = "own"')
    assert reread(tmp_path, filled).text.tokenizer == "own"


def test_a_comment_says_meaning_unit_source_choices_and_default() -> None:
    said = comments(recipe_toml(load_recipe("digits", ["augment.cutout=4"])))
    assert said["augment.cutout"] == (
        "Side in pixels of a square blanked at a random place (DeVries & Taylor 2017); 0 for none. Default: 0."
    )
    assert said["task"].endswith("`question-answering`, `vector-classification`.")
    assert said["teacher.training"] == "One stage of training."
    assert said["teacher"] != said["student"]
    assert "KL(teacher/T || student/T)" in said["distillation"]
    assert "Default" not in said["data.image_size"]


def test_entries_over_several_lines_are_joined() -> None:
    class Example:
        """First.

        Attributes:
            one: Begins here
                and ends there: yes.
            two: Short.
        """

    assert attribute_texts(Example) == {"one": "Begins here and ends there: yes.", "two": "Short."}


def test_a_recipe_of_a_manifest_can_be_shown() -> None:
    recipe = load_recipe("digits")
    assert recipe_toml(recipe_from_dict(recipe.to_dict())) == recipe_toml(recipe)
