"""Ranges before a layer norm: narrowed where outliers would take the steps, and only there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kdedge import quantize
from kdedge.quantize.fake_quantize import ActivationFakeQuantize
from tests import small_nets
from torch import Tensor, nn
from torch.fx import GraphModule

WIDTH, LENGTH = 64, 12


class Residual(nn.Module):
    """A linear layer, its residual sum, a layer norm; one channel of the layer is ``outlier`` times as large."""

    def __init__(self, outlier: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        with torch.no_grad():
            self.inner.weight[5] *= outlier

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        result: Tensor = self.norm(self.inner(x) + x)
        return result


def batches(padding: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Normal features float32 [16, LENGTH, WIDTH]; the last third is padding, ``padding`` times as large."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(LENGTH) < 2 * LENGTH // 3).long().expand(16, LENGTH).contiguous()
    for _ in range(3):
        x = torch.randn(16, LENGTH, WIDTH, generator=generator)
        yield torch.where(mask[..., None] == 1, x, padding * x), mask


def calibrated(net: nn.Module, padding: float = 1.0) -> GraphModule:
    prepared = quantize.prepare_qat(net, next(batches()))
    quantize.calibrate(prepared, batches(padding))
    quantize.set_observers(prepared, False)
    return prepared.eval()


def clips(prepared: GraphModule) -> list[float]:
    found = [m for m in prepared.modules() if isinstance(m, ActivationFakeQuantize) and m.clips]
    return [float(module.clip) for module in found]


def error(net: nn.Module, prepared: GraphModule) -> float:
    """Root mean square distance of the tokens' outputs from the float net's."""
    x, mask = next(batches())
    with torch.no_grad():
        return float((prepared(x, mask) - net(x, mask))[mask == 1].square().mean().sqrt())


def test_outliers_are_clipped_and_everything_else_gains() -> None:
    net = Residual(outlier=100.0)
    prepared = calibrated(net)
    factors = clips(prepared)
    assert len(factors) == 2 and len(set(factors)) == 1 and factors[0] < 0.7
    clipped = error(net, prepared)
    for module in prepared.modules():
        if isinstance(module, ActivationFakeQuantize) and module.clips:
            module.set_clip(1.0)
    assert clipped < 0.75 * error(net, prepared)


def test_without_outliers_the_range_stays() -> None:
    assert clips(calibrated(Residual(outlier=1.0))) == [1.0, 1.0]


def test_padding_does_not_count() -> None:
    """Tokens fill a tenth of the range that padding makes: clipping the padding away must win."""
    net = Residual(outlier=1.0)
    assert max(clips(calibrated(net, padding=10.0))) < 0.5


def test_clip_goes_on_while_ranges_follow_the_data_and_travels_with_the_state() -> None:
    prepared = calibrated(Residual(outlier=100.0))
    quantize.set_observers(prepared, True)
    prepared.train()
    for x, mask in batches():
        prepared(x, mask)
    again = quantize.prepare_qat(Residual(outlier=100.0), next(batches()))
    quantize.load_quantised_state(again, quantize.quantised_state(prepared))
    assert clips(again) == clips(prepared) and clips(prepared)[0] < 0.7
    module = next(m for m in prepared.modules() if isinstance(m, ActivationFakeQuantize) and m.clips)
    width = float(module.max_val - module.min_val) * float(module.clip)
    assert 255 * float(module.scale) == pytest.approx(width, rel=0.01)


@pytest.mark.parametrize("name", small_nets.NAMES)
def test_nets_without_layer_norms_have_no_clip_in_their_state(name: str) -> None:
    prepared = quantize.prepare_qat(small_nets.build(name), (torch.zeros(2, 3, 16, 16),))
    assert not any(key.endswith(".clip") for key in quantize.quantised_state(prepared))
