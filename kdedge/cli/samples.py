"""The samples that eval, export and bench score on, found from what the bundle or the artifact says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdedge.bundle import Bundle
    from kdedge.data.image_stream import LazyImageSet
    from kdedge.examples import Examples, Preprocessing
    from kdedge.questions.examples import QuestionExamples
    from kdedge_bench.scoring import Scored


DECODED_BATCH = 128
"""Streamed images that are sent in one piece: of 224 px 19 MB."""


@dataclass(frozen=True)
class Samples:
    """A split with the preprocessing of the net that will see it.

    Attributes:
        data: Samples with labels in the net's order.
        preprocessing: Their columns -> the net's inputs.
        source: Where the data came from.
        split: Which part.
        sha256: Of samples and labels as they were read; empty where nobody asks.
    """

    data: Examples
    preprocessing: Preprocessing
    source: str
    split: str
    sha256: str = ""

    def at_most(self, count: int) -> Samples:
        """Of streamed images so many, evenly spaced over the split; of all other data the whole split."""
        import torch

        from kdedge.data.image_stream import LazyImageSet

        if not isinstance(self.data, LazyImageSet) or len(self.data) <= count:
            return self
        index = torch.arange(count) * len(self.data) // count
        return Samples(self.data.take(index), self.preprocessing, self.source, self.split)


def for_bundle(bundle: Bundle, data: str | None, split: str) -> Samples:
    """The split of the data that the bundle was trained on, or of ``data``.

    Raises:
        DataError: not there, or of other classes.
    """
    from kdedge.data.splits import load_evaluation, require_split
    from kdedge.errors import DataError

    require_split(split)
    source = data or str(bundle.manifest["data"]["source"])
    try:
        recipe = replace(bundle.recipe.data, name=source)
        chosen = load_evaluation(recipe, data, split, bundle.labels, bundle.recipe.task)
    except DataError as error:
        if data is not None:
            raise
        cure = f"The bundle was trained on '{source}': say where it is now with --data"
        raise DataError(f"the bundle's data are not here: {error.what}", where=error.where, cure=cure) from error
    return Samples(bundle.preprocessing.encode(chosen), bundle.preprocessing, source, split)


def for_artifact(metadata: dict[str, Any] | None, path: object, data: str | None, split: str) -> Samples:
    """The split of ``data`` for an artifact, sized and split as its own metadata say.

    Raises:
        ArtifactError: the file is not kdedge's, so that nobody knows its preprocessing; or no data named.
        DataError: the data are not there, or of other classes.
    """
    from kdedge.data.splits import load_evaluation
    from kdedge.recipe import DataRecipe
    from kdedge.tasks import restore_preprocessing
    from kdedge.text.tokenization import unpack_tokenizer

    if metadata is None:
        raise ArtifactError("the file carries no kdedge metadata: its preprocessing and labels are unknown", where=path)
    if data is None:
        raise ArtifactError(
            "an artifact does not say where its data are", where=path, cure="Name them with --data, e.g. --data digits"
        )
    said = metadata["preprocessing"]
    files = {name: unpack_tokenizer(packed) for name, packed in metadata.get("files", {}).items()}
    preprocessing = restore_preprocessing(said, files)
    sizes = {"image_size": said["image_size"][0], "channels": said["channels"]} if preprocessing.kind == "image" else {}
    recipe = DataRecipe(name=data, **sizes, **metadata.get("splits", {}))
    chosen = load_evaluation(recipe, data, split, metadata["labels"], metadata["task"])
    return Samples(preprocessing.encode(chosen), preprocessing, data, split, chosen.fingerprint().hex())


def about_artifact(
    artifact: Path, accuracy_data: str | None, split: str
) -> tuple[dict[str, Any], Any, dict[str, Any] | None]:
    """What the record of a measurement is to say of an artifact, and what is sent to the device to be scored.

    Returns:
        model, precision and bundle_id, as far as the file tells them; what ``scoring.score`` takes, and what the
        record says of it (source, split, sha256), both None without ``accuracy_data``.

    Raises:
        KdedgeError: data that are not there, or that this artifact cannot be scored with on a device.
    """
    metadata = _metadata(artifact)
    scored = data = None
    if accuracy_data is not None:
        found = for_artifact(metadata, artifact, accuracy_data, split)
        scored = for_device(found, artifact)
        data = {"source": accuracy_data, "split": split, "sha256": found.sha256}
    known = metadata or {}
    return {key: known[key] for key in ("model", "precision", "bundle_id") if key in known}, scored, data


@dataclass(frozen=True)
class Decoded:
    """Streamed images with their labels, decoded while they are scored, anew for every device.

    Attributes:
        images: Any number.
    """

    images: LazyImageSet

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        start = 0
        for (pixels,) in self.images.batches(DECODED_BATCH):
            yield pixels.numpy(), self.images.labels[start : start + len(pixels)].numpy()
            start += len(pixels)

    def __len__(self) -> int:
        return len(self.images)


def for_device(found: Samples, artifact: Path) -> Any:
    """What is sent to be scored, with its labels: pixels, which the agent normalises, else the net's inputs.

    Answers out of texts are put together here, of the outputs that come back.
    """
    from kdedge.data.image_stream import LazyImageSet
    from kdedge.questions.examples import QuestionExamples

    if isinstance(found.data, LazyImageSet):
        return Decoded(found.data)
    if found.preprocessing.kind == "image":
        return found.data.columns[0].numpy(), found.data.labels.numpy()
    inputs = found.preprocessing.prepare(found.data.columns)
    if len(inputs) == 1:
        return inputs[0].numpy(), found.data.labels.numpy()
    names = [spec.name for spec in found.preprocessing.inputs]
    by_name = {name: values.int().numpy() for name, values in zip(names, inputs, strict=True)}
    if isinstance(found.data, QuestionExamples):
        return _answers(found.data, by_name, artifact)
    return by_name, found.data.labels.numpy()


def _answers(data: QuestionExamples, inputs: dict[str, Any], artifact: Path) -> Scored:
    """Windows of questions, and how their outputs become scores."""
    import torch

    from kdedge_bench.scoring import Scored

    tokens = data.columns[0].shape[1]

    def score(outputs: Any) -> dict[str, Any]:
        if outputs.shape[1] != 2 * tokens:
            said = f"{outputs.shape[1]} outputs for {tokens} tokens"
            raise ArtifactError(f"{said}; start and end of an answer are two a token", where=artifact)
        return data.score(torch.from_numpy(outputs.copy()).reshape(-1, 2, tokens)).to_dict()

    return Scored(inputs, score)


def _metadata(artifact: Path) -> dict[str, Any] | None:
    """What kdedge wrote into the file; None where it is not kdedge's or cannot be opened on this machine.

    The device decides whether it can be measured: the host may lack the runtime.
    """
    from kdedge_exporters.artifact import load_artifact

    try:
        return load_artifact(artifact).metadata
    except ArtifactError:
        return None
