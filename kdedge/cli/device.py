"""kdedge device add | list | check | setup | remove."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Json

devices = typer.Typer(
    name="device",
    help="The devices that --device knows.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: kdedge device add pi pi@raspberrypi.local --kind pi",
)
app.add_typer(devices)

Name = Annotated[str, typer.Argument(help="The device's name.")]
NewKey = Annotated[bool, typer.Option("--accept-new-host-key", help="Put the key of a host not known yet on record.")]


@devices.command(epilog="Example: kdedge device add pi pi@raspberrypi.local --kind pi")
def add(
    name: Annotated[str, typer.Argument(help="What --device will call it.")],
    address: Annotated[str, typer.Argument(metavar="USER@HOST", help="As `ssh` takes it.")],
    port: Annotated[Optional[int], typer.Option("--port", help="Of its SSH server.")] = None,  # noqa: UP045
    kind: Annotated[str, typer.Option("--kind", help="pi, jetson or linux.")] = "linux",
    python: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--python", metavar="PATH", help="Interpreter on the device that has the runtimes."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a device of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Remember a device."""
    from kdedge_bench.devices import Device, add_device

    device = Device(name=name, address=address, kind=kind, port=port, python=python)
    path = add_device(device, replace=replace)
    if as_json:
        output.document({**dataclasses.asdict(device), "config": str(path)})
        return
    output.result(f"added {name} ({address}) to {path}")
    output.line(f"Next: kdedge device check {name}")


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
        output.result(f"{device.name:<12} {device.kind:<8} {device.address or 'this machine'}{port}")


@devices.command(epilog="Example: kdedge device check pi")
def check(name: Name, accept_new_host_key: NewKey = False, as_json: Json = False) -> None:
    """Look at a device from the wire to its power sensor; say what is missing and how to cure it."""
    from kdedge_bench.check import check_device

    report = check_device(name, accept_new_host_key=accept_new_host_key)
    if as_json:
        output.document(report.to_dict())
    else:
        for finding in report.checks:
            mark = {True: "ok", False: "FAIL", None: "note"}[finding.ok]
            cure = f". {finding.cure}" if finding.cure else ""
            output.result(f"{mark:<5} {finding.name:<12} {finding.text}{cure}")
    if not report.ok:
        raise typer.Exit(3)


@devices.command(epilog="Example: kdedge device setup pi --offline")
def setup(
    name: Name,
    offline: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--offline/--online", help="Push wheels from this machine, or use the device's internet."),
    ] = None,
    accept_new_host_key: NewKey = False,
    as_json: Json = False,
) -> None:
    """Put the runtimes into a private environment on a device; does nothing where they are there."""
    from kdedge_bench.setup import setup_device

    with output.libraries_on_stderr():
        result = setup_device(name, offline=offline, accept_new_host_key=accept_new_host_key, progress=output.line)
    if as_json:
        output.document(result.to_dict())
        return
    output.result(f"{name}: {'set up' if result.changed else 'nothing to do'}; Python {result.python_version}")
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
