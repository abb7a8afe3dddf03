"""One run: upload, measure, collect, always clean up.

The artifact and the agent stay on the device under the names of their hashes (the next run does not send them
again; what has not been used for 30 days is removed). Nothing else stays: no process, no partial file, no sample.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge._version import __version__
from kdedge.errors import ArtifactError, DeviceError, KdedgeError, UserError
from kdedge.files import write_json

from kdedge_agent.protocol import ProtocolError
from kdedge_agent.record import build_record
from kdedge_agent.run_record import RunRecord
from kdedge_agent.run_request import RunRequest
from kdedge_bench.agent_zip import agent_zip
from kdedge_bench.artifact_file import ArtifactFile, check_artifact
from kdedge_bench.channel import Message
from kdedge_bench.devices import Device, get_device
from kdedge_bench.faults import device_write_failure
from kdedge_bench.metering import Metering, metering
from kdedge_bench.process import Transport
from kdedge_bench.remote import Ground
from kdedge_bench.scoring import Ready, score
from kdedge_bench.text import one_line
from kdedge_bench.transport import ensure_agent, open_transport
from kdedge_bench.validate import checked_record, not_a_result

if TYPE_CHECKING:
    from kdedge_bench.meters import Meter
    from kdedge_bench.scoring import AccuracyData


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: ``connect``, ``upload``, ``measure`` or ``accuracy``.
        done: Share of the stage, 0 to 1; None where it is not known.
        text: One harmless line to show.
    """

    stage: str
    done: float | None
    text: str


#: Of a measurement, beside what was asked of it in seconds.
REQUEST_LIMIT_S = 7200.0
"""A device that does not come further for so long is given up, however lively it is."""
_PAUSES = ("waiting", "cool-down")
OnProgress = Callable[[Progress], None]


def bench(
    artifact: Path | str | ArtifactFile,
    device: Device | str = "local",
    *,
    threads: int = 1,
    runtime: str | None = None,
    repetitions: int = 200,
    min_duration_s: float = 1.0,
    starts: int = 1,
    scenario: str = "single-stream",
    batch_size: int | None = None,
    pin: Sequence[int] | None = None,
    governor: str | None = None,
    cool_down_s: float | None = None,
    cool_down_c: float | None = None,
    profile: bool = False,
    provider: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    wait_s: float = 600.0,
    power: bool = True,
    meter: Meter | str | None = None,
    meter_accuracy: float | None = None,
    accuracy_data: AccuracyData | None = None,
    accuracy_about: Mapping[str, Any] | None = None,
    artifact_info: Mapping[str, Any] | None = None,
    out_dir: Path | str = Path("runs/bench"),
    accept_new_host_key: bool = False,
    progress: OnProgress | None = None,
) -> RunRecord:
    """Measure an artifact on a device and store the record as ``out_dir/<run_id>.json``.

    Args:
        artifact: An .onnx or .tflite file, kdedge's or not; or what was seen of one, which it still has to be.
        device: A device, or the name of one in ``devices.toml``; ``local`` is this machine.
        threads: Intra-op threads of the runtime.
        runtime: ``onnxruntime``, ``ai-edge-litert`` or ``tflite-runtime``; None takes the first that is there.
        repetitions: At least so many timed inferences (batches, of ``offline``).
        min_duration_s: Go on timing until so many seconds are measured.
        starts: Processes to measure in, one after the other; they share repetitions and seconds. From three on the
            intervals hold what differs from start to start.
        scenario: ``single-stream`` times one sample after the other; ``offline`` batches back to back, with their
            throughput.
        batch_size: Of ``offline``, where the artifact leaves it open; None takes eight.
        pin: Processors that the runtime may use; None leaves them to the system.
        governor: Of cpufreq while it is measured, put back afterwards; None leaves it as it is.
        cool_down_s: Rest for so many seconds first.
        cool_down_c: Wait first until the processor is at most so hot, for ten minutes at most.
        profile: Say where an inference spends its time and what runs it, after it was timed.
        provider: An execution provider of ONNX Runtime, such as ``cuda``, that has to run it; None is the CPU.
        input_shapes: Input -> its whole shape, where the artifact leaves more open than the batch; ``""`` is the only
            input there is.
        wait_s: At most so many seconds until another measurement on the device has ended.
        power: Measure power where the device has a source.
        meter: A power meter that this machine reads: ``csv:FILE``, ``stdin``, ``kasa:HOST``, ``tapo:HOST``,
            ``scpi:PORT``, or one of your own (``kdedge_bench.meters.Meter``). Its figures stand in place of those
            of the device's own source.
        meter_accuracy: What the meter's maker states, as a share of the reading; 0.01 is ±1%.
        accuracy_data: (samples, labels int [N]), or an iterator of such pairs, see ``scoring.score``;
            scored by the device's own kernels.
        accuracy_about: What the record is to say of them: source, split, sha256.
        artifact_info: What is known about the artifact (``precision``, ``model``, …), kept in the record.
        out_dir: Folder of the records; made if it is not there.
        accept_new_host_key: Put the key of a host that is not known yet on record.
        progress: Called with how far it is.

    Returns:
        The record as stored.

    Raises:
        ArtifactError: the file is none that can be measured, the runtime there refuses it, or the provider that was
            asked for is not there or ran nothing.
        UserError: unknown device, impossible request (processors, governor), or ``out_dir`` cannot be written.
        DeviceError: the device or the wire failed (one of its children).
    """
    checked = _unchanged(artifact) if isinstance(artifact, ArtifactFile) else check_artifact(Path(artifact))
    where = get_device(device) if isinstance(device, str) else device
    tell = progress or _ignore
    wish = run_request(
        checked, threads=threads, runtime=runtime, repetitions=repetitions, min_duration_s=min_duration_s, power=power,
        scenario=scenario, batch_size=batch_size, pin=None if pin is None else list(pin), governor=governor,
        cool_down_s=cool_down_s, cool_down_c=cool_down_c, profile=profile, provider=provider, wait_s=wait_s,
        starts=starts,
        input_shapes=None if input_shapes is None else {name: list(shape) for name, shape in input_shapes.items()},
    )  # fmt: skip
    _make_folder(Path(out_dir))
    created_at = datetime.now(timezone.utc)
    with (
        _metering(meter, meter_accuracy, power, where, tell) as metered,
        prepared(where, checked, tell, accept_new_host_key=accept_new_host_key) as ready,
    ):
        request = replace(wish, artifact=ready.artifact_path, **(metered.wishes() if metered else {}))
        answer = _measured(ready, request, tell, metered)
        record = _record(answer, checked, where, asked=request, created_at=created_at, info=artifact_info or {})
        file = Path(out_dir) / f"{record.run_id}.json"
        if accuracy_data is not None:
            unscored = replace(
                record, unmeasured={**record.unmeasured, "accuracy": "asked for, and not scored to the end"}
            )
            write_json(file, unscored.to_dict())  # what was measured stays, however the scoring ends
            accuracy = _scored(ready, request, accuracy_data, tell, kept=file)
            record = _with_accuracy(record, {**accuracy, "data": dict(accuracy_about or {})})
    write_json(file, record.to_dict())
    return record


