"""Data sets of the Hugging Face Hub, by name or as local folders in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.errors import DataError


def is_hub_layout(folder: Path) -> bool:
    """Whether a folder holds parquet files, as a data set of the Hub does; what begins with a dot is a tool's own."""
    found = (path.relative_to(folder).parts for path in folder.rglob("*.parquet"))
    return any(not any(name.startswith(".") for name in parts) for parts in found)


def load_hub(name: str) -> Any:
    """The splits of a Hub data set, by name or as a local folder in its layout: a ``datasets.DatasetDict``.

    The library gives every split the columns of the first file. Splits of a local folder that number their classes
    unlike are read one by one, each with class names of its own.

    Raises:
        DataError: unknown, out of reach, or damaged.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        apart = _splits_of_unlike_classes(name) if Path(name).is_dir() else {}
        if apart:
            return datasets.DatasetDict(
                {
                    split: datasets.load_dataset("parquet", data_files={split: files}, split=split)
                    for split, files in apart.items()
                }
            )
        return datasets.load_dataset(name)
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds for a name that is wrong or a file that is cut
        raise DataError(
            f"cannot load the data set: {first_line(error)}",
            where=name,
            cure="Check the folder or the Hub name, and the network",
        ) from error


def first_line(error: Exception) -> str:
    """What an error of a library says, cut to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def features_of(schema: Any, where: object) -> Any:
    """The ``datasets.Features`` of an Arrow schema, with the class names in its metadata.

    Raises:
        DataError: a column's type, or the metadata, is none that ``datasets`` knows.
    """
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # ValueError, TypeError, KeyError and others, by what is wrong
        raise DataError(
            f"the types of the columns cannot be read: {first_line(error)}",
            where=where,
            cure="Leave odd columns out, or store them as text, numbers or lists",
        ) from error


def class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes of each column of type ClassLabel."""
    import datasets

    return {c: tuple(f.names) for c, f in features.items() if isinstance(f, datasets.ClassLabel)}


def _splits_of_unlike_classes(folder: str) -> dict[str, list[str]]:
    """The parquet files of each split of a folder where one split names its classes in another order; else nothing."""
    import datasets
    import pyarrow.parquet

    splits: dict[str, list[str]] = {}
    orders: dict[str, set[tuple[str, ...]]] = {}  # by column, over all splits
    for split, paths in (datasets.load_dataset_builder(folder).config.data_files or {}).items():
        splits[str(split)] = files = [path for path in paths if path.endswith(".parquet")]
        first: dict[str, tuple[str, ...]] = {}
        for file in files:
            for column, names in class_names(features_of(pyarrow.parquet.read_schema(file), file)).items():
                if first.setdefault(column, names) != names:
                    raise DataError(
                        f"the classes of '{column}' stand in another order than in other files of split '{split}'",
                        where=file,
                        cure="Write the files of a split with the same class names",
                    )
                orders.setdefault(column, set()).add(names)
    return splits if any(len(found) > 1 for found in orders.values()) else {}
