"""A record that a device's answer became, checked before it is kept: the device may lie or be broken."""

from __future__ import annotations

import json
import math

from kdedge.errors import WireError
from kdedge.reporting.check import parse_record

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.run_record import RunRecord
from kdedge_agent.run_request import RunRequest
from kdedge_bench.devices import Device
from kdedge_bench.text import one_line


def not_a_result(reason: object, device: Device) -> WireError:
    """The error for an answer that has the form of a message but not of a measurement."""
    return WireError(
        f"the device's answer is no measurement: {one_line(str(reason), 160)}",
        where=device.name,
        cure="Run it again; if it stays, kdedge device check says more",
    )


def checked_record(record: RunRecord, asked: RunRequest, device: Device) -> RunRecord:
    """``record``, if its figures can be figures (its samples and starts were looked at when it was built).

    Raises:
        WireError: another artifact was measured, in more or fewer starts than were asked for, a number is no finite
            non-negative number, JSON has no word for a value, or the report could not read it.
    """
    for problem in _problems(record, asked):
        raise not_a_result(problem, device)
    return record


def _problems(record: RunRecord, asked: RunRequest) -> list[str]:
    problems = []
    if record.artifact_sha256 != asked.artifact_sha256:
        problems.append("it is about another artifact")
    if record.starts != asked.starts:
        problems.append(f"it is of {record.starts} starts, and {asked.starts} were asked for")
    if not isinstance(record.runtime.get("name"), str):
        problems.append("it does not name the runtime")
    figures = {
        **{f"memory_bytes.{key}": record.memory_bytes.get(key) for key in ("peak", "steady")},
        "load_s": record.load_s,
        "first_inference_s": record.first_inference_s,
    }
    problems += [f"{key} is {value!r}" for key, value in figures.items() if not (value is None or _is_amount(value))]
    try:
        json.dumps(record.to_dict(), allow_nan=False)
        parse_record(record.to_dict())
    except (TypeError, ValueError, RecursionError, ProtocolError) as error:
        problems.append(str(error))
    return problems


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
