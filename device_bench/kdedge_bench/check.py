"""``kdedge device check``: a doctor's round, one line a finding, each failure with its cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdedge.errors import AgentError, KdedgeError

from kdedge_bench import setup, wheels
from kdedge_bench.agent_zip import agent_zip
from kdedge_bench.devices import Device, get_device
from kdedge_bench.faults import (
    HostKeyChangedError,
    HostKeyUnknownError,
    KeyRefusedError,
    NoPythonError,
    PythonTooOldError,
    setup_command,
)
from kdedge_bench.process import Transport
from kdedge_bench.remote import Ground
from kdedge_bench.text import one_line
from kdedge_bench.transport import ensure_agent, open_transport

LOW_DISK_BYTES = 200 << 20
LOW_MEMORY_BYTES = 150 << 20


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: True; False where ``bench`` cannot work; None where it works with a reservation.
        text: One line.
        cure: What to do about it; None where nothing is to be done.
    """

    name: str
    ok: bool | None
    text: str
    cure: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """All findings on a device."""

    device: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of ``bench``."""
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"device": self.device, "ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def check_device(device: Device | str, *, accept_new_host_key: bool = False) -> CheckReport:
    """Look at a device from the wire to its power sensor; what fails is a finding, not an exception.

    Args:
        device: A device or its name.
        accept_new_host_key: Put the key of a host that is not known yet on record.

    Raises:
        UserError: unknown device.
    """
    where = get_device(device) if isinstance(device, str) else device
    checks: list[Check] = []
    stage = "connection"
    try:
        with open_transport(where, accept_new_host_key=accept_new_host_key) as transport:
            checks += _connected(where)
            stage = "python"
            agent = agent_zip()
            ground = transport.look_around({agent.file_name: agent.sha256})
            checks.append(Check("python", True, f"Python {ground.version_text} at {ground.python}"))
            checks.append(_disk(ground))
            stage = "agent"
            checks += _ask_agent(transport, ground)
    except KdedgeError as error:
        checks.append(_failure(stage, error))
    return CheckReport(where.name, tuple(checks))


def _connected(device: Device) -> list[Check]:
    if device.is_local:
        return []
    return [
        Check("connection", True, f"{device.host} answers"),
        Check("host key", True, "known and unchanged"),
        Check("login", True, "your key is accepted"),
    ]


def _failure(stage: str, error: KdedgeError) -> Check:
    names: dict[type[KdedgeError], str] = {
        HostKeyChangedError: "host key",
        HostKeyUnknownError: "host key",
        KeyRefusedError: "login",
        NoPythonError: "python",
        PythonTooOldError: "python",
    }
    return Check(names.get(type(error), stage), False, error.what, error.cure)


def _disk(ground: Ground) -> Check:
    free = f"{ground.free_bytes / 1e9:.1f} GB free for {ground.cache}"
    if ground.free_bytes < LOW_DISK_BYTES:
        return Check("disk", False, free, f"Free at least {LOW_DISK_BYTES / 1e6:.0f} MB there")
    return Check("disk", True, free)


def _ask_agent(transport: Transport, ground: Ground) -> list[Check]:
    agent_path = ensure_agent(transport, ground, agent_zip())
    with transport.open_agent(ground, agent_path) as agent:
        checks = [Check("agent", True, one_line(f"agent {agent.greeting.get('agent_version')} runs", 60))]
        facts = agent.request({"type": "facts"}).get("facts")
        found = agent.request({"type": "probe"}).get("runtimes")
    checks += _runtimes(transport.device, ground, _named_runtimes(found, transport.device))
    if isinstance(facts, dict):
        checks += [_power(facts), _governor(facts), *_throttle(facts), _memory(facts)]
    return checks


def _named_runtimes(found: object, device: Device) -> dict[str, dict[str, Any]]:
    """The agent's answer to a probe: runtime -> what is known of it."""
    if isinstance(found, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("formats") or [], list) for entry in found.values()
    ):
        return found
    raise AgentError("the agent did not name its runtimes", where=device.name)


def _runtimes(device: Device, ground: Ground, found: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    planned = wheels.plan(ground)
    checks = []
    for name in setup.FORMATS:
        there = setup.available(found, name)
        if there:
            versions = ", ".join(f"{runtime} {found[runtime].get('version')}" for runtime in there)
            checks.append(Check(f"runtime {name}", True, one_line(versions)))
        elif name in planned.missing:
            checks.append(Check(f"runtime {name}", None, one_line(planned.missing[name]), "Use the other format there"))
        else:
            reasons = [str(e.get("reason")) for e in found.values() if name in (e.get("formats") or [])]
            text = one_line("; ".join(reasons) or "none")
            checks.append(Check(f"runtime {name}", False, text, setup_command(device)))
    return checks


def _power(facts: Mapping[str, Any]) -> Check:
    source = facts.get("power_source")
    if isinstance(source, dict):
        return Check("power", True, one_line(f"{source.get('name')}: {source.get('covers')}"))
    reason = one_line(str(facts.get("power_reason") or "no power source"))
    return Check(
        "power",
        None,
        reason,
        "Energy then needs a meter that this machine reads (kdedge bench --meter)",
    )


def _governor(facts: Mapping[str, Any]) -> Check:
    policies = facts.get("frequency")
    entries = policies.values() if isinstance(policies, dict) else []
    governors = sorted({str(entry.get("governor")) for entry in entries if isinstance(entry, dict)})
    if not governors:
        return Check("governor", None, "this kernel does not say (a virtual machine?)")
    text = one_line(", ".join(governors))
    if governors == ["performance"]:
        return Check("governor", True, text)
    cure = "For steady figures: echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    return Check("governor", None, text, cure)


def _throttle(facts: Mapping[str, Any]) -> list[Check]:
    throttle = facts.get("throttle")
    flags = throttle.get("set") if isinstance(throttle, dict) else None
    if not isinstance(flags, list) or not flags:
        return []
    cure = "Undervoltage: use the board's own power supply and a short cable. Throttling: cool it"
    return [Check("throttling", None, one_line(", ".join(map(str, flags))), cure)]


def _memory(facts: Mapping[str, Any]) -> Check:
    memory = facts.get("memory")
    free = memory.get("available_bytes") if isinstance(memory, dict) else None
    if not isinstance(free, int) or free < 0:
        return Check("memory", None, "the kernel does not say")
    text = f"{free / 1e9:.1f} GB available"
    if free < LOW_MEMORY_BYTES:
        return Check("memory", None, text, "Stop what else runs there, or the run may be killed")
    return Check("memory", True, text)
