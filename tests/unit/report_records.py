"""Run records made by hand for tests of the report. Every value is synthetic: round, and unlike a real device's."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdedge_agent.run_record import SCHEMA_VERSION, RunRecord

NO_SENSOR = "no power sensor that kdedge knows; add an INA219 on I2C or a USB meter"


def latencies(n: int, centre_s: float, seed: int, drift: float = 0.0) -> list[float]:
    """n latencies around a centre, a few of them much longer, growing by ``drift`` over the run."""
    rng = random.Random(seed)
    values = []
    for i in range(n):
        slow = 3.0 if rng.random() < 0.01 else 1.0
        values.append(round(centre_s * slow * (1 + drift * i / n) * (1 + 0.02 * abs(rng.gauss(0, 1))), 9))
    return values


def latency(samples: list[float]) -> dict[str, Any]:
    """The latency part of a record, with its statistics."""
    ordered = sorted(samples)
    n = len(ordered)
    at = {key: ordered[min(n - 1, int(share * n))] for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    intervals = {
        "p50": [ordered[int(0.47 * n)], ordered[int(0.53 * n)]],
        "p90": [ordered[int(0.88 * n)], ordered[int(0.92 * n)]],
        "p99": [ordered[int(0.98 * n)], ordered[-1]] if n >= 1000 else None,
    }
    return {
        **at,
        "p99": at["p99"] if n >= 1000 else None,
        "n": n,
        "samples": samples,
        "warmup_samples": [samples[0] * 4, samples[0] * 2, samples[0] * 1.5],
        "mean": sum(samples) / n,
        "std": 0.0,
        "min": ordered[0],
        "max": ordered[-1],
        "ci95": intervals,
    }


def snapshot(governor: str, hz: float, hot_c: float) -> dict[str, Any]:
    """The condition of a board with two processor clusters at one moment."""
    policy = {"governor": governor, "limit_hz": 2.4e9, "max_hz": 2.4e9}
    return {
        "monotonic_s": 1.0,
        "frequency": {"policy0": {**policy, "current_hz": hz}, "policy4": {**policy, "current_hz": 1.8e9}},
        "temperature_c": {"cpu-thermal": hot_c, "rp1": 40.0},
        "throttle": {"raw": 0, "set": []},
        "load_average": [0.1, 0.2, 0.3],
        "memory": {"total_bytes": 8_000_000_000},
    }


def facts(governor: str = "performance", hot_c: float = 46.0) -> dict[str, Any]:
    """What an agent may see."""
    return {
        "board": "Synthetic Board 1",
        "cpu": "Synthetic Core",
        "cpu_count": 4,
        "machine": "aarch64",
        "os_release": "Synthetic OS 12",
        "kernel": "6.0.0-synthetic",
        "python": "3.11.2",
        "power_mode": None,
        "before": snapshot(governor, 2.4e9, 45.0),
        "after": snapshot(governor, 2.4e9, hot_c),
    }


def record(
    run_id: str = "run-1", *, n: int = 1000, centre_s: float = 0.004, seed: int = 1, drift: float = 0.0, **changes: Any
) -> RunRecord:
    """A whole record; ``changes`` replace its parts."""
    samples = latencies(n, centre_s, seed, drift)
    whole = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        created_at="2026-01-02T03:04:05Z",
        device="pi",
        device_kind="pi",
        artifact={
            "path": "student-int8.onnx",
            "format": "onnx",
            "precision": "int8",
            "size_bytes": 2_500_000,
            "model": "mobilenet_v2",
        },
        artifact_sha256="a" * 64,
        runtime={"name": "onnxruntime", "version": "1.0.0", "provider": "CPUExecutionProvider"},
        threads=1,
        request={"artifact": "student-int8.onnx", "repetitions": n},
        latency_s=latency(samples),
        load_s=0.125,
        first_inference_s=0.0625,
        memory_bytes={
            "start": 9_000_000,
            "import": 48_000_000,
            "load": 56_000_000,
            "first": 61_000_000,
            "steady": 60_000_000,
            "peak": 64_000_000,
        },
        power_w=None,
        energy_j_per_inference=None,
        power=None,
        accuracy={"n": 360, "accuracy": 0.975, "f1_macro": 0.9741},
        unmeasured={"power_w": NO_SENSOR, "energy_j_per_inference": NO_SENSOR},
        facts=facts(),
        verdict="steady",
        verdict_reasons=["p50 of the first and the last third agree"],
        versions={"kdedge": "0.0.0", "agent": "0.0.0", "protocol": 1},
    )
    return replace(whole, **changes)


def offline(run_id: str = "offline", batch_size: int = 16, **changes: Any) -> RunRecord:
    """A record of batches: latencies are of a batch, energy is of a sample."""
    defaults: dict[str, Any] = {
        "n": 200,
        "centre_s": 0.04,
        "request": {"scenario": "offline", "batch_size": batch_size},
        "throughput": {
            "samples_per_s": 31337.5,
            "ci95": [31000.0, 32000.0],
            "ci95_method": "block bootstrap",
            "batch_size": batch_size,
            "batches": 200,
        },
        "power_w": 4.5,
        "energy_j_per_inference": 0.009,
        "power": {
            "source": "INA219", "load_w": 4.5, "gross_j_per_inference": 0.009, "net_j_per_inference": 0.0039,
            "inferences": 5000, "window_s": 10.0,
        },
    }  # fmt: skip
    return record(run_id, **{**defaults, **changes})


def fleet() -> list[RunRecord]:
    """Four runs: two artifacts, two devices; one drifts, one has energy, two lack accuracy."""
    tflite = {"path": "student-int8.tflite", "format": "tflite", "precision": "int8", "size_bytes": 2_400_000}
    litert = {"name": "ai-edge-litert", "version": "2.0.0", "delegate": "XNNPACK"}
    few = {
        "latency_s.p99": "200 repetitions; p99 needs 1000",
        "power_w": NO_SENSOR,
        "energy_j_per_inference": NO_SENSOR,
    }
    return [
        record("onnx-local", device="local", device_kind="local", centre_s=0.0004, seed=2),
        record(
            "tflite-local", n=200, device="local", device_kind="local", centre_s=0.0002, seed=3, artifact=tflite,
            artifact_sha256="b" * 64, runtime=litert, accuracy=None, unmeasured=few,
        ),
        record("onnx-pi", seed=4, accuracy=None),
        record(
            "tflite-pi", n=5000, centre_s=0.002, seed=5, drift=0.4, artifact=tflite, artifact_sha256="b" * 64,
            runtime=litert, verdict="drifting", facts=facts("ondemand", 78.5), unmeasured={},
            power_w=4.5, energy_j_per_inference=0.009,
            power={
                "source": "INA219 at 0x40 (hwmon)", "period_s": 0.1, "window_s": 10.0, "inferences": 5000,
                "idle_before_w": 2.5, "idle_after_w": 2.6, "gross_j_per_inference": 0.009,
                "net_j_per_inference": 0.0039, "net_error_j_per_inference": 0.0001, "load_w": 4.5,
                "gross_j_per_inference_ci95": [0.0089, 0.0091], "net_j_per_inference_ci95": [0.0037, 0.0041],
                "covers": "the board's supply line", "sensor_hz": 10.0, "sensor_periods": 100.0,
                "sensor_rate_from": "its readings change as often as it is read", "gap_s": 0.3,
                "reading": {"reads": 141, "read_s": 0.0123, "cpu_share": 0.05},
                "net_error_w": {"sampling": 0.045, "idle_drift": 0.05, "beat": 0.0},
                "estimate": {"watts": 5.74, "of": "the socket", "why_estimate": "a fit of another board"},
                "samples": [[i / 10, 4.5] for i in range(-20, 121)],
            },
            verdict_reasons=[
                "the last third was 1.3 times slower than the first; the CPU went from 45 to 78.5 °C",
                "Cool the board, or set the governor: sudo cpupower frequency-set -g performance",
            ],
        ),
    ]  # fmt: skip


def manifest() -> dict[str, Any]:
    """What a bundle's manifest may say."""
    return {
        "format_version": 1,
        "bundle_id": "synthetic",
        "metrics": {
            "teacher": {"accuracy": 0.9917, "f1_macro": 0.9915, "n": 360},
            "student_float": {"accuracy": 0.9806, "f1_macro": 0.9803, "n": 360},
            "student_int8": {"accuracy": 0.9778, "f1_macro": 0.9775, "n": 360},
        },
        "time_s": {"teacher": 20.0, "distill": 60.0, "qat": 30.0},
        "energy_j": {"teacher": None, "distill": None, "qat": None},
        "unmeasured": {"energy_j": "no readable energy counter: RAPL needs root"},
        "versions": {"kdedge": "0.0.0", "torch": "2.0.0"},
        "files": {
            "student.safetensors": {"sha256": "c" * 64, "size_bytes": 9_000_000},
            "student-int8.safetensors": {"sha256": "d" * 64, "size_bytes": 9_100_000},
        },
    }


def parity(sha256: str, accuracy: float = 0.9722, **figures: Any) -> dict[str, Any]:
    """What export writes beside an artifact."""
    return {
        "artifact": "student",
        "format": "onnx",
        "precision": "int8",
        "size_bytes": 2_500_000,
        "sha256": sha256,
        "parity": {
            "n": 360,
            "agreement": 0.997,
            "accuracy_student": 0.9778,
            "accuracy_artifact": accuracy,
            **figures,
        },
        "float_ops": [],
    }


def write_record(folder: Path, run: RunRecord) -> Path:
    """The record as bench stores it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.run_id}.json"
    path.write_text(json.dumps(run.to_dict()))
    return path


def write_fleet(folder: Path) -> Path:
    """A run folder as the demo leaves it: records, bundle, parity of one artifact."""
    for run in fleet():
        write_record(folder / "records", run)
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest()))
    (folder / "student-int8.onnx.parity.json").write_text(json.dumps(parity("a" * 64)))
    return folder
