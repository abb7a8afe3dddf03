"""The devices a user knows by name, kept in ``devices.toml``.

The file lies in the platform's configuration folder (``KDEDGE_CONFIG_DIR`` overrides it) and belongs to the
user: comments and order are kept when kdedge changes it.
"""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kdedge.errors import UserError
from kdedge.files import write_atomic

KINDS = ("pi", "jetson", "linux")
LOCAL_NAME = "local"
ALL_NAME = "all"
"""In a list of devices: every one in the file."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}\$?")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True)
class Device:
    """One device: where it is and what it is.

    Attributes:
        name: What the user calls it.
        address: ``user@host``, or a host alone (then the user's SSH configuration says the rest);
            empty for this machine.
        kind: ``pi``, ``jetson``, ``linux``, or ``local`` for this machine.
        port: TCP port of its SSH server; None leaves it to the SSH configuration.
        python: Interpreter on the device that has the runtimes; None takes kdedge's own environment there,
            else ``python3``. ``~/`` is the home folder on the device.
        ssh_config: An SSH client configuration to use instead of ``~/.ssh/config``.
        tags: Words that it shares with others; ``@TAG`` means all that have it.

    Raises:
        UserError: a field that no device can have.
    """

    name: str
    address: str
    kind: str = "linux"
    port: int | None = None
    python: str | None = None
    ssh_config: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of what decides which machine and interpreter it is, for records that shall not tell the address."""
        told = json.dumps([self.address, self.port, self.python])
        return hashlib.sha256(told.encode()).hexdigest()

    def __post_init__(self) -> None:
        _check_name(self.name, "the name of a device")
        if (self.name, self.kind, self.address) == (LOCAL_NAME, LOCAL_NAME, ""):
            return
        if self.kind not in KINDS:
            raise UserError(
                f"unknown kind of device {_shown(self.kind)}",
                where=self.name,
                cure=f"Choose one of {', '.join(KINDS)}",
            )
        _check_address(self.address, self.name)
        if self.port is not None and not (isinstance(self.port, int) and 0 < self.port < 65536):
            raise UserError(f"port {_shown(self.port)} is not between 1 and 65535", where=self.name)
        for key, path in (("python", self.python), ("ssh_config", self.ssh_config)):
            _check_path(key, path, self.name)
        if not isinstance(self.tags, tuple):
            raise UserError(f"tags {_shown(self.tags)} are no list", where=self.name, cure='Write tags = ["shelf"]')
        for tag in self.tags:
            _check_name(tag, "a tag")

    @property
    def is_local(self) -> bool:
        """Whether this is the machine kdedge runs on."""
        return self.kind == LOCAL_NAME

    @property
    def host(self) -> str:
        """The address without the user."""
        return self.address.rpartition("@")[2]

    @property
    def user(self) -> str | None:
        """The user of the address; None leaves it to the SSH configuration."""
        return self.address.rpartition("@")[0] or None


def _shown(value: object) -> str:
    """A value as the user typed it, on one line, with what cannot be seen made visible."""
    return ascii(value)[:80]


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{_shown(name)} cannot be {what}",
            cure="Use letters, digits, '.', '_' and '-', at most 64, not beginning with '-' or '.'",
        )


def _check_address(address: object, name: str) -> None:
    user, at, host = address.rpartition("@") if isinstance(address, str) else ("", "", "")
    user_is_fine = bool(_USER.fullmatch(user)) if at else True
    if user_is_fine and (_HOST.fullmatch(host) or _IPV6.fullmatch(host)):
        return
    cure = "Write it as user@host, for example pi@raspberrypi.local"
    if with_port := re.fullmatch(r"([A-Za-z0-9_.-]+):([0-9]+)", host):
        cure = f"Give the port by itself: {with_port[1]} --port {with_port[2]}"
    raise UserError(f"{_shown(address)} is not an address", where=name, cure=cure)


def _check_path(key: str, path: object, name: str) -> None:
    if path is None:
        return
    if not isinstance(path, str) or not path or path.startswith("-"):
        raise UserError(f"{key} {_shown(path)} is not a path", where=name)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path):
        raise UserError(f"{key} {_shown(path)} has a control character", where=name)


LOCAL = Device(name=LOCAL_NAME, address="", kind=LOCAL_NAME)


def config_path() -> Path:
    """Where the devices are kept."""
    override = os.environ.get("KDEDGE_CONFIG_DIR")
    if override:
        return Path(override) / "devices.toml"
    import platformdirs

    return Path(platformdirs.user_config_dir("kdedge", appauthor=False)) / "devices.toml"


def list_devices() -> list[Device]:
    """Every known device in the order of the file, ``local`` first.

    Raises:
        UserError: the file cannot be read or describes no device.
    """
    return [LOCAL, *(_from_table(name, table) for name, table in _tables(_read()).items())]


def get_device(name: str) -> Device:
    """The device of that name.

    Raises:
        UserError: not known; the message names the nearest and how to add it.
    """
    if name == LOCAL_NAME:
        return LOCAL
    known = {device.name: device for device in list_devices()}
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]}? Otherwise add it" if nearest else "Add it"
    wanted = name if _NAME.fullmatch(name) else "pi"
    kind = next((kind for kind in KINDS if kind in wanted.lower()), "pi")
    raise UserError(
        f"no device is called {_shown(name)}; known: {', '.join(known)}",
        where=config_path(),
        cure=f"{hint} with: kdedge device add {wanted} pi@raspberrypi.local --kind {kind}",
    )


