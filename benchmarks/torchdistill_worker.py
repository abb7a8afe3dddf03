"""torchdistill's distillation loop, for `against_torchdistill.py`, which runs this in an environment of its own.

One line on stdin asks for an epoch, one line on stdout answers: the median of its steps in seconds, the first left out.
torchdistill is used as its documentation shows: a distillation box with frozen teacher, KDLoss, SGD and a DataLoader.
The nets, the images and their transforms are those of `schedule_time.py`.

Run: python benchmarks/torchdistill_worker.py STEM STEPS BATCH
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.schedule_time import Schedules, Transformed
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box


def config(batch: int) -> dict[str, Any]:
    """The training configuration; alpha is torchdistill's, the weight of the labels."""
    ends = {"student_module_path": ".", "student_module_io": "output"}
    ends |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {"key": "KDLoss", "kwargs": {**ends, "temperature": 3.0, "alpha": 0.5, "reduction": "batchmean"}}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": batch},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }


def main() -> None:
    """An epoch for every line."""
    stem, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    made = Schedules(stem, steps, batch)
    data = {"train": Transformed(made.images, made.labels)}
    box = get_distillation_box(
        made.teacher, made.student, data, config(batch), torch.device("cpu"), None, distributed=False, lr_factor=1
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        box.pre_epoch_process(epoch=0)
        seconds, last = [], 0.0
        for sample, targets, supplement in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(sample, targets, supplement)
            box.post_forward_process(loss=loss)
            loss.item()
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        box.post_epoch_process(metrics=0.0)
        print(statistics.median(seconds[1:]), flush=True)


if __name__ == "__main__":
    main()