def _unchanged(artifact: ArtifactFile) -> ArtifactFile:
    """The file as it is now.

    Raises:
        ArtifactError: it is another one than was seen.
    """
    now = check_artifact(artifact.path)
    if now.sha256 != artifact.sha256:
        raise ArtifactError(
            "the file was changed while others were measured", where=artifact.path, cure="Run the same command again"
        )
    return now


def _scored(ready: Ready, request: RunRequest, data: AccuracyData, tell: OnProgress, *, kept: Path) -> dict[str, Any]:
    """The artifact's scores; who cannot get them learns where the measurement is."""
    try:
        return score(ready, request, data, lambda n: tell(Progress("accuracy", None, f"{n} samples scored")))
    except KdedgeError as error:
        cure = "" if error.cure is None else f"{error.cure}. "
        error.cure = f"{cure}What was measured before is kept, without accuracy: {kept}"
        raise


def _with_accuracy(record: RunRecord, accuracy: dict[str, Any]) -> RunRecord:
    unmeasured = {key: reason for key, reason in record.unmeasured.items() if key != "accuracy"}
    return replace(record, accuracy=accuracy, unmeasured=unmeasured)


def _metering(
    meter: Meter | str | None, accuracy: float | None, power: bool, device: Device, tell: OnProgress
) -> contextlib.AbstractContextManager[Metering | None]:
    if meter is None:
        return contextlib.nullcontext()
    if not power:
        raise UserError("a meter was named, and power was not asked for", cure="Leave one of the two out")
    return metering(meter, device, accuracy=accuracy, tell=lambda text: tell(Progress("connect", None, text)))


def _measured(ready: Ready, request: RunRequest, tell: OnProgress, metered: Metering | None) -> Message:
    if metered is None:
        return _measure(ready, request, tell)
    return metered.measured(ready.agent, lambda: _measure(ready, request, tell))


