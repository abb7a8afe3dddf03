"""Inside the worker process: one job, then the end. Messages go to the agent, which relays what the host may see.

A job is ``{"type": "measure"|"score"|"probe", "request": {...}, "threads": n}``. The memory of this process is what
the record reports, so nothing is imported before the phase it belongs to.
"""

from __future__ import annotations

import os
import queue
import resource
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from kdedge_agent.memory import PhaseMemory
from kdedge_agent.process import die_with_parent
from kdedge_agent.protocol import ProtocolError, decode, from_dict
from kdedge_agent.run_request import RunRequest, ScoreRequest
from kdedge_agent.wire import Sender, claim_stdout, lines

SCORE_CHUNK = 64
"""Samples between two tellings of progress."""
_TEXT_BYTES = 48 * 1024


class Commands:
    """What the agent says while the job runs; when it says nothing more, this process ends."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._queue: "queue.Queue[Dict[str, Any]]" = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in lines(sys.stdin.buffer):
            try:
                command = decode(line or b"")
            except ProtocolError:
                continue
            if command["type"] == "stop":
                self.stop.set()
            else:
                self._queue.put(command)
        os._exit(0)  # the agent is gone; a thread inside the runtime could not be ended otherwise

    def next(self) -> Dict[str, Any]:
        """The next command, waiting for it."""
        return self._queue.get()


def _prepare_process() -> None:
    """Die with the agent, leave no core dump, and be the one whom a kernel out of memory kills."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def measure(request: RunRequest, sender: Sender, commands: Commands) -> None:
    """Load, first inference, warm-up, timing, memory, for one start; then load for the power window on command."""
    memory = PhaseMemory()
    memory.end("start")
    if request.pin is not None:
        os.sched_setaffinity(0, request.pin)  # before a runtime starts threads, which inherit it
    sender.send(
        {"type": "doing", "phase": "import", "doing": f"importing {request.runtime or request.format + ' runtimes'}"}
    )
    from kdedge_agent import runtimes

    name = runtimes.choose(request.format, request.runtime)
    from kdedge_agent import tensors, timing

    memory.end("import")
    sender.send({"type": "doing", "phase": "load", "doing": f"loading {Path(request.artifact).name} into {name}"})
    session = runtimes.load(request.artifact, request.format, name, request.threads, request.provider)
    memory.end("load")
    sender.send({"type": "doing", "phase": "first", "doing": f"running the first inference with {name}"})
    offline = request.scenario == "offline"
    batch = tensors.batch_size(session, request.batch_size, request.input_shapes) if offline else 1
    arrays = tensors.random_inputs(session, request.seed, batch, request.input_shapes)
    session.set_inputs(arrays)
    first_s = timing.time_once(session.invoke)
    memory.end("first")
    sender.send({"type": "doing", "phase": "warm-up", "doing": f"warming up with {name}"})
    warm = timing.warm_up(session.invoke, request.warmup_max_s, _tick(sender, "warm-up"), request.max_samples)
    sender.send({"type": "doing", "phase": "timing", "doing": f"timing with {name}"})
    usage, waits = resource.getrusage(resource.RUSAGE_SELF), timing.waited_s()
    samples = timing.time_calls(
        session.invoke,
        request.repetitions,
        request.min_duration_s,
        _tick(sender, "timing"),
        max_samples=request.max_samples,
        look=_look(sender, commands),
    )
    used, waited_s = resource.getrusage(resource.RUSAGE_SELF), timing.longest_wait_s(waits, timing.waited_s())
    memory.end("steady")
    sizes, reasons = memory.result()
    profile = None
    if request.profile or request.provider is not None:  # a provider that ran nothing must not pass for one that did
        sender.send({"type": "doing", "phase": "profile", "doing": f"profiling with {name}"})
        profile, missing = _profile(session)
        reasons.update({f"profile.{key}": reason for key, reason in missing.items()})
    sender.send(
        {
            "type": "timed",
            "runtime": session.described(),
            "inputs": [{**_described(info), "shape": list(array.shape)} for info, array in zip(session.inputs, arrays)],
            "outputs": [_described(info) for info in session.outputs],
            "load_s": session.load_s,
            "first_inference_s": first_s,
            "warmup_samples": warm.samples_s,
            "warmup_steady": warm.steady,
            "warmup_rule": warm.rule,
            "samples": samples,
            "memory_bytes": sizes,
            "profile": profile,
            "unmeasured": reasons,
            "preempted": used.ru_nivcsw - usage.ru_nivcsw,
            "waited_s": waited_s,
            "used_s": used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime,
            "batch_size": batch,
            "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        }
    )
    sender.send({"type": "doing", "phase": "power", "doing": f"running for the power window with {name}"})
    _serve_power(session.invoke, batch, sender, commands)


def _profile(session: Any) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The session's profile; its files of the moment go with their folder."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="kdedge-profile-") as folder:
        found: Tuple[Dict[str, Any], Dict[str, str]] = session.profile(Path(folder))
        return found


def _serve_power(invoke: Callable[[], Any], batch: int, sender: Sender, commands: Commands) -> None:
    """``load``: run until ``stop``, say when that began, and how many samples went through until when; ``end``: return.

    For ``settle_s`` seconds before and after these moments it runs as well: a sensor that answers late, or with the
    mean of what has been, then sees load at both ends of the window.
    """
    while True:
        command = commands.next()
        if command["type"] != "load":
            return
        settle_s = float(command.get("settle_s", 0.0))
        _run_for(invoke, settle_s)
        count, begin_s = 0, time.monotonic()
        sender.send({"type": "loading", "begin_s": begin_s})
        while not commands.stop.is_set():
            invoke()
            count += batch
        end_s = time.monotonic()
        commands.stop.clear()
        _run_for(invoke, settle_s)
        sender.send({"type": "loaded", "inferences": count, "batch": batch, "begin_s": begin_s, "end_s": end_s})


def _run_for(invoke: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        invoke()


def _tick(sender: Sender, phase: str) -> Callable[[int, int, float], None]:
    def tick(done: int, total: int, elapsed_s: float) -> None:
        sender.send({"type": "progress", "phase": phase, "done": done, "total": total, "elapsed_s": elapsed_s})

    return tick


def _look(sender: Sender, commands: Commands) -> Callable[[int, bool], None]:
    """Let the agent look at the board, and rest until it has: nothing of that look falls into a sample."""

    def look(done: int, last: bool) -> None:
        sender.send({"type": "look", "done": done, "last": last})
        commands.next()

    return look


def _described(info: Any) -> Dict[str, Any]:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "scale": info.scale,
        "zero_point": info.zero_point,
    }


def score(request: ScoreRequest, sender: Sender, commands: Commands) -> None:
    """Arg-max, or the output itself, of every sample with the device's own kernels."""
    del commands
    sender.send(
        {"type": "doing", "phase": "import", "doing": f"importing {request.runtime or request.format + ' runtimes'}"}
    )
    from kdedge_agent import runtimes, tensors

    session = runtimes.load(request.artifact, request.format, request.runtime, request.threads, request.provider)
    sender.send({"type": "doing", "phase": "scoring", "doing": f"scoring with {session.name}"})
    names, shape = request.columns, request.shape
    samples = tensors.read_samples(request.samples, [len(names), *shape] if names else shape, request.dtype)
    metadata = session.metadata()

    def logits(start: int) -> Any:
        chosen = slice(start, start + SCORE_CHUNK)
        if names:
            return tensors.logits_of_columns(session, {name: samples[i, chosen] for i, name in enumerate(names)})
        part = samples[chosen]
        values = tensors.normalise(part, metadata) if request.dtype == "uint8" else part
        return tensors.logits(session, values, metadata)

    classes: List[int] = []
    outputs: List[bytes] = []
    begin = time.monotonic()
    tick = _tick(sender, "scoring")
    for start in range(0, shape[0], SCORE_CHUNK):
        rows = logits(start)
        if request.returns == "outputs":
            outputs.append(rows.astype("<f4").tobytes())
        else:
            classes += rows.argmax(axis=1).tolist()
        tick(start + len(rows), shape[0], time.monotonic() - begin)
    found = {"outputs": _texts(b"".join(outputs))} if outputs else {"predictions": classes}
    sender.send(
        {
            "type": "scored",
            "runtime": session.described(),
            "n": shape[0],
            **found,
            "elapsed_s": time.monotonic() - begin,
        }
    )


def _texts(data: bytes) -> List[str]:
    """Base64 in strings so short that the host, which cuts what is long, takes each as it is."""
    import base64

    pieces = range(0, len(data), _TEXT_BYTES)
    return [base64.b64encode(data[start : start + _TEXT_BYTES]).decode() for start in pieces]


def probe(name: str, sender: Sender) -> None:
    """Import one runtime and say its version."""
    sender.send({"type": "doing", "phase": "import", "doing": f"importing {name}"})
    from kdedge_agent import runtimes

    version = runtimes.import_runtime(name)
    import numpy

    sender.send({"type": "probed", "version": version, "numpy": numpy.__version__})


def _run(job: Dict[str, Any], sender: Sender, commands: Commands) -> None:
    if job["type"] == "measure":
        measure(from_dict(RunRequest, job["request"]), sender, commands)
    elif job["type"] == "score":
        score(from_dict(ScoreRequest, job["request"]), sender, commands)
    else:
        probe(str(job["runtime"]), sender)


def _failure(error: Exception) -> Dict[str, Any]:
    """The error message of an exception, by what it is; runtimes raise classes of their own."""
    from kdedge_agent.session import RuntimeMissing, RuntimeTrouble

    if isinstance(error, RuntimeTrouble):
        kind = "runtime-missing" if isinstance(error, RuntimeMissing) else "refused"
        return {"type": "error", "kind": kind, "message": error.what, "cure": error.cure}
    if isinstance(error, MemoryError):
        cure = "Free some, or use a smaller model"
        return {"type": "error", "kind": "out-of-memory", "message": "not enough memory", "cure": cure}
    words = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {words[0][:300] if words else ''}"
    return {"type": "error", "kind": "runtime-error", "message": text, "cure": None}


def main() -> int:
    """Read one job from stdin, do it, and answer."""
    _prepare_process()
    sender = Sender(claim_stdout())
    commands = Commands()
    job = commands.next()
    try:
        _run(job, sender, commands)
    except Exception as error:  # whatever a runtime raises must reach the agent as a message
        sender.send(_failure(error))
    return 0
