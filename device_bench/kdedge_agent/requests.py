"""What the agent does for a request, in its own process, while a worker does the measuring in another."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from kdedge_agent import __version__, cooldown, facts, governor, power_window, remarks, starts, turn, verdict
from kdedge_agent.errors import AgentFailure
from kdedge_agent.observe import GLANCE_EVERY_S, measured_cpus, relay
from kdedge_agent.protocol import PROTOCOL_VERSION, from_dict
from kdedge_agent.run_request import RunRequest, ScoreRequest
from kdedge_agent.runtimes import RUNTIMES
from kdedge_agent.server import Desk
from kdedge_agent.workdir import work_dir

ROOT = Path("/")
PROBE_TIMEOUT_S = 120.0
_CHUNK_BYTES = 1 << 20


def _verify(desk: Desk, path: str, sha256: str, what: str) -> int:
    """Size of a file whose content has the given hash.

    Raises:
        AgentFailure: missing, unreadable, or other content than the host sent.
    """
    digest, done = hashlib.sha256(), 0
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                digest.update(chunk)
                done += len(chunk)
                desk.progress("verify", done, size)
                desk.check()
    except OSError as error:
        raise AgentFailure("artifact", f"{what} {path}: {error.strerror}", "Send it to the device again") from None
    if digest.hexdigest() != sha256:
        raise AgentFailure(
            "artifact",
            f"{what} {path} arrived damaged: {done} bytes with another hash than was sent",
            "Free space on the device's disk and send it again",
        )
    return done


def probe(desk: Desk) -> Dict[str, Dict[str, Any]]:
    """Every runtime kdedge knows: {name: {available, version, formats, reason, cure}}, each in its own process."""
    names = {name: [f for f, all_ in RUNTIMES.items() if name in all_] for all_ in RUNTIMES.values() for name in all_}
    found: Dict[str, Dict[str, Any]] = {}
    for number, (name, formats) in enumerate(names.items()):
        desk.progress("probe", number, len(names))
        entry: Dict[str, Any] = {"available": False, "version": None, "formats": formats, "reason": None, "cure": None}
        desk.start_worker({"type": "probe", "runtime": name})
        try:
            message = _await(desk, "probed", PROBE_TIMEOUT_S)
        except AgentFailure as failure:
            entry.update(reason=failure.message, cure=failure.cure)
        else:
            if message is None:
                entry["reason"] = f"it did not import within {PROBE_TIMEOUT_S:g} s"
            else:
                entry.update(available=True, version=message["version"], numpy=message["numpy"])
        finally:
            desk.end_worker()
        found[name] = entry
    return found


def _await(desk: Desk, kind: str, timeout_s: float) -> Optional[Dict[str, Any]]:
    """The worker's message of that kind, or None when it did not come in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        message = desk.worker_says(min(GLANCE_EVERY_S, max(0.0, until - time.monotonic())))
        if message is not None and message["type"] == kind:
            return message
        if desk.worker is not None:
            desk.progress(desk.worker.phase, text=desk.worker.doing)
    return None


@contextmanager
def _turn(desk: Desk, wait_s: float) -> Iterator[None]:
    """The device for this request alone; its worker has ended before the next one has its turn."""
    with turn.taken(work_dir(), wait_s, lambda s, text: _pause(desk, "waiting", s, text)):
        try:
            yield
        finally:
            desk.end_worker()


def score(desk: Desk, request: Mapping[str, Any]) -> Dict[str, Any]:
    """Predictions of the artifact on the samples that the host sent."""
    asked = from_dict(ScoreRequest, request)
    _verify(desk, asked.artifact, asked.artifact_sha256, "artifact")
    _verify(desk, asked.samples, asked.samples_sha256, "samples")
    with _turn(desk, asked.wait_s):
        desk.start_worker({"type": "score", "request": asked.to_dict(), "threads": asked.threads})
        while True:
            message = desk.worker_says(GLANCE_EVERY_S) or {"type": "silence"}
            if message["type"] == "scored":
                return {key: value for key, value in message.items() if key != "type"}
            relay(desk, message)


