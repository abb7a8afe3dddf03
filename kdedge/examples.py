"""Examples: what a net is trained and scored on, whatever the task: columns of tensors, one row a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from kdedge.inputs import InputSpec
from kdedge.metrics import Scores

if TYPE_CHECKING:
    from typing_extensions import Self


class Examples(Protocol):
    """A split in memory, ready for a net but for what ``Preprocessing.prepare`` does."""

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """One tensor [N, ...] for each input of the net, in its order."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], or [N, k] where every sample has k of them (start and end of an answer)."""

    def __len__(self) -> int:
        """N."""

    def take(self, index: Tensor) -> Self:
        """The samples at ``index``, int64 [M]."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """The columns in order, ``size`` rows at a time, the last batch shorter."""

    def training_columns(self, index: Tensor) -> tuple[Tensor, ...]:
        """The columns of training samples at ``index``, less those that cannot be read where such are to be skipped."""

    def score(self, logits: Tensor) -> Scores:
        """Scores of the logits [N, ...] of all samples, in order."""


class Preprocessing(Protocol):
    """From a sample as it is read to the inputs of the net, the same in training, on the host and on the device."""

    @property
    def kind(self) -> str:
        """``image``, ``features`` or ``text``."""

    def encode(self, part: Any) -> Examples:
        """A split as it was read -> as it is stored for training and scoring."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest or an artifact; ``kind`` among them."""

    def files(self) -> dict[str, str]:
        """Name -> text of what a bundle keeps in files of its own."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the net takes."""

    def prepare(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Rows of the columns -> the net's inputs, on the device that the columns are on."""


class InMemory:
    """What examples share whose columns are tensors."""

    columns: Any
    take: Any

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """See ``Examples``."""
        return zip(*(torch.split(column, size) for column in self.columns), strict=True)

    def contents(self) -> Iterator[object]:
        """What each sample consists of, to find it again."""
        return zip(*(map(_content, column) for column in self.columns), strict=True)

    def training_columns(self, index: Tensor) -> tuple[Tensor, ...]:
        """See ``Examples``."""
        return cast(tuple[Tensor, ...], self.take(index).columns)


def _content(row: Tensor) -> bytes:
    return row.numpy().tobytes()
