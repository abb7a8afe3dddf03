"""What kdedge bench shows of a record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.cli import output

if TYPE_CHECKING:
    from kdedge_agent.run_record import RunRecord


def show_record(record: RunRecord, path: Path) -> None:
    """A record in full, line by line, on stdout."""
    from kdedge.reporting.energy_text import energy_text, power_notes
    from kdedge.reporting.profile_text import profile_lines

    latency = record.latency_s
    batch = None if record.throughput is None else record.throughput.get("batch_size")
    of_a_batch = "" if batch is None else f" of a batch of {batch}"
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
    output.result(
        f"latency ms   {', '.join(map(quantile, ('p50', 'p90', 'p99')))}{of_a_batch}  (n={latency['n']}{count}, {how})"
    )
    for line in (_throughput(record), _thirds(record)):
        if line is not None:
            output.result(line)
    output.result(
        f"load         {amount(record.load_s, 'load_s', 1e3, 'ms')}, "
        f"first inference{of_a_batch} {amount(record.first_inference_s, 'first_inference_s', 1e3, 'ms')}"
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
        output.result(
            f"energy       {energy_text(record.power or {})} per {'inference' if batch is None else 'sample'}"
        )
    for note in power_notes(record.power or {}, "inferences" if batch is None else "samples"):
        output.result(f"             {note}")
    for line in profile_lines(record.profile or {}, "inferences" if batch is None else f"batches of {batch}"):
        output.result(f"profile      {line}")
    if record.accuracy is not None:
        from kdedge.metrics import in_words

        output.result(f"scores       {in_words(record.accuracy)} (n={record.accuracy['n']})")
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
