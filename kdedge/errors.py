"""Errors of the whole project: each says what, where, and the cure.

``cli.py`` alone turns them into exit codes; nothing else exits.
"""

from __future__ import annotations


class KdedgeError(Exception):
    """Base of every error that kdedge raises on purpose.

    Args:
        what: One clause that says what is wrong.
        where: The file, key, line or device it is about.
        cure: What the user can do, as a sentence.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object | None = None, cure: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.cure = cure

    def __str__(self) -> str:
        """One line: what (where). Cure."""
        text = self.what if self.where is None else f"{self.what} ({self.where})"
        return text if self.cure is None else f"{text}. {self.cure}"


class UserError(KdedgeError):
    """The user's mistake: exit code 2."""


class RecipeError(UserError):
    """A recipe that cannot be read or asks for what is not there."""


class DataError(UserError):
    """A data set that is missing, damaged or does not fit."""


class ModelError(UserError):
    """A teacher or student that is unknown or does not fit the task."""


class BundleError(UserError):
    """A bundle that is damaged, foreign, or of a newer format."""


class ArtifactError(UserError):
    """An artifact that cannot be read or run."""


class CheckError(KdedgeError):
    """A check failed (parity, accuracy): exit code 1."""

    exit_code = 1


class ParityError(CheckError):
    """The artifact departs from the student by more than the stated tolerance."""


class ReachError(CheckError):
    """The runtime that an artifact is for would not open it."""


class DeviceError(KdedgeError):
    """The device or the wire failed: exit code 3."""

    exit_code = 3


class UnreachableError(DeviceError):
    """No connection to the device (address, key, host key, route)."""


class WireError(DeviceError):
    """The connection broke or carried what is no protocol message."""


class AgentError(DeviceError):
    """The agent on the device reported a failure (runtime missing, worker died, disk full)."""
