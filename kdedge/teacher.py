"""Where a teacher comes from: trained by the recipe, a checkpoint, torchvision's weights, or the Hub."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdedge import models
from kdedge.adapted import Adapted
from kdedge.data.splits import DataSplits
from kdedge.errors import ModelError
from kdedge.examples import Preprocessing
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.recipe import DistillRecipe, ModelRecipe
from kdedge.text.teacher import find_text_teacher, label_order, with_dropout
from kdedge.text.tokenization import TextPreprocessing
from kdedge.written_teacher import WEIGHTS, is_written, load_weights, load_written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A net in the role of the teacher.

    Attributes:
        net: Normalised images float32 [N, C, H, W] -> logits [N, classes].
        name: What it is, for the log and the manifest.
        to_train: How the run has to train it; None for one that comes with weights.
    """

    net: nn.Module
    name: str
    to_train: ModelRecipe | None = None


def find_teacher(
    spec: str | None, recipe: DistillRecipe, splits: DataSplits[Any], preprocessing: Preprocessing
) -> Teacher:
    """The teacher that ``--teacher`` names, or the recipe's own.

    Args:
        spec: A name of ``models.TEACHERS`` (trained here), ``NAME:WEIGHTS`` of torchvision (downloaded), a
            teacher folder or ``.safetensors`` that kdedge wrote, a bundle (its float student), a ``.pt``/``.pth`` state
            dict of the recipe's teacher, a Hugging Face model (folder or Hub name), or None.
        recipe: Of the run; its teacher is the default.
        splits: The data, whose classes and image shape the teacher must fit.
        preprocessing: What the student's input went through; an image teacher with another one is put behind its own.

    Raises:
        ModelError: unknown, unreadable, or of another number of classes than the data.
    """
    if recipe.is_text:
        return _text(spec or recipe.teacher.model, recipe, splits, preprocessing)
    return _of_images(spec, recipe, splits, preprocessing)


def _of_images(
    spec: str | None, recipe: DistillRecipe, splits: DataSplits[Any], preprocessing: Preprocessing
) -> Teacher:
    classes, shape = len(splits.labels), preprocessing.inputs[0].shape
    if spec is None or spec in models.TEACHERS:
        own = recipe.teacher if spec is None else dataclasses.replace(recipe.teacher, model=spec)
        return Teacher(models.build(own, models.TEACHERS, classes, shape), own.model, own)
    path = Path(spec).expanduser()
    written_here = path.parent if path.name == WEIGHTS else path
    if is_written(written_here):
        return load_teacher(written_here, splits, preprocessing)
    if path.is_file():
        return _state_dict(path, recipe.teacher, splits, shape)
    if ":" in spec and "/" not in spec:
        return _torchvision(spec, splits, preprocessing)
    on_hub = path.is_dir() or (spec.count("/") == 1 and not spec.startswith((".", "/", "~")))
    if on_hub and isinstance(preprocessing, ImagePreprocessing):
        return _hugging_face(spec, splits, preprocessing)
    raise ModelError(
        f"no teacher '{spec}'",
        cure=f"Give a checkpoint, a folder, a Hub name, NAME:WEIGHTS of torchvision, or one of "
        f"{', '.join(models.TEACHERS)}",
    )


def _text(spec: str, recipe: DistillRecipe, splits: DataSplits[Any], preprocessing: Preprocessing) -> Teacher:
    path = Path(spec).expanduser()
    folder = path.parent if path.name == WEIGHTS else path
    if is_written(folder):
        return load_teacher(folder, splits, preprocessing)
    text = cast(TextPreprocessing, preprocessing)
    net, to_train = find_text_teacher(spec, recipe.task, splits.labels, text)
    return Teacher(with_dropout(net, recipe.teacher.dropout), spec, recipe.teacher if to_train else None)


def load_teacher(folder: Path, splits: DataSplits[Any], preprocessing: Preprocessing) -> Teacher:
    """A teacher that kdedge wrote, or a bundle's float student, its logits in the order of the data's classes.

    Raises:
        KdedgeError: damaged, or its classes, the size of its inputs or its tokenizer are not the data's.
    """
    return Teacher(*load_written(folder, splits, preprocessing))


