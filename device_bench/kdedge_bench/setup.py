"""``kdedge device setup``: the runtimes onto a device, into an environment of kdedge's own.

Nothing needs root there, and nothing outside ``~/.cache/kdedge`` is touched (PEP 668: the system's Python
belongs to the system). Where the device has no internet, the host fetches the wheels and pushes them.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdedge.errors import AgentError, DeviceError
from kdedge.files import sha256_file

from kdedge_bench import remote, wheels
from kdedge_bench.agent_zip import agent_zip
from kdedge_bench.channel import AgentChannel
from kdedge_bench.devices import Device, get_device
from kdedge_bench.faults import DiskFullError, RuntimeMissingError
from kdedge_bench.process import Transport
from kdedge_bench.remote import Ground
from kdedge_bench.text import last_line, one_line
from kdedge_bench.transport import ensure_agent, open_transport

FORMATS = ("onnx", "tflite")
_INSTALL_S = 1800.0
_PIP = ("-m", "pip", "--no-input", "--disable-pip-version-check", "--quiet", "install", "--only-binary=:all:",
        "--no-compile")  # fmt: skip
"""Of the wheels' thousands of modules a runtime imports few, which the probe compiles when it is set up."""

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class SetupResult:
    """What a set-up did.

    Attributes:
        device: Its name.
        python: The interpreter that measures from now on.
        python_version: Of it.
        changed: Whether anything was installed.
        method: ``none``, ``internet`` or ``offline``.
        runtimes: Name -> version, of what imports there.
        missing: Format -> why no runtime for it is there.
    """

    device: str
    python: str
    python_version: str
    changed: bool
    method: str
    runtimes: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def setup_device(
    device: Device | str,
    *,
    offline: bool | None = None,
    accept_new_host_key: bool = False,
    progress: OnStep | None = None,
) -> SetupResult:
    """Make sure that a device has a runtime for each format that can have one there.

    Does nothing where they are there already. An environment is built beside the old one and takes its place
    only when it is complete, so that a set-up that breaks off changes nothing.

    Args:
        device: A device or its name.
        offline: True fetches the wheels on this machine; False uses the device's internet; None tries the
            device's internet first.
        accept_new_host_key: Put the key of a host that is not known yet on record.
        progress: Called with one line for each step.

    Raises:
        DeviceError: one of its children, with the cure.
    """
    where = get_device(device) if isinstance(device, str) else device
    tell = progress or _ignore
    with open_transport(where, accept_new_host_key=accept_new_host_key) as transport:
        agent = agent_zip()
        ground = transport.look_around({agent.file_name: agent.sha256})
        found = probe(transport, ground)
        planned = wheels.plan(ground)
        if _covers(found, planned):
            tell(f"{where.name} has what it needs in {ground.python}")
            return _result(where, ground, found, planned, method="none")
        if where.is_local or where.python is not None:
            raise _not_ours(where, ground, found, planned)
        base = transport.look_around({agent.file_name: agent.sha256}, own_venv=False)
        planned = wheels.plan(base)
        if not planned.requirements:
            raise RuntimeMissingError(
                f"no runtime can be had there: {'; '.join(planned.missing.values())}", where=where.name
            )
        method = _build(transport, base, planned, offline, tell)
        ground = transport.look_around({agent.file_name: agent.sha256})
        found = probe(transport, ground)
        if not _covers(found, planned):
            reasons = [str(entry.get("reason")) for entry in found.values() if not entry.get("available")]
            raise RuntimeMissingError(f"installed, but not usable: {one_line('; '.join(reasons))}", where=where.name)
        return _result(where, ground, found, planned, method=method)


def probe(transport: Transport, ground: Ground) -> dict[str, dict[str, Any]]:
    """Runtime -> available, version, formats, reason; each tried in a process of its own on the device."""
    agent_path = ensure_agent(transport, ground, agent_zip())
    with transport.open_agent(ground, agent_path) as agent:
        answer = agent.request({"type": "probe"})
    found = answer.get("runtimes")
    if not isinstance(found, dict) or not all(map(_is_entry, found.values())):
        raise AgentError("the agent did not name its runtimes", where=transport.device.name)
    return found


def available(found: Mapping[str, Mapping[str, Any]], format_name: str) -> list[str]:
    """Names of the runtimes that are there for a format."""
    there = {name: entry for name, entry in found.items() if _is_entry(entry) and entry.get("available") is True}
    return [name for name, entry in there.items() if format_name in (entry.get("formats") or [])]


def _is_entry(entry: object) -> bool:
    """Whether that can be an agent's word on a runtime."""
    return isinstance(entry, dict) and isinstance(entry.get("formats") or [], list)


def _covers(found: Mapping[str, Mapping[str, Any]], planned: wheels.Plan) -> bool:
    return all(available(found, name) for name in FORMATS if name not in planned.missing)


def _result(
    device: Device, ground: Ground, found: Mapping[str, Mapping[str, Any]], planned: wheels.Plan, *, method: str
) -> SetupResult:
    return SetupResult(
        device=device.name,
        python=ground.python,
        python_version=ground.version_text,
        changed=method != "none",
        method=method,
        runtimes={n: one_line(str(e.get("version")), 40) for n, e in found.items() if e.get("available") is True},
        missing={name: why for name, why in planned.missing.items() if not available(found, name)},
    )


