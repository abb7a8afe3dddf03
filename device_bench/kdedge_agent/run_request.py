"""What the host asks the agent to measure or to score.

The host makes these and the agent reads them; standard library and Python 3.8 syntax, as in the whole package.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, List, Optional

from kdedge_agent.protocol import MAX_SAMPLES, fits, require

FORMATS = ("onnx", "tflite")
SCENARIOS = ("single-stream", "offline")
MAX_STARTS = 50


def _check_runtime_request(artifact: str, sha256: str, format: str, threads: int) -> None:  # noqa: A002
    require(bool(artifact) and "\0" not in artifact, "artifact: a path on the device is needed")
    require(len(sha256) == 64 and set(sha256) <= set("0123456789abcdef"), "artifact_sha256: 64 hex digits")
    require(format in FORMATS, f"format {format!r}: one of {', '.join(FORMATS)}")
    require(1 <= threads <= 256, "threads: from 1 to 256")


def _check_provider(name: Optional[str]) -> None:
    require(name is None or bool(re.fullmatch(r"[A-Za-z0-9_]{1,64}", name)), "provider: a name like cuda")


@dataclass(frozen=True)
class RunRequest:
    """What the host asks the agent to measure.

    Attributes:
        artifact: Path of the artifact on the device.
        artifact_sha256: Its hash, checked by the agent before anything is loaded.
        format: ``onnx`` or ``tflite``.
        runtime: ``onnxruntime``, ``ai-edge-litert`` or ``tflite-runtime``; None takes the first that is
            installed there for the format.
        threads: Intra-op threads of the runtime.
        repetitions: At least so many timed inferences.
        min_duration_s: Go on timing until so many seconds are measured.
        warmup_max_s: Cap of the warm-up.
        power: Measure power if a source is there.
        power_window_s: At least so long a window for power; the agent makes it longer for slow sensors and for power
            that varies.
        idle_s: At least so many seconds of idle before and after the power window; 0 leaves idle and net figures out.
        external_meter: A meter on the host reads the power: hold the windows, read no source here, and answer with
            the windows' bounds.
        seed: Of the random input where no samples are given.
        scenario: ``single-stream`` times one sample after the other, ``offline`` batches back to back.
        batch_size: Of ``offline``, where the artifact leaves it open; None takes eight.
        pin: Processors that the worker may use; None leaves them to the system.
        governor: Of cpufreq for those processors while it is measured; None leaves it as it is.
        cool_down_s: Rest for so many seconds before the measurement.
        cool_down_c: Wait before the measurement until the processor is at most so hot, for ten minutes at most.
        profile: Say where an inference spends its time, after it was timed.
        provider: Execution provider of ONNX Runtime that has to run it; None is the CPU.
        wait_s: At most so many seconds until another measurement on the device has ended.
        starts: Time in so many processes, one after the other, each with its own load, first inference and warm-up;
            they share the repetitions and the seconds. Power and profile are measured in the last one alone.
        input_shapes: Input -> its whole shape, where the artifact leaves more open than the batch; ``""`` is the only
            input there is.
    """

    artifact: str
    artifact_sha256: str
    format: str
    runtime: Optional[str] = None
    threads: int = 1
    repetitions: int = 200
    min_duration_s: float = 1.0
    warmup_max_s: float = 10.0
    power: bool = True
    power_window_s: float = 10.0
    idle_s: float = 2.0
    external_meter: bool = False
    seed: int = 0
    scenario: str = "single-stream"
    batch_size: Optional[int] = None
    pin: Optional[List[int]] = None
    governor: Optional[str] = None
    cool_down_s: Optional[float] = None
    cool_down_c: Optional[float] = None
    profile: bool = False
    provider: Optional[str] = None
    wait_s: float = 600.0
    starts: int = 1
    input_shapes: Optional[Dict[str, List[int]]] = None

    def __post_init__(self) -> None:
        _check_runtime_request(self.artifact, self.artifact_sha256, self.format, self.threads)
        for name, shape in (self.input_shapes or {}).items():
            require(fits(name, str) and len(name) < 200, "input_shapes: names of inputs")
            require(
                fits(shape, list) and len(shape) <= 8 and all(fits(n, int) and 0 < n < 2**31 for n in shape),
                "input_shapes: up to 8 positive whole numbers each",
            )
        require(self.scenario in SCENARIOS, f"scenario {self.scenario!r}: one of {', '.join(SCENARIOS)}")
        if self.batch_size is not None:
            require(self.scenario == "offline", "batch_size: single-stream takes one sample at a time")
            require(1 <= self.batch_size <= 65536, "batch_size: from 1 to 65536")
        if self.pin is not None:
            numbers = all(fits(cpu, int) and 0 <= cpu < 4096 for cpu in self.pin)
            require(0 < len(self.pin) <= 4096 and numbers, "pin: numbers of processors, from 0 on")
        if self.governor is not None:
            require(bool(re.fullmatch(r"[a-z_]{1,32}", self.governor)), "governor: a name like performance")
        _check_provider(self.provider)
        require(self.cool_down_s is None or 0 < self.cool_down_s <= 86400, "cool_down_s: up to 86400 seconds")
        require(self.cool_down_c is None or 0 < self.cool_down_c < 150, "cool_down_c: degrees Celsius below 150")
        require(self.cool_down_s is None or self.cool_down_c is None, "cool_down: seconds or degrees, not both")
        require(1 <= self.repetitions <= MAX_SAMPLES, f"repetitions: from 1 to {MAX_SAMPLES}")
        for name in ("min_duration_s", "warmup_max_s", "power_window_s", "idle_s", "wait_s"):
            require(0 <= getattr(self, name) <= 86400, f"{name}: from 0 to 86400 seconds")
        require(0 <= self.seed < 2**32, "seed: from 0 to 2**32 - 1")
        require(1 <= self.starts <= MAX_STARTS, f"starts: from 1 to {MAX_STARTS}")

    @property
    def max_samples(self) -> int:
        """Of each start, so that all of them fit into a message."""
        return MAX_SAMPLES // self.starts

    def of_start(self, number: int) -> RunRequest:
        """What start ``number`` (from 0 on) is asked for: its part of the repetitions and of the seconds."""
        return replace(
            self,
            repetitions=-(-self.repetitions // self.starts),
            min_duration_s=self.min_duration_s / self.starts,
            profile=self.profile and number == self.starts - 1,
        )

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ScoreRequest:
    """What the host asks the agent to predict, for scores with the device's own kernels.

    Attributes:
        artifact: Path of the artifact on the device.
        artifact_sha256: Its hash, checked first.
        format: ``onnx`` or ``tflite``.
        samples: Path of a raw C-order little-endian array on the device, without any header; where there are
            ``columns``, of one for each, one behind the other.
        samples_sha256: Its hash, checked first.
        shape: Of the array, samples first: [N, C, H, W] for images, [N, ...] as the model takes it otherwise.
        dtype: ``float32`` (normalised images), ``uint8`` (pixels 0..255, normalised on the device by the
            artifact's own metadata), or ``int32`` (tokens).
        columns: Names of the inputs that the arrays are for; empty for the only input of a model.
        returns: ``classes``, the arg-max of each sample; or ``outputs``, the first output itself, where the host makes
            more of it than a class.
        runtime: As in RunRequest.
        threads: Intra-op threads of the runtime.
        wait_s: As in RunRequest.
        provider: As in RunRequest.
    """

    artifact: str
    artifact_sha256: str
    format: str
    samples: str
    samples_sha256: str
    shape: List[int]
    dtype: str
    columns: List[str] = field(default_factory=list)
    returns: str = "classes"
    runtime: Optional[str] = None
    threads: int = 1
    wait_s: float = 600.0
    provider: Optional[str] = None

    def __post_init__(self) -> None:
        _check_runtime_request(self.artifact, self.artifact_sha256, self.format, self.threads)
        _check_provider(self.provider)
        require(0 <= self.wait_s <= 86400, "wait_s: from 0 to 86400 seconds")
        require(self.dtype in ("float32", "uint8", "int32"), "dtype: float32, uint8 or int32")
        require(
            len(self.columns) <= 8 and all(fits(name, str) and 0 < len(name) < 200 for name in self.columns),
            "columns: at most 8 names",
        )
        require(
            2 <= len(self.shape) <= 8 and all(fits(n, int) and 0 < n < 2**31 for n in self.shape),
            "shape: 2 to 8 positive whole numbers, samples first",
        )
        require(self.returns in ("classes", "outputs"), "returns: classes or outputs")

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)
