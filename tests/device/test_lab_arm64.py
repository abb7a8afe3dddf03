"""An arm64 Debian without internet: set up from this host, then our artifacts in the real aarch64 wheels."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kdedge.data.splits import load_data
from kdedge.recipe_file import load_recipe
from tests.device import boards
from tests.device.namespace import NamespacedSshd, namespaced_device
from tests.device.runs import quick
from tests.device.userland import ENVIRONMENT, arm64_root

from kdedge_bench import wheels
from kdedge_bench.setup import SetupResult, setup_device
from kdedge_bench.transport import open_transport

if TYPE_CHECKING:
    import numpy as np

SAMPLES = 24


@dataclass
class Arm:
    """The device, and how its set-up went."""

    server: NamespacedSshd
    result: SetupResult
    steps: list[str]


@pytest.fixture(scope="module")
def arm() -> Iterator[Arm]:
    """A Raspberry Pi 4 as far as files go, set up."""
    with namespaced_device(boards.pi4, root=arm64_root(), environment=ENVIRONMENT) as server:
        steps: list[str] = []
        yield Arm(server, setup_device(server.device(), progress=steps.append, offline=True), steps)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The first test images, uint8 pixels, and their labels."""
    test = load_data(load_recipe("digits").data).test
    return test.columns[0][:SAMPLES].numpy(), test.labels[:SAMPLES].numpy()


def test_set_up_without_internet(arm: Arm) -> None:
    name = arm.server.namespace
    routes = subprocess.run(["ip", "-n", name, "route"], capture_output=True, text=True, check=True).stdout
    assert "default" not in routes
    assert (arm.result.changed, arm.result.method, arm.result.missing) == (True, "offline", {})
    assert set(arm.result.runtimes) == {"onnxruntime", "ai-edge-litert"}
    assert any(step.startswith("sending onnxruntime") and "aarch64" in step for step in arm.steps)
    assert [p.name for p in arm.server.cache.iterdir() if p.name.endswith(".part")] == []


def test_a_second_set_up_changes_nothing(arm: Arm) -> None:
    before = {p: p.lstat().st_mtime_ns for p in (arm.server.cache / "venv").rglob("*")}
    result = setup_device(arm.server.device(), offline=True)
    assert (result.changed, result.method, result.runtimes) == (False, "none", arm.result.runtimes)
    # A module that is imported for the first time leaves its byte code.
    after = {p: p.lstat().st_mtime_ns for p in (arm.server.cache / "venv").rglob("*")}
    assert all(after[path] == stamp for path, stamp in before.items() if not path.is_dir())


def tflite_runtime(arm: Arm) -> str:
    """Another environment on the device, with the older runtime; its wheels are unpacked by this host."""
    folder = arm.server.home / "older"
    with open_transport(arm.server.device()) as transport:
        ground = transport.look_around({}, own_venv=False)
        done = transport.run([ground.python, "-m", "venv", "--without-pip", str(folder)])
        assert done.code == 0, done.stderr
    place = next((folder / "lib").glob("python3*")) / "site-packages"
    with tempfile.TemporaryDirectory() as fetched:
        for wheel in wheels.fetch(["tflite-runtime==2.14.0", "numpy<2"], ground, Path(fetched)):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize(
    ("artifact", "runtime"),
    [("onnx", "onnxruntime"), ("tflite", "ai-edge-litert"), ("tflite", "tflite-runtime")],
)
def test_our_int8_artifact_in_the_aarch64_wheels(
    artifact: str, runtime: str, arm: Arm, demo_run: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    python = tflite_runtime(arm) if runtime == "tflite-runtime" else None
    record = quick(
        demo_run / f"student-int8.{artifact}", arm.server.device(python=python), tmp_path, repetitions=3,
        runtime=runtime, accuracy_data=digits,
    )  # fmt: skip
    assert record.runtime["name"] == runtime
    assert record.facts["machine"] == "aarch64"
    assert record.facts["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert record.accuracy is not None
    assert record.accuracy["n"] == SAMPLES
    assert record.accuracy["accuracy"] >= 23 / 24
    assert arm.server.left_over() == {}