def _measure(ready: Ready, request: RunRequest, tell: OnProgress) -> Message:
    """The agent's answer; an artifact that its runtime refuses does not stay on the device."""
    try:
        return ready.agent.request(
            {"type": "measure", "request": request.to_dict()},
            on_progress=lambda message: tell(_agent_progress(message, ready.artifact)),
            about=ready.artifact,
            limit_s=REQUEST_LIMIT_S + 2 * request.min_duration_s + (request.cool_down_s or 0.0) + request.wait_s,
        )
    except ArtifactError:
        # What was asked may be at fault, and not the file, which other measurements may be about.
        its_own = request.provider is None and not request.input_shapes
        if its_own and not ready.transport.device.is_local:
            with contextlib.suppress(DeviceError):
                ready.agent.request({"type": "remove", "paths": [ready.artifact_path]})
        raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # noticed now, and not after the measurement
            pass
    except OSError as error:
        raise UserError(f"cannot write records into this folder: {error.strerror}", where=folder) from None


@contextlib.contextmanager
def prepared(
    device: Device, artifact: ArtifactFile, tell: OnProgress, *, accept_new_host_key: bool = False
) -> Iterator[Ready]:
    """Connect, send what is not there yet, start the agent; on leaving, however that is, end all of it.

    Raises:
        DeviceError: one of its children, with the cure.
    """
    agent_file = agent_zip()
    tell(Progress("connect", None, f"connecting to {device.name}"))
    with open_transport(device, accept_new_host_key=accept_new_host_key) as transport:
        wanted = {agent_file.file_name: agent_file.sha256}
        if not device.is_local:
            wanted[artifact.remote_name] = artifact.sha256
        ground = transport.look_around(wanted)
        agent_path = ensure_agent(transport, ground, agent_file)
        artifact_path = _place(transport, ground, artifact, tell)
        with transport.open_agent(ground, agent_path) as agent:
            yield Ready(transport, ground, agent, artifact, artifact_path)


def _place(transport: Transport, ground: Ground, artifact: ArtifactFile, tell: OnProgress) -> str:
    """The artifact's path on the device; uploaded unless it is there."""
    if transport.device.is_local:
        return str(artifact.path)
    path = ground.path(artifact.remote_name)
    if artifact.remote_name in ground.have:
        tell(Progress("upload", 1.0, f"{artifact.path.name} is on {transport.device.name} already"))
        return path
    if artifact.size_bytes > ground.free_bytes:
        raise device_write_failure("ENOSPC", "", transport.device, artifact.path.name)

    def on_bytes(sent: int, total: int) -> None:
        tell(Progress("upload", sent / total, f"sending {artifact.path.name} to {transport.device.name}"))

    transport.put(artifact.path, path, artifact.sha256, ground=ground, on_bytes=on_bytes)
    return path


def run_request(artifact: ArtifactFile, **wishes: Any) -> RunRequest:
    """What is asked of the agent; a wish that cannot be met is the user's mistake, found before connecting.

    Raises:
        UserError: such a wish.
    """
    try:
        return RunRequest(
            artifact=str(artifact.path), artifact_sha256=artifact.sha256, format=artifact.format, **wishes
        )
    except ProtocolError as error:
        raise UserError(f"this cannot be measured: {error}", where=artifact.path) from None


def _record(
    answer: Message,
    artifact: ArtifactFile,
    device: Device,
    *,
    asked: RunRequest,
    created_at: datetime,
    info: Mapping[str, Any],
) -> RunRecord:
    """The record of a run; what the host knows for itself is never taken from the device."""
    description = {
        **info,
        "path": str(artifact.path),
        "format": artifact.format,
        "size_bytes": artifact.size_bytes,
    }
    try:
        record = build_record(
            answer,
            device=device.name,
            device_kind=device.kind,
            run_id=_run_id(device, artifact, created_at),
            created_at=created_at.isoformat(timespec="seconds"),
            artifact=description,
            versions={"kdedge": __version__},
            device_sha256=device.sha256,
        )
    except (ProtocolError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise not_a_result(error, device) from None
    return checked_record(record, asked, device)


def _run_id(device: Device, artifact: ArtifactFile, created_at: datetime) -> str:
    """A name that sorts by time, says what was measured where, and is unique."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", artifact.path.stem).strip(".-")[:40] or "artifact"
    return f"{created_at:%Y%m%dT%H%M%SZ}-{device.name}-{stem}-{artifact.format}-{secrets.token_hex(3)}"


def _agent_progress(message: Message, artifact: ArtifactFile) -> Progress:
    phase = one_line(str(message.get("phase", "measure")).replace(artifact.remote_file, artifact.path.name), 80)
    if phase in _PAUSES and message.get("text"):  # what it waits for
        phase = one_line(str(message["text"]), 200)
    done, total = message.get("done"), message.get("total")
    share = None
    if isinstance(done, (int, float)) and isinstance(total, (int, float)) and done >= 0 and total > 0:
        share = min(1.0, done / total)
    return Progress("measure", share, phase)


def _ignore(_: Progress) -> None:
    """Show nothing."""
