"""kdedge bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.conditions import REPETITIONS, processors, refuse_for_bundle, rest_before
from kdedge.cli.options import Json, Threads

if TYPE_CHECKING:
    from kdedge.cli.samples import Samples
    from kdedge_agent.run_record import RunRecord


@app.command(epilog="Example: kdedge bench runs/demo/student-int8.tflite --device pi --threads 4")
def bench(
    artifact: Annotated[Path, typer.Argument(help="An .onnx or .tflite file, kdedge's or not; or a bundle, in torch.")],
    device: Annotated[str, typer.Option("--device", help="A device's name, or 'local' for this machine.")] = "local",
    threads: Threads = 1,
    runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--runtime", help="onnxruntime, ai-edge-litert or tflite-runtime; the first that is there."),
    ] = None,
    scenario: Annotated[
        str, typer.Option("--scenario", help="single-stream: one sample after the other; offline: batches, throughput.")
    ] = "single-stream",
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch-size", min=1, help="Of offline, where the artifact leaves it open; 8 by default."),
    ] = None,
    repetitions: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--repetitions", min=1, help="At least so many timed inferences: 1000, or 200 batches."),
    ] = None,
    min_duration_s: Annotated[
        float, typer.Option("--seconds", "--min-duration", min=0.0, help="And at least so many timed seconds.")
    ] = 2.0,
    starts: Annotated[
        int,
        typer.Option("--starts", metavar="K", min=1, help="Processes to measure in, in turn: 5 for firm intervals."),
    ] = 1,
    pin: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--pin", metavar="CPUS", help="Processors that the runtime may use: 0, 2-3 or 0,2."),
    ] = None,
    governor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--governor", metavar="NAME", help="Of the clock while it is measured; put back afterwards."),
    ] = None,
    cool_down: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--cool-down", metavar="SECONDS|TEMP", help="Rest first: 60 (seconds), or until 45C, 10 min at most."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say which ops take the time and what runs them, after the timing.")
    ] = False,
    provider: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--provider", metavar="NAME", help="Of ONNX Runtime, such as cuda: it has to run the artifact."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="S", min=0, help="Seconds for another measurement on the device to end."),
    ] = 600.0,
    precision: Annotated[
        str, typer.Option("--precision", help="Of a bundle's student in torch: float32 or int8.")
    ] = "float32",
    power: Annotated[bool, typer.Option("--power/--no-power", help="Measure power where a source is.")] = True,
    meter: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--meter",
            metavar="SPEC",
            help="A power meter read here: csv:FILE, stdin, kasa:HOST, tapo:HOST or scpi:PORT.",
        ),
    ] = None,
    meter_accuracy: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--meter-accuracy", metavar="SHARE", help="Its maker's, as a share of the reading: 0.01 is ±1%."),
    ] = None,
    accuracy_data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--accuracy-data", metavar="D", help="Score this data set with the device's own kernels."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of the accuracy data.")] = "test",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the records.")] = Path("runs/bench"),
    accept_new_host_key: Annotated[
        bool, typer.Option("--accept-new-host-key", help="Put the key of a host not known yet on record.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure an artifact here or on a device over SSH.

    Latency with its intervals, memory by phase, power where a sensor is, accuracy on request; stores a record.
    """
    wishes = {
        "scenario": scenario, "batch_size": batch_size, "starts": starts, "pin": processors(pin), "governor": governor,
        "profile": profile, "provider": provider, **rest_before(cool_down),
    }  # fmt: skip
    repetitions = repetitions or REPETITIONS.get(scenario, REPETITIONS["single-stream"])
    if artifact.is_dir():
        refuse_for_bundle(wishes, artifact)
        record = _student(
            artifact,
            device,
            precision,
            meter=meter,
            threads=threads,
            repetitions=repetitions,
            min_duration_s=min_duration_s,
            out=out,
        )
        _finish(record, out, as_json)
        return
    with output.libraries_on_stderr():
        record = measure(
            artifact, device=device, threads=threads, runtime=runtime, repetitions=repetitions,
            min_duration_s=min_duration_s, power=power, meter=meter, meter_accuracy=meter_accuracy,
            accuracy_data=accuracy_data, split=split, out=out, accept_new_host_key=accept_new_host_key, wait_s=wait,
            **wishes,
        )  # fmt: skip
    _finish(record, out, as_json)


