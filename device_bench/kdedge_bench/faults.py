"""What goes wrong between host and device, each with its cure."""

from __future__ import annotations

import os.path
import re
import shlex

from kdedge.errors import AgentError, ArtifactError, KdedgeError, UnreachableError, UserError, WireError

from kdedge_bench.artifact_file import ArtifactFile
from kdedge_bench.devices import Device
from kdedge_bench.text import last_line, one_line, plain


class SshClientError(UnreachableError):
    """This machine's own SSH client is missing or misconfigured."""


class HostUnknownError(UnreachableError):
    """The host's name does not resolve."""


class ConnectionRefusedByHostError(UnreachableError):
    """The host is up, but no SSH server listens on the port."""


class HostTimeoutError(UnreachableError):
    """The host does not answer, or there is no route to it."""


class HostKeyChangedError(UnreachableError):
    """The host shows another key than the one on record: another machine, or someone in between."""


class HostKeyUnknownError(UnreachableError):
    """The host's key is not on record yet."""


class KeyRefusedError(UnreachableError):
    """The host does not accept the user's key."""


class LoginShellError(UnreachableError):
    """The login works, but nothing runs commands behind it."""


class NoPythonError(AgentError):
    """No Python to run the agent with."""


class PythonTooOldError(AgentError):
    """The Python on the device is older than the agent can use."""


class RuntimeMissingError(AgentError):
    """No runtime for the artifact's format in the device's Python."""


class DeviceBusyError(AgentError):
    """Another measurement runs on the device."""


class DiskFullError(AgentError):
    """No space left on the device."""


def setup_command(device: Device) -> str:
    """The command that puts the runtimes onto the device."""
    if device.is_local:
        return "pip install onnxruntime ai-edge-litert"
    return f"kdedge device setup {device.name}"


def explain_ssh(stderr: str, device: Device, *, way: str | None = None) -> KdedgeError:
    """The error for what the OpenSSH client said before it gave up.

    Args:
        stderr: Its standard error.
        device: Whom it tried to reach.
        way: The jump host or proxy that it went through, where there is one.

    Returns:
        An UnreachableError, or a WireError if the client said nothing that is known.
    """
    text = plain(stderr)
    where = f"{device.name}: {device.address}"
    target, login = _target(device), _login(device)
    # The client that goes through a jump host only sees that one end, and after it said why. Where the jump host did
    # not get through to the device, it says so, and the fault is the device's as without it.
    ends = _ENDED_ON_THE_WAY.search(text) if way is not None and "stdio forwarding failed" not in text else None
    said_on_the_way = last_line(text[: ends.start()]) if ends is not None else ""
    said = said_on_the_way or last_line(text)
    words = {
        "detail": said,
        "login": login,
        "target": target,
        "host": device.host,
        "port": device.port or 22,
        "entry": _known_host(text, device),
    }
    for pattern, kind, what, cure in _SSH_FAULTS:
        if not (match := re.search(pattern, text, re.IGNORECASE)):
            continue
        if ends is not None and kind not in (HostKeyChangedError, SshClientError):
            return kind(
                f"no way through {way}: {said}",
                where=where,
                cure=f"The fault lies on the way there{'' if said_on_the_way else ' or at the device'}: log in once "
                f"with {login}, which goes the same way and asks for what is lacking",
            )
        words["detail"] = last_line(text[: match.end()] + text[match.end() :].partition("\n")[0])
        return kind(what.format(**words), where=where, cure=cure.format(**words))
    return WireError(
        f"the connection ended: {said}" if said else "the connection ended without a word",
        where=where,
        cure=f"Try {login} by hand",
    )


def explain_login(heard: str, stderr: str, device: Device, *, has_ended: bool) -> LoginShellError:
    """The error for a login that worked, and after which no command ran.

    Args:
        heard: What came on stdout.
        stderr: Standard error.
        device: Where.
        has_ended: Whether it ended by itself; otherwise it went on without a command.
    """
    said = last_line(heard) or last_line(stderr)
    what = "logged in, but the account runs no commands" if has_ended else "logged in, but no command began to run"
    return LoginShellError(
        f"{what}: {said}" if said else what,
        where=f"{device.name}: {device.address}",
        cure="The user there needs an ordinary login shell (chsh -s /bin/sh), and login scripts that wait for nobody: "
        f"{_login(device)} true must come to its end",
    )


def _target(device: Device) -> str:
    return f"-p {device.port} {device.address}" if device.port else device.address


def _login(device: Device) -> str:
    config = f"-F {shlex.quote(os.path.expanduser(device.ssh_config))} " if device.ssh_config else ""  # noqa: PTH111
    return f"ssh {config}{_target(device)}"


def _known_host(text: str, device: Device) -> str:
    """The words after ``ssh-keygen -R`` that forget a key: the client says whose has changed, and where it stands."""
    usual = device.host if device.port in (None, 22) else f"[{device.host}]:{device.port}"
    name = re.search(r"host key for (\S+) has changed", text, re.IGNORECASE)
    place = re.search(r"^Offending .* in (.+):\d+\s*$", text, re.MULTILINE)
    own = os.path.expanduser("~/.ssh/known_hosts")  # noqa: PTH111 - without a home it stays as it is
    chosen = ["-f", place[1]] if place is not None and place[1] != own else []
    return shlex.join([name[1] if name is not None else usual, *chosen])


