"""Under what conditions a run was measured, from what the agent saw before and after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdedge.reporting.check import is_count, is_number
from kdedge.reporting.text import plain
from kdedge_agent.run_record import RunRecord

UNKNOWN = "not recorded"
SINGLE_STREAM, OFFLINE = "single-stream", "offline"
_BEFORE, _AFTER = "before", "after"
_MAX_FACTS = 400
_MAX_LISTED = 16
# Suffix of a fact's name -> factor and symbol of the written unit.
_UNITS: tuple[tuple[str, float, str], ...] = (
    ("_hz", 1e-9, "GHz"),
    ("_khz", 1e-6, "GHz"),
    ("_mhz", 1e-3, "GHz"),
    ("_millic", 1e-3, "°C"),
    ("_c", 1, "°C"),
    ("_bytes", 1e-6, "MB"),
    ("_w", 1, "W"),
    ("_v", 1, "V"),
    ("_s", 1, "s"),
)
# What a lab asks first, and the names under which facts hold it, the preferred one first.
_STATIC = {
    "Board": ("board", "model"),
    "CPU": ("cpu", "cpu_model"),
    "OS": ("os_release", "os"),
    "Kernel": ("kernel",),
    "Architecture": ("machine",),
    "Python": ("python",),
    "Power mode": ("power_mode",),
}
_STATE = {
    "Governor": ("governor",),
    "Frequency": ("current_hz", "frequency_hz"),
    "Temperature": ("temperature_c",),
    "Throttle flags": ("throttle",),
    "Load average": ("load_average",),
}


def conditions(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Name and text of each condition, in reading order; what the record does not hold says so."""
    pairs = [
        ("Measured", plain(record.created_at).replace("T", " ").replace("+00:00", "Z").replace("Z", " UTC")),
        ("Runtime", plain(" ".join(str(record.runtime[k]) for k in ("name", "version") if record.runtime.get(k)))),
        ("Provider or delegate", _value("", record.runtime.get("provider") or record.runtime.get("delegate"))),
        ("Scenario", _scenario(record)),
        ("Threads", str(record.threads)),
        ("Starts", str(record.starts)),
    ]
    pairs += [(title, state(record, title)) for title in _STATE]
    pairs += [(title, text or "") for title in _STATIC if (text := fact(record, title)) or title != "Power mode"]
    pairs += [(f"Version of {plain(name)}", plain(version)) for name, version in sorted(record.versions.items())]
    return tuple((title, text or UNKNOWN) for title, text in pairs)


def state(record: RunRecord, title: str) -> str:
    """A fact that may change during a run (``Governor``, ``Temperature`` ...): ``before → after``.

    Once where nothing changed; ``not recorded`` where neither snapshot holds it.
    """
    seen = []
    for moment in (_BEFORE, _AFTER):
        part = record.facts.get(moment)
        seen.append(_first(_leaves(part), _STATE[title]) if isinstance(part, Mapping) else None)
    before, after = seen
    if before == after:
        return before or _first(_leaves(record.facts), _STATE[title]) or UNKNOWN
    return f"{before or UNKNOWN} → {after or UNKNOWN}"


def fact(record: RunRecord, title: str) -> str | None:
    """One fact that does not change (``Board``, ``CPU``, ``OS`` ...), or None."""
    return _first(_leaves(record.facts), _STATIC[title])


def identity(record: RunRecord) -> tuple[str, str, str]:
    """Device, board and CPU, empty where not recorded: many machines are called ``local``, and are not one."""
    return record.device, fact(record, "Board") or "", fact(record, "CPU") or ""


def scenario(record: RunRecord) -> str:
    """``offline`` (batches back to back) or ``single-stream``, which all older records are of."""
    is_offline = record.throughput is not None or record.request.get("scenario") == OFFLINE
    return OFFLINE if is_offline else SINGLE_STREAM


def batch_size(record: RunRecord) -> int | None:
    """Samples in one timed call of ``offline``; None of another scenario, or where the record does not say."""
    if scenario(record) != OFFLINE:
        return None
    sizes = ((record.throughput or {}).get("batch_size"), record.request.get("batch_size"))
    return next((size for size in sizes if is_count(size)), None)


def _scenario(record: RunRecord) -> str:
    size = batch_size(record)
    return scenario(record) if size is None else f"{OFFLINE}, batches of {size}"


def all_facts(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Every fact as dotted name and text, for the reader who wants all; cut off, and said so, at 400."""
    pairs = [(plain(name), _value(name, value)) for name, value in _flat(facts, "")]
    if len(pairs) > _MAX_FACTS:
        return (*pairs[:_MAX_FACTS], ("…", f"{len(pairs) - _MAX_FACTS} more in the record"))
    return tuple(pairs)


def _leaves(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name and value of every mapping entry, upper levels first, before/after left aside."""
    entries: list[tuple[str, Any]] = []
    level: list[Mapping[str, Any]] = [facts]
    while level:
        below = []
        for mapping in level:
            for name, value in mapping.items():
                if name in (_BEFORE, _AFTER):
                    continue
                entries.append((str(name), value))
                if isinstance(value, Mapping):
                    below.append(value)
        level = below
    return entries


def _first(entries: Sequence[tuple[str, Any]], names: Sequence[str]) -> str | None:
    """What stands under the first of the names; several (one a processor cluster) as a range or a list."""
    for name in names:
        values = [value for key, value in entries if key == name and value not in (None, "", [], {})]
        if values:
            return _value(name, values[0] if len(values) == 1 else values)
    return None


def _value(name: str, value: Any) -> str:
    """A fact as text, in the unit that its name's suffix tells."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return _number(name, float(value))
    if isinstance(value, Mapping):
        return _mapping(name, value)
    if isinstance(value, (list, tuple)):
        return _list(name, value)
    return plain(value)


def _mapping(name: str, value: Mapping[str, Any]) -> str:
    if isinstance(value.get("set"), list):  # flags: those that are up, or why they cannot be read
        flags = ", ".join(plain(flag) for flag in value["set"])
        return flags or (plain(value["reason"]) if value.get("reason") else "none set")
    if _has_unit(name) and value and all(map(is_number, value.values())):
        return _list(name, list(value.values()))
    return ", ".join(f"{plain(k)} {_value(_unit_name(name, k), item)}" for k, item in value.items()) or "none"


def _unit_name(name: str, key: object) -> str:
    """The name that tells the unit: the entry's own, else that of the mapping around it."""
    return str(key) if _has_unit(str(key)) else name


def _has_unit(name: str) -> bool:
    return any(name.endswith(suffix) for suffix, _, _ in _UNITS)


def _list(name: str, values: Sequence[Any]) -> str:
    if not values:
        return "none"
    if all(map(is_number, values)) and _has_unit(name):
        low, high = _number(name, min(values)), _number(name, max(values))
        return low if low == high else f"{low.split(' ', maxsplit=1)[0]} to {high}"
    texts = [_value(name, value) for value in values[:_MAX_LISTED]]
    if len(values) > _MAX_LISTED:
        texts.append(f"… ({len(values)} in all)")
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _number(name: str, value: float) -> str:
    for suffix, factor, symbol in _UNITS:
        if name.endswith(suffix):
            return f"{value * factor:.4g} {symbol}"
    return str(int(value)) if value == int(value) else f"{value:.4g}"


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def slug(text: str) -> str:
    """A fragment identifier from any text: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
