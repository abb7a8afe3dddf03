"""The text net: the modules of a transformers encoder, run by a forward that int8 runtimes can follow.

The modules, their initialisation and the names of their weights are those of transformers; the order in which they
are called stands here. Transformers' own forward makes the attention mask with ops that older TFLite runtimes lack and
fills it with float32's minimum, returns attention probabilities after dropout (a divergence from those is infinite),
and records states by hooks that stay on the modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.errors import ModelError
from kdedge.inputs import InputSpec, token_inputs
from kdedge.text.config import Architecture, TextConfig, TextTask, transformers

MASKED = -127.0
"""Added to the attention scores of padding. Far below any score (after it a weight is exp(-127) of the largest), and
as a table of int8 values with scale 1 it is exact; see ``kdedge.quantize.quantizer`` on what it costs the scores."""


@dataclass(frozen=True)
class TextStates:
    """What a net computed on the way, for distillation.

    Attributes:
        logits: As ``TextNet.forward`` returns them.
        hidden: float32 [N, L, H] each: the embeddings, then the output of every layer.
        attention: float32 [N, heads, L, L] each, a layer's probabilities before dropout; every row sums to 1.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


@dataclass(frozen=True)
class Block:
    """The modules of one transformer layer by their role, whatever the architecture calls them."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_dropout: nn.Module
    attention_output: nn.Module
    attention_output_dropout: nn.Module
    attention_norm: nn.Module
    inner: nn.Module
    outer: nn.Module
    outer_dropout: nn.Module
    outer_norm: nn.Module


class TextNet(nn.Module):
    """Token ids to logits: a BERT or DistilBERT with the head of its task.

    Args:
        config: Its sizes.
        model: The transformers model of this config that holds the weights; None makes one with random weights.
    """

    model: Any  # transformers' classes carry no types that mypy could follow
    masking: Tensor
    any_length = True
    """Batches may be cut to their longest text; a captured graph has one length."""

    def __init__(self, config: TextConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = _build(config) if model is None else model
        for module in self.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps  # a DistilBERT's is not part of its configuration in transformers
        self.register_buffer("masking", torch.tensor([[MASKED], [0.0]]), persistent=False)

    def extra_repr(self) -> str:
        """Its sizes, some of which (heads, activation) stand in no module; dropout's rates do."""
        sizes = {name: value for name, value in self.config.to_dict().items() if not name.endswith("dropout")}
        return ", ".join(f"{name}={value!r}" for name, value in sizes.items())

    def describe(self) -> dict[str, Any]:
        """Plain values from which ``from_description`` builds the net again, without its weights."""
        return self.config.to_dict()

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> TextNet:
        """A net with random weights of what ``describe`` returned.

        Raises:
            ModelError: the description is not one.
        """
        return cls(TextConfig.from_dict(description))

    def inputs(self, length: int) -> tuple[InputSpec, ...]:
        """What ``forward`` takes for texts of ``length`` tokens.

        Raises:
            ModelError: the net has no positions for so many.
        """
        self._check_length(length)
        return token_inputs(length, token_types=self.config.token_types > 0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits of a batch.

        Args:
            input_ids: int64 [N, L] in [0, vocab_size).
            attention_mask: int64 [N, L], 1 for a token, 0 for padding.
            token_type_ids: int64 [N, L] in [0, token_types); None stands for zeros. A DistilBERT does not look at it.

        Returns:
            float32 [N, classes], or [N, 2, L] in question answering: start and end.

        Raises:
            ModelError: more tokens than the net has positions for.
        """
        mask, hidden = self._mask(attention_mask), self._embed(input_ids, token_type_ids)
        for block in self.blocks():
            hidden, _ = self._layer(block, hidden, mask)
        return self._head(hidden)

    def forward_with_states(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> TextStates:
        """As ``forward``, with the hidden states and attention probabilities; gradients pass through all of them."""
        mask = self._mask(attention_mask)
        hidden = [self._embed(input_ids, token_type_ids)]
        attention = []
        for block in self.blocks():
            state, probabilities = self._layer(block, hidden[-1], mask)
            hidden.append(state)
            attention.append(probabilities)
        return TextStates(self._head(hidden[-1]), tuple(hidden), tuple(attention))

    @property
    def embeddings(self) -> Any:
        """Transformers' module of the tables and the first layer norm."""
        return self._base.embeddings

    def blocks(self) -> Iterator[Block]:
        """The layers, first to last."""
        if self.config.architecture == "bert":
            return map(_bert_block, self._base.encoder.layer)
        return map(_distilbert_block, self._base.transformer.layer)

    @property
    def _base(self) -> Any:
        return getattr(self.model, self.config.architecture)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_positions:
            raise ModelError(
                f"{length} tokens for a net of {self.config.max_positions} positions", cure="Cut the texts to fewer"
            )

    def _mask(self, attention_mask: Tensor) -> Tensor:
        """What is added to scores: float32 [N, 1, 1, L], 0 for a token and ``MASKED`` for padding."""
        return functional.embedding(attention_mask, self.masking).transpose(1, 2).unsqueeze(1)

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Embeddings [N, L, H] of words, positions and token types, summed and normalised."""
        length = input_ids.shape[1]
        self._check_length(length)
        tables = self.embeddings
        summed = tables.word_embeddings(input_ids) + tables.position_embeddings.weight[:length]
        if self.config.token_types:
            types = tables.token_type_embeddings
            summed = summed + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        return cast(Tensor, tables.dropout(tables.LayerNorm(summed)))

    def _layer(self, block: Block, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One layer: hidden states [N, L, H] to the next, and the attention probabilities [N, heads, L, L]."""
        length, width, heads = hidden.shape[1], self.config.hidden, self.config.heads
        head_width = width // heads

        def by_head(x: Tensor) -> Tensor:
            return x.view(-1, length, heads, head_width).transpose(1, 2)

        query, key, value = (by_head(layer(hidden)) for layer in (block.query, block.key, block.value))
        scores = torch.matmul(query * head_width**-0.5, key.transpose(2, 3)) + mask
        probabilities = scores.softmax(-1)
        context = torch.matmul(block.attention_dropout(probabilities), value).transpose(1, 2)
        attended = block.attention_output(context.reshape(-1, length, width))
        attended = block.attention_norm(block.attention_output_dropout(attended) + hidden)
        inner = getattr(functional, self.config.activation)(block.inner(attended))
        outer = block.outer_dropout(block.outer(inner))
        return block.outer_norm(outer + attended), probabilities

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of the last hidden states [N, L, H]."""
        model = self.model
        if self.config.task == "question-answering":
            states = hidden if self.config.architecture == "bert" else model.dropout(hidden)
            return cast(Tensor, model.qa_outputs(states).transpose(1, 2))
        first = hidden.select(1, 0)
        if self.config.architecture == "bert":
            pooled = torch.tanh(self._base.pooler.dense(first))
        else:
            pooled = torch.relu(model.pre_classifier(first))
        return cast(Tensor, model.classifier(model.dropout(pooled)))


def from_config(architecture: Architecture, task: TextTask, classes: int = 2, **sizes: Any) -> TextNet:
    """A net with random weights, of bert-base's or distilbert-base's shape unless told otherwise.

    Args:
        architecture: ``bert`` or ``distilbert``.
        task: Which head.
        classes: Logits of a text; 2 in question answering.
        **sizes: Any other field of ``TextConfig``; by default 12 layers and 2 token types in a BERT, 6 layers in a
            DistilBERT.

    Raises:
        ModelError: a size is unknown or wrong.
    """
    base = {"bert": {"layers": 12, "token_types": 2}}.get(architecture, {"layers": 6})
    kind = {"architecture": architecture, "task": task, "classes": classes}
    return TextNet.from_description({**kind, **base, **sizes})


def model_class(config: TextConfig) -> Any:
    """Transformers' class of a net with the head of its task."""
    name = {"bert": "Bert", "distilbert": "DistilBert"}[config.architecture]
    head = {"text-classification": "SequenceClassification", "question-answering": "QuestionAnswering"}[config.task]
    return getattr(transformers(), f"{name}For{head}")


def _build(config: TextConfig) -> nn.Module:
    model: nn.Module = model_class(config)(config.to_transformers())
    return model.train()


def _bert_block(layer: Any) -> Block:
    attention, output = layer.attention, layer.output
    return Block(
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        attention_dropout=attention.self.dropout,
        attention_output=attention.output.dense,
        attention_output_dropout=attention.output.dropout,
        attention_norm=attention.output.LayerNorm,
        inner=layer.intermediate.dense,
        outer=output.dense,
        outer_dropout=output.dropout,
        outer_norm=output.LayerNorm,
    )


def _distilbert_block(layer: Any) -> Block:
    attention, feed_forward = layer.attention, layer.ffn
    return Block(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        attention_dropout=attention.dropout,
        attention_output=attention.out_lin,
        attention_output_dropout=nn.Identity(),
        attention_norm=layer.sa_layer_norm,
        inner=feed_forward.lin1,
        outer=feed_forward.lin2,
        outer_dropout=feed_forward.dropout,
        outer_norm=layer.output_layer_norm,
    )
