"""A recipe written out: TOML with every key, each under a comment that says what it means.

The comments are the entries under "Attributes:" in the docstrings of ``recipe.py``, so that a key is explained in
one place.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import tomlkit

from kdedge.recipe import DistillRecipe

_WIDTH = 110
_ENTRY = re.compile(r"(\w+): (.*)")


def recipe_toml(recipe: DistillRecipe) -> str:
    """The recipe as TOML that ``load_recipe`` reads back to an equal one.

    Every key stands there with its value, also where that is the default; where it is not, the comment ends with the
    default. A key without a value (None) is commented out, since TOML has no word for it.
    """
    return "\n".join([*_comment(_summary(type(recipe))), "", *_table(recipe, "")]) + "\n"


def attribute_texts(cls: type) -> dict[str, str]:
    """Name -> text of the entries under "Attributes:" of a class's docstring, in order, each in one line.

    What a class does not tell itself, the class that it is made from tells.
    """
    base = cls.__base__
    texts: dict[str, str] = attribute_texts(base) if dataclasses.is_dataclass(base) else {}
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    for line in textwrap.dedent(section).splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry:
            name, texts[entry[1]] = entry[1], entry[2]
        elif line.startswith(" ") and texts:
            texts[name] += f" {line.strip()}"
    return texts


def _summary(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n\n")[0]


def _table(recipe: Any, prefix: str) -> Iterator[str]:
    """The lines of one dataclass: its plain keys, then its tables, as TOML wants them."""
    cls = type(recipe)
    texts, hints = attribute_texts(cls), typing.get_type_hints(cls)
    kinds = {spec.name: _table_kind(hints[spec.name]) for spec in dataclasses.fields(cls)}
    tables = [spec for spec in dataclasses.fields(cls) if kinds[spec.name] is not None]
    for spec in dataclasses.fields(cls):
        if spec not in tables:
            value, text = getattr(recipe, spec.name), texts[spec.name]
            yield from _comment(f"{text}{_choices(hints[spec.name], text)}{_default(spec, value)}")
            yield f"# {spec.name} = (not set)" if value is None else f"{spec.name} = {_toml(value)}"
    for spec in tables:
        kind, value = kinds[spec.name], getattr(recipe, spec.name)
        yield ""
        # A class tells more than its entry, its formula above all; of one that two keys share, the entry tells which.
        shared = list(kinds.values()).count(kind) > 1
        yield from _comment(texts[spec.name] if shared else _summary(typing.cast(type, kind)))
        if value is None:
            yield f"# [{prefix}{spec.name}] (not set)"
            continue
        yield f"[{prefix}{spec.name}]"
        yield from _table(value, f"{prefix}{spec.name}.")


def _table_kind(hint: Any) -> type | None:
    """The dataclass that a key holds, or may hold; None where it holds a plain value."""
    kinds = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
    return typing.cast(type, kinds[0]) if kinds else None


def _choices(hint: Any, text: str) -> str:
    """The words that a key may hold, where its text does not name each of them."""
    words = get_args(hint) if get_origin(hint) is Literal else ()
    if all(f"``{word}``" in text for word in words):
        return ""
    return f" One of {', '.join(f'``{word}``' for word in words)}."


def _default(spec: dataclasses.Field[Any], value: Any) -> str:
    """What the key would be if it were left out, where the recipe chose another value."""
    if spec.default is dataclasses.MISSING or spec.default == value:
        return ""
    return f" Default: {'not set' if spec.default is None else _toml(spec.default)}."


def _toml(value: Any) -> str:
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())


def _comment(text: str) -> list[str]:
    """Comment lines of a docstring's text, in TOML's words."""
    plain = text.replace("``", "`").replace("None", "not set")
    return textwrap.wrap(
        plain, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
