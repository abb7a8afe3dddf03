"""Which ops take the time, and what runs them.

ONNX Runtime writes every kernel's times to a file; that costs time itself, so the profile comes from a session of its
own, after everything else was timed. The Python packages of LiteRT and tflite-runtime give no times of ops; of them the
profile says which ops a delegate took over.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

MAX_OPS = 100
"""Ops that a profile names one by one; the sums by type are over all of them."""
PROFILE_S = 1.0
"""Profiled inferences take about so long in all ..."""
MAX_RUNS = 200
"""... and are at most so many, for each writes a line an op."""
DELEGATE = "DELEGATE"
_KERNEL = "_kernel_time"
_Op = Tuple[str, str, str]


def from_trace(path: Path, skipped_runs: int) -> Dict[str, Any]:
    """The profile in a file that ONNX Runtime's profiler wrote.

    Args:
        path: A list of events in Chrome's trace format, as `end_profiling` leaves it.
        skipped_runs: First inferences, which are not counted.

    Returns:
        runs, inference_s (mean of whole inferences), ops_s (mean of the sum of their ops), by_op (op, provider, count,
        mean_s and share of ``ops_s``, the longest first), ops (the same of the longest ``MAX_OPS``, with their name).
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    whole = [event["dur"] for event in events if event.get("cat") == "Session" and event.get("name") == "model_run"]
    times: Dict[_Op, List[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name"))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            said = event.get("args", {})
            times[(name[: -len(_KERNEL)], str(said.get("op_name")), str(said.get("provider")))].append(event["dur"])
    whole = whole[skipped_runs:]
    if not whole:
        return {"runs": 0, "inference_s": None, "ops_s": None, "by_op": [], "ops": []}
    runs, all_runs = len(whole), len(whole) + skipped_runs
    # A node may run several times an inference, in a loop.
    counted = {op: found[-(len(found) * runs // all_runs) :] for op, found in times.items()}
    means = {op: 1e-6 * sum(found) / runs for op, found in counted.items()}
    return {"runs": runs, "inference_s": 1e-6 * sum(whole) / runs, **_shares(means)}


def _shares(means: Mapping[_Op, float]) -> Dict[str, Any]:
    total = sum(means.values())
    types: Dict[Tuple[str, str], List[float]] = defaultdict(list)
    for (_, op, provider), mean_s in means.items():
        types[(op, provider)].append(mean_s)

    def share(seconds: float) -> float:
        return seconds / total if total else 0.0

    by_op: List[Dict[str, Any]] = [
        {"op": op, "provider": provider, "count": len(found), "mean_s": sum(found), "share": share(sum(found))}
        for (op, provider), found in types.items()
    ]
    ops: List[Dict[str, Any]] = [
        {"name": name, "op": op, "provider": provider, "mean_s": mean_s, "share": share(mean_s)}
        for (name, op, provider), mean_s in means.items()
    ]
    for entries in (by_op, ops):
        entries.sort(key=lambda entry: -float(entry["mean_s"]))
    return {"ops_s": total, "by_op": by_op, "ops": ops[:MAX_OPS]}


def delegated(ops: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """What the delegates of a TFLite interpreter took over.

    Args:
        ops: ``_get_ops_details()`` after tensors are allocated: the ops of the file, and a DELEGATE op for each part
            that one took over, with the tensors that go in and come out.

    Returns:
        partitions, delegated and left: how many ops of each type, by name.
    """
    own = [op for op in ops if op["op_name"] != DELEGATE]
    makers = {int(tensor): op for op in own for tensor in op["outputs"]}
    taken: Set[int] = set()
    for delegate in (op for op in ops if op["op_name"] == DELEGATE):
        inside = {int(tensor) for tensor in delegate["inputs"]}
        wanted = [int(tensor) for tensor in delegate["outputs"]]
        while wanted:
            tensor = wanted.pop()
            maker = makers.get(tensor)
            if tensor in inside or maker is None or int(maker["index"]) in taken:
                continue
            taken.add(int(maker["index"]))
            wanted += [int(source) for source in maker["inputs"]]
    counts: Dict[bool, Dict[str, int]] = {True: {}, False: {}}
    for op in own:
        found = counts[int(op["index"]) in taken]
        found[op["op_name"]] = found.get(op["op_name"], 0) + 1
    return {"partitions": len(ops) - len(own), "delegated": counts[True], "left": counts[False]}
