"""kdedge device add | list | check | setup | remove."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol, TypeVar

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import AtOnce, Json, NewKey

if TYPE_CHECKING:
    from kdedge_bench.check import CheckReport
    from kdedge_bench.devices import Device
    from kdedge_bench.session import OnProgress
    from kdedge_bench.setup import SetupResult
    from kdedge_bench.setup_plan import SetupPlan


class _Result(Protocol):
    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""


R = TypeVar("R", bound=_Result)

devices = typer.Typer(
    name="device",
    help="The devices that --device knows.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: kdedge device add pi pi@raspberrypi.local --kind pi",
)
app.add_typer(devices)

Name = Annotated[str, typer.Argument(help="The device's name.")]
Names = Annotated[str, typer.Argument(metavar="NAMES", help="Of devices: pi, or pi,jetson, @TAG, all.")]


@devices.command(epilog="Example: kdedge device add pi pi@raspberrypi.local --kind pi")
def add(
    name: Annotated[str, typer.Argument(help="What --device will call it.")],
    address: Annotated[str, typer.Argument(metavar="USER@HOST", help="As `ssh` takes it.")],
    port: Annotated[Optional[int], typer.Option("--port", help="Of its SSH server.")] = None,  # noqa: UP045
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--kind", help="pi, jetson or linux; linux unless said otherwise."),
    ] = None,
    python: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--python", metavar="PATH", help="Interpreter on the device that has the runtimes."),
    ] = None,
    tag: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--tag", metavar="TAG", help="Shared with other devices: --device @TAG means them. Repeatable."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change that device: what is not given stays, '' takes a field away.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remember a device."""
    from kdedge_bench.devices import Device, add_device, change_device, config_path

    wishes: dict[str, Any] = {"address": address, "kind": kind, "port": port, "python": python}
    given = {key: value for key, value in wishes.items() if value is not None}
    if python == "":
        given["python"] = None
    if tag is not None:
        given["tags"] = tuple(dict.fromkeys(filter(None, tag)))
    if replace:
        device = change_device(name, given)
    else:
        device = Device(name=name, **given)
        add_device(device)
    path = config_path()
    if as_json:
        output.document({**dataclasses.asdict(device), "config": str(path)})
        return
    output.result(f"added {_described(device)} to {path}")
    output.line(f"Next: kdedge device check {name}")


def _described(device: Device) -> str:
    """Its name, and all that is known of it."""
    words = [device.address, device.kind]
    words += [f"{key} {value}" for key in ("port", "python", "ssh_config") if (value := getattr(device, key))]
    return f"{device.name} ({', '.join([*words, *(f'@{tag}' for tag in device.tags)])})"


@devices.command("list", epilog="Example: kdedge device list --json")
def list_(as_json: Json = False) -> None:
    """List the devices."""
    from kdedge_bench.devices import list_devices

    found = list_devices()
    if as_json:
        output.document([dataclasses.asdict(device) for device in found])
        return
    for device in found:
        port = "" if device.port is None else f" port {device.port}"
        tags = "".join(f" @{tag}" for tag in device.tags)
        output.result(f"{device.name:<12} {device.kind:<8} {device.address or 'this machine'}{port}{tags}")


@devices.command(epilog="Example: kdedge device check pi")
def check(names: Names, jobs: AtOnce = 8, accept_new_host_key: NewKey = False, as_json: Json = False) -> None:
    """Look at devices from the wire to the power sensor; say what is missing and how to cure it."""
    from kdedge_bench.check import check_device
    from kdedge_bench.selection import names_several, select_devices

    if not names_several(names):
        report = check_device(names, accept_new_host_key=accept_new_host_key)
        if as_json:
            output.document(report.to_dict())
        else:
            _show_report(report)
        if not report.ok:
            raise typer.Exit(3)
        return

    def look(device: Device, _: OnProgress) -> CheckReport:
        return check_device(device, accept_new_host_key=accept_new_host_key)

    def show(report: CheckReport) -> None:
        output.result(f"{report.device}:")
        _show_report(report)

    words = {"key": "reports", "then": "the same command looks again"}
    reports = _on_each(select_devices(names), look, _checked, show, jobs=jobs, as_json=as_json, **words)
    if not all(report.ok for report in reports):
        raise typer.Exit(3)


def _show_report(report: CheckReport) -> None:
    for finding in report.checks:
        mark = {True: "ok", False: "FAIL", None: "note"}[finding.ok]
        cure = f". {finding.cure}" if finding.cure else ""
        output.result(f"{mark:<5} {finding.name:<12} {finding.text}{cure}")


