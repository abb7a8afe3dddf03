"""Questions on texts whose answers are spans of them: SQuAD's own JSON, flat rows of it, and the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdedge.data.labels import labelled, missing_columns
from kdedge.data.parts import parts_for
from kdedge.data.tables import TextTable, checked_text, read_tables
from kdedge.errors import DataError


@dataclass(frozen=True)
class Question:
    """A question on a text.

    Attributes:
        id: The data set's own.
        title: Of the article that the text comes from; empty where it is not known.
        context: The text.
        question: What is asked.
        answers: Spans of ``context`` that answer it, the first for training; empty where it has no answer there.
        answer_starts: Where each begins, in characters (Unicode code points).
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]


def read_questions(source: str, split: str | None = None) -> dict[str, tuple[Question, ...]]:
    """Questions by split.

    Rows have the columns of SQuAD on the Hub (``id``, ``context``, ``question``, ``answers`` with ``text`` and
    ``answer_start``; ``title`` may be missing), or the file is SQuAD's own JSON, v1.1 or v2.0 (Rajpurkar et al. 2016,
    arXiv:1606.05250; 2018, arXiv:1806.03822). A question that is marked ``is_impossible`` has no answer, whatever
    stands there. A validation or test split without ``answers`` is left out with a warning.

    Args:
        source: As ``tables.read_tables``.
        split: Leaves out what this split does not need, as ``parts.parts_for``.

    Raises:
        DataError: missing, empty or damaged, or an answer does not stand where it is said to; names file and row.
    """
    tables = labelled({part: _flat(table) for part, table in read_tables(source).items()}, ("answers",))
    needed = parts_for(split, tables)
    return {called: tuple(_questions(tables[part])) for part, called in needed.items()}


def _flat(table: TextTable) -> TextTable:
    """SQuAD's articles → paragraphs → questions as one row a question; a table of another form as it is."""
    if "paragraphs" not in table.columns:
        return table
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for article in range(len(table)):
        title = table.columns.get("title", [""] * len(table))[article]
        for number, paragraph in enumerate(_list(table.columns["paragraphs"][article], table.place(article))):
            place = f"{table.place(article)}, paragraph {number}"
            for entry in _list(_member(paragraph, "qas", place), place):
                words = {"title": title, "context": _member(paragraph, "context", place)}
                rows.append({**words, **{name: _member(entry, name, place) for name in ("id", "question")}})
                rows[-1]["answers"] = entry.get("answers")  # a test split comes without
                rows[-1]["is_impossible"] = entry.get("is_impossible", False)
                places.append(f"{table.where}, question {entry['id']}")
    if not rows:
        raise DataError("the file has no questions", where=table.where)
    return TextTable({name: [row[name] for row in rows] for name in rows[0]}, table.where, places.__getitem__)


def _member(record: Any, name: str, place: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise DataError(f"no '{name}'", where=place, cure="SQuAD's own files have it")
    return record[name]


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"a {type(value).__name__} where a list is due", where=place)
    return value


def _questions(table: TextTable) -> Iterator[Question]:
    for name in ("id", "context", "question"):
        if name not in table.columns:
            raise missing_columns(table, (name,))
    titles = table.columns.get("title", [None] * len(table))
    impossible = table.columns.get("is_impossible", [False] * len(table))
    kept: dict[str, str] = {}  # the questions on one text share it
    for row in range(len(table)):
        context = table.text("context", row)
        context = kept.setdefault(context, context)
        place = table.place(row)
        answers = [] if _is_true(impossible[row], place) else _answers(table.columns["answers"][row], place)
        for text, start in answers:
            _check_place(context, text, start, place)
        yield Question(
            str(table.columns["id"][row]),
            str(titles[row] or ""),
            context,
            table.text("question", row),
            tuple(text for text, _ in answers),
            tuple(start for _, start in answers),
        )


def _is_true(cell: Any, place: str) -> bool:
    """A mark, also where a file without types spells it; an empty cell is none."""
    if isinstance(cell, str) and cell.strip().lower() in ("", "false", "0"):
        return False
    if cell is None or cell in (True, False):
        return bool(cell)
    if isinstance(cell, str) and cell.strip().lower() in ("true", "1"):
        return True
    raise DataError(f"'is_impossible' is {cell!r}, neither true nor false", where=place)


def _answers(cell: Any, place: str) -> list[tuple[str, int]]:
    """Texts and starts of an ``answers`` cell: a record of two lists (the Hub's), or a list of records (SQuAD's)."""
    if cell is None:
        raise DataError("no 'answers'", where=place, cure="Answer it, mark it is_impossible, or remove it")
    if isinstance(cell, list):
        pairs = [(_member(entry, "text", place), _member(entry, "answer_start", place)) for entry in cell]
    else:
        texts, starts = (_list(_member(cell, name, place), place) for name in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{len(texts)} answers and {len(starts)} starts", where=place)
        pairs = list(zip(texts, starts, strict=True))
    for text, start in pairs:
        checked_text(text, "answers.text", place)
        if not isinstance(start, int) or isinstance(start, bool):
            raise DataError(f"'answers.answer_start' is {start!r}, not a whole number", where=place)
    return pairs


def _check_place(context: str, text: str, start: int, place: str) -> None:
    if start >= 0 and context.startswith(text, start):
        return
    nearest = min(_occurrences(context, text), key=lambda at: abs(at - start), default=None)
    raise DataError(
        f"the answer {_short(text)} does not begin at character {start} of its context",
        where=place,
        cure="The context does not hold it: correct the answer"
        if nearest is None
        else f"The nearest one begins at {nearest}: correct answer_start (in code points, from 0)",
    )


def _occurrences(context: str, text: str) -> Sequence[int]:
    found, at = [], context.find(text)
    while at >= 0:
        found.append(at)
        at = context.find(text, at + 1)
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
