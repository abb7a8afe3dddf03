"""What a text net is made of: its architecture, task and sizes, as plain values that a bundle can store."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from kdedge.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Architecture = Literal["bert", "distilbert"]
TextTask = Literal["text-classification", "question-answering"]
Activation = Literal["gelu", "relu"]

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)

_SHARED_NAMES = {"vocab_size": "vocab_size", "max_positions": "max_position_embeddings", "pad_token_id": "pad_token_id"}
# What transformers calls the sizes, by model type.
_NAMES: dict[str, dict[str, str]] = {
    "bert": {
        **_SHARED_NAMES,
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "token_types": "type_vocab_size",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "layer_norm_eps": "layer_norm_eps",
    },
    "distilbert": {
        **_SHARED_NAMES,
        "layers": "n_layers",
        "hidden": "dim",
        "heads": "n_heads",
        "intermediate": "hidden_dim",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
}
# The dropout before the last layer has a name of its own for each task.
_HEAD_DROPOUT = {
    ("bert", "text-classification"): "classifier_dropout",
    ("distilbert", "text-classification"): "seq_classif_dropout",
    ("distilbert", "question-answering"): "qa_dropout",
}


@dataclass(frozen=True)
class TextConfig:
    """A text net without its weights; the defaults are the sizes that bert-base and distilbert-base share.

    Attributes:
        architecture: ``bert`` (Devlin et al. 2019, arXiv:1810.04805) or ``distilbert`` (Sanh et al. 2019,
            arXiv:1910.01108: no token types, no pooler).
        task: ``text-classification``, or ``question-answering``, which is extractive: start and end of a span.
        classes: Logits of a text; 2 in question answering, start and end of each token.
        layers: Transformer blocks.
        vocab_size: Rows of the table of word embeddings.
        hidden: Width H of the hidden states.
        heads: Attention heads of a layer; they divide H.
        intermediate: Width of the feed-forward layers.
        max_positions: The most tokens of a text.
        token_types: Segments that the net tells apart; 0 in a DistilBERT.
        activation: Between the feed-forward layers; ``gelu`` is the exact one.
        dropout: Rate within the layers.
        attention_dropout: Rate on the attention probabilities.
        head_dropout: Rate before the last linear layer (a BERT has none there in question answering).
        layer_norm_eps: Added to the variance in every layer norm.
        pad_token_id: Id of the padding, whose embedding gets no gradient; None where there is none.
    """

    architecture: Architecture
    task: TextTask
    classes: int
    layers: int
    vocab_size: int = 30522
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    max_positions: int = 512
    token_types: int = 0
    activation: Activation = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        """Refuse what no net can be built of.

        Raises:
            ModelError: names the value and what it must be.
        """
        for name, known in (("architecture", Architecture), ("task", TextTask), ("activation", Activation)):
            value = getattr(self, name)
            _require(value in get_args(known), f"the {name} {value!r}", f"one of {', '.join(get_args(known))}")
        for name in ("classes", "layers", "vocab_size", "hidden", "heads", "intermediate", "max_positions"):
            _require(getattr(self, name) > 0, f"{name} {getattr(self, name)}", "a positive number")
        _require(self.hidden % self.heads == 0, f"{self.heads} heads over a width of {self.hidden}", "a divisor of it")
        if self.task == "question-answering":
            _require(self.classes == 2, f"{self.classes} classes for question answering", "2, start and end")
        if self.architecture == "bert":
            _require(self.token_types > 0, f"{self.token_types} token types", "1 or more in a BERT")
        else:
            _require(self.token_types == 0, f"{self.token_types} token types", "0 in a DistilBERT")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TextConfig:
        """From ``to_dict``'s values.

        Raises:
            ModelError: a name is missing or unknown, or a value is wrong.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ModelError(
                f"not the description of a text net: {error}", cure="Read it with the kdedge that wrote it"
            ) from None

    @classmethod
    def from_transformers(cls, config: PreTrainedConfig, task: TextTask, classes: int) -> TextConfig:
        """From a checkpoint's configuration, whose ``model_type`` is one of ``ARCHITECTURES``.

        Raises:
            ModelError: the checkpoint has positions or an activation of another kind.
        """
        kind = getattr(config, "position_embedding_type", "absolute")
        _require(kind == "absolute", f"positions of the kind {kind!r}", "absolute ones")
        values = {ours: getattr(config, theirs) for ours, theirs in _NAMES[config.model_type].items()}
        head_name = _HEAD_DROPOUT.get((config.model_type, task), "")
        head = getattr(config, head_name, None)
        values["head_dropout"] = values["dropout"] if head is None else head
        return cls(cast(Architecture, config.model_type), task, classes, **values)

    def to_transformers(self) -> PreTrainedConfig:
        """The configuration from which transformers builds this net."""
        values = {theirs: getattr(self, ours) for ours, theirs in _NAMES[self.architecture].items()}
        head_name = _HEAD_DROPOUT.get((self.architecture, self.task))
        if head_name is not None:
            values[head_name] = self.head_dropout
        library = transformers()
        kind = library.BertConfig if self.architecture == "bert" else library.DistilBertConfig
        return cast("PreTrainedConfig", kind(**values, num_labels=self.classes))


def transformers() -> Any:
    """The library, imported as it must be: after torchvision's cure, and after torchao without its warnings."""
    import kdedge.quantize
    import kdedge.torchvision_compat  # noqa: F401

    import transformers  # isort: skip

    # Building a model, transformers imports more of torchao, whose registrations torch then warns of.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    return transformers


def _require(holds: bool, what: str, wanted: str) -> None:
    if not holds:
        raise ModelError(f"no text net can have {what}", cure=f"Wanted: {wanted}")
