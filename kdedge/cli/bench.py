"""kdedge bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.bench_text import show_record
from kdedge.cli.conditions import REPETITIONS, axes_of, input_shapes, processors, refuse_for_bundle, rest_before
from kdedge.cli.matrix_file import take_matrix_file
from kdedge.cli.options import AtOnce, Json, NewKey

if TYPE_CHECKING:
    from kdedge_agent.run_record import RunRecord


@app.command(epilog="Example: kdedge bench runs/demo/student-int8.tflite --device pi --threads 4")
def bench(
    artifacts: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(metavar="ARTIFACT", help="Files .onnx or .tflite, kdedge's or not; or one bundle, in torch."),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="NAMES", help="Of devices, 'local' is this machine: pi,jetson, @TAG, all."),
    ] = "local",
    threads: Annotated[str, typer.Option("--threads", metavar="N,...", help="Threads of the runtime.")] = "1",
    runtime: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--runtime", metavar="NAMES", help="onnxruntime, ai-edge-litert, tflite-runtime; the first that is there."
        ),
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
        typer.Option(
            "--starts", metavar="K", min=1, help="Processes to measure in; from 3 on intervals are over them."
        ),
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
    input_shape: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--input-shape", metavar="NAME=1x3x224x224,...", help="Of inputs whose sizes the artifact leaves open."
        ),
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
    split: Annotated[str, typer.Option("--split", help="Of the accuracy data; as of `kdedge eval`.")] = "test",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the records.")] = Path("runs/bench"),
    accept_new_host_key: NewKey = False,
    matrix: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--matrix",
            metavar="FILE",
            is_eager=True,
            callback=take_matrix_file,
            help="TOML with artifacts, devices, runtimes, threads and these options.",
        ),
    ] = None,
    jobs: AtOnce = 8,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what --out has a record of, under the same conditions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure artifacts here or on devices over SSH.

    Latency with its intervals, memory by phase, power where a sensor is, accuracy on request; stores a record of each.
    Several artifacts, devices, runtimes or threads make a matrix: devices at the same time, the rest in turn.
    """
    wishes = {
        "scenario": scenario, "batch_size": batch_size, "starts": starts, "pin": processors(pin), "governor": governor,
        "profile": profile, "provider": provider, "input_shapes": input_shapes(input_shape), **rest_before(cool_down),
    }  # fmt: skip
    repetitions = repetitions or REPETITIONS.get(scenario, REPETITIONS["single-stream"])
    axes = axes_of(artifacts, device, runtime, threads)
    if axes.are_several or matrix is not None or resume:
        from kdedge.cli.fleet import bench_matrix

        bench_matrix(
            axes, jobs=jobs, resume=resume, repetitions=repetitions, min_duration_s=min_duration_s, power=power,
            meter=meter, meter_accuracy=meter_accuracy, accuracy_data=accuracy_data, split=split, out=out,
            accept_new_host_key=accept_new_host_key, wait_s=wait, as_json=as_json, **wishes,
        )  # fmt: skip
        return
    (artifact,), (count,) = axes.artifacts, axes.threads
    if artifact.is_dir():
        others = {
            "runtime": runtime, "accuracy-data": accuracy_data, "meter-accuracy": meter_accuracy,
            "no-power": not power, "split": None if split == "test" else split,
        }  # fmt: skip
        refuse_for_bundle({**wishes, **others}, artifact)
        record = _student(
            artifact,
            device,
            precision,
            meter=meter,
            threads=count,
            repetitions=repetitions,
            min_duration_s=min_duration_s,
            wait_s=wait,
            out=out,
        )
        _finish(record, out, as_json)
        return
    with output.libraries_on_stderr():
        record = measure(
            artifact, device=device, threads=count, runtime=runtime, repetitions=repetitions,
            min_duration_s=min_duration_s, power=power, meter=meter, meter_accuracy=meter_accuracy,
            accuracy_data=accuracy_data, split=split, out=out, accept_new_host_key=accept_new_host_key, wait_s=wait,
            **wishes,
        )  # fmt: skip
    _finish(record, out, as_json)


def _finish(record: RunRecord, out: Path, as_json: bool) -> None:
    if as_json:
        output.document(record.to_dict())
    else:
        show_record(record, out / f"{record.run_id}.json")


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

    from kdedge.cli.samples import about_artifact
    from kdedge_bench.devices import get_device
    from kdedge_bench.session import Progress
    from kdedge_bench.session import bench as run

    where = get_device(device)
    info, samples, data = about_artifact(artifact, accuracy_data, split)
    console = Console(stderr=True)
    with console.status("connecting", spinner="line") as status:

        def tell(progress: Progress) -> None:
            share = "" if progress.done is None else f" {progress.done:4.0%}"
            status.update(escape(f"{where.name}: {progress.text}{share}"))  # a device's words are no markup

        return run(
            artifact, where, accuracy_data=samples, accuracy_about=data, artifact_info=info, out_dir=out,
            progress=tell, **wishes,
        )  # fmt: skip
