"""Ranks: the processes that train one net together, each on its share of every batch (data parallel).

``torchrun --nproc-per-node N -m kdedge distill ...`` starts them, on one machine or several; they talk by NCCL where
there are GPUs, else by gloo. Rank 0 writes all files and shows the progress. What they train is what one process would
train on the same batches, but for the order of additions: gradients, losses and scores are those of the whole batch
(Li et al. 2020, arXiv:2006.15704), and so are the statistics of batch norm and the ranges of QAT. Dropout draws its own
numbers on each.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from kdedge.errors import KdedgeError


class RankError(KdedgeError):
    """The processes of a run lost each other: exit code 3, as of a wire that broke."""

    exit_code = 3


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is; by itself it is the only one, and nothing is sent.

    Attributes:
        rank: From 0.
        count: Of the processes.
        device: ``cpu`` or ``cuda``: where tensors have to be that are sent.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def writes(self) -> bool:
        """Whether this process writes files and speaks; one does."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """This rank's part of some indices, int64 [n]: [n / count], where that is whole."""
        return index.tensor_split(self.count)[self.rank]

    def means(self, *values: float) -> tuple[float, ...]:
        """Each value's mean over the ranks."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return tuple((total / self.count).tolist())

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank."""
        return self.means(float(mine))[0] > 0

    def rows(self, mine: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks behind one another, on the CPU: those of ``share``, in order again."""
        if self.count == 1:
            return mine
        lengths = [int(length) for length in self._all(torch.tensor([len(mine)]))]
        padded = functional.pad(mine, (0, 0) * (mine.ndim - 1) + (0, max(lengths) - len(mine)))
        parts = torch.split(self._all(padded), max(lengths))
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _all(self, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine, device=self.device) for _ in range(self.count)]
        distributed.all_gather(parts, mine.to(self.device).contiguous())
        return torch.cat(parts).cpu()

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """The block, on rank 0 before the others."""
        if not self.writes:
            self.wait()
        yield
        if self.writes:
            self.wait()

    def parallel(self, computation: nn.Module, *, grows: bool = False) -> nn.Module:
        """A module whose backward pass leaves every rank with the gradients of the whole batch.

        Args:
            computation: From a rank's samples to their mean loss; its weights and buffers become those of rank 0.
            grows: Whether it comes to use more and more of its weights (depth.py); else it always uses the same, not
                all of them where an output goes unused, such as the pooler's of a reader.
        """
        if self.count == 1:
            return computation
        return DistributedDataParallel(computation, find_unused_parameters=grows, static_graph=not grows)

    @contextmanager
    def whole_batch_norm(self, net: nn.Module) -> Iterator[None]:
        """Within the context the net's batch norms take mean and variance over the samples of all ranks.

        torch's own SyncBatchNorm is for GPUs alone, and would stay in the net.
        """
        replaced = [m for m in net.modules() if self.count > 1 and isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for module in replaced:
            module.forward = functools.partial(_batch_norm, module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in replaced:
                del module.forward


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """What stands in for the module's forward: [N, C, ...] -> the same, by mean and variance over all ranks."""
    mean, variance = module.running_mean, module.running_var
    if not module.training:
        return functional.batch_norm(x, mean, variance, module.weight, module.bias, mean is None, 0.0, module.eps)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    values = x if x.dtype == torch.float64 else x.float()
    batch_mean = _mean_over_ranks(values.mean(axes))
    centred = values - _channels(batch_mean, x)
    batch_variance = _mean_over_ranks(centred.square().mean(axes))
    if mean is not None and variance is not None and module.num_batches_tracked is not None:
        samples = distributed.get_world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            module.num_batches_tracked.add_(1)
            momentum = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            mean.lerp_(batch_mean, momentum)
            variance.lerp_(batch_variance * (samples / (samples - 1)), momentum)
    scale = torch.rsqrt(batch_variance + module.eps)
    if module.affine:
        scale = scale * module.weight
    made = centred * _channels(scale, x)
    return (made + _channels(module.bias, x) if module.affine else made).to(x.dtype)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _mean_over_ranks(values: Tensor) -> Tensor:
    total = cast(Tensor, _SumOverRanks.apply(values))  # type: ignore[no-untyped-call]
    return total / distributed.get_world_size()


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; what depends on it on any rank has a gradient with respect to each part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """``values`` of any shape, the same on every rank."""
        del ctx
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The sum of the gradients over all ranks."""
        del ctx
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


def extremes_over_ranks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of what the ranks saw; scalars, and the same where nobody else trains along."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return low, high
    ends = torch.stack([low, -high])
    distributed.all_reduce(ends, distributed.ReduceOp.MIN)
    return ends[0], -ends[1]


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(environment) and environment["WORLD_SIZE"] != "1"


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that shows results."""
    return not is_one_of_several(environment) or environment["RANK"] == "0"


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process with the others that a launcher started with it, or by itself.

    Raises:
        RankError: they cannot reach each other, or one of them ended.
    """
    if not is_one_of_several():
        yield Ranks()
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"the processes of this run cannot reach each other: {str(error).splitlines()[0]}",
            cure="Start them with torchrun --nproc-per-node N -m kdedge distill ...",
        ) from error
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    try:
        yield ranks
    except RuntimeError as error:
        if not _is_of_the_wire(error):
            raise
        raise RankError(
            "another process of this run ended, and this one with it",
            where=f"rank {ranks.rank} of {ranks.count}",
            cure="What that one said tells why; afterwards --resume goes on, with as many processes as you like",
        ) from error
    finally:
        distributed.destroy_process_group()


def _is_of_the_wire(error: RuntimeError) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))