@devices.command(epilog="Example: kdedge device setup pi --offline")
def setup(
    names: Names,
    offline: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--offline/--online", help="Push wheels from this machine, or use the device's internet."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and why; change nothing.")
    ] = False,
    jobs: AtOnce = 8,
    accept_new_host_key: NewKey = False,
    as_json: Json = False,
) -> None:
    """Put the runtimes into a private environment on devices; does nothing where they are there."""
    if dry_run:
        _plan(names, jobs=jobs, accept_new_host_key=accept_new_host_key, as_json=as_json)
        return
    from kdedge_bench.selection import names_several, select_devices
    from kdedge_bench.session import Progress
    from kdedge_bench.setup import setup_device

    def put(device: Device, say: Callable[[str], None]) -> SetupResult:
        return setup_device(device, offline=offline, accept_new_host_key=accept_new_host_key, progress=say)

    def put_beside_others(device: Device, tell: OnProgress) -> SetupResult:
        return put(device, lambda text: tell(Progress("setup", None, text)))

    chosen = select_devices(names)
    if not names_several(names):
        with output.libraries_on_stderr():
            result = put(chosen[0], output.line)
        if as_json:
            output.document(result.to_dict())
        else:
            _show_setup(result)
        return
    words = {"key": "results", "then": "the same command goes on with what is missing"}
    _on_each(chosen, put_beside_others, _set_up, _show_setup, jobs=jobs, as_json=as_json, **words)


def _plan(names: str, *, jobs: int, accept_new_host_key: bool, as_json: bool) -> None:
    """What a set-up would do."""
    from kdedge_bench.selection import names_several, select_devices
    from kdedge_bench.setup_plan import plan_setup

    def look(device: Device, _: OnProgress) -> SetupPlan:
        return plan_setup(device, accept_new_host_key=accept_new_host_key)

    chosen = select_devices(names)
    if not names_several(names):
        plan = plan_setup(chosen[0], accept_new_host_key=accept_new_host_key)
        if as_json:
            output.document(plan.to_dict())
        else:
            _show_plan(plan)
        return
    words = {"key": "plans", "then": "the same command looks again"}
    _on_each(chosen, look, _planned, _show_plan, jobs=jobs, as_json=as_json, **words)


def _on_each(
    chosen: Sequence[Device],
    do: Callable[[Device, OnProgress], R],
    said: Callable[[R], str],
    show: Callable[[R], None],
    *,
    jobs: int,
    as_json: bool,
    key: str,
    then: str,
) -> list[R]:
    """The results of several devices, shown or as one document; leaves where one failed.

    Args:
        chosen: Which.
        do: What is done on each.
        said: A result in a few words, as soon as it is there.
        show: A result in full, at the end.
        jobs: Devices at a time.
        as_json: One document in place of what ``show`` says.
        key: Of the results in that document.
        then: How to go on.
    """
    from kdedge.cli.fleet import leave, on_devices

    with output.libraries_on_stderr():
        work = [(device, "", partial(do, device)) for device in chosen]
        outcomes = on_devices(work, jobs=jobs, said=said)
    pairs = list(zip(chosen, outcomes, strict=True))
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    failed = [(device, outcome.error) for device, outcome in pairs if outcome.error is not None]
    if as_json:
        failures = [{"device": device.name, "error": output.described(error)} for device, error in failed]
        output.document({key: [result.to_dict() for result in results], "failures": failures})
    else:
        for result in results:
            show(result)
        for device, error in failed:
            output.result(f"{device.name}: failed: {output.one_line(error)}")
    leave(outcomes, then=then)
    return results


def _checked(report: CheckReport) -> str:
    return "ok" if report.ok else "FAIL"


def _planned(plan: SetupPlan) -> str:
    return "would be set up" if plan.install else "nothing to do"


def _show_plan(plan: SetupPlan) -> None:
    place = ", ".join(filter(None, (f"Python {plan.python_version} at {plan.python}", plan.machine, plan.libc)))
    output.result(f"{plan.device}: {place}")
    for runtime, version in plan.there.items():
        output.result(f"  has {runtime} {version}")
    for why in plan.why.values():
        output.result(f"  needs {why}")
    for format_, reason in plan.missing.items():
        output.result(f"  no runtime for {format_}: {reason}")
    if plan.environment is not None:
        free = f"{plan.free_bytes / 1e9:.1f} GB free there"
        output.result(f"  would install {', '.join(plan.install)} into {plan.environment} ({free}); nothing needs root")
    elif plan.install:
        output.result(f"  that Python is yours: {plan.python} -m pip install {shlex.join(plan.install)}")
    else:
        output.result("  nothing to do")


def _set_up(result: SetupResult) -> str:
    return f"{'set up' if result.changed else 'nothing to do'}; Python {result.python_version}"


def _show_setup(result: SetupResult) -> None:
    output.result(f"{result.device}: {_set_up(result)}")
    for runtime, version in result.runtimes.items():
        output.result(f"  {runtime} {version}")
    for format_, reason in result.missing.items():
        output.result(f"  no runtime for {format_}: {reason}")


@devices.command(epilog="Example: kdedge device remove pi")
def remove(name: Name, as_json: Json = False) -> None:
    """Forget a device; nothing on it is touched."""
    from kdedge_bench.devices import remove_device

    device = remove_device(name)
    if as_json:
        output.document(dataclasses.asdict(device))
        return
    output.result(f"removed {name} ({device.address})")
