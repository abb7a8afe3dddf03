"""Small text nets for tests: a token task that they learn in seconds, and bundles of what they learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from kdedge import quantize, text
from kdedge.bundle import Bundle, write_bundle
from kdedge.inputs import examples
from kdedge.recipe_file import load_recipe
from kdedge.text.tokenization import TextPreprocessing
from tests.text_data import word_piece
from torch import Tensor, nn
from torch.fx import GraphModule

LENGTH, VOCABULARY, CLASSES = 32, 500, 4
SIZES: dict[str, Any] = {
    "layers": 2,
    "vocab_size": VOCABULARY,
    "hidden": 64,
    "heads": 4,
    "intermediate": 128,
    "max_positions": 64,
}
KINDS = [("bert", "text-classification"), ("distilbert", "question-answering")]
"""Between them every op of both architectures and both tasks; the other two pairs hold no further one."""
_RECIPES = {"text-classification": "sst2-minilm-cpu", "question-answering": "squad-minilm-cpu"}
_FIRST_WORD = 20  # ids below it are padding and the task's marks


def build(architecture: Any, task: Any, seed: int = 0, **sizes: Any) -> text.TextNet:
    """A net with random weights, in eval mode."""
    torch.manual_seed(seed)
    classes = CLASSES if task == "text-classification" else 2
    return text.from_config(architecture, task, classes, **{**SIZES, **sizes}).eval()


def texts(net: text.TextNet, count: int, seed: int = 1, shortest: int = 8) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random texts of ``shortest`` to ``LENGTH`` tokens, the net's inputs int64 [count, LENGTH], and their labels.

    Class c has the id 1 + c at three places. An answer begins at the id 1 and ends at the id 2.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(_FIRST_WORD, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(shortest, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    places = torch.rand(count, LENGTH, generator=generator).masked_fill(mask == 0, 2.0).argsort(1)[:, :3]
    if net.config.task == "text-classification":
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        ids.scatter_(1, places, 1 + labels[:, None].expand(-1, 3))
    else:
        labels = places[:, :2].sort(1).values
        ids.scatter_(1, labels, torch.tensor([[1, 2]]).expand(count, -1))
    types = (torch.arange(LENGTH) >= lengths // 2).long() * mask
    return (ids * mask, mask, types)[: len(net.inputs(LENGTH))], labels


def train(net: nn.Module, data: tuple[tuple[Tensor, ...], Tensor], learning_rate: float = 2e-3) -> nn.Module:
    """One pass in batches of 32; the net in eval mode."""
    inputs, labels = data
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate)
    net.train()
    for *x, y in zip(*(tensor.split(32) for tensor in (*inputs, labels)), strict=True):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        logits = net(*x)
        nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def trained(architecture: Any, task: Any, steps: int = 250) -> text.TextNet:
    """A net that has learnt the task."""
    net = build(architecture, task)
    train(net, texts(net, 32 * steps, seed=2))
    return net


def quantised(net: text.TextNet, steps: int = 30) -> GraphModule:
    """The net after calibration and a short training with quantisation, ranges frozen, in eval mode."""
    prepared = quantize.prepare_qat(net, examples(net.inputs(LENGTH), 2))
    inputs, _ = texts(net, 128, seed=3)
    batches = zip(*(tensor.split(32) for tensor in inputs), strict=True)  # type: ignore[no-untyped-call]
    quantize.calibrate(prepared, batches)
    if steps:
        train(prepared, texts(net, 32 * steps, seed=4), learning_rate=2e-4)
    quantize.set_observers(prepared, False)
    return prepared.eval()


def write(folder: Path, net: text.TextNet, prepared: GraphModule | None) -> Bundle:
    """The bundle of a net and its quantised state; its tokenizer is a small one, whose words no test looks at."""
    tokenizer = word_piece(["a text of some words"])
    preprocessing = TextPreprocessing(tokenizer.to_str(), LENGTH, 0, token_types=net.config.token_types > 0)
    classifies = net.config.task == "text-classification"
    return write_bundle(
        folder,
        recipe=load_recipe(_RECIPES[net.config.task], [f"student.model={net.config.architecture}"]),
        student=net,
        prepared=prepared,
        labels=tuple(f"class {index}" for index in range(net.config.classes)) if classifies else (),
        preprocessing=preprocessing,
        data={},
        results={},
    )