# How a client's end shows whose jump host or proxy gave up. Before OpenSSH 8.1 the first word was ssh_exchange_….
_ENDED_ON_THE_WAY = re.compile(
    r"^(?:(?:kex|ssh)_exchange_identification|banner exchange|Connection (?:closed|reset) by UNKNOWN)",
    re.MULTILINE,
)


# The first that matches counts. The words are those of OpenSSH 7.6 to 10, which translates nothing.
_SSH_FAULTS: tuple[tuple[str, type[KdedgeError], str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        HostKeyChangedError,
        "the host key has changed: this is another machine, a fresh system, or someone in between",
        "If you know why, forget the old key with: ssh-keygen -R {entry} ; then log in once with {login} "
        "and compare the fingerprint",
    ),
    (
        r"host key is known for|Host key verification failed|authenticity of host",
        HostKeyUnknownError,
        "the host key is not known yet",
        "Log in once with {login} and compare the fingerprint, or give --accept-new-host-key",
    ),
    (
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        KeyRefusedError,
        "your private key can be read by others, so ssh does not use it",
        "chmod 600 the key file, then try {login}",
    ),
    (
        r"Permission denied|Too many authentication failures|No supported authentication methods",
        KeyRefusedError,
        "the device refused your key: {detail}",
        "Put your key there with: ssh-copy-id {target} ; then {login} must work without a password",
    ),
    (
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        HostUnknownError,
        "no host of that name: {detail}",
        "Check the spelling and that {host} is switched on; names in .local need mDNS, an IP address not",
    ),
    (
        r"Connection refused",
        ConnectionRefusedByHostError,
        "the host refused the connection: no SSH server listens there",
        "Switch SSH on (Raspberry Pi: sudo raspi-config, Interface Options) or give the right --port",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        HostTimeoutError,
        "the host does not answer: {detail}",
        "Check that {host} is switched on and in reach: ping {host}",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad|Can't open user config|"
        r"keyword .* extra arguments|unsupported option|unknown key type|unknown option|illegal option",
        SshClientError,
        "the SSH client does not accept its configuration: {detail}",
        "Correct ~/.ssh/config, the device's ssh_config, or KDEDGE_SSH_OPTIONS",
    ),
    (
        r"no matching .* found|kex_exchange_identification|banner exchange|Protocol mismatch|remote protocol|"
        r"Connection closed by|Connection reset by",
        UnreachableError,
        "no SSH session came about: {detail}",
        "Check that an SSH server listens on port {port} of {host}, and that it is not refusing you for now",
    ),
)

_DISK_FULL = ("ENOSPC", "EDQUOT")


def device_write_failure(code: str, detail: str, device: Device, what: str) -> AgentError:
    """The error for an upload that the device could not store.

    Args:
        code: An errno name, or ``corrupt``, as the device said it.
        detail: The device's words.
        device: Where.
        what: What was being stored.
    """
    where = device.name
    if code in _DISK_FULL:
        return DiskFullError(
            f"no space left on the device for {what}",
            where=where,
            cure="Free some space there (df -h ~/.cache shows it; kdedge's own part is ~/.cache/kdedge)",
        )
    if code in ("EROFS", "EACCES", "EPERM"):
        return AgentError(
            f"cannot write {what} on the device: {one_line(detail)}",
            where=where,
            cure="The user's ~/.cache/kdedge must be writable there",
        )
    if code == "corrupt":
        return AgentError(
            f"{what} arrived damaged and was thrown away",
            where=where,
            cure="Try again; if it happens twice, check the device's storage and cable",
        )
    return AgentError(f"cannot store {what} on the device: {one_line(detail) or one_line(code)}", where=where)


def from_agent(message: dict[str, object], device: Device, artifact: ArtifactFile | None) -> KdedgeError:
    """The error for an agent's ``error`` message (kind, message, cure), already cleaned of escapes."""
    kind = str(message.get("kind", ""))
    text = one_line(str(message.get("message") or "the agent failed and did not say why"), 500)
    said_cure = message.get("cure")
    cure = one_line(str(said_cure), 500).rstrip(".") if said_cure else None
    if artifact is not None:
        text = re.sub(r"(?:/\S*/)?" + re.escape(artifact.remote_file), artifact.path.name, text)
    if kind == "runtime-missing":
        return RuntimeMissingError(text, where=device.name, cure=f"Install it with: {setup_command(device)}")
    if kind == "request":
        return UserError(text, where=device.name, cure=cure)
    if kind == "refused" and artifact is not None:
        return ArtifactError(text, where=artifact.path, cure=cure)
    if kind == "busy":
        longer = "Wait until it has ended, or let this run wait for it: --wait SECONDS"
        return DeviceBusyError(text, where=device.name, cure=longer)
    if kind == "disk-full":
        return device_write_failure("ENOSPC", text, device, "the run")
    return AgentError(text, where=device.name, cure=cure)


def agent_ended(code: int, stderr: str, device: Device) -> AgentError:
    """The error for an agent that ended before it answered."""
    said = last_line(stderr)
    return AgentError(f"the agent ended with code {code}" + (f": {said}" if said else ""), where=device.name)
