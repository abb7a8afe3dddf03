"""What a net takes: its inputs by name, dtype, shape and layout, the same words in bundle, artifact and record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

MASK = "attention_mask"
"""Name of the input that tells tokens, 1, from padding, 0."""

Layout = Literal["NCHW", "NC", "NL"]
InputDtype = Literal["float32", "int32"]


@dataclass(frozen=True)
class InputSpec:
    """One input of a net.

    Attributes:
        name: ``image``, ``features``, ``input_ids``, ``attention_mask`` or ``token_type_ids``.
        dtype: As artifacts take it; a net in torch takes int64 where this says ``int32``.
        shape: Without the batch axis.
        layout: Its axes, N the batch: ``NCHW`` images, ``NC`` vectors, ``NL`` tokens.
    """

    name: str
    dtype: InputDtype
    shape: tuple[int, ...]
    layout: Layout

    def example(self, batch_size: int) -> Tensor:
        """A blank batch as the net in torch takes it: zeros, ones for a mask (a row without a token has no meaning).

        Returns:
            float32 or int64 [batch_size, *shape].
        """
        import torch

        dtype = torch.float32 if self.dtype == "float32" else torch.int64
        fill = torch.ones if self.name == MASK else torch.zeros
        return fill(batch_size, *self.shape, dtype=dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InputSpec:
        """From ``to_dict``'s values."""
        return cls(str(data["name"]), data["dtype"], tuple(map(int, data["shape"])), data["layout"])


def examples(inputs: tuple[InputSpec, ...], batch_size: int) -> tuple[Tensor, ...]:
    """A blank batch of every input, in order."""
    return tuple(spec.example(batch_size) for spec in inputs)


LENGTH_STEP = 8
"""Batches of text are cut to a multiple of so many tokens: matrix kernels like it, and shapes repeat."""


def common_length(mask: Tensor) -> int:
    """Tokens of the longest row of a mask [N, L], rounded up to ``LENGTH_STEP``, at most L."""
    return min(mask.shape[1], -(-int(mask.sum(1).max()) // LENGTH_STEP) * LENGTH_STEP)


def output_count(labels: tuple[str, ...]) -> int:
    """Rows of a net's last layer: one a class, or start and end of an answer where there are no classes."""
    return len(labels) or 2


def image_input(channels: int, size: tuple[int, int]) -> InputSpec:
    """The one input of an image net; ``size`` is (height, width) in pixels."""
    return InputSpec("image", "float32", (channels, *size), "NCHW")


def token_inputs(length: int, *, token_types: bool) -> tuple[InputSpec, ...]:
    """The inputs of a text net over ``length`` tokens; ``token_types`` for nets that tell two segments apart."""
    names = ("input_ids", MASK, *(("token_type_ids",) if token_types else ()))
    return tuple(InputSpec(name, "int32", (length,), "NL") for name in names)
