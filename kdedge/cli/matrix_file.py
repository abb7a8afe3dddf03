"""The file of --matrix: the options of kdedge bench in TOML, those that make the matrix as lists."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from kdedge.cli.conditions import input_shapes, processors, rest_before, thread_counts
from kdedge.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Key of a list -> parameter of the command, type of what is in it.
AXES: dict[str, tuple[str, type]] = {
    "artifacts": ("artifacts", str),
    "devices": ("device", str),
    "runtimes": ("runtime", str),
    "threads": ("threads", int),
}
#: Key, an option's long name with underscores -> parameter of the command, type.
SETTINGS: dict[str, tuple[str, type]] = {
    "scenario": ("scenario", str),
    "batch_size": ("batch_size", int),
    "repetitions": ("repetitions", int),
    "seconds": ("min_duration_s", float),
    "starts": ("starts", int),
    "pin": ("pin", str),
    "governor": ("governor", str),
    "cool_down": ("cool_down", str),
    "profile": ("profile", bool),
    "provider": ("provider", str),
    "input_shape": ("input_shape", str),
    "wait": ("wait", float),
    "power": ("power", bool),
    "meter": ("meter", str),
    "meter_accuracy": ("meter_accuracy", float),
    "accuracy_data": ("accuracy_data", str),
    "split": ("split", str),
    "out": ("out", str),
    "jobs": ("jobs", int),
}
#: Key -> what makes sense of its text.
_MEANINGS: dict[str, Callable[[str], object]] = {
    "pin": processors,
    "cool_down": rest_before,
    "threads": thread_counts,
    "input_shape": input_shapes,
}
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def take_matrix_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the command's defaults, so that what is typed beside it counts more."""
    if path is not None:
        values = read_matrix_file(path)
        _check_ranges(context, values, path)
        context.default_map = values
    return path


def _check_ranges(context: typer.Context, values: dict[str, Any], path: Path) -> None:
    """Let each option itself look at its value: later, its error would not name the file.

    Raises:
        UserError: a value that its option refuses.
    """
    keys = {parameter: key for key, (parameter, _) in [*AXES.items(), *SETTINGS.items()]}
    for option in context.command.params:
        if option.name in values and option.name in keys:
            key, value = keys[option.name], values[option.name]
            try:
                option.process_value(context, value)
            except typer.BadParameter as error:
                raise UserError(f"key {key!r} is {value!r}: {error.message}", where=path) from None
            check = _MEANINGS.get(key)
            try:
                if check is not None:
                    check(value)
            except UserError as error:
                raise UserError(f"key {key!r}: {error.what}", where=path, cure=error.cure) from None


def read_matrix_file(path: Path) -> dict[str, Any]:
    """Parameter of the command -> what would be typed for it.

    Raises:
        UserError: not there, not TOML, an unknown key (the nearest is named), or a value of another type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not TOML: {error}", where=path) from None
    return dict(_value(key, value, path) for key, value in table.items())


def _value(key: str, value: Any, path: Path) -> tuple[str, Any]:
    if key in AXES:
        parameter, kind = AXES[key]
        return parameter, _list(key, value, kind, path)
    if key in SETTINGS:
        parameter, kind = SETTINGS[key]
        if not _is(value, kind):
            raise UserError(f"key {key!r} is {value!r}", where=path, cure=f"It is {_KINDS[kind]}")
        return parameter, value
    near = difflib.get_close_matches(key, [*AXES, *SETTINGS], 1, 0.5)
    cure = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join([*AXES, *SETTINGS])}"
    raise UserError(f"unknown key {ascii(key)[:80]}", where=path, cure=cure)


def _list(key: str, value: Any, kind: type, path: Path) -> Any:
    """A list, or one that may stand for it, as the command line has it: artifacts as words, others with commas."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(_is(item, kind) for item in items):
        example = "[1, 2, 4]" if kind is int else '["a", "b"]'
        raise UserError(f"key {key!r} is {value!r}", where=path, cure=f"It is a list like {example}")
    return items if key == "artifacts" else ",".join(map(str, items))


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
