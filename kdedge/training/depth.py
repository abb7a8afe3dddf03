"""Progressive depth: a net trains with some of its residual blocks, and the others join while it trains.

A block that waits is left out of the forward and of the backward pass. When it joins, the scale and shift of its last
batch norm are zero, so that it adds nothing yet and the net computes what it computed before (Net2DeeperNet: Chen et
al. 2016, arXiv:1511.05641; scales of zero: Goyal et al. 2017, arXiv:1706.02677, section 5.1; nets that grow as they
train: Wen et al. 2020, arXiv:1906.02909).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdedge.errors import RecipeError

GROWN_AFTER = 0.5
"""Share of the epochs after which every block has joined."""


class Depth:
    """Which residual blocks of a net are in use.

    They join evenly over the net: first the second block of each of its sections, then the third, from the input on.
    Between ``grow`` and ``release`` a block that waits has a ``forward`` of its own; the weights keep their names.

    Args:
        net: Of torchvision's blocks; nets that train along with it, such as a moving average, go to ``grow`` too.
        start: Share of the residual blocks that are in use from the first epoch on, in [0, 1).

    Raises:
        RecipeError: the net has no block that could join later.
    """

    def __init__(self, net: nn.Module, start: float) -> None:
        self.start = start
        self.names = in_order_of_joining(net)
        self.in_use: int | None = None
        if not self.names:
            raise RecipeError(
                "start_depth: the net has no residual blocks that could join later",
                cure="Leave it out, or take a net of torchvision that has some",
            )

    @property
    def is_whole(self) -> bool:
        """Whether every block is in use."""
        return self.in_use == len(self.names)

    def wanted(self, epoch: int, epochs: int) -> int:
        """How many of the blocks are in use in an epoch: linear, all of them from ``GROWN_AFTER`` of the epochs on.

        The last epoch always has all, however few there are.
        """
        whole = min(epochs - 1, math.ceil(GROWN_AFTER * epochs))
        share = 1.0 if epoch >= whole else epoch / whole
        return round(len(self.names) * (self.start + (1 - self.start) * share))

    def grow(self, count: int, *nets: nn.Module) -> None:
        """Have the first ``count`` blocks in use; those that were not before join without changing what a net computes.

        Args:
            count: As ``wanted`` says; never less than before.
            nets: Of the same modules as the first.
        """
        for net in nets:
            for number, name in enumerate(self.names):
                block = net.get_submodule(name)
                if number >= count:
                    block.forward = _unchanged
                    continue
                vars(block).pop("forward", None)
                if self.in_use is not None and number >= self.in_use:
                    _silence(block)
        self.in_use = count

    def restore(self, count: int | None, *nets: nn.Module) -> None:
        """Take over how many were in use when the weights of ``nets`` were saved; None where none had begun."""
        self.in_use = None
        if count is not None:
            self.grow(count, *nets)

    def release(self, *nets: nn.Module) -> None:
        """Leave plain nets: every block in use, as it stands."""
        for net in nets:
            for name in self.names:
                vars(net.get_submodule(name)).pop("forward", None)


def in_order_of_joining(net: nn.Module) -> list[str]:
    """Names of the blocks that give back what they get plus something: second ones of all sections, third ones, ..."""
    places, section, place = [], 0, 0
    for name, keeps_shape in _blocks(net):
        if keeps_shape:
            place += 1
            places.append((place, section, name))
        else:
            section, place = section + 1, 0
    return [name for _, _, name in sorted(places)]


def _blocks(net: nn.Module) -> Iterator[tuple[str, bool]]:
    for name, module in net.named_modules():
        if isinstance(module, BasicBlock | Bottleneck):
            yield name, module.downsample is None
        elif isinstance(module, InvertedResidual | InvertedResidualV3 | MBConv):
            yield name, bool(module.use_res_connect)


def _silence(block: nn.Module) -> None:
    last = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def _unchanged(x: Tensor) -> Tensor:
    return x
