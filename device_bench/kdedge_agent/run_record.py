"""The record of a run, as it is stored: what was asked, what was seen, what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from kdedge_agent.protocol import ProtocolError, from_dict, require

SCHEMA_VERSION = 1
VERDICTS = ("steady", "drifting", "throttled", "undervoltage", "noisy")
_MOST = 1e18
"""Above every count, second and byte that a start can have, and within what a float holds."""


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
class Start:
    """One start of the worker, as the device tells it; its samples stand among those of the record.

    Attributes:
        n: Timed calls, at least one.
        warmup_n: Calls of the warm-up.
        warmup_steady: Whether the warm-up ended by its rule.
        load_s: As in RunRecord, of this start.
        first_inference_s: Likewise.
        preempted: As in its ``latency_s``.
        waited_s: Likewise.
        peak_rss_bytes: The process's largest resident set until its timing ended.
    """

    n: int
    warmup_n: int
    warmup_steady: Optional[bool] = None
    load_s: Optional[float] = None
    first_inference_s: Optional[float] = None
    preempted: Optional[int] = None
    waited_s: Optional[float] = None
    peak_rss_bytes: Optional[int] = None

    def __post_init__(self) -> None:
        require(self.n >= 1, "starts: one has no samples")
        for key, value in self.known().items():
            require(0 <= value < _MOST, f"starts: {key} cannot be {str(value)[:40]}")

    def known(self) -> Dict[str, Any]:
        """What is not None, as plain values."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
        runtime: name, version, provider or delegate, options (what it was told; older records lack it).
        threads: Intra-op threads.
        request: The RunRequest as sent.
        latency_s: Of a call, which is one sample, or one batch of ``offline``: p50, p90, p99, n, samples,
            warmup_samples, mean, std, min, max, ci95 {p50, p90, p99: [lo, hi]}, ci95_method and correlation_time
            (likewise), drift {first_p50, last_p50, ratio, significant} of the first and last third, warmup_steady,
            warmup_rule, preempted (how often the kernel took the processor away during timing), waited_s (how long
            the worker then stood ready without one), starts (of each start of the worker what is known of a
            :class:`Start`, and p50, p90, p99, mean; samples stand one start after the other; older records lack it
            and are of one start). Of several starts p50, p90 and p99 are geometric means of the starts' own
            (:mod:`kdedge_agent.between_starts`), drift has inside, and warmup_steady says it of all.
        load_s: Seconds to load the model into the runtime (import of the runtime not included); of several starts the
            median.
        first_inference_s: Seconds of the first inference; likewise.
        memory_bytes: peak; the peak of each phase: start, import, load, first, steady (warm-up and timing);
            pss, private and private_dirty after timing; on a Jetson gpu_shared, what its GPU holds of the shared
            memory after timing beyond what it held at the start (of all processes: the kernel tells no more). Of
            several starts each is the largest.
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
        accuracy: n, and accuracy and f1_macro of the artifact on the device, or exact_match and f1 of answers out of
            texts; runtime that scored; data (source, split, sha256 of samples and labels; older records lack it). None
            where not asked for.
        unmeasured: quantity -> reason, for every null above.
        facts: What the agent saw of the device; before, after and (about once a second) during the timing; thirds
            (temperature and frequency of the first and the last), others (what else used the processors),
            measured_cpus, governor (what was asked, set, refused and restored), cool_down.
        verdict: steady, drifting, throttled, undervoltage or noisy.
        verdict_reasons: In plain words, with the cure.
        versions: kdedge, agent, protocol.
        throughput: Of ``offline``: samples_per_s, ci95, ci95_method, batch_size, batches; None otherwise.
        device_sha256: Of the device's address, port and interpreter as they were set then, which the record does not
            tell; None in older records.
        inputs: name, shape and dtype of each input as it was timed; empty in older records.
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
    inputs: List[Dict[str, Any]] = field(default_factory=list)
    device_sha256: Optional[str] = None

    @property
    def starts(self) -> int:
        """How many starts of the worker it is of."""
        return len(self.latency_s.get("starts") or [None])

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
