"""Every way in which no connection comes about, by a real client and a real server."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kdedge.errors import DeviceError, UnreachableError
from tests.agent_tools import wait_until_gone
from tests.device.conftest import StartSshd
from tests.device.sshd import Sshd, children, command_line, free_port, make_key

from kdedge_bench.devices import Device
from kdedge_bench.faults import (
    ConnectionRefusedByHostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostTimeoutError,
    KeyRefusedError,
    SshClientError,
)
from kdedge_bench.transport import open_transport


def connect(device: Device, *, accept_new_host_key: bool = False) -> None:
    """Open and close a connection."""
    with open_transport(device, accept_new_host_key=accept_new_host_key) as transport:
        assert transport.run(["echo", "there"]).stdout.strip().endswith(b"there")


def test_nobody_listens(board: Sshd) -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedByHostError) as caught:
        connect(replace(board.device(), port=port))
    assert caught.value.exit_code == 3
    assert "no SSH server" in str(caught.value) and "--port" in str(caught.value)


def test_a_host_that_never_answers(board: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEDGE_SSH_OPTIONS", "-o ConnectTimeout=1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError) as caught:
        connect(replace(board.device(), port=silent.getsockname()[1]))
    assert isinstance(caught.value, HostTimeoutError), caught.value


def test_something_else_listens(board: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def speak() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(UnreachableError, match="no SSH session came about"):
            connect(replace(board.device(), port=server.getsockname()[1]))
        thread.join()


def test_host_key_changed(start: StartSshd, tmp_path: Path) -> None:
    device = start()
    other = make_key(tmp_path / "other_key").with_suffix(".pub").read_text()
    device.known_hosts.write_text(f"[127.0.0.1]:{device.port} {other}")
    for accept_new in (False, True):
        with pytest.raises(HostKeyChangedError) as caught:
            connect(device.device(), accept_new_host_key=accept_new)
    words = str(caught.value)
    assert f"ssh-keygen -R '[127.0.0.1]:{device.port}' -f {device.known_hosts}" in words

    # The cure, as it is printed, cures.
    subprocess.run(
        ["ssh-keygen", "-R", f"[127.0.0.1]:{device.port}", "-f", str(device.known_hosts)],
        check=True,
        capture_output=True,
    )
    connect(device.device(), accept_new_host_key=True)


def test_host_key_unknown_until_accepted(start: StartSshd) -> None:
    device = start()
    device.known_hosts.write_text("")
    with pytest.raises(HostKeyUnknownError, match="--accept-new-host-key"):
        connect(device.device())
    assert device.known_hosts.read_text() == ""
    connect(device.device(), accept_new_host_key=True)
    assert f"[127.0.0.1]:{device.port}" in device.known_hosts.read_text()
    connect(device.device())


def test_key_refused(start: StartSshd) -> None:
    device = start()
    (device.folder / "authorized_keys").write_text("")
    with pytest.raises(KeyRefusedError) as caught:
        connect(device.device())
    assert "ssh-copy-id" in str(caught.value) and "Permission denied" in str(caught.value)


def test_the_users_own_ssh_configuration_counts(start: StartSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    device = start()
    alias = device.folder / "alias_config"
    whole = (device.folder / "ssh_config").read_text()
    alias.write_text(f"Host kitchen\n  HostName 127.0.0.1\n  Port {device.port}\n  HostKeyAlias the-pi\n{whole}")
    key = (device.folder / "host_key.pub").read_text()
    device.known_hosts.write_text(f"the-pi {key}")
    by_alias = Device(name="pi", address="kitchen", ssh_config=str(alias))
    connect(by_alias)

    device.known_hosts.write_text(f"the-pi {make_key(device.folder / 'k2').with_suffix('.pub').read_text()}")
    with pytest.raises(HostKeyChangedError, match="ssh-keygen -R the-pi"):
        connect(by_alias)

    device.known_hosts.write_text(f"the-pi {key}")
    monkeypatch.setenv("KDEDGE_SSH_OPTIONS", f"-F {alias}")
    connect(Device(name="pi", address="kitchen"))


@pytest.mark.parametrize(
    "settings",
    [
        "ControlMaster auto\n  ControlPath {folder}/%p\n  ControlPersist yes",
        "StdinNull yes",
        "SessionType none",
        "ForkAfterAuthentication yes",
    ],
)
def test_settings_that_would_leave_or_lack_a_session(start: StartSshd, settings: str) -> None:
    device = start()
    with (device.folder / "ssh_config").open("a") as config:
        config.write(f"  IgnoreUnknown *\n  {settings.format(folder=device.folder)}\n")
    with open_transport(device.device()) as transport:
        ground = transport.look_around({})
        transport.put(b"x", ground.path("kept"), hashlib.sha256(b"x").hexdigest(), ground=ground)
    assert (device.cache / "kept").read_bytes() == b"x"
    assert device.left_over() == {}
    assert wait_until_gone([pid for pid in children(device.listener) if command_line(pid)])


@dataclass
class Jump:
    """A jump host, and a device whose client goes through it."""

    host: Sshd
    device: Sshd

    def know(self, key: Path) -> None:
        """Put a key on record for the jump host."""
        with self.device.known_hosts.open("a") as known:
            known.write(f"[127.0.0.1]:{self.host.port} {key.read_text()}")


@pytest.fixture
def jump(start: StartSshd) -> Jump:
    host, device = start(), start()
    config = device.folder / "ssh_config"
    bastion = f"HostName 127.0.0.1\n  Port {host.port}\n  IdentityFile {host.folder}/user_key\n"
    way = f"Host bastion\n  {bastion}Host 127.0.0.1\n  ProxyJump {device.device().user}@bastion\n"
    config.write_text(way + config.read_text())
    return Jump(host, device)


def test_a_jump_host_of_unknown_key(jump: Jump, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its client is one of its own, which --accept-new-host-key does not reach and which may ask in a window."""
    window = tmp_path / "askpass"
    window.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\nexit 1\n')
    window.chmod(0o755)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SSH_ASKPASS", str(window))
    for accept_new in (False, True):
        with pytest.raises(HostKeyUnknownError, match=r"no way through ProxyJump .*bastion") as caught:
            connect(jump.device.device(), accept_new_host_key=accept_new)
        assert "--accept-new-host-key" not in str(caught.value)
    assert not (tmp_path / "asked").exists()


