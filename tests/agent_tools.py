"""For the agent's tests: small real models, and a real agent process to talk to."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE = Path(__file__).parents[1] / "device_bench"


def _boards() -> Path:
    """A copy of the recorded trees with their symbolic links, which archives of the source may not keep."""
    recorded = Path(__file__).parent / "data" / "sysfs"
    folder = tempfile.mkdtemp(prefix="kdedge-sysfs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    boards = Path(shutil.copytree(recorded, Path(folder) / "sysfs"))
    for line in (boards / "LINKS").read_text().splitlines():
        place, target = line.split()
        (boards / place).parent.mkdir(parents=True, exist_ok=True)
        (boards / place).symlink_to(target)
    (boards / "LINKS").unlink()
    return boards


SYSFS = _boards()
METADATA = {
    "format_version": 1,
    "labels": ["a", "b", "c", "d"],
    "preprocessing": {"image_size": [8, 8], "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    "input": {"layout": "NCHW"},
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_onnx(path: Path, *, width: int = 8, batch: int | str = "n", classes: int = 4, size: int | str = 8) -> Path:
    """A float convolution net [batch,3,size,size] -> [batch,classes] with kdedge metadata."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(size=(width, 3, 3, 3)).astype(np.float32),
        "f": rng.normal(size=(width, classes)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["v"]),
            helper.make_node("MatMul", ["v", "f"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    entry = model.metadata_props.add()
    entry.key, entry.value = "kdedge", json.dumps(METADATA)
    onnx.save(model, str(path))
    return path


def make_tflite(path: Path, *, metadata: dict[str, Any] | None = None, inputs: int = 192, outputs: int = 4) -> Path:
    """One int8 fully connected layer, NHWC [1,8,8,3] -> [1,outputs], written with LiteRT's own schema classes."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    rng = np.random.default_rng(2)
    weights = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)

    def buffer(data: bytes) -> Any:
        made = schema.BufferT()
        made.data = np.frombuffer(data, np.uint8)
        return made

    def tensor(name: str, shape: Sequence[int], index: int, scale: float, zero_point: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(shape), index, schema.TensorType.INT8
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("image", (1, 8, 8, 3) if inputs == 192 else (1, inputs), 0, 0.05, -3),
        tensor("weights", weights.shape, 1, 0.01, 0),
        tensor("logits", (1, outputs), 0, 0.25, 7),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [buffer(b""), buffer(weights.tobytes())]
    document = {**METADATA, "input": {"layout": "NHWC"}} if metadata is None else metadata
    if document:
        entry = schema.MetadataT()
        entry.name, entry.buffer = "kdedge", len(model.buffers)
        model.buffers.append(buffer(json.dumps(document).encode()))
        model.metadata = [entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def run_request(artifact: Path, **wishes: Any) -> dict[str, Any]:
    """A short measurement."""
    quick = {"repetitions": 30, "min_duration_s": 0.0, "warmup_max_s": 0.2, "power": False}
    kind = artifact.suffix.lstrip(".")
    return {"artifact": str(artifact), "artifact_sha256": sha256(artifact), "format": kind, **quick, **wishes}


class AgentProcess:
    """A real agent in a process of its own, with a home of its own; a context manager that leaves none behind."""

    def __init__(
        self,
        home: Path,
        command: Sequence[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.home = home
        self.cache = home / ".cache" / "kdedge"
        env = {
            **os.environ,
            "HOME": str(home),
            "PYTHONPATH": str(SOURCE),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        env.pop("XDG_CACHE_HOME", None)
        self.process = subprocess.Popen(
            list(command or [sys.executable, "-m", "kdedge_agent"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        self.hello: dict[str, Any] = {}
        self.progress: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() in (b"\n", b""), "it greets on a line of its own"
        self.hello = self.read()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def send(self, message: dict[str, Any]) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the agent ended: {self.stderr()}"
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer; progress on the way is kept."""
        self.send(message)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        self.progress = []
        while True:
            message = self.read()
            if message["type"] != "progress":
                return message
            self.progress.append(message)

    def wait_for_phase(self, phase: str) -> None:
        """Read progress until the worker is in that phase."""
        while self.read().get("phase") != phase:
            pass

    def close_stdin(self) -> int:
        """What the wire does when it breaks; the agent's exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)

    def workers(self) -> list[int]:
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """Processes that a process has started, by any of its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def is_running(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_gone(pids: Sequence[int], within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def kill(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