def _not_ours(
    device: Device, ground: Ground, found: Mapping[str, Mapping[str, Any]], planned: wheels.Plan
) -> RuntimeMissingError:
    lacking = [name for name in FORMATS if name not in planned.missing and not available(found, name)]
    return RuntimeMissingError(
        f"no runtime for {' and '.join(lacking)} in a Python that is yours",
        where=f"{device.name}: {ground.python}",
        cure=f"Install it there: {ground.python} -m pip install {shlex.join(planned.for_formats(lacking))}"
        + (
            ""
            if device.is_local
            else "; or let kdedge make an environment of its own: "
            f"kdedge device add {device.name} {device.address} --replace --python ''"
        ),
    )


def _build(transport: Transport, base: Ground, planned: wheels.Plan, offline: bool | None, tell: OnStep) -> str:
    """A new environment, complete, in the place of the old one; how its wheels came.

    It is built in the folder of an agent that waits beside it. However the set-up ends, that agent removes its folder,
    or the next one does; and two set-ups of one device have a folder each.
    """
    with transport.open_agent(base, ensure_agent(transport, base, agent_zip())) as agent:
        folder = f"{_scratch(agent, transport.device)}/setup"
        try:
            tell(f"making an environment for Python {base.version_text}")
            _run(transport, base, [base.python, "-m", "venv", "--without-pip", f"{folder}/venv"], "make an environment")
            method = _install(transport, base, folder, planned, offline, tell)
            words = [base.python, "-c", _SWAP, f"{folder}/venv", base.path("venv"), folder]
            _run(transport, base, words, "put in place")
        finally:
            # Of an environment that failed these are thousands of files, and the agent's own leaving is soon cut short.
            with contextlib.suppress(DeviceError):
                transport.run([base.python, "-c", remote.REMOVE, json.dumps([folder])])
    return method


def _scratch(agent: AgentChannel, device: Device) -> str:
    """The agent's own folder, which goes when it ends."""
    try:
        return remote.checked_path(agent.greeting.get("scratch_dir"))
    except ValueError:
        reason = one_line(str(agent.greeting.get("scratch_reason")))
        cure = "~/.cache/kdedge must be writable there"
        raise AgentError(f"the agent has no folder to build in: {reason}", where=device.name, cure=cure) from None


# Again where another set-up puts its own in place between the two renames.
_SWAP = remote.program("""
import errno, os, sys
new, place, old = sys.argv[1:]
for number in range(100):
    try:
        os.rename(place, os.path.join(old, "old-%d" % number))
    except FileNotFoundError:
        pass
    try:
        os.rename(new, place)
        break
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or number == 99:
            raise
""")


def _install(
    transport: Transport, base: Ground, folder: str, planned: wheels.Plan, offline: bool | None, tell: OnStep
) -> str:
    """The runtimes into ``folder/venv``, which has no pip (Debian keeps ensurepip in a package of its own)."""
    python = f"{folder}/venv/bin/python"
    if not offline:
        tell(f"installing {', '.join(planned.requirements)} over the device's internet")
        try:
            _install_online(transport, base, python, planned.requirements)
        except DiskFullError:
            raise
        except AgentError as error:
            if offline is False:
                raise
            tell(f"that did not work ({error.what}); this machine fetches the wheels")
        else:
            return "internet"
    tell("fetching wheels on this machine")
    source = f"{folder}/wheels"
    with tempfile.TemporaryDirectory(prefix="kdedge-wheels-") as fetched:
        files = wheels.fetch([*planned.requirements, "pip"], base, Path(fetched))
        for number, wheel in enumerate(files, 1):
            tell(f"sending {wheel.name} ({number} of {len(files)})")
            transport.put(wheel, f"{source}/{wheel.name}", sha256_file(wheel), ground=base)
        tell("installing on the device")
        pip = next(wheel.name for wheel in files if wheel.name.startswith("pip-"))
        words = [python, f"{source}/{pip}/pip", *_PIP[2:], "--no-index", "--find-links", source, *planned.requirements]
        _run(transport, base, words, "install the wheels")
    return "offline"


def _install_online(transport: Transport, base: Ground, python: str, requirements: Sequence[str]) -> None:
    """With the environment's own pip, which ensurepip makes where it is there.

    That is as old as the Python (20.0 of 3.8), does not know the tags of newer wheels and so takes old runtimes.
    """
    _run(transport, base, [python, "-m", "ensurepip"], "get pip from ensurepip")
    pip = [python, *_PIP, "--prefer-binary", "--retries", "1", "--timeout", "20"]
    _run(transport, base, [*pip, "--upgrade", "pip"], "get a new pip from the internet")
    _run(transport, base, [*pip, *requirements], "install from the internet")


def _run(transport: Transport, base: Ground, words: Sequence[str], what: str) -> None:
    """A long step on the device that ends when the connection does.

    Raises:
        DiskFullError: no space left there.
        AgentError: it failed there, with its last line.
    """
    done = transport.run_guarded(words, base, timeout_s=_INSTALL_S)
    if done.code == 0:
        return
    name = transport.device.name
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        raise DiskFullError(
            f"no space left on the device to {what}",
            where=name,
            cure="The runtimes need about 500 MB in ~/.cache there",
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise AgentError(f"cannot {what}: {last_line(errors[-1] if errors else done.stderr)}", where=name)


def _ignore(_: str) -> None:
    """Show nothing."""
