"""Files that are written whole."""

from __future__ import annotations

from pathlib import Path

import torch
from kdedge.files import write_tensors
from safetensors.torch import load_file
from torch import nn


def test_layers_that_share_a_weight_are_written_and_read_back(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    state = nn.Sequential(first, second).state_dict()
    write_tensors(tmp_path / "net.safetensors", {**state, "part": first.weight.detach()[1:3]})
    read = load_file(tmp_path / "net.safetensors")
    assert torch.equal(read["0.weight"], first.weight) and torch.equal(read["1.weight"], first.weight)
    assert torch.equal(read["part"], first.weight[1:3])
