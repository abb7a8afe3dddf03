"""Data sets: splits that are disjoint by construction, and whole ones for nets that were trained before.

Images of moderate size live decoded in memory as uint8, so that the hot loop does no Python work per sample.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from kdedge.data.carving import carve, limited
from kdedge.data.hub import is_hub_layout
from kdedge.data.image_stream import LazyImageSet
from kdedge.data.images import class_folders, digits, hub, list_class_folders, list_hub
from kdedge.errors import DataError
from kdedge.recipe import DataRecipe, Task

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ALL = "all"
EMBEDDED = ("digits", "breast-cancer")
"""Real data that ship with scikit-learn: 1,797 digits as images or vectors, 569 biopsies of 30 features."""

FEW_COPIES = 0.01
"""Share of the test samples that may stand in train as well without a word: public sets have some."""


class Part(Protocol):
    """One split of a source: images, vectors, sentences or questions."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]: the class of each sample, below the number of classes."""

    def __len__(self) -> int:
        """N."""

    def take(self, index: Tensor) -> Any:
        """The samples at ``index``, int64 [M]."""

    def fingerprint(self) -> bytes:
        """Digest over all samples and labels."""


P = TypeVar("P", bound=Part)
Parts: TypeAlias = tuple[dict[str, Any], tuple[str, ...]]


@dataclass(frozen=True)
class DataSplits(Generic[P]):
    """Train, validation and test of one data set.

    Attributes:
        source: Where it came from: ``digits``, a Hub name, or an absolute folder.
        labels: Names of the classes, by index.
        train: What the nets learn from.
        validation: For choosing and tuning; never trained on.
        test: For the final figures; neither trained nor tuned nor calibrated on.
        fingerprint: SHA-256 over all samples, labels and names.
    """

    source: str
    labels: tuple[str, ...]
    train: P
    validation: P
    test: P
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """Source, fingerprint and counts, as the manifest keeps them."""
        counts = {name: len(self.split(name)) for name in SPLITS}
        return {"source": self.source, "fingerprint": self.fingerprint, "counts": counts}

    def split(self, name: str) -> P:
        """The split called ``name``.

        Raises:
            DataError: there is none of that name.
        """
        if name not in SPLITS:
            raise DataError(f"no split '{name}'", cure=f"Splits are {', '.join(SPLITS)}")
        chosen: P = getattr(self, name)
        return chosen

    def encoded(self, encode: Callable[[P], Any]) -> DataSplits[Any]:
        """The same data set with ``encode`` applied to every split."""
        train, validation, test = (encode(part) for part in (self.train, self.validation, self.test))
        return DataSplits(self.source, self.labels, train, validation, test, self.fingerprint)


def load_data(recipe: DataRecipe, source: str | None = None, task: Task = "image-classification") -> DataSplits[Any]:
    """The data set that the recipe or ``source`` names, decoded and split.

    Args:
        recipe: Sizes, fractions and the seed of the splits.
        source: A name of an embedded data set, a file or folder, or a Hub name; None takes ``recipe.name``.
        task: What the data are for, which says how they are read.

    Raises:
        DataError: missing, empty, damaged or unusable; says which file or row.
    """
    name, labels, parts = _read(recipe, source, task)
    return _split(name, labels, parts, recipe)


def load_evaluation(
    recipe: DataRecipe,
    source: str | None,
    split: str,
    labels: Sequence[str],
    task: Task = "image-classification",
) -> Any:
    """One split of a data set for a net that was trained before, its labels in the net's own order.

    Args:
        recipe: Sizes and splits as the net was trained with: the same data give the same test split.
        source: As ``load_data``.
        split: ``train``, ``validation`` or ``test``; ``all`` takes whole what has no splits of its own.
        labels: The net's classes.
        task: As ``load_data``.

    Raises:
        DataError: as ``load_data``, and where the classes are not the net's.
    """
    require_split(split)
    name, own, parts = _read(recipe, source, task, None if split == ALL else split)
    if len(own) != len(labels):
        raise DataError(
            f"the data has {len(own)} classes, the net has {len(labels)}",
            where=name,
            cure="Give the data that the net was trained for",
        )
    if set(own) != set(labels):
        odd = sorted(set(own) ^ set(labels))
        raise DataError(f"the data's classes are not the net's: {', '.join(odd[:6])}", where=name)
    if split == ALL:
        chosen = _whole(parts, name)
    elif split != "train" and set(parts) == {split}:
        chosen = parts[split]
    else:
        chosen = _split(name, own, parts, recipe).split(split)
        if set(parts) == {"train"} and split != "train" and source not in (None, *EMBEDDED):
            log.warning(
                "%s has no splits: scored are those %d of its %d samples that training on it keeps for '%s'; "
                "--split all takes every one",
                name, len(chosen), len(parts["train"]), split,
            )  # fmt: skip
    if tuple(own) == tuple(labels):
        return chosen
    return chosen.relabelled(torch.tensor([list(labels).index(label) for label in own]))


def require_split(name: str) -> None:
    """Refuse what is no split to be scored.

    Raises:
        DataError: it is none.
    """
    if name not in (*SPLITS, ALL):
        raise DataError(f"no split '{name}'", cure=f"Splits are {', '.join(SPLITS)}; all takes what has none")