def _state_dict(path: Path, recipe: ModelRecipe, splits: DataSplits[Any], shape: models.Shape) -> Teacher:
    """A plain state dict of the recipe's teacher; read without running any code in it."""
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have kinds of their own
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot read the checkpoint: {line}", where=path) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ModelError("not a state dict of tensors", where=path)
    heads = [v for k, v in tensors.items() if k.endswith("weight") and v.ndim == 2]
    if heads and heads[-1].shape[0] != len(splits.labels):
        raise ModelError(f"the teacher has {heads[-1].shape[0]} classes, the data has {len(splits.labels)}", where=path)
    net = models.build(recipe, models.TEACHERS, len(splits.labels), shape)
    load_weights(net, tensors, path)
    return Teacher(net, f"{recipe.model} ({path.name})")


def _torchvision(spec: str, splits: DataSplits[Any], preprocessing: Preprocessing) -> Teacher:
    """``resnet50:IMAGENET1K_V2``: weights that torchvision downloads, behind the preprocessing that they want."""
    from torchvision import models as tv

    name, _, weights_name = spec.partition(":")
    try:
        weights = tv.get_model_weights(name)[weights_name]
        net = tv.get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise ModelError(f"torchvision knows no '{spec}': {error}") from error
    except OSError as error:
        raise ModelError(f"cannot download '{spec}': {error}", cure="Bring the file along as --teacher FILE") from error
    if isinstance(preprocessing, ImagePreprocessing):
        wanted = weights.transforms()
        side = wanted.crop_size[0]
        theirs = ImagePreprocessing((side, side), len(wanted.mean), tuple(wanted.mean), tuple(wanted.std))
        net = Adapted(net, _moments(preprocessing), _moments(theirs), size=theirs.image_size)
    models.check_output(net, spec, len(splits.labels), preprocessing.inputs[0].shape)
    return Teacher(net, spec)


def _hugging_face(spec: str, splits: DataSplits[Any], preprocessing: ImagePreprocessing) -> Teacher:
    """An image classifier of the Hub or of a folder in Hub layout, behind its own preprocessing."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import kdedge.torchvision_compat  # noqa: F401

    try:
        hub = AutoModelForImageClassification.from_pretrained(spec, use_safetensors=True)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load the teacher: {line}", where=spec) from error
    names = tuple(hub.config.id2label[i] for i in range(hub.config.num_labels))
    if len(names) != len(splits.labels):
        raise ModelError(
            f"the teacher has {len(names)} classes, the data has {len(splits.labels)}",
            where=spec,
            cure="Give a teacher trained for these classes, or leave --teacher out to train one",
        )
    theirs = None
    try:
        theirs = _processor(AutoImageProcessor.from_pretrained(spec))  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        theirs = None  # no preprocessor beside the weights: it was trained on what it gets
    order = _order(names, splits.labels, spec)
    hub_net = _HubLogits(hub)
    net = (
        Adapted(hub_net, order=order)
        if theirs is None
        else Adapted(hub_net, _moments(preprocessing), _moments(theirs), size=theirs.image_size, order=order)
    )
    models.check_output(net, spec, len(splits.labels), preprocessing.inputs[0].shape)
    return Teacher(net, spec)


def _order(theirs: tuple[str, ...], ours: tuple[str, ...], where: str) -> list[int] | None:
    """Where each of our classes stands among a checkpoint's; None where they stand alike.

    Names that say nothing of each other, such as a data set's synsets and a checkpoint's words, are matched by number,
    loudly.

    Raises:
        ModelError: some of the names are the data's, and some are not.
    """
    lower = {name.lower() for name in theirs}
    numbered = lower == {f"label_{number}" for number in range(len(theirs))} or all(name.isdigit() for name in ours)
    unique = len(lower) == len(theirs)  # ImageNet has two kinds of crane
    if numbered or (unique and any(name.lower() in lower for name in ours)):
        order = label_order(theirs, ours, where)
        return None if order == list(range(len(ours))) else order
    log.warning(
        "the teacher's classes are matched with the data's by number: '%s' is '%s' (%s)", ours[0], theirs[0], where
    )
    return None


def _moments(preprocessing: ImagePreprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return preprocessing.mean, preprocessing.std


def _processor(processor: Any) -> ImagePreprocessing:
    size = processor.size
    side = size.get("shortest_edge")
    height, width = (side, side) if side else (size["height"], size["width"])
    return ImagePreprocessing(
        (height, width), len(processor.image_mean), tuple(processor.image_mean), tuple(processor.image_std)
    )


class _HubLogits(nn.Module):
    """A transformers model as images -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=images).logits)
