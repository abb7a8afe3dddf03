"""devices.toml: what goes in comes out, the user's own words stay, hostile names are refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kdedge.cli.app import app
from kdedge.errors import UserError
from typer.testing import CliRunner

from kdedge_bench.devices import (
    LOCAL,
    Device,
    add_device,
    change_device,
    config_path,
    get_device,
    list_devices,
    remove_device,
)
from kdedge_bench.selection import names_several, select_devices


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDEDGE_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "devices.toml"


def test_local_is_always_there() -> None:
    assert list_devices() == [LOCAL]
    assert get_device("local").is_local
    for change in (lambda: remove_device("local"), lambda: add_device(Device("local", "pi@host"))):
        with pytest.raises(UserError):
            change()


def test_added_devices_come_back_whole_and_private(config: Path) -> None:
    pi = Device("pi", "pi@raspberrypi.local", "pi")
    jetson = Device("orin", "nvidia@10.0.0.7", "jetson", port=2222, python="~/venv/bin/python", ssh_config="/c")
    add_device(pi)
    assert add_device(jetson) == config == config_path()
    assert list_devices() == [LOCAL, pi, jetson]
    assert get_device("orin") == jetson
    assert config.stat().st_mode & 0o777 == 0o600
    assert remove_device("pi") == pi
    assert list_devices() == [LOCAL, jetson]


def test_a_taken_name_needs_replace() -> None:
    add_device(Device("pi", "pi@a", port=22))
    with pytest.raises(UserError, match="pi@a"):
        add_device(Device("pi", "pi@b"))
    add_device(Device("pi", "pi@b"), replace=True)
    assert get_device("pi") == Device("pi", "pi@b")


def test_a_change_keeps_what_is_not_given() -> None:
    add_device(Device("pi", "pi@a", "pi", port=2222, ssh_config="/c", tags=("shelf",)))
    changed = change_device("pi", {"address": "pi@b", "python": "/p"})
    assert changed == get_device("pi") == Device("pi", "pi@b", "pi", 2222, "/p", "/c", ("shelf",))
    assert change_device("pi", {"python": None, "tags": ()}) == Device("pi", "pi@b", "pi", 2222, None, "/c")
    with pytest.raises(UserError, match="port"):
        change_device("pi", {"port": 0})
    assert change_device("new", {"address": "pi@c"}) == get_device("new") == Device("new", "pi@c")
    for name in ("local", "all"):
        with pytest.raises(UserError, match=f"'{name}'"):
            change_device(name, {"address": "pi@c"})


def test_the_cures_that_name_a_command_lose_no_settings() -> None:
    """``--replace`` as the errors advise it: one option more, and the rest as it was."""

    def add(*words: str) -> Device:
        done = CliRunner().invoke(app, ["device", "add", "pi", "pi@a", *words, "--json"])
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told.pop("config") == str(config_path())
        device = get_device("pi")
        assert Device(**{**told, "tags": tuple(told["tags"])}) == device
        return device

    whole = Device("pi", "pi@a", "jetson", 2222, "/old", "~/lab", ("shelf", "arm"))
    add_device(whole)
    assert add("--replace", "--python", "/new").python == "/new"
    assert add("--replace", "--python", "/old") == whole
    assert add("--replace", "--python", "").python is None
    assert add("--replace", "--python", "/old", "--tag", "shelf", "--tag", "arm") == whole
    assert add("--replace", "--tag", "").tags == ()
    remove_device("pi")
    assert add() == Device("pi", "pi@a")


def test_devices_that_are_added_at_once_are_all_there() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_device(Device(f"pi{n}", f"pi@10.0.0.{n}")), range(24)))
        assert len(list_devices()) == 25
        list(pool.map(lambda n: remove_device(f"pi{n}"), range(0, 24, 2)))
    assert {device.name for device in list_devices()} == {"local", *(f"pi{n}" for n in range(1, 24, 2))}


@pytest.mark.parametrize(
    "text",
    [
        'devices = {pi = {address = "pi@a"}}',
        '[devices]\npi = {address = "pi@a"}',
        'devices.pi.address = "pi@a"',
        '\ufeff[devices.pi]\naddress = "pi@a"',
    ],
)
def test_every_way_to_write_a_table(config: Path, text: str) -> None:
    config.parent.mkdir()
    config.write_text(text, encoding="utf-8")
    new = Device("new", "pi@b", tags=("shelf",))
    add_device(new)
    assert get_device("pi") == Device("pi", "pi@a") and get_device("new") == new
    add_device(Device("pi", "pi@c", port=22), replace=True)
    remove_device("new")
    assert list_devices() == [LOCAL, Device("pi", "pi@c", port=22)]


def test_a_file_that_is_a_link_stays_one(config: Path, tmp_path: Path) -> None:
    config.parent.mkdir()
    config.symlink_to(tmp_path / "dotfiles.toml")
    for name in ("pi", "jetson"):
        add_device(Device(name, "pi@a"))
        assert config.is_symlink() and name in (tmp_path / "dotfiles.toml").read_text()


def test_a_folder_that_cannot_be_made(config: Path) -> None:
    config.parent.write_text("a file where the folder belongs")
    with pytest.raises(UserError, match=r"cannot write: .*KDEDGE_CONFIG_DIR") as caught:
        add_device(Device("pi", "pi@a"))
    assert str(config) in str(caught.value)


def test_the_users_comments_stay(config: Path) -> None:
    config.parent.mkdir()
    config.write_text(
        '# my boards\n[devices.kitchen]  # on the shelf\naddress = "pi@kitchen"  # wired\n'
        'kind = "pi"\n\n[other]\nx = 1\n'
    )
    add_device(Device("pi", "pi@host"))
    remove_device("pi")
    text = config.read_text()
    for words in ("# my boards", "# on the shelf", "# wired", "[other]\nx = 1"):
        assert words in text
    assert get_device("kitchen") == Device("kitchen", "pi@kitchen", "pi")


def test_unknown_device_names_the_nearest_and_how_to_add(config: Path) -> None:
    add_device(Device("jetson-lab", "me@host"))
    with pytest.raises(UserError) as caught:
        get_device("jetson-lap")
    assert str(caught.value) == (
        f"no device is called 'jetson-lap'; known: local, jetson-lab ({config}). Did you mean jetson-lab? "
        "Otherwise add it with: kdedge device add jetson-lap pi@raspberrypi.local --kind jetson"
    )
    with pytest.raises(UserError, match=r"kdedge device add pi pi@raspberrypi\.local --kind pi"):
        get_device("\x1b[31m;rm -rf")


HOSTILE = ["", "-rf", ".hidden", "a b", "a\nb", "$(id)", "it's", 'q"', "a;b", "ä", "\x1b[31m", "x" * 65, "a/b", "../x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name") as caught:
        Device(name, "pi@host")
    assert str(caught.value).isprintable()


ADDRESSES = ["", "-oProxyCommand=id", "pi@-x", "-l@host", "a b@host", "pi@ho st", "pi@h\n", "$(id)@h", "pi@`id`",
             "@host", "pi@", "pi@h;id", "a@b@c", "pi@h'", "pi@\x1b[0m", "pi@h/..", "ssh://pi@host"]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(UserError, match="is not an address") as caught:
        Device("pi", address)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "address", ["pi@raspberrypi.local", "10.0.0.2", "kitchen", "a.b-c+d@h", "m$@h", "pi@fe80::1%eth0"]
)
def test_addresses_that_are_fine(address: str) -> None:
    device = Device("pi", address)
    assert "@".join(filter(None, (device.user, device.host))) == address


def test_a_port_in_the_address_says_where_it_belongs() -> None:
    with pytest.raises(UserError, match="host --port 2222"):
        Device("pi", "pi@host:2222")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_are_refused(port: int) -> None:
    with pytest.raises(UserError, match="port"):
        Device("pi", "pi@host", port=port)


@pytest.mark.parametrize("path", ["", "-c", "a\nb", "\x00", "\x1b[2J"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="python"):
        Device("pi", "pi@host", python=path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[devices", "not TOML"),
        ("devices = 3", "not a table"),
        ("[devices.pi]\nkind = 'pi'", "no address"),
        ("[devices.pi]\naddress = 'pi@h'\nprot = 22", "Did you mean port"),
        ("[devices.pi]\naddress = 'pi@h'\nkind = 'toaster'", "pi, jetson, linux"),
        ("[devices.pi]\naddress = 7", "not an address"),
        ("[devices.pi]\naddress = 'pi@h'\nport = 'ssh'", "port"),
        ("[devices.pi]\naddress = 'pi@h'\ntags = 'shelf'", "no list"),
        ("[devices.pi]\naddress = 'pi@h'\ntags = ['a b']", "cannot be a tag"),
        ("[devices.pi]\naddress = 'pi@h'\ntags = [1]", "cannot be a tag"),
        ("[devices.'a b']\naddress = 'pi@h'", "cannot be the name"),
    ],
)
def test_damaged_files_are_named(config: Path, text: str, words: str) -> None:
    config.parent.mkdir()
    config.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        list_devices()
    assert str(config) in str(caught.value)
    assert config.read_text() == text


def test_local_kind_is_not_for_other_names(config: Path) -> None:
    config.parent.mkdir()
    config.write_text("[devices.pi]\naddress = 'pi@h'\nkind = 'local'")
    with pytest.raises(UserError, match="kind"):
        list_devices()


def test_tags_come_back_and_are_shown_as_a_list(config: Path) -> None:
    pi = Device("pi", "pi@a", tags=("shelf", "arm64"))
    add_device(pi)
    assert 'tags = ["shelf", "arm64"]' in config.read_text()
    assert get_device("pi") == pi
    add_device(Device("pi", "pi@a"), replace=True)
    assert "tags" not in config.read_text() and get_device("pi").tags == ()


@pytest.mark.parametrize("tag", [*HOSTILE, "@shelf", "a,b"])
def test_tags_that_are_refused(tag: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        Device("pi", "pi@host", tags=(tag,))


def test_all_is_no_name() -> None:
    with pytest.raises(UserError, match="'all' means every device"):
        add_device(Device("all", "pi@host"))


@pytest.fixture
def shelf() -> None:
    for name, tags in (("pi4", ("shelf", "pi")), ("pi5", ("pi",)), ("orin", ("shelf",))):
        add_device(Device(name, f"me@{name}", tags=tags))


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("pi5", "pi5"),
        ("local", "local"),
        ("orin,pi4", "orin pi4"),
        (" orin , orin", "orin"),
        ("@shelf", "pi4 orin"),
        ("@pi,@shelf", "pi4 pi5 orin"),
        ("orin,@shelf", "orin pi4"),
        ("all", "pi4 pi5 orin"),
        ("local,all", "local pi4 pi5 orin"),
    ],
)
def test_several_devices_in_one_word(shelf: None, wish: str, names: str) -> None:
    assert [device.name for device in select_devices(wish)] == names.split()
    assert names_several(wish) is (wish not in ("pi5", "local"))


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("pi4,pi6", "no device is called 'pi6'; known: local, pi4, pi5, orin"),
        ("pi4,pi6", "Did you mean pi5?"),
        ("@shelve", r"no device has the tag 'shelve'; known: pi, shelf"),
        ("@shelve", r"Did you mean @shelf?"),
        ("pi4,@", "no device has the tag ''"),
        ("pi4,", "names no device between its commas"),
        (",", "names no device"),
        ("@\x1b[31m", "\\x1b[31m"),
    ],
)
def test_words_that_mean_no_device(shelf: None, wish: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        select_devices(wish)
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_all_of_none() -> None:
    with pytest.raises(UserError, match=r"no device is known yet .*kdedge device add pi"):
        select_devices("all")
