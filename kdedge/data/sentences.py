"""Sentences, or pairs of them, and their classes: from single files, folders of files and the Hub."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kdedge.data.labels import LABEL_COLUMNS, class_labels, labelled, missing_columns
from kdedge.data.parts import digest, parts_for
from kdedge.data.tables import TextTable, read_tables
from kdedge.errors import DataError

log = logging.getLogger(__name__)

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
TEXT_COLUMNS = ("sentence", "text")


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

    def contents(self) -> Iterator[object]:
        """What each sample consists of, to find it again."""
        return iter(self.texts) if self.pairs is None else zip(self.texts, self.pairs, strict=True)

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
        source: As ``tables.read_tables``.
        split: Leaves out what this split does not need, as ``parts.parts_for``.

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