def test_a_jump_host_whose_key_changed(jump: Jump, tmp_path: Path) -> None:
    jump.know(make_key(tmp_path / "other").with_suffix(".pub"))
    with pytest.raises(HostKeyChangedError) as caught:
        connect(jump.device.device())
    assert f"ssh-keygen -R '[127.0.0.1]:{jump.host.port}' -f {jump.device.known_hosts}" in str(caught.value)


def test_keys_refused_on_the_way_and_at_its_end(jump: Jump) -> None:
    jump.know(jump.host.folder / "host_key.pub")
    connect(jump.device.device())
    (jump.device.folder / "authorized_keys").write_text("")
    with pytest.raises(KeyRefusedError, match="ssh-copy-id"):
        connect(jump.device.device())
    (jump.host.folder / "authorized_keys").write_text("")
    with pytest.raises(KeyRefusedError, match="on the way") as caught:
        connect(jump.device.device())
    assert "ssh-copy-id" not in str(caught.value)


def test_a_configuration_that_takes_its_time(start: StartSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdedge_bench.transport._CONNECT_S", 1)
    device = start()
    config = device.folder / "ssh_config"
    config.write_text(f'Match exec "sleep 10"\n  Compression yes\n{config.read_text()}')
    with pytest.raises(HostTimeoutError):
        connect(device.device())


def test_a_broken_ssh_configuration_is_the_clients(board: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEDGE_SSH_OPTIONS", "-o Nonsense=1")
    with pytest.raises(SshClientError, match="KDEDGE_SSH_OPTIONS"):
        connect(board.device())


def test_no_ssh_client(board: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = board.device()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SshClientError, match="openssh-client"):
        connect(device)


def test_nothing_stays_on_the_host(board: Sshd) -> None:
    before = set(Path("/tmp").glob(f"kdedge-ssh-{os.getpid()}-*"))
    connect(board.device())
    with pytest.raises(DeviceError):
        connect(replace(board.device(), port=free_port()))
    left = {path for path in set(Path("/tmp").glob(f"kdedge-ssh-{os.getpid()}-*")) - before if (path / "s").exists()}
    assert left == set()


def test_the_control_socket_is_private(board: Sshd) -> None:
    before = set(Path("/tmp").glob(f"kdedge-ssh-{os.getpid()}-*"))
    with open_transport(board.device()):
        folders = [
            path for path in set(Path("/tmp").glob(f"kdedge-ssh-{os.getpid()}-*")) - before if (path / "s").exists()
        ]
        assert len(folders) == 1
        assert folders[0].stat().st_mode & 0o777 == 0o700


def test_no_agent_forwarding(board: Sshd) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("NOT TESTED: no ssh-agent here")
    with open_transport(board.device()) as transport:
        assert transport.run(["sh", "-c", "echo ${SSH_AUTH_SOCK:-none}"]).stdout == b"none\n"


def test_sockets_of_killed_runs_are_swept(board: Sshd) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale, living = Path(f"/tmp/kdedge-ssh-{gone.pid}-test"), Path(f"/tmp/kdedge-ssh-{os.getpid()}-test")
    for folder in (stale, living):
        folder.mkdir()
    try:
        connect(board.device())
        assert not stale.exists() and living.exists()
    finally:
        living.rmdir()
