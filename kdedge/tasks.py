"""What differs by task or by kind of data, in visible tables: how preprocessing is fitted, and found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import ModelError
from kdedge.images.preprocessing import ImagePreprocessing, measure_preprocessing
from kdedge.recipe import DistillRecipe, Task

if TYPE_CHECKING:
    from kdedge.data.splits import DataSplits
    from kdedge.examples import Preprocessing

NOUNS: dict[Task, str] = {
    "image-classification": "images",
    "text-classification": "sentences",
    "question-answering": "windows",
    "vector-classification": "vectors",
}
"""Task -> what its samples are called."""


MEASURED_IMAGES = 2048
"""Training images that mean and standard deviation are measured on, where not all are at hand."""


def _fit_images(recipe: DistillRecipe, splits: DataSplits[Any], teacher: str | None) -> Preprocessing:
    del teacher
    if not recipe.data.streamed:
        return measure_preprocessing(splits.train.images)
    import dataclasses

    import torch

    from kdedge.data.image_stream import evaluation_short_side

    generator = torch.Generator().manual_seed(recipe.data.split_seed)
    some = torch.randperm(len(splits.train), generator=generator)[:MEASURED_IMAGES]
    measured = measure_preprocessing(splits.train.training_columns(some)[0])
    return dataclasses.replace(measured, short_side=evaluation_short_side(recipe.data.image_size))


def _fit_text(recipe: DistillRecipe, splits: DataSplits[Any], teacher: str | None) -> Preprocessing:
    """The tokenizer that the recipe names, else the teacher's; nothing is taken from the data."""
    from kdedge.text import resolve_source
    from kdedge.text.teacher import BASES, is_users_own
    from kdedge.text.tokenization import TextPreprocessing

    del splits
    source = recipe.text.tokenizer or teacher or recipe.teacher.model
    if source in BASES or is_users_own(source):
        raise ModelError(
            f"'{source}' has no tokenizer of its own", cure="Set text.tokenizer to a Hub name or the folder of one"
        )
    written_here = Path(source).expanduser()
    if written_here.is_file():
        written_here = written_here.parent
    has_tokenizer = (written_here / "tokenizer.json").is_file()
    return TextPreprocessing.from_folder_or_hub(
        written_here if has_tokenizer else resolve_source(source),
        max_length=recipe.text.max_length,
        token_types=True,
        doc_stride=recipe.text.doc_stride,
        n_best=recipe.text.n_best,
        max_answer_length=recipe.text.max_answer_length,
    )


def _fit_vectors(recipe: DistillRecipe, splits: DataSplits[Any], teacher: str | None) -> Preprocessing:
    from kdedge.data.vectors import FeaturePreprocessing

    del recipe, teacher
    return FeaturePreprocessing.measured(splits.train.features)


FIT: dict[Task, Callable[[DistillRecipe, DataSplits[Any], str | None], Preprocessing]] = {
    "image-classification": _fit_images,
    "text-classification": _fit_text,
    "question-answering": _fit_text,
    "vector-classification": _fit_vectors,
}
"""Task -> function that makes the preprocessing from the recipe, the training split alone, and ``--teacher``."""


def _restore_images(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    del files
    return ImagePreprocessing.from_dict(dict(data))


def _restore_text(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    from kdedge.text.tokenization import TOKENIZER, TextPreprocessing

    return TextPreprocessing.from_dict(dict(data), files[TOKENIZER])


def _restore_vectors(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    from kdedge.data.vectors import FeaturePreprocessing

    del files
    return FeaturePreprocessing.from_dict(data)


RESTORE: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Preprocessing]] = {
    "image": _restore_images,
    "text": _restore_text,
    "features": _restore_vectors,
}
"""Kind -> function that makes the preprocessing from ``to_dict``'s values and ``files``."""


def restore_preprocessing(data: Mapping[str, Any], files: Mapping[str, str]) -> Preprocessing:
    """The preprocessing that a manifest or an artifact describes.

    Args:
        data: ``Preprocessing.to_dict``'s values; where they name no kind they are of images.
        files: ``Preprocessing.files``.

    Raises:
        KeyError: a value or a kind is missing.
        ModelError: a file is not the one that the values speak of.
    """
    return RESTORE[str(data.get("kind", "image"))](data, files)
