"""Labels of tables: which split has them, and the classes that they name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdedge.data.tables import TextTable, checked_text
from kdedge.errors import DataError

log = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels")


def labelled(tables: Mapping[str, TextTable], columns: Sequence[str]) -> dict[str, TextTable]:
    """The tables that have one of the columns; without it, only a validation or test split is left out.

    Raises:
        DataError: the training split, or every split, lacks it.
    """
    kept = {}
    for part, table in tables.items():
        cells = next((table.columns[name] for name in columns if name in table.columns), [])
        if not all(map(_is_kept_back, cells)):
            kept[part] = table
        elif part == "train" or len(tables) == 1:
            raise missing_columns(table, columns[:1])
        else:
            log.warning("left out the %s split, which comes without '%s' (%s)", part, columns[0], table.where)
    if not kept:
        raise DataError(f"no split has a '{columns[0]}'", where=next(iter(tables.values())).where)
    return kept


def _is_kept_back(cell: Any) -> bool:
    """Whether a cell holds no label: nothing, or the Hub's −1."""
    return cell in (-1, None) or (isinstance(cell, str) and cell.strip() in ("", "-1"))


def missing_columns(table: TextTable, needed: Iterable[str]) -> DataError:
    """The error of a table that lacks the columns ``needed``, or has nothing in them."""
    return DataError(
        f"no filled column {' or '.join(repr(name) for name in needed)} among {', '.join(table.columns)}",
        where=table.where,
        cure="Rename, fill or add it",
    )


def class_labels(tables: Mapping[str, TextTable]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels int64 [N] by split, and the names of the classes.

    Splits whose columns name the classes in another order than the training split's are numbered by its order.

    Raises:
        DataError: a label is none, or of no class, or a split has classes that the training split lacks.
    """
    columns = {part: next(name for name in LABEL_COLUMNS if name in table.columns) for part, table in tables.items()}
    values = {part: _label_values(table, columns[part]) for part, table in tables.items()}
    _check_one_kind(tables, values)
    named = {p: table.class_names[columns[p]] for p, table in tables.items() if columns[p] in table.class_names}
    if named:
        leader = "train" if "train" in named else next(iter(named))
        names = named[leader]
        indices = {p: _by_name(names, named.get(p, names), f"split '{p}'", leader, tables[p].where) for p in tables}
        return {part: _indices(table, values[part], indices[part]) for part, table in tables.items()}, names
    occurring = {value for part in values.values() for value in part if isinstance(value, str) or value >= 0}
    index = {value: number for number, value in enumerate(sorted(occurring))}
    return {part: _indices(table, values[part], index) for part, table in tables.items()}, tuple(map(str, index))


def _by_name(names: tuple[str, ...], own: tuple[str, ...], what: str, leader: str, where: str) -> dict[int | str, int]:
    """Positions among ``names`` of these names, and of the numbers that count ``own``."""
    places: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    unknown = [name for name in own if name not in places]
    if unknown:
        raise DataError(
            f"{what} has classes that '{leader}' lacks: {', '.join(unknown[:5])}",
            where=where,
            cure="Give all splits the same classes",
        )
    return {**places, **{number: places[name] for number, name in enumerate(own)}}


def _label_values(table: TextTable, column: str) -> list[int | str]:
    """Labels as they stand: whole numbers (also where they are spelled as text), or names."""
    values: list[int | str] = []
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, str) and value.strip():
            word = checked_text(value, column, table.place(row)).strip()
            values.append(int(word) if re.fullmatch("-?[0-9]{1,18}", word) else word)
        elif isinstance(value, int) and not isinstance(value, bool):
            values.append(value)
        else:
            raise DataError(
                f"label {value!r} is neither a whole number nor a name",
                where=table.place(row),
                cure="Give the number or the name of a class, or remove the row",
            )
    return values


def _check_one_kind(tables: Mapping[str, TextTable], values: Mapping[str, Sequence[int | str]]) -> None:
    """Numbers or names, not both: a class would stand twice, or a slip become a class."""
    first = next(value for part in values.values() for value in part)
    for part, table in tables.items():
        for row, value in enumerate(values[part]):
            if type(value) is not type(first):
                raise DataError(
                    f"labels of mixed types: {value!r} here, {first!r} in another row",
                    where=table.place(row),
                    cure="Label all rows with numbers, or all with names",
                )


def _indices(table: TextTable, values: Sequence[int | str], index: Mapping[int | str, int]) -> Tensor:
    """Labels as positions among the classes: int64 [N]."""
    for row, value in enumerate(values):
        if value not in index:
            raise DataError(
                f"label {value!r} lies outside the {len(set(index.values()))} classes",
                where=table.place(row),
                cure="Correct it, or remove the row",
            )
    return torch.tensor([index[value] for value in values], dtype=torch.int64)
