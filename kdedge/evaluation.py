"""Scores of any callable: float net, int8 program, or an artifact in its own runtime, on one code path."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdedge.examples import Examples, Preprocessing
from kdedge.inputs import common_length
from kdedge.metrics import Metrics, Scores, score
from kdedge.ranks import Ranks

Predict = Callable[..., Tensor]
ALONE = Ranks()


@torch.no_grad()
def predict_logits(
    predict: Predict,
    data: Examples,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: str = "cpu",
) -> Tensor:
    """Logits float32 [N, ...] on the CPU, samples in order.

    Args:
        predict: The net's inputs, one argument each -> logits [n, ...]. A text net that takes ``any_length`` is
            spared the padding that all texts of a batch share.
        data: What to score.
        preprocessing: Turns its columns into the net's inputs.
        batch_size: Samples a call.
        device: Where ``predict`` wants its inputs.
    """
    names = [spec.name for spec in preprocessing.inputs]
    parts = []
    for columns in data.batches(batch_size):
        inputs = preprocessing.prepare(tuple(column.to(device) for column in columns))
        if getattr(predict, "any_length", False):
            length = common_length(inputs[names.index("attention_mask")])
            inputs = tuple(x[:, :length] for x in inputs)
        logits = predict(*inputs).float().cpu()
        if logits.ndim == 3:  # a choice among the tokens: those that were cut off as padding are never it
            logits = functional.pad(logits, (0, columns[0].shape[1] - logits.shape[2]), value=float("-inf"))
        parts.append(logits)
    return torch.cat(parts)


def evaluate(
    predict: Predict,
    data: Examples,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> Scores:
    """Scores of ``predict`` on ``data``; a module is put into eval mode and back. Each of the ranks takes its share."""
    module = predict if isinstance(predict, nn.Module) else None
    was_training = module.training if module is not None else False
    if module is not None:
        module.eval()
    try:
        part = data if ranks.count == 1 else data.take(ranks.share(torch.arange(len(data))))
        logits = ranks.rows(predict_logits(predict, part, preprocessing, batch_size=batch_size, device=device))
    finally:
        if module is not None:
            module.train(was_training)
    return data.score(logits)


__all__ = ["Metrics", "Scores", "evaluate", "predict_logits", "score"]
