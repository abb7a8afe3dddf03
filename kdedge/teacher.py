"""Where a teacher comes from: trained by the recipe, a checkpoint, torchvision's weights, or the Hub."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge import models
from kdedge.data.splits import DataSplits
from kdedge.errors import KdedgeError, ModelError
from kdedge.examples import Preprocessing
from kdedge.files import read_json, write_atomic, write_json
from kdedge.images.preprocessing import ImagePreprocessing
from kdedge.recipe import DistillRecipe, ModelRecipe
from kdedge.recipe_file import recipe_from_dict
from kdedge.text import TextNet
from kdedge.text.teacher import check_fits, find_text_teacher, label_order, reorder, with_dropout
from kdedge.text.tokenization import TextPreprocessing
from kdedge.training.checkpoint import save_tensors

WEIGHTS = "teacher.safetensors"
CARD = "teacher.json"


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
            teacher folder or ``.safetensors`` that kdedge wrote, a ``.pt``/``.pth`` state dict of the recipe's
            teacher, a Hugging Face model (folder or Hub name), or None.
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
    if (written_here / CARD).is_file():
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
    if (folder / CARD).is_file():
        return load_teacher(folder, splits, preprocessing)
    text = cast(TextPreprocessing, preprocessing)
    net, to_train = find_text_teacher(spec, recipe.task, splits.labels, text)
    return Teacher(with_dropout(net, recipe.teacher.dropout), spec, recipe.teacher if to_train else None)


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


def load_teacher(folder: Path, splits: DataSplits[Any], preprocessing: Preprocessing) -> Teacher:
    """A teacher that kdedge wrote, its logits in the order of the data's classes.

    Raises:
        ModelError: damaged, or its classes, image size or tokenizer are not the data's.
    """
    from safetensors.torch import load_file

    try:
        card = read_json(folder / CARD)
        labels, wanted = tuple(card["labels"]), tuple(card["shape"])
        recipe = _model_recipe(card["model"])
        tensors = load_file(folder / WEIGHTS)
    except KdedgeError as error:
        raise ModelError(f"cannot read the teacher: {error.what}", where=folder) from error
    except Exception as error:  # safetensors has its own kinds for a cut file
        raise ModelError(f"cannot read the teacher: {error}", where=folder) from error
    if len(labels) != len(splits.labels):
        raise ModelError(
            f"the teacher has {len(labels)} classes, the data has {len(splits.labels)}",
            where=folder,
            cure="Give a teacher trained for these classes, or leave --teacher out to train one",
        )
    if set(labels) != set(splits.labels):
        odd = sorted(set(labels) ^ set(splits.labels))
        raise ModelError(f"the teacher's classes are not the data's: {', '.join(odd[:6])}", where=folder)
    if card.get("net") is not None:
        return _written_text_net(folder, card, tensors, cast(TextPreprocessing, preprocessing), splits.labels)
    shape = preprocessing.inputs[0].shape
    if wanted != shape:
        raise ModelError(f"the teacher wants inputs of {wanted}, the recipe gives {shape}", where=folder)
    net = models.build(recipe, models.TEACHERS, len(labels), shape)
    _load(net, tensors, folder)
    wrapped = _Adapted(net, None, None, _order(labels, splits.labels)) if labels != splits.labels else net
    return Teacher(wrapped, recipe.model)


def _written_text_net(
    folder: Path,
    card: dict[str, Any],
    tensors: dict[str, Tensor],
    preprocessing: TextPreprocessing,
    labels: tuple[str, ...],
) -> Teacher:
    net = TextNet.from_description(card["net"])
    theirs, ours = (str(values["tokenizer_sha256"])[:12] for values in (card["preprocessing"], preprocessing.to_dict()))
    if theirs != ours:
        raise ModelError(
            f"the teacher was trained with tokenizer {theirs}…, the run has {ours}…",
            where=folder,
            cure="Leave text.tokenizer out: the teacher's folder holds its own",
        )
    check_fits(net, preprocessing, str(folder))
    _load(net, tensors, folder)
    if labels:
        reorder(net, label_order(card["labels"], labels, folder))
    return Teacher(net, str(card["model"]["model"]))


def _model_recipe(values: dict[str, Any]) -> ModelRecipe:
    """A ModelRecipe from a card's plain values, with the recipe reader's checks."""
    blank = {"name": "card", "description": "", "data": {"name": "-"}, "qat": {"training": {"epochs": 0}}}
    return recipe_from_dict({**blank, "teacher": values, "student": values}).teacher


def _load(net: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        detail = lines[1].strip() if len(lines) > 1 else lines[0]
        raise ModelError(f"the weights do not fit the teacher's net: {detail}", where=where) from error


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
    _load(net, tensors, path)
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
        net = _Adapted(net, preprocessing, theirs, None)
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
    order = _order(names, splits.labels) if set(names) == set(splits.labels) else None
    net = _Adapted(_HubLogits(hub), preprocessing, theirs, order)
    models.check_output(net, spec, len(splits.labels), preprocessing.inputs[0].shape)
    return Teacher(net, spec)


def _processor(processor: Any) -> ImagePreprocessing:
    size = processor.size
    side = size.get("shortest_edge")
    height, width = (side, side) if side else (size["height"], size["width"])
    return ImagePreprocessing(
        (height, width), len(processor.image_mean), tuple(processor.image_mean), tuple(processor.image_std)
    )


def _order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[int]:
    """Where each of our classes stands among theirs."""
    return [theirs.index(name) for name in ours]


class _HubLogits(nn.Module):
    """A transformers model as images -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=images).logits)


class _Adapted(nn.Module):
    """A net behind its own normalisation and size, its logits in the order of our classes."""

    def __init__(
        self,
        net: nn.Module,
        ours: ImagePreprocessing | None,
        theirs: ImagePreprocessing | None,
        order: list[int] | None,
    ) -> None:
        super().__init__()
        self.net = net
        self.size = theirs.image_size if theirs is not None else None
        scale = torch.ones(1)
        shift = torch.zeros(1)
        if ours is not None and theirs is not None:
            scale = torch.tensor(ours.std) / torch.tensor(theirs.std)
            shift = (torch.tensor(ours.mean) - torch.tensor(theirs.mean)) / torch.tensor(theirs.std)
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.register_buffer("order", None if order is None else torch.tensor(order))

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, images: Tensor) -> Tensor:
        x = images * cast(Tensor, self.scale) + cast(Tensor, self.shift)
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        logits = cast(Tensor, self.net(x))
        return logits if self.order is None else logits[:, cast(Tensor, self.order)]
