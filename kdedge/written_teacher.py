"""Teachers in files of kdedge: one that a run trained, with its card, or the float student of a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdedge import models
from kdedge.adapted import Adapted, Moments, Reordered, order_among
from kdedge.bundle import MANIFEST, Bundle
from kdedge.data.splits import DataSplits
from kdedge.errors import KdedgeError, ModelError
from kdedge.examples import Preprocessing
from kdedge.files import read_json, write_atomic, write_json
from kdedge.inputs import output_count
from kdedge.recipe import ModelRecipe
from kdedge.recipe_file import recipe_from_dict
from kdedge.text import TextNet
from kdedge.text.teacher import check_fits, label_order, reorder, users_own_text_net
from kdedge.text.tokenization import TextPreprocessing
from kdedge.training.checkpoint import save_tensors

WEIGHTS = "teacher.safetensors"
CARD = "teacher.json"


def save_teacher(
    folder: Path, net: nn.Module, recipe: ModelRecipe, splits: DataSplits[Any], preprocessing: Preprocessing
) -> None:
    """Write a trained teacher so that ``--teacher FOLDER`` takes it again."""
    save_tensors(net, folder / WEIGHTS)
    for name, text in preprocessing.files().items():
        write_atomic(folder / name, text)
    card = {
        "format_version": 1,
        "net": net.describe() if isinstance(net, TextNet) else None,
        "model": dataclasses.asdict(recipe),
        "labels": list(splits.labels),
        "shape": list(preprocessing.inputs[0].shape),
        "preprocessing": preprocessing.to_dict(),
    }
    write_json(folder / CARD, card)


def is_written(folder: Path) -> bool:
    """Whether kdedge wrote a teacher or a bundle there."""
    return (folder / CARD).is_file() or (folder / MANIFEST).is_file()


def load_written(folder: Path, splits: DataSplits[Any], preprocessing: Preprocessing) -> tuple[nn.Module, str]:
    """The net, its logits in the order of the data's classes, and its name.

    Raises:
        ModelError: damaged, or its classes, the size of its inputs or its tokenizer are not the data's.
        BundleError: a bundle that cannot be opened.
    """
    found = _read_card(folder, preprocessing) if (folder / CARD).is_file() else _read_bundle(folder)
    return _fitted(found, folder, splits, preprocessing)


@dataclasses.dataclass(frozen=True)
class _Written:
    """A net as the files have it.

    Attributes:
        net: With its weights.
        name: What it is.
        labels: Its classes.
        shape: Of its first input.
        preprocessing: Plain values, as ``to_dict`` gives them.
    """

    net: nn.Module
    name: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    preprocessing: dict[str, Any]


def _read_card(folder: Path, ours: Preprocessing) -> _Written:
    from safetensors.torch import load_file

    try:
        card = read_json(folder / CARD)
        labels, shape = tuple(map(str, card["labels"])), tuple(map(int, card["shape"]))
        recipe, described = _model_recipe(card["model"]), card.get("net")
        net: nn.Module
        if described is not None:
            net = TextNet.from_description(described)
        elif isinstance(ours, TextPreprocessing):  # a function of the user's, which knows vocabulary and length
            _check_shape(shape, ours, folder)
            net = users_own_text_net(recipe.model, output_count(labels), ours)
        else:
            net = models.build(recipe, models.TEACHERS, len(labels), shape)
        load_weights(net, load_file(folder / WEIGHTS), folder)
        return _Written(net, recipe.model, labels, shape, dict(card["preprocessing"]))
    except KdedgeError as error:
        raise ModelError(f"cannot read the teacher: {error.what}", where=folder) from error
    except Exception as error:  # safetensors has its own kinds for a cut file
        raise ModelError(f"cannot read the teacher: {error}", where=folder) from error


def _read_bundle(folder: Path) -> _Written:
    bundle = Bundle.load(folder)
    net = bundle.float_student()
    return _Written(net, bundle.model_name, bundle.labels, bundle.input_shape, bundle.preprocessing.to_dict())


def _fitted(found: _Written, where: Path, splits: DataSplits[Any], ours: Preprocessing) -> tuple[nn.Module, str]:
    if len(found.labels) != len(splits.labels):
        raise ModelError(
            f"the teacher has {len(found.labels)} classes, the data has {len(splits.labels)}",
            where=where,
            cure="Give a teacher trained for these classes, or leave --teacher out to train one",
        )
    if set(found.labels) != set(splits.labels):
        odd = sorted(set(found.labels) ^ set(splits.labels))
        raise ModelError(f"the teacher's classes are not the data's: {', '.join(odd[:6])}", where=where)
    if isinstance(ours, TextPreprocessing) and isinstance(found.net, TextNet):
        return _fitted_text(found.net, found, where, splits, ours), found.name
    _check_shape(found.shape, ours, where)
    order = None if found.labels == splits.labels else order_among(found.labels, splits.labels)
    if isinstance(ours, TextPreprocessing):
        _check_tokenizer(found, where, ours)
        return (found.net if order is None else Reordered(found.net, order)), found.name
    own, theirs = _moments(ours.to_dict()), _moments(found.preprocessing)
    same = own == theirs and order is None
    return (found.net if same else Adapted(found.net, own, theirs, order=order)), found.name


def _check_shape(theirs: tuple[int, ...], ours: Preprocessing, where: Path) -> None:
    shape = ours.inputs[0].shape
    if theirs != shape:
        raise ModelError(f"the teacher wants inputs of {theirs}, the recipe gives {shape}", where=where)


def _moments(preprocessing: dict[str, Any]) -> Moments:
    """Mean and standard deviation of a preprocessing's values."""
    return tuple(preprocessing["mean"]), tuple(preprocessing["std"])


def _fitted_text(
    net: TextNet, found: _Written, where: Path, splits: DataSplits[Any], ours: TextPreprocessing
) -> TextNet:
    _check_tokenizer(found, where, ours)
    check_fits(net, ours, str(where))
    if splits.labels:
        reorder(net, label_order(found.labels, splits.labels, str(where)))
    return net


def _check_tokenizer(found: _Written, where: Path, ours: TextPreprocessing) -> None:
    theirs, own = (str(values["tokenizer_sha256"])[:12] for values in (found.preprocessing, ours.to_dict()))
    if theirs != own:
        raise ModelError(
            f"the teacher was trained with tokenizer {theirs}…, the run has {own}…",
            where=where,
            cure="Leave text.tokenizer out: the teacher's folder holds its own",
        )


def _model_recipe(values: dict[str, Any]) -> ModelRecipe:
    """A ModelRecipe from a card's plain values, with the recipe reader's checks."""
    none = {"training": {"epochs": 0}}
    blank = {"name": "card", "description": "", "data": {"name": "-"}, "student": {"model": "-", **none}, "qat": none}
    return recipe_from_dict({**blank, "teacher": values}).teacher


def load_weights(net: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Put weights into a net.

    Raises:
        ModelError: they are another net's.
    """
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        detail = lines[1].strip() if len(lines) > 1 else lines[0]
        raise ModelError(f"the weights do not fit the teacher's net: {detail}", where=where) from error
