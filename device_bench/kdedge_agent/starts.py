"""Several starts of the worker in one measurement: run them one after the other, and make one answer of theirs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from kdedge_agent import memory, neighbours
from kdedge_agent.observe import watch
from kdedge_agent.order_statistics import percentile
from kdedge_agent.run_request import RunRequest
from kdedge_agent.server import Desk

Watched = Tuple[Dict[str, Any], List[Dict[str, Any]], Dict[str, Any]]
"""What a worker measured, the glances at the board meanwhile, and what else ran."""


def run(desk: Desk, asked: RunRequest, root: Path) -> Watched:
    """Time the artifact in as many worker processes as are asked for; the last one stays, for the power window.

    Returns:
        As of one start, with the samples one start after the other, and ``starts`` in what was measured: of each n,
        warmup_n, warmup_steady, load_s, first_inference_s, preempted, waited_s and peak_rss_bytes.
    """
    found: List[Watched] = []
    for number in range(asked.starts):
        desk.end_worker()
        request = asked.of_start(number).to_dict()
        desk.start_worker({"type": "measure", "request": request, "threads": asked.threads})
        found.append(watch(desk, root, number, asked.starts))
    return _one_answer(found)


def _one_answer(found: Sequence[Watched]) -> Watched:
    timed = [message for message, _, _ in found]
    during: List[Dict[str, Any]] = []
    done = 0
    for message, glances, _ in found:
        during += [{**glance, "samples": glance["samples"] + done} for glance in glances]
        done += len(message["samples"])
    sizes = memory.largest([message["memory_bytes"] for message in timed])
    answer = {
        **timed[-1],
        "samples": [sample for message in timed for sample in message["samples"]],
        "warmup_samples": [sample for message in timed for sample in message["warmup_samples"]],
        "warmup_steady": all(message["warmup_steady"] for message in timed),
        "preempted": sum(message["preempted"] for message in timed),
        "waited_s": _sum(message["waited_s"] for message in timed),
        "load_s": _median(timed, "load_s"),
        "first_inference_s": _median(timed, "first_inference_s"),
        "memory_bytes": sizes,
        "unmeasured": _reasons(timed, sizes),
        "starts": [_start(message) for message in timed],
    }
    others = neighbours.merged([(math.fsum(message["samples"]), said) for message, _, said in found])
    return answer, during, others


def _start(message: Mapping[str, Any]) -> Dict[str, Any]:
    taken = ("warmup_steady", "load_s", "first_inference_s", "preempted", "waited_s")
    return {
        "n": len(message["samples"]),
        "warmup_n": len(message["warmup_samples"]),
        **{key: message[key] for key in taken},
        "peak_rss_bytes": message["memory_bytes"]["peak"],
    }


def _reasons(timed: Sequence[Mapping[str, Any]], sizes: Mapping[str, Optional[int]]) -> Dict[str, str]:
    """Why sizes are missing that no start knows, and what the last start, which was asked for all, has not."""
    reasons: Dict[str, str] = {}
    for message in timed:
        for key, reason in message["unmeasured"].items():
            group, _, name = key.partition(".")
            if sizes.get(name) is None if group == "memory_bytes" else message is timed[-1]:
                reasons[key] = reason
    return reasons


def _median(timed: Sequence[Mapping[str, Any]], key: str) -> float:
    return percentile(sorted(message[key] for message in timed), 0.5)


def _sum(values: Any) -> Optional[float]:
    given = list(values)
    return None if None in given else math.fsum(given)