def _finish(record: RunRecord, out: Path, as_json: bool) -> None:
    if as_json:
        output.document(record.to_dict())
    else:
        _show(record, out / f"{record.run_id}.json")


def _student(
    path: Path, device: str, precision: str, *, meter: str | None, threads: int, repetitions: int, **wishes: Any
) -> RunRecord:
    from kdedge.bundle import Bundle
    from kdedge.errors import UserError
    from kdedge_bench.torch_student import bench_student

    if device != "local":
        raise UserError(
            "a bundle is measured in torch, on this machine only", where=path, cure="Export it, and bench the artifact"
        )
    if meter is not None:
        raise UserError("a meter reads along with artifacts only", where=path, cure="Export it, and bench the artifact")
    out = wishes.pop("out")
    return bench_student(Bundle.load(path), precision, threads=threads, repetitions=repetitions, out_dir=out, **wishes)


def measure(
    artifact: Path,
    *,
    device: str = "local",
    accuracy_data: str | None = None,
    split: str = "test",
    out: Path,
    **wishes: Any,
) -> RunRecord:
    """Measure an artifact with a live line on stderr; ``wishes`` are those of ``kdedge_bench.session.bench``.

    Raises:
        KdedgeError: unknown device, unreadable artifact, missing data, or a device that failed.
    """
    from rich.console import Console
    from rich.markup import escape

    from kdedge_bench.devices import get_device
    from kdedge_bench.session import Progress
    from kdedge_bench.session import bench as run

    where = get_device(device)
    metadata = _metadata(artifact)
    samples = None
    if accuracy_data is not None:
        from kdedge.cli.samples import for_artifact

        found = for_artifact(metadata, artifact, accuracy_data, split)
        samples = (_for_device(found, artifact), found.data.labels.numpy())
    known = metadata or {}
    info: dict[str, Any] = {key: known[key] for key in ("model", "precision", "bundle_id") if key in known}
    console = Console(stderr=True)
    with console.status("connecting", spinner="line") as status:

        def tell(progress: Progress) -> None:
            share = "" if progress.done is None else f" {progress.done:4.0%}"
            status.update(escape(f"{where.name}: {progress.text}{share}"))  # a device's words are no markup

        return run(artifact, where, accuracy_data=samples, artifact_info=info, out_dir=out, progress=tell, **wishes)


def _for_device(found: Samples, artifact: Path) -> Any:
    """What is sent to be scored: pixels as they are, which the agent normalises, else the net's own inputs.

    Raises:
        UserError: the device would have to find answers in texts.
    """
    from kdedge.errors import UserError

    if found.data.labels.ndim != 1:
        raise UserError(
            "accuracy on the device is measured for nets that tell classes; answers out of texts are put together here",
            where=artifact,
            cure="Leave --accuracy-data out, and score it here with kdedge eval",
        )
    if found.preprocessing.kind == "image":
        return found.data.columns[0].numpy()
    inputs = found.preprocessing.prepare(found.data.columns)
    if len(inputs) == 1:
        return inputs[0].numpy()
    names = [spec.name for spec in found.preprocessing.inputs]
    return {name: values.int().numpy() for name, values in zip(names, inputs, strict=True)}


def _metadata(artifact: Path) -> dict[str, Any] | None:
    """What kdedge wrote into the file; None where it is not kdedge's or cannot be opened on this machine.

    The device decides whether it can be measured: the host may lack the runtime.
    """
    from kdedge.errors import ArtifactError
    from kdedge_exporters.artifact import load_artifact

    try:
        return load_artifact(artifact).metadata
    except ArtifactError:
        return None


