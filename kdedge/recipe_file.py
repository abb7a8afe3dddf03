"""Recipes read from TOML, every key checked by name and type; ``recipes/*.toml`` ship in the package."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from kdedge.errors import RecipeError
from kdedge.recipe import DistillRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes in the package, sorted by name."""
    folder = resources.files("kdedge") / "recipes"
    files = sorted((Path(str(f)) for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.stem)
    return {f.stem: f for f in files}


def load_recipe(recipe: str | Path, overrides: typing.Sequence[str] = ()) -> DistillRecipe:
    """A recipe by shipped name or TOML file, with ``KEY=VALUE`` overrides (dotted keys, TOML values).

    Raises:
        RecipeError: unknown name, unreadable file, unknown key (the nearest is named), a value out of range, or one
            that would change nothing.
    """
    path = _find(recipe)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid TOML: {error}", where=path) from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe: {error.strerror}", where=path) from None
    for override in overrides:
        _override(table, override)
    found = recipe_from_dict(table, where=path)
    _refuse_idle(found, {override.partition("=")[0].strip() for override in overrides}, path)
    return found


def _refuse_idle(recipe: DistillRecipe, overridden: set[str], path: Path) -> None:
    """Refuse keys that change nothing.

    But for those of the file that idle because of an override, such as what it says of a net in whose place another
    was put: TOML has no word for "not set".
    """
    for key, idle in recipe.idle_keys.items():
        if key in overridden or idle.by not in overridden:
            raise RecipeError(f"recipe key '{key}' has no effect: {idle.why}", where=path, cure=_IDLE)


_IDLE = "Leave it out, or set it to its default (`kdedge recipes show` has them)"


def recipe_from_dict(table: dict[str, Any], *, where: object = None) -> DistillRecipe:
    """A recipe from nested plain values, as TOML or a manifest holds them.

    Raises:
        RecipeError: as ``load_recipe``.
    """
    try:
        return _build(DistillRecipe, table, "")
    except RecipeError as error:
        raise RecipeError(error.what, where=where, cure=error.cure) from None


def _find(recipe: str | Path) -> Path:
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    path = Path(recipe)
    if path.suffix == ".toml" and path.is_file():
        return path
    near = difflib.get_close_matches(str(recipe), shipped, 1, 0.4)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise RecipeError(
        f"no recipe '{recipe}'",
        cure=f"{hint}Shipped are {', '.join(shipped)}; or give the path of a .toml file",
    )


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r} is not KEY=VALUE", cure="For example --set student.training.epochs=5")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: --set student.model=resnet18
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: '{parent}' is a value, not a table")
    table[last] = value


def _build(cls: type[T], table: Any, prefix: str) -> T:
    """An instance of a dataclass from a table; every key checked by name and type."""
    if not isinstance(table, dict):
        raise RecipeError(f"recipe key '{prefix.rstrip('.')}' must be a table")
    hints = typing.get_type_hints(cls)
    specs = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in specs:
            near = difflib.get_close_matches(key, specs, 1, 0.5)
            cure = f"Did you mean '{prefix}{near[0]}'?" if near else f"Known here: {', '.join(specs)}"
            raise RecipeError(f"unknown recipe key '{prefix}{key}'", cure=cure)
    values: dict[str, Any] = {}
    for name, spec in specs.items():
        if name in table:
            values[name] = _value(hints[name], table[name], prefix + name)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise RecipeError(f"recipe key '{prefix}{name}' is missing")
    try:
        return cls(**values)
    except RecipeError as error:
        says = error.what if f"'{prefix}" in error.what else error.what.replace("key '", f"key '{prefix}", 1)
        raise RecipeError(says, cure=error.cure) from None


def _value(hint: Any, value: Any, key: str) -> Any:
    """``value`` checked against a field's type; an int is taken where a float is due."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            words = ", ".join(map(repr, get_args(hint)))
            raise RecipeError(f"recipe key '{key}' is {value!r}", cure=f"It is one of {words}")
        return value
    options = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return _build(typing.cast("type[Any]", option), value, key + ".")
    if any(get_origin(option) is tuple for option in options):
        return _whole_numbers(value, key)
    if float in options and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, key)
    wanted = next(option for option in options if option is not type(None))
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise RecipeError(f"recipe key '{key}' is {value!r}", cure=f"It must be of type {wanted.__name__}")
    return value


def _finite(value: float, key: str) -> float:
    """A float; TOML has words for infinity and NaN, and whole numbers of any size."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecipeError(f"recipe key '{key}' is {number}", cure="It must be a finite number")
    return number


def _whole_numbers(value: Any, key: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(item) is int and item >= 0 for item in value):
        raise RecipeError(f"recipe key '{key}' is {value!r}", cure="It must be a list of whole numbers, as [0, 2, 4]")
    return tuple(value)
