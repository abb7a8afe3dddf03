"""The record of a run, from what the agent answered and what only the host knows."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Dict, List, Mapping, Optional

from kdedge_agent.order_statistics import percentile
from kdedge_agent.protocol import MAX_SAMPLES, ProtocolError, from_dict
from kdedge_agent.run_record import SCHEMA_VERSION, VERDICTS, RunRecord, Start
from kdedge_agent.run_request import MAX_STARTS
from kdedge_agent.statistics import latency_summary, throughput

_TAKEN = (
    "artifact_sha256",
    "runtime",
    "threads",
    "request",
    "load_s",
    "first_inference_s",
    "memory_bytes",
    "power_w",
    "energy_j_per_inference",
    "power",
    "facts",
    "verdict",
    "verdict_reasons",
)


_MOST_INPUTS, _MOST_LETTERS = 1024, 1000


def _seconds(values: object, what: str) -> List[float]:
    """A list of finite seconds; what a device sends is not trusted to be one."""
    if not isinstance(values, list) or len(values) > MAX_SAMPLES:
        raise ProtocolError(f"{what}: a list of at most {MAX_SAMPLES} seconds is needed")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ProtocolError(f"{what}: {str(value)[:40]!r} is no duration")
    return [float(value) for value in values]


def _starts(values: object, samples: int, warmups: int) -> List[Start]:
    """What is known of each start of the worker; where the answer says nothing, there was one.

    Raises:
        ProtocolError: not a list of at most ``MAX_STARTS`` objects, a figure that cannot be one, or other samples than
            were sent.
    """
    if values is None:
        return [Start(samples, warmups)]
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_STARTS:
        raise ProtocolError(f"latency_s.starts: a list of at most {MAX_STARTS} starts is needed")
    if not all(isinstance(value, dict) for value in values):
        raise ProtocolError("latency_s.starts: objects are needed")
    known = {item.name for item in fields(Start)}
    starts = [from_dict(Start, {key: value[key] for key in value if key in known}) for value in values]
    if sum(start.n for start in starts) != samples or sum(start.warmup_n for start in starts) != warmups:
        raise ProtocolError("latency_s.starts: they do not add up to the samples that were sent")
    return starts


def _over_starts(starts: List[Start]) -> Dict[str, float]:
    """The medians of what every start has once; empty of one start, of which the answer's own are taken."""
    medians = {}
    for key in ("load_s", "first_inference_s"):
        given = [value for value in (getattr(start, key) for start in starts) if value is not None]
        if len(given) == len(starts) > 1:
            medians[key] = percentile(sorted(given), 0.5)
    return medians


def _texts(values: object, what: str) -> List[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"{what}: a list of texts is needed")
    return values


def _inputs(values: object) -> List[Dict[str, Any]]:
    """Name, shape and dtype of each input; none of an agent that does not tell."""
    if not isinstance(values, list) or len(values) > _MOST_INPUTS:
        raise ProtocolError(f"inputs: a list of at most {_MOST_INPUTS} is needed")
    found = []
    for value in values:
        entry = {key: value.get(key) for key in ("name", "shape", "dtype")} if isinstance(value, dict) else {}
        sizes = entry.get("shape")
        texts = all(
            isinstance(text, str) and len(text) <= _MOST_LETTERS for text in (entry.get("name"), entry.get("dtype"))
        )
        if not texts or not isinstance(sizes, list) or len(sizes) > 8 or not all(_is_size(n) for n in sizes):
            raise ProtocolError("inputs: each has a name, a shape and a dtype")
        found.append(entry)
    return found


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _reasons(values: object) -> Dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(v, str) for pair in values.items() for v in pair):
        raise ProtocolError("unmeasured: only texts are allowed")
    return values


