"""What the SSH client says, and what kdedge makes of it (the words are OpenSSH's own)."""

from __future__ import annotations

import pytest
from kdedge.errors import UnreachableError, WireError

from kdedge_bench import faults
from kdedge_bench.devices import Device
from kdedge_bench.faults import device_write_failure, explain_ssh

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
