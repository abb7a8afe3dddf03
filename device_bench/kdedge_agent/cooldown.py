"""Let the board cool down before a measurement: for so many seconds, or until it is cool enough."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

from kdedge_agent import facts
from kdedge_agent.errors import AgentFailure

MAX_S = 600.0
"""Longest wait for a temperature."""
LOOK_EVERY_S = 1.0
_PROCESSOR_ZONE = re.compile(r"cpu|soc|pkg|core|tctl|tdie", re.IGNORECASE)


def hottest(temperatures_c: Mapping[str, float]) -> Optional[float]:
    """Degrees Celsius of the hottest zone of the processor; of all zones where none is named so; None without any."""
    own = [value for zone, value in temperatures_c.items() if _PROCESSOR_ZONE.search(zone)]
    return max(own or temperatures_c.values(), default=None)


def cool_down(
    seconds: Optional[float],
    target_c: Optional[float],
    root: Path,
    rest: Callable[[float, str], None],
) -> Dict[str, Any]:
    """Rest until it is time.

    Args:
        seconds: To rest; None rests for a temperature.
        target_c: At most so hot the processor shall be; the wait ends after ten minutes in any case.
        root: Of the tree with the temperatures.
        rest: Lets so many seconds pass, and shows the words.

    Returns:
        {seconds, target_c, waited_s, from_c, to_c, reached}; the temperatures are None where the device has none.

    Raises:
        AgentFailure: a temperature is asked for, and the device tells none.
    """
    from_c = to_c = hottest(facts.temperatures(root))
    if target_c is not None and from_c is None:
        raise AgentFailure("request", "this device tells no temperature to wait for", "Give --cool-down in seconds")
    begin = time.monotonic()
    limit = MAX_S if seconds is None else seconds
    while True:
        waited = time.monotonic() - begin
        reached = target_c is None or (to_c is not None and to_c <= target_c)
        if waited >= limit or (target_c is not None and reached):
            break
        now = "" if to_c is None else f", {to_c:.1f} °C"
        rest(min(LOOK_EVERY_S, limit - waited), f"cooling down: {waited:.0f} of at most {limit:.0f} s{now}")
        to_c = hottest(facts.temperatures(root))
    return {
        "seconds": seconds,
        "target_c": target_c,
        "waited_s": round(waited, 3),
        "from_c": from_c,
        "to_c": to_c,
        "reached": reached,
    }