def add_device(device: Device, *, replace: bool = False) -> Path:
    """Write a device into the file, mode 0600, comments kept.

    Args:
        device: What to add.
        replace: Overwrite a device of that name.

    Returns:
        The path of the file.

    Raises:
        UserError: the name is taken, or the file cannot be read or written.
    """
    _refuse_own_names(device)
    with _edited() as document:
        tables = _tables(document)
        if device.name in tables and not replace:
            there = _from_table(device.name, tables[device.name]).address
            raise UserError(
                f"a device called {device.name} is there already ({there})",
                where=config_path(),
                cure="Choose another name, or change that one with --replace, which keeps what is not given",
            )
        _put(document, device)
    return config_path()


def change_device(name: str, given: Mapping[str, Any]) -> Device:
    """Write some fields of a device into the file; the others stay. One that is not there yet is added.

    Args:
        name: Of the device.
        given: Field -> value; None, or () for the tags, takes it away.

    Returns:
        The whole device.

    Raises:
        UserError: a field that no device can have, or the file cannot be read or written.
    """
    with _edited() as document:
        tables = _tables(document)
        if name in tables:
            device = dataclasses.replace(_from_table(name, tables[name]), **given)
        else:
            device = Device(name=name, **given)
        _refuse_own_names(device)
        _put(document, device)
    return device


def remove_device(name: str) -> Device:
    """Take a device out of the file.

    Returns:
        What it was.

    Raises:
        UserError: not known, or ``local``.
    """
    if name == LOCAL_NAME:
        raise UserError(f"'{LOCAL_NAME}' is this machine and cannot be removed")
    device = get_device(name)
    with _edited() as document:
        tables = _tables(document)
        if name in tables:  # else another has removed it meanwhile
            del tables[name]
    return device


def _refuse_own_names(device: Device) -> None:
    if device.is_local or device.name == LOCAL_NAME:
        raise UserError(f"'{LOCAL_NAME}' is this machine and always there", cure="Choose another name")
    if device.name == ALL_NAME:
        raise UserError(f"'{ALL_NAME}' means every device", cure="Choose another name")


def _put(document: Any, device: Device) -> None:
    """A device into the document, in the place of one of that name."""
    import tomlkit
    from tomlkit.items import InlineTable

    if "devices" not in document:
        document["devices"] = tomlkit.table(is_super_table=True)
    tables = document["devices"]
    if device.name in tables:
        table = tables[device.name]
    else:
        table = tomlkit.inline_table() if isinstance(tables, InlineTable) else tomlkit.table()
    for field in fields(Device):
        value = getattr(device, field.name)
        if field.name == "name":
            continue
        if value not in (None, ()):
            table[field.name] = list(value) if isinstance(value, tuple) else value
        elif field.name in table:
            del table[field.name]
    tables[device.name] = table


@contextmanager
def _edited() -> Iterator[Any]:
    """The document, written when the block ends; what others change at the same time waits for it.

    Raises:
        UserError: the file cannot be read or written.
    """
    import tomlkit

    path = config_path()
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.with_name(f"{path.name}.lock").open("a")
    with lock:
        with suppress(OSError):  # a network folder may have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        document = _read()
        yield document
        with _writing(path):
            # Where the file is a link, what it points to is written: a user's dotfiles lie elsewhere.
            write_atomic(path.resolve(), tomlkit.dumps(document), mode=0o600)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line that speaks of this file."""
    cure = "Free some space there or make the folder writable, or name another with KDEDGE_CONFIG_DIR"
    try:
        yield
    except UserError as error:  # of write_atomic
        raise UserError(error.what, where=path, cure=cure) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write: {reason}", where=path, cure=cure) from error


def _read() -> Any:
    """The TOML document, empty if there is no file (Any: tomlkit's containers have no useful static type)."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = config_path()
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return tomlkit.document()
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UserError(f"not TOML: {error}", where=path, cure="Correct the file or move it away") from None


def _tables(document: Mapping[str, Any]) -> Any:
    tables = document.get("devices", {})
    if not isinstance(tables, Mapping):
        raise UserError("'devices' is not a table", where=config_path())
    return tables


def _from_table(name: str, table: object) -> Device:
    known = [field.name for field in fields(Device) if field.name != "name"]
    if not isinstance(table, Mapping) or "address" not in table:
        raise UserError(f"device {_shown(name)} has no address", where=config_path())
    for key in table:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            cure = f"Did you mean {nearest[0]}?" if nearest else f"Known keys: {', '.join(known)}"
            raise UserError(f"device {_shown(name)}: unknown key {_shown(key)}", where=config_path(), cure=cure)
    values = {key: _unwrapped(value) for key, value in table.items()}
    try:
        return Device(name=name, **values)
    except UserError as error:
        raise UserError(error.what, where=f"{config_path()}, device {_shown(name)}", cure=error.cure) from None


def _unwrapped(value: Any) -> Any:
    """A plain Python value of tomlkit's, which carries its formatting; a list as a tuple."""
    plain = value.unwrap() if hasattr(value, "unwrap") else value
    return tuple(plain) if isinstance(plain, list) else plain
