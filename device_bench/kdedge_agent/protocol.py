"""Messages between host and agent, and the record of a run.

The host imports this module too; it therefore keeps to the standard library and to Python 3.8 syntax.
On the wire every message is one JSON object on one line (UTF-8, no more than ``MAX_LINE_BYTES``),
host to agent on stdin, agent to host on stdout.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

PROTOCOL_VERSION = 1
SCHEMA_VERSION = 1
MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_SAMPLES = 1000000
"""Latencies of one run; more would not fit into a message, and no statistic gains by more."""
FORMATS = ("onnx", "tflite")
SCENARIOS = ("single-stream", "offline")
REQUESTS = ("facts", "probe", "measure", "score", "remove", "clock", "bye")
REPLIES = ("hello", "progress", "result", "error")
VERDICTS = ("steady", "drifting", "throttled", "undervoltage", "noisy")

T = TypeVar("T")


class ProtocolError(Exception):
    """A line that is no message of this protocol."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line of UTF-8 JSON; NaN and Inf are refused.

    Raises:
        ProtocolError: the message is larger than ``MAX_LINE_BYTES`` or holds a value JSON has no word for.
    """
    try:
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"message cannot be encoded: {error}") from None
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"message of {len(line)} bytes exceeds {MAX_LINE_BYTES}")
    return line


def decode(line: bytes) -> Dict[str, Any]:
    """The message on one line.

    Raises:
        ProtocolError: too long, not JSON, not an object, or without a string ``type``.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"line of more than {MAX_LINE_BYTES} bytes")
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON line: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a message is an object with a string 'type'")
    return message


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _fits(value: object, hint: Any) -> bool:
    """Whether ``value`` is of the top-level type that the annotation names (elements are not looked at)."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin is Union:
        return any(_fits(value, option) for option in get_args(hint))
    wanted = origin or hint
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is tuple:
        return isinstance(value, (tuple, list))
    return isinstance(value, wanted)


def from_dict(cls: Type[T], data: Mapping[str, Any]) -> T:
    """A dataclass instance from a mapping; unknown keys are refused by name.

    Raises:
        ProtocolError: unknown or missing keys, or a value of another type than the field's.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise ProtocolError(f"{cls.__name__}: unknown key {str(unknown[0])[:80]!r}")
    hints = get_type_hints(cls)
    for name, value in data.items():
        if not _fits(value, hints[name]):
            raise ProtocolError(f"{cls.__name__}: {name} cannot be {str(value)[:80]!r}")
    try:
        return cls(**data)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from None


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ProtocolError(text)


def _check_runtime_request(artifact: str, sha256: str, format: str, threads: int) -> None:  # noqa: A002
    _require(bool(artifact) and "\0" not in artifact, "artifact: a path on the device is needed")
    _require(len(sha256) == 64 and set(sha256) <= set("0123456789abcdef"), "artifact_sha256: 64 hex digits")
    _require(format in FORMATS, f"format {format!r}: one of {', '.join(FORMATS)}")
    _require(1 <= threads <= 256, "threads: from 1 to 256")


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

    def __post_init__(self) -> None:
        _check_runtime_request(self.artifact, self.artifact_sha256, self.format, self.threads)
        _require(self.scenario in SCENARIOS, f"scenario {self.scenario!r}: one of {', '.join(SCENARIOS)}")
        if self.batch_size is not None:
            _require(self.scenario == "offline", "batch_size: single-stream takes one sample at a time")
            _require(1 <= self.batch_size <= 65536, "batch_size: from 1 to 65536")
        if self.pin is not None:
            fits = all(_fits(cpu, int) and 0 <= cpu < 4096 for cpu in self.pin)
            _require(0 < len(self.pin) <= 4096 and fits, "pin: numbers of processors, from 0 on")
        if self.governor is not None:
            _require(bool(re.fullmatch(r"[a-z_]{1,32}", self.governor)), "governor: a name like performance")
        if self.provider is not None:
            _require(bool(re.fullmatch(r"[A-Za-z0-9_]{1,64}", self.provider)), "provider: a name like cuda")
        _require(self.cool_down_s is None or 0 < self.cool_down_s <= 86400, "cool_down_s: up to 86400 seconds")
        _require(self.cool_down_c is None or 0 < self.cool_down_c < 150, "cool_down_c: degrees Celsius below 150")
        _require(self.cool_down_s is None or self.cool_down_c is None, "cool_down: seconds or degrees, not both")
        _require(1 <= self.repetitions <= MAX_SAMPLES, f"repetitions: from 1 to {MAX_SAMPLES}")
        for name in ("min_duration_s", "warmup_max_s", "power_window_s", "idle_s", "wait_s"):
            _require(0 <= getattr(self, name) <= 86400, f"{name}: from 0 to 86400 seconds")
        _require(0 <= self.seed < 2**32, "seed: from 0 to 2**32 - 1")

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ScoreRequest:
    """What the host asks the agent to predict, for accuracy with the device's own kernels.

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
        labels: True class of each sample; empty where the host counts the hits itself.
        runtime: As in RunRequest.
        threads: Intra-op threads of the runtime.
        wait_s: As in RunRequest.
    """

    artifact: str
    artifact_sha256: str
    format: str
    samples: str
    samples_sha256: str
    shape: List[int]
    dtype: str
    columns: List[str] = field(default_factory=list)
    labels: List[int] = field(default_factory=list)
    runtime: Optional[str] = None
    threads: int = 1
    wait_s: float = 600.0

    def __post_init__(self) -> None:
        _check_runtime_request(self.artifact, self.artifact_sha256, self.format, self.threads)
        _require(0 <= self.wait_s <= 86400, "wait_s: from 0 to 86400 seconds")
        _require(self.dtype in ("float32", "uint8", "int32"), "dtype: float32, uint8 or int32")
        _require(
            len(self.columns) <= 8 and all(_fits(name, str) and 0 < len(name) < 200 for name in self.columns),
            "columns: at most 8 names",
        )
        _require(
            2 <= len(self.shape) <= 8 and all(_fits(n, int) and 0 < n < 2**31 for n in self.shape),
            "shape: 2 to 8 positive whole numbers, samples first",
        )
        _require(all(_fits(label, int) for label in self.labels), "labels: whole numbers")
        _require(len(self.labels) in (0, self.shape[0]), "labels: one for each sample, or none")

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """A quantity, its unit, raw values and source, or the reason why it is missing.

    ``value`` is None exactly if ``reason`` says why.
    """

    quantity: str
    unit: str
    value: Optional[float]
    samples: Tuple[float, ...] = ()
    source: Optional[str] = None
    reason: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"{self.quantity}: either a value or the reason why there is none")