def build_record(
    result: Mapping[str, Any],
    *,
    device: str,
    device_kind: str,
    run_id: str,
    created_at: str,
    artifact: Mapping[str, Any],
    versions: Mapping[str, Any],
    accuracy: Optional[Dict[str, Any]] = None,
    device_sha256: Optional[str] = None,
) -> RunRecord:
    """A validated record; its latency figures are computed here, from the raw samples of the agent.

    Args:
        result: The agent's ``result`` of a ``measure`` request.
        device: Name of the device.
        device_kind: ``pi``, ``jetson``, ``linux`` or ``local``.
        run_id: Unique name of the run.
        created_at: UTC, ISO 8601, by the host's clock.
        artifact: path, format, precision, size_bytes, model, as the host knows them.
        versions: Of the host (``kdedge``); the agent's own are added.
        device_sha256: As in RunRecord.
        accuracy: n and the scores on the device, which the host works out; None where it was not asked for.

    Raises:
        ProtocolError: the result lacks something, or something in it is of a wrong type.
    """
    missing = [key for key in (*_TAKEN, "latency_s", "unmeasured") if key not in result]
    if missing:
        raise ProtocolError(f"the agent's result lacks {missing[0]}")
    raw = result["latency_s"]
    if not isinstance(raw, dict):
        raise ProtocolError("latency_s: an object is needed")
    samples = _seconds(raw.get("samples"), "latency_s.samples")
    if not samples:
        raise ProtocolError("latency_s.samples: there is none")
    warmup = _seconds(raw.get("warmup_samples"), "latency_s.warmup_samples")
    starts = _starts(raw.get("starts"), len(samples), len(warmup))
    counts = [start.n for start in starts]
    latency, reasons = latency_summary(samples, warmup, counts)
    latency["starts"] = [{**start.known(), **figures} for start, figures in zip(starts, latency["starts"])]
    for key, kind in (("warmup_steady", bool), ("warmup_rule", str), ("preempted", int), ("waited_s", float)):
        latency[key] = raw[key] if isinstance(raw.get(key), kind) else None
    if result["verdict"] not in VERDICTS:
        raise ProtocolError(f"verdict {str(result['verdict'])[:40]!r} is unknown")
    agent_versions = result.get("versions") or {}
    if not isinstance(agent_versions, dict):
        raise ProtocolError("versions: an object is needed")
    unmeasured: Dict[str, str] = {**_reasons(result["unmeasured"]), **reasons}
    rate = _throughput(result, samples, counts, unmeasured)
    profile = result.get("profile")
    if not isinstance(profile, (dict, type(None))):
        raise ProtocolError("profile: an object is needed")
    if profile is None:
        unmeasured["profile"] = "measured by --profile"
    if accuracy is None:
        unmeasured["accuracy"] = "not asked for"
    _texts(result["verdict_reasons"], "verdict_reasons")
    return from_dict(
        RunRecord,
        {
            **{key: result[key] for key in _TAKEN},
            **_over_starts(starts),
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "created_at": created_at,
            "device": device,
            "device_kind": device_kind,
            "device_sha256": device_sha256,
            "artifact": dict(artifact),
            "latency_s": latency,
            "accuracy": accuracy,
            "unmeasured": unmeasured,
            "versions": {**agent_versions, **versions},
            "throughput": rate,
            "profile": profile,
            "inputs": _inputs(result.get("inputs", [])),
        },
    )


def _throughput(
    result: Mapping[str, Any], samples: List[float], starts: List[int], unmeasured: Dict[str, str]
) -> Optional[Dict[str, Any]]:
    """Samples a second of the ``offline`` scenario; None and the reason in ``unmeasured`` for another."""
    if not isinstance(result["request"], dict) or result["request"].get("scenario") != "offline":
        unmeasured["throughput"] = "measured by --scenario offline"
        return None
    batch = result.get("batch_size")
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_SAMPLES:
        raise ProtocolError(f"batch_size {str(batch)[:40]!r} is none")
    rate, reasons = throughput(samples, batch, starts)
    unmeasured.update(reasons)
    return rate
