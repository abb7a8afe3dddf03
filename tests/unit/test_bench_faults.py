"""What the SSH client says, and what kdedge makes of it (the words are OpenSSH's own)."""

from __future__ import annotations

import pytest
from kdedge.errors import UnreachableError, WireError

from kdedge_bench import faults
from kdedge_bench.devices import Device
from kdedge_bench.faults import device_write_failure, explain_login, explain_ssh

DEVICE = Device("pi", "pi@raspberrypi.local", "pi")


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "ssh: Could not resolve hostname raspberrypi.local: Name or service not known",
            faults.HostUnknownError,
            "spelling",
        ),
        (
            "ssh: Could not resolve hostname x: Temporary failure in name resolution",
            faults.HostUnknownError,
            "spelling",
        ),
        ("ssh: connect to host h port 22: Connection refused", faults.ConnectionRefusedByHostError, "raspi-config"),
        ("ssh: connect to host h port 22: No route to host", faults.HostTimeoutError, "ping raspberrypi.local"),
        ("ssh: connect to host h port 22: Connection timed out", faults.HostTimeoutError, "ping"),
        (
            "No ED25519 host key is known for h and you have requested strict checking.\r\nHost key verif…",
            faults.HostKeyUnknownError,
            "--accept-new-host-key",
        ),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            faults.HostKeyChangedError,
            "ssh-keygen -R raspberrypi.local",
        ),
        ("pi@h: Permission denied (publickey,password).", faults.KeyRefusedError, "ssh-copy-id pi@raspberrypi.local"),
        (
            "@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\npi@h: Permission denied (publickey).",
            faults.KeyRefusedError,
            "chmod 600",
        ),
        ("Received disconnect: Too many authentication failures", faults.KeyRefusedError, "ssh-copy-id"),
        ("/home/u/.ssh/config: line 3: Bad configuration option: foo", faults.SshClientError, "~/.ssh/config"),
        ("Unable to negotiate with h port 22: no matching host key type found.", UnreachableError, "no SSH session"),
        ("kex_exchange_identification: read: Connection reset by peer", UnreachableError, "no SSH session"),
        ("something new", WireError, "something new"),
        ("", WireError, "without a word"),
    ],
)
def test_ssh_faults(said: str, kind: type[Exception], words: str) -> None:
    error = explain_ssh(said, DEVICE)
    assert type(error) is kind
    assert error.exit_code == 3
    assert words in str(error) and "pi@raspberrypi.local" in str(error)
    assert str(error).isprintable()


def test_braces_from_a_server_are_only_text() -> None:
    assert "{host}" in str(explain_ssh("pi@h: Permission denied ({host} {0} {login.__class__}).", DEVICE))


def test_a_port_is_part_of_the_cure() -> None:
    error = explain_ssh("REMOTE HOST IDENTIFICATION HAS CHANGED", Device("pi", "pi@h", port=2222))
    assert "ssh-keygen -R '[h]:2222'" in str(error) and "ssh -p 2222 pi@h" in str(error)


def test_the_key_that_changed_is_named_by_the_client() -> None:
    """It may be that of a jump host."""
    said = (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
        "Offending ED25519 key in /home/u/my hosts:3\r\n"
        "Host key for [bastion]:2200 has changed and you have requested strict checking.\r\n"
        "Host key verification failed.\r\nkex_exchange_identification: Connection closed by remote host\r\n"
    )
    error = explain_ssh(said, DEVICE, way="ProxyJump bastion")
    assert type(error) is faults.HostKeyChangedError
    assert "ssh-keygen -R '[bastion]:2200' -f '/home/u/my hosts' ;" in str(error)


_END = "\nkex_exchange_identification: Connection closed by remote host\n"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("Host key verification failed." + _END, faults.HostKeyUnknownError, "verification failed"),
        ("me@bastion: Permission denied (publickey)." + _END, faults.KeyRefusedError, "me@bastion"),
        ("ssh: connect to host b port 22: Connection refused" + _END, faults.ConnectionRefusedByHostError, "host b "),
        ("ssh: Could not resolve hostname b: Name or service not known" + _END, faults.HostUnknownError, "hostname b"),
        ("nc: no luck\nConnection closed by UNKNOWN port 65535", UnreachableError, "nc: no luck"),
        (_END, UnreachableError, "on the way there or at the device"),
    ],
)
def test_faults_on_the_way_are_not_the_devices(said: str, kind: type[Exception], words: str) -> None:
    error = explain_ssh(said, DEVICE, way="ProxyJump bastion")
    assert type(error) is kind
    assert words in str(error) and "no way through ProxyJump bastion" in str(error)
    assert "ssh pi@raspberrypi.local, which goes the same way" in str(error)
    for harmful in ("ssh-copy-id", "accept-new-host-key", "raspi-config", "ssh-keygen"):
        assert harmful not in str(error)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("pi@raspberrypi.local: Permission denied (publickey).", faults.KeyRefusedError, "ssh-copy-id"),
        ("No ED25519 host key is known for raspberrypi.local", faults.HostKeyUnknownError, "--accept-new-host-key"),
        (
            "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed" + _END,
            faults.ConnectionRefusedByHostError,
            "raspi-config",
        ),
        (
            "channel 0: open failed: connect failed: Name or service not known\nstdio forwarding failed" + _END,
            faults.HostUnknownError,
            "connect failed: Name or service not known",
        ),
    ],
)
def test_faults_behind_a_jump_host_are_the_devices(said: str, kind: type[Exception], words: str) -> None:
    error = explain_ssh(said, DEVICE, way="ProxyJump bastion")
    assert type(error) is kind and words in str(error)


@pytest.mark.parametrize(
    ("heard", "stderr", "has_ended", "words"),
    [
        ("This account is\x1b[2J currently not available.\n", "", True, "runs no commands: This account is currently"),
        ("", "sh: no\n", True, "runs no commands: sh: no"),
        ("Press a key\n", "", False, "no command began to run: Press a key"),
        ("", "", True, "the account runs no commands (pi"),
    ],
)
def test_logins_that_lead_nowhere(heard: str, stderr: str, has_ended: bool, words: str) -> None:
    said = str(explain_login(heard, stderr, DEVICE, has_ended=has_ended))
    assert words in said and said.isprintable() and "ssh pi@raspberrypi.local true" in said


def test_a_configuration_of_the_devices_own_is_part_of_the_cure() -> None:
    error = explain_ssh("something new", Device("pi", "pi@h", ssh_config="/a b/config"))
    assert "ssh -F '/a b/config' pi@h" in str(error)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ENOSPC", "no space"),
        ("EDQUOT", "no space"),
        ("EROFS", "writable"),
        ("corrupt", "damaged"),
        ("E\x1b[2J", "store"),
    ],
)
def test_uploads_that_fail(code: str, words: str) -> None:
    said = str(device_write_failure(code, "detail", DEVICE, "m.onnx"))
    assert words in said and said.isprintable()
