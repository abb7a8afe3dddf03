"""What goes wrong on the device, in a form that travels: kind, message, cure."""

from __future__ import annotations

from typing import Dict, Optional


class AgentFailure(Exception):  # noqa: N818 - it is a reply, and travels
    """A request that could not be done; the session goes on.

    Args:
        kind: One word that programs can rest on, such as ``runtime-missing``, ``runtime-died``, ``refused``,
            ``artifact``, ``protocol``, ``disk-full`` or ``internal``.
        message: One line: what and where.
        cure: What the user can do, as a sentence; None where nothing is known.
    """

    def __init__(self, kind: str, message: str, cure: Optional[str] = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.cure = cure

    def to_message(self) -> Dict[str, Optional[str]]:
        """The protocol's error reply, without the id of its request."""
        return {"type": "error", "kind": self.kind, "message": self.message, "cure": self.cure}


class WireBroke(Exception):  # noqa: N818 - it is an event of the session, and no fault of its request
    """The host is gone: stdin ended, stdout cannot be written, or a signal asked the agent to leave."""
