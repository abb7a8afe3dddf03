"""A bundle's students measured in torch on this machine: what the artifacts are compared with."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge._version import __version__
from kdedge.errors import CheckError, UserError
from kdedge.files import write_json

from kdedge_agent import facts, power, turn, verdict
from kdedge_agent.errors import AgentFailure
from kdedge_agent.record import build_record
from kdedge_agent.run_record import RunRecord
from kdedge_agent.workdir import work_dir
from kdedge_bench.faults import DeviceBusyError

if TYPE_CHECKING:
    from kdedge.bundle import Bundle

#: Precision -> (role in the manifest, file of the bundle that holds it).
ROLES = {
    "float32": ("student_float", "student.safetensors"),
    "int8": ("student_int8", "student-int8.safetensors"),
}
EMULATED = "integers emulated in float32: right for accuracy, slow by design"


def bench_student(
    bundle: Bundle,
    precision: str,
    *,
    threads: int = 1,
    repetitions: int = 200,
    min_duration_s: float = 1.0,
    wait_s: float = 600.0,
    out_dir: Path | str = Path("runs/bench"),
) -> RunRecord:
    """Measure one student of a bundle in torch and store the record as ``out_dir/<run_id>.json``.

    Args:
        bundle: From training.
        precision: ``float32`` or ``int8`` (the converted program, whose integers torch emulates in float32).
        threads: Of torch.
        repetitions: At least so many timed inferences of one image.
        min_duration_s: Go on timing until so many seconds are measured.
        wait_s: At most so many seconds until another measurement on this machine has ended.
        out_dir: Folder of the records; made if it is not there.

    Returns:
        The record: format ``torch``; its accuracy is the manifest's, measured in training on the test split.

    Raises:
        UserError: no such precision in this bundle.
        CheckError: the process that measures died.
    """
    if precision not in ROLES or ROLES[precision][1] not in bundle.manifest["files"]:
        raise UserError(f"no {precision} student in this bundle", where=bundle.path, cure="It is float32 or int8")
    role, file = ROLES[precision]
    with _turn(wait_s):
        device, before = facts.device_facts(), facts.snapshot(folder=bundle.path)
        result = _measured(bundle.path, precision, threads, repetitions, min_duration_s)
    after = facts.snapshot(folder=bundle.path)
    samples = result["latency_s"]["samples"]
    during = result.pop("during")
    word, reasons = verdict.decide(
        samples, before, after, during, device["cpu_count"], {"waited_s": result["latency_s"]["waited_s"]}
    )
    if not result["latency_s"]["warmup_steady"]:
        reasons.append(f"remark: the warm-up ended before it was steady ({result['latency_s']['warmup_rule']})")
    unmeasured = {**result["unmeasured"], **dict.fromkeys(("power_w", "energy_j_per_inference"), _no_power())}
    if precision == "int8":
        result["runtime"]["provider"] = EMULATED
    created_at = datetime.now(timezone.utc)
    entry = bundle.manifest["files"][file]
    record = build_record(
        {
            **result,
            "artifact_sha256": entry["sha256"],
            "threads": threads,
            "request": {"format": "torch", "repetitions": repetitions, "min_duration_s": min_duration_s},
            "power_w": None,
            "energy_j_per_inference": None,
            "power": None,
            "unmeasured": unmeasured,
            "facts": {**device, "before": before, "after": after, "during": during, "thirds": verdict.thirds(during)},
            "verdict": word,
            "verdict_reasons": reasons,
        },
        device="local",
        device_kind="local",
        run_id=f"{created_at:%Y%m%dT%H%M%SZ}-local-{role}-torch-{secrets.token_hex(3)}",
        created_at=created_at.isoformat(timespec="seconds"),
        artifact={
            "path": str(bundle.path / file),
            "format": "torch",
            "precision": precision,
            "size_bytes": entry["size_bytes"],
            "model": bundle.model_name,
            "bundle_id": bundle.bundle_id,
            "role": role,
        },
        versions={"kdedge": __version__},
        accuracy=bundle.manifest.get("metrics", {}).get(role),
    )
    write_json(Path(out_dir) / f"{record.run_id}.json", record.to_dict())
    return record


@contextmanager
def _turn(wait_s: float) -> Iterator[None]:
    """This machine for one measurement alone, as artifacts have it."""
    try:
        with turn.taken(work_dir(), wait_s, lambda seconds, _: time.sleep(seconds)):
            yield
    except AgentFailure as failure:
        raise DeviceBusyError(failure.message, where="local", cure="Wait for it, or give it longer: --wait") from None


def _measured(path: Path, precision: str, threads: int, repetitions: int, min_duration_s: float) -> dict[str, Any]:
    """The worker's document; a process of its own, so that its memory is the student's alone."""
    words = [str(path), precision, str(threads), str(repetitions), str(min_duration_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "kdedge_bench.torch_worker", *words], capture_output=True, env=environment, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise CheckError(
            f"measuring the student in torch failed: {lines[-1] if lines else done.returncode}", where=path
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _no_power() -> str:
    source, reason = power.discover()
    if source is None:
        return reason or "no power source"
    return "power is measured of artifacts, not of students in torch"
