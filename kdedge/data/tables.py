"""Tables of text, one a split, from single files, folders of files and the Hub; every row knows its place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdedge.data.hub import class_names, features_of, first_line, is_hub_layout, load_hub
from kdedge.data.parts import SPLIT_NAMES
from kdedge.errors import DataError

# GLUE's and SQuAD's own files call the validation split `dev`.
FILE_SPLITS = {**SPLIT_NAMES, "dev": "validation"}


@dataclass(frozen=True)
class TextTable:
    """The rows of one split as they were read.

    Attributes:
        columns: Cells by column, all columns of one length.
        where: The file or data set.
        place: Number of a row -> the words that tell a user which one it is.
        class_names: Names of the classes of each column of type ClassLabel.
    """

    columns: dict[str, list[Any]]
    where: str
    place: Callable[[int], str]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def text(self, column: str, row: int) -> str:
        """A cell that has to hold text.

        Raises:
            DataError: empty, blank, not text, or not to be written as UTF-8.
        """
        return checked_text(self.columns[column][row], column, self.place(row))


def checked_text(value: Any, name: str, place: str) -> str:
    """``value`` where it is text with something in it.

    Raises:
        DataError: it is not.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"'{name}' is empty", where=place, cure="Fill it in, or remove the row")
    if not isinstance(value, str):
        raise DataError(f"'{name}' is {type(value).__name__}, not text", where=place)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise DataError(
            f"'{name}' holds half a character", where=place, cure=r"Look for a lone \ud800 to \udfff"
        ) from None
    return value


def read_tables(source: str) -> dict[str, TextTable]:
    """The tables of a source, by split.

    Args:
        source: A file (.csv, .tsv, .jsonl, .json, .parquet; becomes ``train``), a folder with such files named after
            their splits (``train.csv``, ``dev-v1.1.json``), a folder in Hub layout, or a Hub name. A .csv is quoted
            as RFC 4180 says, a .tsv is not quoted at all (IANA text/tab-separated-values, and GLUE's files); both
            have a header, and all are UTF-8.

    Raises:
        DataError: missing, empty, unreadable; names the file and, where there is one, the row.
    """
    path = Path(source).expanduser()
    if path.is_file():
        tables = {"train": _read_file(path)}
    elif path.is_dir() and not is_hub_layout(path):
        tables = _split_files(path.resolve())
    elif not path.is_dir() and (source.startswith((".", "/", "~")) or path.suffix.lower() in READERS):
        raise DataError("--data: no such file or folder", where=source, cure="Give a file, a folder or a Hub name")
    else:
        tables = _hub_tables(str(path.resolve()) if path.is_dir() else source)
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"split '{split}' has no rows", where=table.where)
    return tables


def _split_files(folder: Path) -> dict[str, TextTable]:
    files: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and p.is_file()):
        word = re.match("[a-z]*", path.name.lower())
        split = FILE_SPLITS.get(word.group() if word else "")
        if split in files:
            raise DataError(f"two files for the split '{split}': {files[split].name}, {path.name}", where=folder)
        if split is not None:
            files[split] = path
    if not files:
        raise DataError(
            "found no file of a split",
            where=folder,
            cure=f"Name the files train, validation and test ({', '.join(READERS)})",
        )
    return {split: _read_file(path) for split, path in files.items()}


def _hub_tables(name: str) -> dict[str, TextTable]:
    tables: dict[str, TextTable] = {}
    for key, data in load_hub(name).items():
        if str(key) in SPLIT_NAMES:
            place = _rows(f"{name}, split {key}")
            tables[SPLIT_NAMES[str(key)]] = _from_arrow(data.with_format("arrow")[:], data.features, name, place)
    if not tables:
        raise DataError("the data set has no 'train', 'validation' or 'test' split", where=name)
    return tables


def _read_file(path: Path) -> TextTable:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read '{path.suffix}' files", where=path, cure=f"Known are {', '.join(READERS)}")
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or first_line(error)}", where=path) from error


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte 0x{data[error.start]:02x} is not UTF-8", where=f"{path}, line {line}", cure="Save the file as UTF-8"
        ) from None


def _csv(path: Path) -> TextTable:
    return _separated(path, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> TextTable:
    return _separated(path, "\t", csv.QUOTE_NONE)


def _separated(path: Path, delimiter: str, quoting: int) -> TextTable:
    text = _decoded(path)
    limit = csv.field_size_limit(len(text) + 1)  # Python's own, 131,072 characters, is short for a text
    try:
        return _rows_of(path, text, delimiter, quoting)
    finally:
        csv.field_size_limit(limit)


def _rows_of(path: Path, text: str, delimiter: str, quoting: int) -> TextTable:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True  # type: ignore[arg-type]
    )  # fmt: skip
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1  # where a row begins; it can go on over several
    try:
        header = [name.strip() for name in next(reader, [])]
        doubled = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        if doubled:
            raise DataError(f"two columns are called '{doubled[0]}'", where=path, cure="Rename one")
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(f"{len(row)} cells, the header has {len(header)}", where=f"{path}, line {line}")
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"cannot read: {error}", where=f"{path}, line {line}") from None
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    return TextTable(columns, str(path), _lines(path, lines))


def _json_lines(path: Path) -> TextTable:
    return _from_lines(path, _decoded(path))


def _from_lines(path: Path, text: str) -> TextTable:
    records: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_parsed(line, f"{path}, line {number}"))
            lines.append(number)
    return _from_records(records, path, _lines(path, lines))


def _json(path: Path) -> TextTable:
    text = _decoded(path)
    first, _, rest = text.strip().partition("\n")
    if first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{"):
        return _from_lines(path, text)  # lines of JSON under the other suffix
    document = _parsed(text, str(path))
    records = document.get("data") if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise DataError("neither a list of records nor {'data': [...]}", where=path)
    return _from_records(records, path, _rows(str(path)))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=place) from None


def _from_records(records: Sequence[Any], path: Path, place: Callable[[int], str]) -> TextTable:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"a {type(record).__name__} where a record is due", where=place(row))
    names = dict.fromkeys(str(name) for record in records for name in record)
    return TextTable({name: [record.get(name) for record in records] for name in names}, str(path), place)


def _parquet(path: Path) -> TextTable:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"cannot read: {first_line(error)}", where=path) from error
    return _from_arrow(table, features_of(table.schema, path), str(path), _rows(str(path)))


def _from_arrow(table: Any, features: Any, where: str, place: Callable[[int], str]) -> TextTable:
    columns = {name: _cells(table, name, where) for name in table.column_names}
    return TextTable(columns, where, place, class_names(features))


def _cells(table: Any, name: str, where: str) -> list[Any]:
    try:
        return list(table.column(name).to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(f"a cell of '{name}' is not UTF-8", where=where) from error
    except Exception as error:  # of many kinds, such as OverflowError for a date beyond the year 9999
        raise DataError(
            f"the column '{name}' cannot be read: {first_line(error)}", where=where, cure="Correct it, or leave it out"
        ) from error


def _lines(path: Path, numbers: Sequence[int]) -> Callable[[int], str]:
    return lambda row: f"{path}, line {numbers[row]}"


def _rows(where: str) -> Callable[[int], str]:
    return lambda row: f"{where}, row {row}"


READERS: dict[str, Callable[[Path], TextTable]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
