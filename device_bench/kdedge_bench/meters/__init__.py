"""Power meters that the host reads while a device without a sensor of its own is measured.

A meter is a class with the attributes and methods of ``meter.Meter``, entered in ``METERS`` under the word that
``kdedge bench --meter WORD:PLACE`` chooses it by. It yields ``(t_s, watts)`` with ``t_s`` on this machine's monotonic
clock, and says how far that may be off; what becomes of the readings is ``kdedge_bench.metering``'s.
"""

from __future__ import annotations

from collections.abc import Callable

from kdedge.errors import UserError

from kdedge_bench.meters.kasa import KasaMeter
from kdedge_bench.meters.logged import CsvMeter, StdinMeter
from kdedge_bench.meters.meter import Meter, MeterError, Reading
from kdedge_bench.meters.scpi import ScpiMeter
from kdedge_bench.meters.tapo import TapoMeter

__all__ = ["METERS", "Meter", "MeterError", "Reading", "find_meter"]

#: Word -> (what stands behind the colon, class).
METERS: dict[str, tuple[str, Callable[[str], Meter]]] = {
    "csv": ("FILE", CsvMeter),
    "kasa": ("HOST", KasaMeter),
    "scpi": ("PORT", ScpiMeter),
    "tapo": ("HOST", TapoMeter),
}


def find_meter(spec: str) -> Meter:
    """The meter that ``--meter`` names, not opened yet.

    Args:
        spec: ``csv:FILE``, ``stdin``, ``kasa:HOST``, ``tapo:HOST`` or ``scpi:PORT``.

    Raises:
        UserError: no such meter.
    """
    if spec == "stdin":
        return StdinMeter()
    word, _, place = spec.partition(":")
    if word not in METERS or not place:
        known = ", ".join([*(f"{name}:{what}" for name, (what, _) in METERS.items()), "stdin"])
        raise UserError(f"unknown meter {spec!r}", cure=f"Use one of {known}")
    return METERS[word][1](place)
