"""Is this JSON a run record that the report can read? What lies inside the record's parts, and finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.run_record import VERDICTS, RunRecord

_NUMBERS = ("load_s", "first_inference_s", "power_w", "energy_j_per_inference")


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float that a float can hold; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_count(value: object) -> TypeGuard[int]:
    """A whole number from one on; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def looks_like_record(document: object) -> bool:
    """True for JSON that means to be a run record, whatever its version or its faults."""
    return isinstance(document, dict) and "run_id" in document and "schema_version" in document


def parse_record(document: Any) -> RunRecord:
    """The record in parsed JSON, checked so far that every later step may rest on its types.

    Raises:
        ProtocolError: not a record, of another version, or a value of the wrong type; the message names the key.
    """
    if not isinstance(document, Mapping):
        raise ProtocolError("not a JSON object")
    record = RunRecord.from_json(document)
    for key in _NUMBERS:
        _need_number(getattr(record, key), key)
    _need(record.verdict in VERDICTS, "verdict", f"one of {', '.join(VERDICTS)}")
    for key, texts in (("verdict_reasons", record.verdict_reasons), ("unmeasured", list(record.unmeasured.values()))):
        _need(all(isinstance(text, str) for text in texts), key, "all text")
    _check_latency(record.latency_s)
    _check_throughput(record.throughput or {})
    for key, value in record.memory_bytes.items():
        if not isinstance(value, Mapping):
            _need_number(value, f"memory_bytes.{key}")
    for key, value in (record.accuracy or {}).items():
        if key in ("n", "accuracy", "f1_macro", "exact_match", "f1"):
            _need_number(value, f"accuracy.{key}")
    _need_number(record.artifact.get("size_bytes"), "artifact.size_bytes")
    return record


def _check_latency(latency: Mapping[str, Any]) -> None:
    for key in ("p50", "p90", "p99", "n", "mean", "std", "min", "max"):
        _need_number(latency.get(key), f"latency_s.{key}")
    for key in ("samples", "warmup_samples"):
        values = latency.get(key) or []
        _need(isinstance(values, list) and all(map(is_number, values)), f"latency_s.{key}", "finite numbers")
    _check_starts(latency.get("starts") or [])
    intervals = latency.get("ci95") or {}
    _need(isinstance(intervals, Mapping), "latency_s.ci95", "an object")
    for key, interval in intervals.items():
        _need(interval is None or is_interval(interval), f"latency_s.ci95.{key}", "[low, high] or null")


def _check_throughput(throughput: Mapping[str, Any]) -> None:
    _need_number(throughput.get("samples_per_s"), "throughput.samples_per_s")
    for key in ("batch_size", "batches"):
        _need(throughput.get(key) is None or is_count(throughput[key]), f"throughput.{key}", "a whole number or null")
    interval = throughput.get("ci95")
    _need(interval is None or is_interval(interval), "throughput.ci95", "[low, high] or null")


def _check_starts(starts: object) -> None:
    if not isinstance(starts, list) or not all(isinstance(start, Mapping) for start in starts):
        raise ProtocolError("key 'latency_s.starts' is not a list of objects")
    for start in starts:
        _need(is_number(start.get("n")), "latency_s.starts.n", "a finite number")
        for key, value in start.items():
            _need(value is None or isinstance(value, bool) or is_number(value), f"latency_s.starts.{key}", "a figure")


def is_interval(value: object) -> TypeGuard[Sequence[float]]:
    """Two finite numbers in order."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(is_number, value)):
        return False
    return bool(value[0] <= value[1])


def _need_number(value: object, key: str) -> None:
    _need(value is None or is_number(value), key, "a finite number or null")


def _need(fits: bool, key: str, kind: str) -> None:
    if not fits:
        raise ProtocolError(f"key {key!r} is not {kind}")
