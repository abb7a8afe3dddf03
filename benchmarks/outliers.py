"""What factors for outlying channels leave of a text student's logits, and which channels should have them.

The student of a bundle, quantised after training from some of its training samples, against its float self on
samples that were kept out of training and of the test split: signal to noise of the logits in dB (higher is better),
share of alike arg-maxes, the task's score. Once without factors, then with factors for the channels that reach 4, 2
and 1 times as far as the median channel (kdedge: 4). Sums before layer norms are float in all of them.

Run: python benchmarks/outliers.py BUNDLE [BUNDLE ...] [--samples 64]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from kdedge import quantize
from kdedge.bundle import Bundle
from kdedge.cli.samples import Samples, for_bundle
from kdedge.evaluation import predict_logits
from kdedge.inputs import examples
from kdedge.quantize import outliers
from kdedge.quantize.scales import scaled_layers
from torch import Tensor

BATCH = 16
LARGEST = (math.inf, 4.0, 2.0, 1.0)


def of_tokens(logits: Tensor, samples: Samples) -> Tensor:
    """The logits [N, ...] that count: of answers those of tokens, else all."""
    mask = samples.preprocessing.prepare(samples.data.columns)[1].bool()
    return logits[mask[:, None].expand_as(logits)] if logits.ndim == 3 else logits


def compare(bundle: Bundle, count: int) -> None:
    """Print one bundle's lines."""
    train, kept = (for_bundle(bundle, None, split) for split in ("train", "validation"))
    order = torch.randperm(len(train.data), generator=torch.Generator().manual_seed(bundle.recipe.seed))[:count]
    batches = [train.preprocessing.prepare(train.data.take(part).columns) for part in torch.split(order, BATCH)]
    student = bundle.float_student().eval()
    expected = predict_logits(student, kept.data, kept.preprocessing)
    figure, value = kept.data.score(expected).leading
    print(f"{bundle.path}: {len(kept.data)} kept out of training; float {figure} {value:.4f}")
    for largest in LARGEST:
        outliers.LARGEST = largest
        prepared = quantize.prepare_qat(student, examples(bundle.inputs, 2))
        quantize.set_fake_quantize(prepared, False)
        quantize.calibrate(prepared, batches)
        quantize.set_fake_quantize(prepared, True)
        found = predict_logits(prepared.eval(), kept.data, kept.preprocessing)
        truth, noise = of_tokens(expected, kept), of_tokens(found - expected, kept)
        decibels = 10 * math.log10(float(truth.var()) / float(noise.square().mean()))
        alike = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
        channels = sum(int((layer.result.factors != 1).sum()) for layer in scaled_layers(prepared))
        score = kept.data.score(found).leading[1]
        print(
            f"  beyond {largest:>3} times the median: {channels:>4} channels with factors, {decibels:5.1f} dB, "
            f"alike {alike:.4f}, {figure} {score:.4f}",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    for path in options.bundles:
        compare(Bundle.load(path), options.samples)


if __name__ == "__main__":
    main()