def _show(record: RunRecord, path: Path) -> None:
    from kdedge.reporting.energy_text import energy_text, power_notes
    from kdedge.reporting.profile_text import profile_lines

    latency = record.latency_s
    intervals = latency.get("ci95") or {}

    def quantile(name: str) -> str:
        if latency.get(name) is None:
            return f"{name} - ({record.unmeasured.get(f'latency_s.{name}', 'not measured')})"
        ends = intervals.get(name)
        spread = f" [{ends[0] * 1e3:.3f}, {ends[1] * 1e3:.3f}]" if ends else ""
        return f"{name} {latency[name] * 1e3:.3f}{spread}"

    def amount(value: float | None, key: str, scale: float, unit: str) -> str:
        reason = record.unmeasured.get(key, "no reason given")
        return f"not measured: {reason}" if value is None else f"{value * scale:.3f} {unit}"

    runtime = " ".join(
        str(record.runtime.get(key)) for key in ("name", "version", "provider") if record.runtime.get(key)
    )
    output.result(f"{record.device}: {record.artifact.get('path')}, {runtime}, {record.threads} thread(s)")
    methods = sorted({name for name in (latency.get("ci95_method") or {}).values() if name})
    why_none = record.unmeasured.get("latency_s.ci95.p50", "not given")
    count, own = (f", {record.starts} starts", "") if record.starts > 1 else ("", " of this start")
    how = f"95% intervals{own} by {' and '.join(methods)}" if methods else f"no 95% intervals: {why_none}"
    output.result(f"latency ms   {', '.join(map(quantile, ('p50', 'p90', 'p99')))}  (n={latency['n']}{count}, {how})")
    for line in (_throughput(record), _thirds(record)):
        if line is not None:
            output.result(line)
    output.result(
        f"load         {amount(record.load_s, 'load_s', 1e3, 'ms')}, "
        f"first inference {amount(record.first_inference_s, 'first_inference_s', 1e3, 'ms')}"
    )
    memory = record.memory_bytes
    output.result(
        f"memory       peak {amount(memory.get('peak'), 'memory_bytes.peak', 1e-6, 'MB')}, "
        f"steady {amount(memory.get('steady'), 'memory_bytes.steady', 1e-6, 'MB')}"
    )
    power = record.power or {}
    source = f" ({power['source']}: {power['covers']})" if record.power_w is not None and "covers" in power else ""
    output.result(f"power        {amount(record.power_w, 'power_w', 1.0, 'W')}{source}")
    if record.energy_j_per_inference is not None:
        output.result(f"energy       {energy_text(record.power or {})} per inference")
    for note in power_notes(record.power or {}):
        output.result(f"             {note}")
    for line in profile_lines(record.profile or {}):
        output.result(f"profile      {line}")
    if record.accuracy is not None:
        output.result(f"accuracy     {record.accuracy['accuracy']:.4f} (n={record.accuracy['n']})")
    output.result(f"verdict      {record.verdict}")
    for reason in record.verdict_reasons:
        output.result(f"             {reason}")
    output.result(f"record       {path}")


def _throughput(record: RunRecord) -> str | None:
    """Samples a second of the offline scenario."""
    rate = record.throughput
    if rate is None or rate["samples_per_s"] is None:
        return None
    ends = rate["ci95"]
    spread = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else f" ({record.unmeasured.get('throughput.ci95')})"
    return f"throughput   {rate['samples_per_s']:.1f} samples/s{spread}, in batches of {rate['batch_size']}"


def _thirds(record: RunRecord) -> str | None:
    """The first third of the run against the last, with what the board told beside them."""
    drift = record.latency_s.get("drift")
    if not drift:
        return None
    beside = record.facts.get("thirds") or {}

    def third(name: str) -> str:
        condition = beside.get(name) or {}
        heat = condition.get("temperature_c")
        clocks = sorted({round(hertz / 1e6) for hertz in (condition.get("frequency_hz") or {}).values()})
        words = [] if heat is None else [f"{heat:.1f} °C"]
        words += [f"{'/'.join(map(str, clocks))} MHz"] if clocks else []
        return f"{drift[f'{name}_p50'] * 1e3:.3f}" + (f" at {', '.join(words)}" if words else "")

    return f"thirds ms    first p50 {third('first')}, last p50 {third('last')}"