def measure(desk: Desk, request: Mapping[str, Any]) -> Dict[str, Any]:
    """Everything of a record but what only the host knows."""
    asked = from_dict(RunRequest, request)
    cpus = measured_cpus(asked.pin)
    change = governor.GovernorChange(asked.governor, ROOT, cpus, work_dir()) if asked.governor else None
    with _turn(desk, asked.wait_s), governor.governed(change):
        result = _measure(desk, asked, cpus, change)
    result["facts"]["governor"] = change.report if change else None
    return result


def _measure(
    desk: Desk, asked: RunRequest, cpus: Optional[List[int]], change: Optional[governor.GovernorChange]
) -> Dict[str, Any]:
    size = _verify(desk, asked.artifact, asked.artifact_sha256, "artifact")
    cooled = None
    if asked.cool_down_s is not None or asked.cool_down_c is not None:
        cooled = cooldown.cool_down(
            asked.cool_down_s, asked.cool_down_c, ROOT, lambda s, text: _pause(desk, "cool-down", s, text)
        )
    device = facts.device_facts(ROOT)
    before = facts.snapshot(ROOT, work_dir().parent)
    timed, during, others = starts.run(desk, asked, ROOT)
    after = facts.snapshot(ROOT, work_dir().parent)
    work = {**others, "waited_s": timed["waited_s"]}
    counts = [start["n"] for start in timed["starts"]]
    word, reasons = verdict.decide(timed["samples"], before, after, during, device["cpu_count"], work, cpus, counts)
    if not timed["warmup_steady"]:
        reasons.append(f"remark: the warm-up ended before it was steady ({timed['warmup_rule']})")
    reasons += remarks.unmet(cooled, change.report if change else None, asked.threads, cpus)
    reasons += remarks.of_a_batch(asked.scenario, timed["inputs"])
    taken = ("samples", "warmup_samples", "warmup_steady", "warmup_rule", "preempted", "waited_s", "starts")
    latency = {key: timed[key] for key in taken}
    unmeasured = dict(timed["unmeasured"])
    powered: Optional[Dict[str, Any]] = None
    windows: Optional[Dict[str, Any]] = None
    if asked.power and asked.external_meter:
        windows = asdict(power_window.held_for_meter(desk, asked))
        unmeasured["power_w"] = unmeasured["energy_j_per_inference"] = "left to the meter on the host"
    else:
        powered = power_window.measured(desk, asked, unmeasured)
    after_power = None
    if powered or windows:
        after_power = facts.snapshot(ROOT, work_dir().parent)
        inferences, window_s = power_window.work_done(powered, windows)
        reasons += verdict.of_power_window(
            timed["samples"], after, after_power, cpus, inferences / timed["batch_size"], window_s
        )
    return {
        "artifact_sha256": asked.artifact_sha256,
        "artifact_size_bytes": size,
        "runtime": timed["runtime"],
        "threads": asked.threads,
        "request": asked.to_dict(),
        "inputs": timed["inputs"],
        "outputs": timed["outputs"],
        "batch_size": timed["batch_size"],
        "latency_s": latency,
        "load_s": timed["load_s"],
        "first_inference_s": timed["first_inference_s"],
        "memory_bytes": timed["memory_bytes"],
        "profile": timed["profile"],
        "power_w": powered["load_w"] if powered else None,
        "energy_j_per_inference": powered["gross_j_per_inference"] if powered else None,
        "power": powered,
        "power_windows": windows,
        "unmeasured": unmeasured,
        "facts": {
            **device,
            "before": before,
            "after": after,
            "after_power": after_power,
            "during": during,
            "thirds": verdict.thirds(during),
            "others": others,
            "measured_cpus": timed["cpus"],
            "cool_down": cooled,
        },
        "verdict": word,
        "verdict_reasons": reasons,
        "versions": {"agent": __version__, "protocol": PROTOCOL_VERSION},
    }


def _pause(desk: Desk, phase: str, seconds: float, text: str) -> None:
    """Let so many seconds pass, awake to the end of the wire."""
    desk.progress(phase, text=text)
    desk.worker_says(seconds)
