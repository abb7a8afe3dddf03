"""Data sets of the Hugging Face Hub, by name or as local folders in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.errors import DataError


def is_hub_layout(folder: Path) -> bool:
    """Whether a folder holds parquet files, as a data set of the Hub does."""
    return any(folder.rglob("*.parquet"))


def load_hub(name: str) -> Any:
    """The splits of a Hub data set, by name or as a local folder in its layout: a ``datasets.DatasetDict``.

    Raises:
        DataError: unknown, out of reach, or damaged.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds for a name that is wrong or a file that is cut
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load the data set: {line}",
            where=name,
            cure="Check the folder or the Hub name, and the network",
        ) from error
