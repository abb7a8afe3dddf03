"""A moving average of a net's weights, often better than the weights that the last step left."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and buffers (Tarvainen & Valpola 2017, arXiv:1703.01780).

    After step t the average moves by 1 − min(decay, (1 + t) / (10 + t)) towards the net, so that the first weights,
    which are random, do not linger (the rule of TensorFlow's ExponentialMovingAverage); the decay itself is reached
    after (10 · decay − 1) / (1 − decay) steps: 890 for 0.99, 9,000 for 0.999.

    Statistics of batch norm are averaged like weights, whose activations they describe.
    ``module`` is the averaged net, in eval mode; the state dict is of tensors alone.

    Args:
        net: What is averaged; copied, and never changed.
        decay: In [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay
        self.eval()

    def _move(self, averaged: PARAM_LIST, current: PARAM_LIST, steps: Tensor | int) -> None:
        """Move the average by one step."""
        done = int(steps)
        decay = min(self.decay, (1 + done) / (10 + done))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)  # type: ignore[no-untyped-call]

    def apply_to(self, net: nn.Module) -> None:
        """Give ``net``, which is like the averaged one, the averaged weights and buffers."""
        net.load_state_dict(self.module.state_dict())