def _whole(parts: Mapping[str, Any], name: str) -> Any:
    if len(parts) > 1:
        cure = f"Name one of them with --split: {', '.join(parts)}"
        raise DataError("the data has splits of its own, which are not scored together", where=name, cure=cure)
    return next(iter(parts.values()))


def _read(
    recipe: DataRecipe, source: str | None, task: Task, split: str | None = None
) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Name, classes and parts of a data set, decoded as far as ``split`` needs."""
    name = source or recipe.name
    path = Path(name).expanduser()
    if name in EMBEDDED:
        pass  # whatever lies in the current folder under that name
    elif path.exists():
        name = str(path.resolve())
    elif name.startswith((".", "/", "~")):
        kind = "folder" if task == "image-classification" else "file or folder"
        raise DataError(f"--data: no such {kind}", where=name, cure=f"Give a {kind}, a Hub name, or 'digits'")
    parts, labels = READERS[task](name, recipe, split)
    for part in parts.values():
        if labels and len(part) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(labels):
            raise DataError(f"a label lies outside the {len(labels)} classes", where=name)
    return name, labels, parts


def _images(name: str, recipe: DataRecipe, split: str | None) -> Parts:
    if name == "digits":
        return digits(recipe)
    folder = Path(name)
    in_folders = folder.is_dir() and not is_hub_layout(folder)
    if recipe.streamed and not folder.is_file():
        encoded, labels = list_class_folders(folder, split) if in_folders else list_hub(name, split)
        return {part: LazyImageSet.of(images, recipe) for part, images in encoded.items()}, labels
    if in_folders:
        return class_folders(folder, recipe, split)
    if folder.exists() and not folder.is_dir():
        raise DataError("--data: is a file, not a folder", where=name, cure="Give a folder, a Hub name, or 'digits'")
    return hub(name, recipe, split)


def _sentences(name: str, recipe: DataRecipe, split: str | None) -> Parts:
    from kdedge.data.sentences import read_sentences

    del recipe
    parts, labels = read_sentences(name, split)
    return dict(parts), labels


def _questions(name: str, recipe: DataRecipe, split: str | None) -> Parts:
    from kdedge.data.questions import read_questions
    from kdedge.questions.examples import QuestionPart

    del recipe
    return {part: QuestionPart(questions) for part, questions in read_questions(name, split).items()}, ()


def _vectors(name: str, recipe: DataRecipe, split: str | None) -> Parts:
    from kdedge.data.vectors import read_vectors

    del recipe
    parts, labels = read_vectors(name, split)
    return dict(parts), labels


READERS: dict[Task, Callable[[str, DataRecipe, str | None], Parts]] = {
    "image-classification": _images,
    "text-classification": _sentences,
    "question-answering": _questions,
    "vector-classification": _vectors,
}
"""Task -> function that reads a source: its parts and the names of its classes."""


def _split(name: str, labels: tuple[str, ...], parts: dict[str, Any], recipe: DataRecipe) -> DataSplits[Any]:
    """Carve what is missing out of train, from index sets that cannot overlap."""
    generator = torch.Generator().manual_seed(recipe.split_seed)
    if "train" not in parts:
        raise DataError("the data set has no 'train' split", where=name)
    train = parts["train"]
    if "test" not in parts:
        # As in parts_for: a validation split serves as test where there is none. Another is then carved out of train:
        # what is chosen by its figures must not be chosen by the test's.
        if "validation" in parts:
            parts = {("test" if part == "validation" else part): samples for part, samples in parts.items()}
        else:
            train, test = carve(train, recipe.test_fraction, generator, name)
            parts = {**parts, "test": test}
    if "validation" in parts:
        validation = parts["validation"]
    else:
        train, validation = carve(train, recipe.validation_fraction, generator, name)
    if 0 < recipe.train_limit < len(train):
        train = limited(train, recipe.train_limit, generator, name)
    _require_learnable(labels, train, (validation, parts["test"]), name)
    _warn_of_copies(train, parts["test"], name)
    digest = hashlib.sha256("\0".join(labels).encode())
    for part in (train, validation, parts["test"]):
        digest.update(part.fingerprint())
    return DataSplits(name, labels, train, validation, parts["test"], digest.hexdigest())


def _require_learnable(labels: tuple[str, ...], train: Any, others: Sequence[Any], name: str) -> None:
    """Refuse a class that is scored and never trained on."""
    scored = torch.unique(torch.cat([part.labels for part in others]))
    unseen = scored[~torch.isin(scored, train.labels)].tolist()
    if labels and unseen:
        words = ", ".join(labels[label] for label in unseen[:5])
        raise DataError(f"no training sample is of class {words}, which other splits have", where=name)


def _warn_of_copies(train: Any, test: Any, name: str) -> None:
    """Say where test samples stand in train as well, so that scores measure what was learnt by heart.

    Images that are streamed and questions, whose texts stay together, are not looked at.
    """
    if not hasattr(train, "contents") or not hasattr(test, "contents"):
        return
    known = {hash(row) for row in train.contents()}
    copies = sum(hash(row) in known for row in test.contents())
    if copies > FEW_COPIES * len(test):
        log.warning("%d of the %d test samples are training samples as well (%s)", copies, len(test), name)