@dataclass(frozen=True)
class RunRecord:
    """One run: request, facts, measurements, versions. Immutable; SI units; statistics derive from ``samples``.

    Attributes:
        schema_version: Of this record's form.
        run_id: Unique name of the run (also the stem of its file).
        created_at: UTC, ISO 8601, by the host's clock.
        device: Name of the device (``local`` for this machine).
        device_kind: ``pi``, ``jetson``, ``linux`` or ``local``.
        artifact: path, format, precision, size_bytes, model (where known).
        artifact_sha256: Hash of the measured file.
        runtime: name, version, provider or delegate.
        threads: Intra-op threads.
        request: The RunRequest as sent.
        latency_s: Of a call, which is one sample, or one batch of ``offline``: p50, p90, p99, n, samples,
            warmup_samples, mean, std, min, max, ci95 {p50, p90, p99: [lo, hi]}, ci95_method and correlation_time
            (likewise), drift {first_p50, last_p50, ratio, significant} of the first and last third, warmup_steady,
            warmup_rule, preempted (how often the kernel took the processor away during timing), waited_s (how long
            the worker then stood ready without one).
        load_s: Seconds to load the model into the runtime (import of the runtime not included).
        first_inference_s: Seconds of the first inference.
        memory_bytes: peak; the peak of each phase: start, import, load, first, steady (warm-up and timing);
            pss, private and private_dirty after timing; on a Jetson gpu_shared, what its GPU holds of the shared
            memory after timing beyond what it held at the start (of all processes: the kernel tells no more).
        power_w: Mean watts of the window under load, or None.
        energy_j_per_inference: Gross joules per inference, or None.
        power: What ``energy.account`` returns but its reasons: source, covers (what its total is of, and by which
            rule), total_rails, sensor_hz, window_s, window_monotonic_s ([begin, end] on the monotonic clock of who
            read the source: the device, or the host its meter; older records lack it), sensor_periods, inferences,
            rails_w, load_w, idle_before_w, idle_after_w, idle_drift_w, gross_, net_ and net_error_j_per_inference,
            ``*_ci95`` of load_w, gross and net,
            error_w and net_error_w by cause, gap_s, samples [[s, W]]; failed_readings, reading (what it costs),
            sources_found (every source by name), estimate (of what the source does not measure, or None). Of a meter
            on the host also meter, clock, windows_s, error_j. None where no source is.
        accuracy: n, accuracy, f1_macro of the artifact on the device; None where not asked for.
        unmeasured: quantity -> reason, for every null above.
        facts: What the agent saw of the device; before, after and (about once a second) during the timing; thirds
            (temperature and frequency of the first and the last), others (what else used the processors),
            measured_cpus, governor (what was asked, set, refused and restored), cool_down.
        verdict: steady, drifting, throttled, undervoltage or noisy.
        verdict_reasons: In plain words, with the cure.
        versions: kdedge, agent, protocol.
        throughput: Of ``offline``: samples_per_s, ci95, ci95_method, batch_size, batches; None otherwise.
        profile: Where it was asked for: method, runs, inference_s, ops_s, by_op and ops (ONNX Runtime,
            ``op_profile.from_trace``); ops (None) and delegates (TFLite, ``op_profile.delegated``).
    """

    schema_version: int
    run_id: str
    created_at: str
    device: str
    device_kind: str
    artifact: Dict[str, Any]
    artifact_sha256: str
    runtime: Dict[str, Any]
    threads: int
    request: Dict[str, Any]
    latency_s: Dict[str, Any]
    load_s: Optional[float]
    first_inference_s: Optional[float]
    memory_bytes: Dict[str, Any]
    power_w: Optional[float]
    energy_j_per_inference: Optional[float]
    power: Optional[Dict[str, Any]]
    accuracy: Optional[Dict[str, Any]]
    unmeasured: Dict[str, str]
    facts: Dict[str, Any]
    verdict: str
    verdict_reasons: List[str]
    versions: Dict[str, Any] = field(default_factory=dict)
    throughput: Optional[Dict[str, Any]] = None
    profile: Optional[Dict[str, Any]] = None

    def to_dict(self) -> Dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """A record from parsed JSON.

        Raises:
            ProtocolError: not a record, or of another schema version.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ProtocolError(f"record of schema version {version!r}; this kdedge reads {SCHEMA_VERSION}")
        return from_dict(cls, data)
