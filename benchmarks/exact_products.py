"""What exact sums of int8 products cost in ONNX Runtime on this processor, and what they are worth.

MobileNetV2 at 224 and 32 pixels, weights at random, ranges from samples; one file, opened with
``session.x64quantprecision=1``, as kdedge does on x86 without VNNI, and with ONNX Runtime's defaults, in turns; batch
1, one thread. Printed: the median over rounds of exact / default (above 1: exact is slower) with its 95% interval by
bootstrap, float32 / exact likewise, and by how many steps the logits of 64 samples depart from torch's.

Run: OMP_NUM_THREADS=1 python benchmarks/exact_products.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.int8_latency import interval, mobilenet, rounds
from tests.both_runtimes import output_steps

from kdedge_agent.onnx_session import EXACT
from kdedge_exporters import export

SAMPLES = 64


def opened(path: Path, *, exact: bool) -> Any:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if exact:
        options.add_session_config_entry(*EXACT)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def call(session: Any, images: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """One inference."""
    (feed,) = session.get_inputs()
    return lambda: session.run(None, {feed.name: images})


def show(name: str, values: list[float]) -> None:
    """One line."""
    low, high = interval(values)
    print(f"  {name:<18}{statistics.median(values):.3f} [{low:.3f}, {high:.3f}]  n={len(values)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    for size in (224, 32):
        with tempfile.TemporaryDirectory() as place:
            bundle, _ = mobilenet(size, Path(place))
            int8, float32 = Path(place) / "int8.onnx", Path(place) / "float32.onnx"
            export(bundle, "onnx", samples=None, out=int8)
            export(bundle, "onnx", precision="float32", samples=None, out=float32)
            sessions = {"exact": opened(int8, exact=True), "default": opened(int8, exact=False)}
            images = torch.randn(SAMPLES, 3, size, size, generator=torch.Generator().manual_seed(1))
            program = bundle.int8_program()
            with torch.no_grad():
                wanted = program(images).numpy()
            (step,) = output_steps(program, [wanted])
            print(f"MobileNetV2, {size} px")
            works = {name: call(session, images[:1].numpy()) for name, session in sessions.items()}
            works["float32"] = call(opened(float32, exact=False), images[:1].numpy())
            found = rounds(works, options.rounds)
            show("exact / default", [row["exact"] / row["default"] for row in found])
            show("float32 / exact", [row["float32"] / row["exact"] for row in found])
            for name, session in sessions.items():
                off = np.abs(call(session, images.numpy())()[0] - wanted) / step
                print(f"  {name:<18}{off.mean():.3f} steps from torch's logits in the mean, {off.max():.1f} at most")


if __name__ == "__main__":
    main()
