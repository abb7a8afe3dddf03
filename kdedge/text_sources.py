"""Sentences, or pairs of them, and their classes: from single files, folders of files and the Hub."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdedge.errors import DataError
from kdedge.image_sources import digest, parts_for
from kdedge.text_tables import TextTable, read_tables

log = logging.getLogger(__name__)

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMNS = ("label", "labels")


@dataclass(frozen=True)
class TextSet:
    """Sentences of one split.

    Attributes:
        texts: N sentences, the first of each pair where there are pairs.
        labels: int64 [N], each below the number of classes.
        pairs: The second sentence of each pair; None for single sentences.
    """

    texts: tuple[str, ...]
    labels: Tensor
    pairs: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: Tensor) -> TextSet:
        """The samples at ``index``, int64 [M]."""
        rows = index.tolist()
        pairs = None if self.pairs is None else tuple(self.pairs[row] for row in rows)
        return TextSet(tuple(self.texts[row] for row in rows), self.labels[index], pairs)

    def relabelled(self, order: Tensor) -> TextSet:
        """The same sentences with label i as ``order[i]``."""
        return TextSet(self.texts, order[self.labels], self.pairs)

    def fingerprint(self) -> bytes:
        """SHA-256 over sentences and labels."""
        return hashlib.sha256(json.dumps([self.texts, self.pairs]).encode() + digest(self.labels)).digest()


def read_sentences(source: str, split: str | None = None) -> tuple[dict[str, TextSet], tuple[str, ...]]:
    """Sentences and the names of their classes.

    Columns are a sentence (``sentence`` or ``text``) or a pair of them (``PAIR_COLUMNS``), and ``label``: numbers,
    with the names of the column's type where it is a ClassLabel, or names. Classes without a ClassLabel are the
    values that occur in any split, in order. A validation or test split without labels (no such column, or the
    Hub's −1 throughout) is left out with a warning: its labels were kept back.

    Args:
        source: As ``text_tables.read_tables``.
        split: Leaves out what this split does not need, as ``image_sources.parts_for``.

    Returns:
        Parts by split, and the names of the classes by index.

    Raises:
        DataError: missing, empty, damaged or unusable; names the file and the row.
    """
    tables = labelled(read_tables(source), LABEL_COLUMNS)
    labels, names = class_labels(tables)
    if len(names) < 2:
        raise DataError(f"found {len(names)} class, at least 2 are needed", where=source)
    columns = _text_columns(next(iter(tables.values())))
    needed = parts_for(split, tables)
    return {called: _text_set(tables[part], columns, labels[part]) for part, called in needed.items()}, names


def labelled(tables: Mapping[str, TextTable], columns: Sequence[str]) -> dict[str, TextTable]:
    """The tables that have one of the columns; without it, only a validation or test split is left out.

    Raises:
        DataError: the training split, or every split, lacks it.
    """
    kept = {}
    for part, table in tables.items():
        cells = next((table.columns[name] for name in columns if name in table.columns), [])
        if not all(value in (-1, "-1", None) for value in cells):
            kept[part] = table
        elif part == "train" or len(tables) == 1:
            raise missing_columns(table, columns[:1])
        else:
            log.warning("left out the %s split, which comes without '%s' (%s)", part, columns[0], table.where)
    if not kept:
        raise DataError(f"no split has a '{columns[0]}'", where=next(iter(tables.values())).where)
    return kept


def missing_columns(table: TextTable, needed: Iterable[str]) -> DataError:
    """The error of a table that lacks the columns ``needed``, or has nothing in them."""
    return DataError(
        f"no filled column {' or '.join(repr(name) for name in needed)} among {', '.join(table.columns)}",
        where=table.where,
        cure="Rename, fill or add it",
    )


def _text_columns(table: TextTable) -> tuple[str, ...]:
    """The column of the sentences, or the two of a pair."""
    for columns in (*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS)):
        if all(name in table.columns for name in columns):
            return columns
    raise missing_columns(table, TEXT_COLUMNS)


def _text_set(table: TextTable, columns: tuple[str, ...], labels: Tensor) -> TextSet:
    for name in columns:
        if name not in table.columns:
            raise missing_columns(table, (name,))
    texts, *pairs = (tuple(table.text(name, row) for row in range(len(table))) for name in columns)
    return TextSet(texts, labels, pairs[0] if pairs else None)


def class_labels(tables: Mapping[str, TextTable]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels int64 [N] by split, and the names of the classes."""
    columns = {part: next(name for name in LABEL_COLUMNS if name in table.columns) for part, table in tables.items()}
    values = {part: _label_values(table, columns[part]) for part, table in tables.items()}
    _check_one_kind(tables, values)
    names = next((t.class_names[columns[part]] for part, t in tables.items() if columns[part] in t.class_names), ())
    occurring = {value for part in values.values() for value in part if isinstance(value, str) or value >= 0}
    index = {value: number for number, value in enumerate(names or sorted(occurring))}
    if names:
        index |= {number: number for number in range(len(names))}
    labels = {part: _indices(table, values[part], index) for part, table in tables.items()}
    return labels, names or tuple(map(str, index))


def _label_values(table: TextTable, column: str) -> list[int | str]:
    """Labels as they stand: whole numbers (also where they are spelled as text), or names."""
    values: list[int | str] = []
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, str) and value.strip():
            word = value.strip()
            values.append(int(word) if re.fullmatch("-?[0-9]{1,18}", word) else word)
        elif isinstance(value, int) and not isinstance(value, bool):
            values.append(value)
        else:
            raise DataError(
                f"label {value!r} is neither a whole number nor a name",
                where=table.place(row),
                cure="Give the number or the name of a class",
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
