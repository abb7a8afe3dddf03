"""Feature vectors and their classes: embedded sets, .npz archives, and tables of numbers from files and the Hub."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdedge.data.labels import LABEL_COLUMNS, class_labels, labelled
from kdedge.data.parts import digest, parts_for
from kdedge.data.tables import FILE_SPLITS, TextTable, read_tables
from kdedge.errors import DataError
from kdedge.examples import InMemory
from kdedge.inputs import InputSpec
from kdedge.metrics import Metrics, score

log = logging.getLogger(__name__)

_ROW_NUMBERS = re.compile(r"|Unnamed: \d+|__index_level_\d+__|index|idx|id", re.IGNORECASE)
"""Names of columns that number rows; the first ones are those of pandas."""
FEATURE_KEYS = ("x", "X", "features", "data")
LABEL_KEYS = ("y", "labels", "label", "target")


@dataclass(frozen=True)
class VectorSet(InMemory):
    """Vectors of one split.

    Attributes:
        features: float32 [N, D], finite.
        labels: int64 [N], each below the number of classes.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The features."""
        return (self.features,)

    def take(self, index: Tensor) -> VectorSet:
        """The samples at ``index``, int64 [M]."""
        return VectorSet(self.features[index], self.labels[index])

    def relabelled(self, order: Tensor) -> VectorSet:
        """The same vectors with label i as ``order[i]``."""
        return VectorSet(self.features, order[self.labels])

    def fingerprint(self) -> bytes:
        """SHA-256 over features and labels."""
        return digest(self.features, self.labels)

    def score(self, logits: Tensor) -> Metrics:
        """Accuracy and macro F1 of logits [N, classes]."""
        return score(logits, self.labels)


@dataclass(frozen=True)
class FeaturePreprocessing:
    """Each feature minus its mean, by its standard deviation.

    Attributes:
        mean: By feature, of the training split.
        std: By feature; 1 where a feature is constant.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    kind: ClassVar[str] = "features"

    @classmethod
    def measured(cls, features: Tensor) -> FeaturePreprocessing:
        """From the features of the training split alone, float32 [N, D]."""
        values = features.double()
        std = values.std(dim=0, correction=0)
        constant = std <= 1e-12 * values.abs().amax(dim=0)
        std = torch.where(constant, torch.ones_like(std), std)
        return cls(tuple(values.mean(dim=0).tolist()), tuple(std.tolist()))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """One vector."""
        return (InputSpec("features", "float32", (len(self.mean),), "NC"),)

    def prepare(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """float32 [N, D] -> float32 [N, D] of mean 0 and deviation 1 by feature."""
        (features,) = columns
        mean, std = (torch.tensor(v, dtype=torch.float64, device=features.device) for v in (self.mean, self.std))
        return (((features.double() - mean) / std).float(),)

    def encode(self, part: VectorSet) -> VectorSet:
        """The split as it is."""
        return part

    def files(self) -> dict[str, str]:
        """What a bundle keeps in files of its own: nothing."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"kind": self.kind, **{name: list(values) for name, values in asdict(self).items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeaturePreprocessing:
        """From ``to_dict``'s values."""
        return cls(tuple(map(float, data["mean"])), tuple(map(float, data["std"])))


def read_vectors(source: str, split: str | None = None) -> tuple[dict[str, VectorSet], tuple[str, ...]]:
    """Vectors by split and the names of the classes.

    Args:
        source: ``breast-cancer`` or ``digits``, which ship with scikit-learn; an .npz with ``x`` [N, D] and ``y`` [N],
            or ``x_train``, ``y_train``, ``x_test`` and so on; a table (see ``tables.read_tables``) of a column
            ``label`` and either a column ``features`` of lists or one column a feature. A column that numbers the
            rows, such as pandas writes, is left out with a warning; so are others beside ``features``.
        split: Leaves out what this split does not need, as ``parts.parts_for``.

    Raises:
        DataError: missing, damaged, ragged, not finite, or of one class; names file and row.
    """
    if source in _EMBEDDED:
        return _embedded(source)
    if Path(source).suffix.lower() == ".npz":
        arrays = _archive(Path(source))
        names = _names([labels for _, labels in arrays.values()], source)
        parts = {part: _of_arrays(*pair, names, f"{source}, split {part}") for part, pair in arrays.items()}
    else:
        tables = labelled(_without_row_numbers(read_tables(source)), LABEL_COLUMNS)
        labels, names = class_labels(tables)
        order = _feature_names(tables.get("train") or next(iter(tables.values())))
        _say_what_is_left_out(tables)
        parts = {part: VectorSet(_table_features(table, order), labels[part]) for part, table in tables.items()}
    if len(names) < 2:
        raise DataError(f"found {len(names)} class, at least 2 are needed", where=source)
    _same_width(parts, source)
    return {called: parts[part] for part, called in parts_for(split, parts).items()}, names


_EMBEDDED = {"breast-cancer": "load_breast_cancer", "digits": "load_digits"}


def _embedded(name: str) -> tuple[dict[str, VectorSet], tuple[str, ...]]:
    from sklearn import datasets

    data = getattr(datasets, _EMBEDDED[name])()
    features = torch.from_numpy(data.data.astype(np.float32))
    labels = torch.from_numpy(data.target.astype(np.int64))
    return {"train": VectorSet(features, labels)}, tuple(str(word) for word in data.target_names)


def _archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and labels by split; an array of pickled objects is refused, since reading it would run its code."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = loaded
        if isinstance(loaded, np.lib.npyio.NpzFile):  # a member that is no array comes as its bytes
            arrays = {k: array for k in loaded.files if isinstance(array := loaded[k], np.ndarray)}
    except FileNotFoundError:
        raise DataError("--data: no such file", where=path) from None
    except Exception as error:  # numpy and zipfile each have kinds of their own for a file that is cut
        pickled = "allow_pickle" in str(error)
        line = "it holds pickled objects, which could run code" if pickled else str(error).strip().split("\n")[0]
        raise DataError(
            f"cannot read the archive: {line or type(error).__name__}",
            where=path,
            cure="Save plain arrays of numbers with numpy.savez",
        ) from error
    if not isinstance(arrays, dict):
        raise DataError("one array, no archive of them", where=path, cure="Save x and y with numpy.savez")
    parts = {}
    for suffix, part in {"": "train", **{f"_{word}": part for word, part in FILE_SPLITS.items()}}.items():
        features, labels = ([k + suffix for k in keys if k + suffix in arrays] for keys in (FEATURE_KEYS, LABEL_KEYS))
        if not features and not labels:
            continue
        if len(features) != 1 or len(labels) != 1 or part in parts:
            raise DataError(
                f"not one array of features and one of labels for '{part}' among {', '.join(arrays)}",
                where=path,
                cure="Name the arrays x and y, or x_train, y_train, x_test, y_test",
            )
        parts[part] = (arrays[features[0]], arrays[labels[0]])
    if not parts:
        raise DataError(
            f"no features and labels among {', '.join(arrays) or 'nothing'}",
            where=path,
            cure="Name the arrays x and y, or x_train, y_train, x_test, y_test",
        )
    return parts


def _names(labels: list[np.ndarray], where: str) -> tuple[str, ...]:
    """The classes that occur in any split, in order."""
    kinds = {array.dtype.kind for array in labels}
    if not kinds <= {"i", "u"} and not kinds <= {"U"}:
        raise DataError(
            f"labels of dtype {', '.join(str(array.dtype) for array in labels)}",
            where=where,
            cure="Give whole numbers or names",
        )
    return tuple(str(value) for value in sorted({value for array in labels for value in array.ravel().tolist()}))


def _of_arrays(features: np.ndarray, labels: np.ndarray, names: tuple[str, ...], where: str) -> VectorSet:
    if features.ndim != 2 or not features.size or labels.ndim != 1 or len(features) != len(labels):
        raise DataError(
            f"features {list(features.shape)} and labels {list(labels.shape)} do not go together",
            where=where,
            cure="Give x [N, D] and y [N]",
        )
    if features.dtype.kind not in "fiub":
        raise DataError(f"features of dtype {features.dtype} are no real numbers", where=where)
    blank = next((row for row, value in enumerate(labels.tolist()) if not str(value).strip()), None)
    if blank is not None:
        raise DataError(
            f"label {labels.tolist()[blank]!r} is no class",
            where=f"{where}, row {blank}",
            cure="Name a class, or leave the row out",
        )
    index = {name: number for number, name in enumerate(names)}
    classes = torch.tensor([index[str(value)] for value in labels.tolist()], dtype=torch.int64)
    return VectorSet(_finite(features, lambda row: f"{where}, row {row}"), classes)


def _without_row_numbers(tables: Mapping[str, TextTable]) -> dict[str, TextTable]:
    """The tables less what numbers the rows of each: learnt from, the order of a file would pass for knowledge."""
    named = {name for table in tables.values() for name in table.columns if _ROW_NUMBERS.fullmatch(name)}
    numbers = {n for n in named if all(_is_numbering(table.columns.get(n, [])) for table in tables.values())}
    for name in sorted(numbers):
        log.warning("left out the column '%s', which numbers the rows (%s)", name, next(iter(tables.values())).where)
    return {
        part: replace(table, columns={name: cells for name, cells in table.columns.items() if name not in numbers})
        for part, table in tables.items()
    }


def _is_numbering(cells: list[Any]) -> bool:
    """Whether all are whole numbers, also as text or with a decimal point, and none stands twice."""
    found = [re.fullmatch(r"([0-9]+)(\.0*)?", str(cell)) for cell in cells]
    return all(found) and len({number[1] for number in found if number}) == len(cells)


def _feature_names(table: TextTable) -> list[str]:
    names = [name for name in table.columns if name not in LABEL_COLUMNS]
    return ["features"] if "features" in names else names


def _say_what_is_left_out(tables: Mapping[str, TextTable]) -> None:
    for part, table in tables.items():
        others = [name for name in table.columns if name not in ("features", *LABEL_COLUMNS)]
        if "features" in table.columns and others:
            log.warning("takes the column 'features' alone, not %s (%s, %s)", ", ".join(others[:5]), table.where, part)


def _table_features(table: TextTable, order: list[str]) -> Tensor:
    """Features by name in the order of the training split, whatever the order of this one's columns."""
    odd = sorted(set(order) ^ set(_feature_names(table)))
    if odd:
        raise DataError(f"not the columns of the training split: {', '.join(odd[:5])}", where=table.where)
    columns = {name: table.columns[name] for name in order}
    rows: list[Any]
    if "features" in columns:
        rows = columns["features"]
        _check_lists(rows, table)
    elif columns:
        rows = list(zip(*columns.values(), strict=True))
    else:
        raise DataError("no column of features", where=table.where, cure="Name it features, or give one column each")
    try:
        values = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number beyond 1.8e308
        raise _no_number(table, rows, list(columns) if "features" not in columns else None) from None
    if values.ndim != 2 or not values.shape[1]:
        raise DataError(
            "the columns of features are no plain numbers", where=table.where, cure="Name a column of lists 'features'"
        )
    return _finite(values, table.place)


def _check_lists(rows: list[Any], table: TextTable) -> None:
    for number, row in enumerate(rows):
        if not isinstance(row, list):
            raise DataError(
                f"'features' is {reprlib.repr(row)}, no list of numbers",
                where=table.place(number),
                cure="Give a list a row, or rename the column",
            )
        if len(row) != len(rows[0]):
            raise DataError(f"{len(row)} features, the first row has {len(rows[0])}", where=table.place(number))


def _no_number(table: TextTable, rows: list[Any], names: list[str] | None) -> DataError:
    """The error of the first cell that is no number."""
    for number, row in enumerate(rows):
        for place, cell in enumerate(row):
            if not _is_number(cell):
                what = f"feature {place}" if names is None else f"'{names[place]}'"
                return DataError(
                    f"{what} is {reprlib.repr(cell)}, no number that a float can hold", where=table.place(number)
                )
    return DataError("the features are no numbers", where=table.where)


def _is_number(cell: object) -> bool:
    try:
        float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _finite(values: np.ndarray, place: Any) -> Tensor:
    """float32 [N, D], refused where a value is none that a net could learn from."""
    with np.errstate(over="ignore"):
        features = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        row, column = (int(number) for number in bad[0])
        raise DataError(
            f"feature {column} is {values[row, column]}", where=place(row), cure="Replace it, or leave the row out"
        )
    return torch.from_numpy(features)


def _same_width(parts: Mapping[str, VectorSet], source: str) -> None:
    widths = {part: data.features.shape[1] for part, data in parts.items()}
    if len(set(widths.values())) > 1:
        raise DataError(
            "splits of unlike width: " + ", ".join(f"{part} has {width} features" for part, width in widths.items()),
            where=source,
        )
