"""Accuracy and F1 of any callable: float net, int8 program, or an artifact in its own runtime, on one code path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import kdedge.torchvision_compat  # noqa: F401  (torchmetrics imports torchvision where it is installed)
from kdedge.data import batches
from kdedge.image_sources import ImageSet
from kdedge.preprocessing import Preprocessing

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metrics:
    """Scores of one net on one split.

    Attributes:
        n: Samples scored.
        accuracy: Share of samples whose arg-max is the label, in [0, 1].
        f1_macro: Unweighted mean of the F1 of every class that occurs, in [0, 1].
    """

    n: int
    accuracy: float
    f1_macro: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def predict_logits(
    predict: Predict,
    data: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: str = "cpu",
) -> Tensor:
    """Logits float32 [N, classes] on the CPU, samples in order.

    Args:
        predict: Normalised images float32 [n, C, H, W] -> logits [n, classes].
        data: What to score.
        preprocessing: Turns its uint8 images into the net's input.
        batch_size: Images a call.
        device: Where ``predict`` wants its input.
    """
    parts = []
    for images, _ in batches(data, batch_size):
        x = preprocessing.normalise(images.to(device)).contiguous(memory_format=torch.channels_last)
        parts.append(predict(x).float().cpu())
    return torch.cat(parts)


def score(logits: Tensor, labels: Tensor) -> Metrics:
    """Accuracy and macro F1 of logits [N, classes] against labels int64 [N], to 6 digits (torchmetrics: float32)."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    return Metrics(
        n=len(labels),
        accuracy=round(float(multiclass_accuracy(predicted, labels, classes, average="micro")), 6),
        f1_macro=round(float(multiclass_f1_score(predicted, labels, classes, average="macro")), 6),
    )


def evaluate(
    predict: Predict,
    data: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: str = "cpu",
) -> Metrics:
    """Metrics of ``predict`` on ``data``; a module is put into eval mode and back."""
    module = predict if isinstance(predict, nn.Module) else None
    was_training = module.training if module is not None else False
    if module is not None:
        module.eval()
    try:
        logits = predict_logits(predict, data, preprocessing, batch_size=batch_size, device=device)
    finally:
        if module is not None:
            module.train(was_training)
    return score(logits, data.labels)
