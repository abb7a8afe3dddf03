"""Set a cpufreq governor for a measurement, and put back what was there, whatever happens.

Before anything is changed, a journal in the agent's folder says what was there. The agent puts it back when the
measurement ends, however that is. A keeper, a process of its own that waits for the agent's end, does it when the agent
itself is killed; and the next agent does it when both are. The journal is locked (flock) while its agent lives, so that
whoever gets the lock knows that nobody else will restore it; one of another boot is thrown away, for the kernel has
forgotten the change too.
"""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, Optional, Sequence

from kdedge_agent import cpufreq, journal, sysfs
from kdedge_agent.errors import AgentFailure
from kdedge_agent.process import agent_command

JOURNAL = "governor.json"
_PLACE = re.compile(r"/sys/devices/system/cpu/cpufreq/policy\d+/scaling_governor$")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KEEPER_EXIT_S = 10.0


class GovernorChange:
    """One change of governor, of the policies of some processors.

    Attributes:
        report: For the record: {asked, set: {policy: what was there}, refused: {policy: why}, command: what root would
            have to run, restored: whether all is as it was}.
    """

    def __init__(self, name: str, root: Path, cpus: Optional[Sequence[int]], folder: Path) -> None:
        self._name, self._folder = name, folder
        self._policies = cpufreq.policies_of(root, cpus)
        self._lock: Optional[IO[str]] = None
        self._keeper: "Optional[subprocess.Popen[bytes]]" = None
        self.report: Dict[str, Any] = {"asked": name, "set": {}, "refused": {}, "command": None, "restored": True}

    def apply(self) -> None:
        """Set the governor where this user may; where not, the report says why and what root would have to run.

        Raises:
            AgentFailure: the kernel has no such governor, or another measurement has set one.
        """
        if not self._policies:
            self.report["refused"]["all"] = "this machine's kernel sets no clock (no cpufreq)"
            return
        for policy in self._policies:
            known = (sysfs.read_text(policy / "scaling_available_governors") or "").split()
            if known and self._name not in known:
                raise AgentFailure(
                    "request", f"{policy.name} has no governor {self._name}", f"It has: {', '.join(known)}"
                )
        self._take_journal()
        was = {policy: sysfs.read_text(policy / "scaling_governor") for policy in self._policies}
        wanted = {policy: before for policy, before in was.items() if before not in (None, self._name)}
        for policy in list(wanted):
            reason = _why_not_writable(policy / "scaling_governor")
            if reason is not None:
                self.report["refused"].setdefault(policy.name, reason)
                del wanted[policy]
        if wanted and self._lock is not None and self._note(wanted):
            self._set(wanted)
        refused = [policy for policy in was if sysfs.read_text(policy / "scaling_governor") != self._name]
        for policy in refused:
            self.report["refused"].setdefault(policy.name, "the kernel kept its own")
        if refused:
            files = " ".join(str(policy / "scaling_governor") for policy in refused)
            self.report["command"] = f"echo {self._name} | sudo tee {files}"

    def _take_journal(self) -> None:
        """Lock the journal, and put back what a killed agent left in it; without a journal nothing is changed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = journal.locked(self._folder / JOURNAL, create=True, wait=False)
        except BlockingIOError:
            message = "another measurement on this device has set the governor"
            raise AgentFailure("request", message, "Wait until it has ended") from None
        except OSError as error:
            why = f"what was there cannot be noted in {self._folder}: {error.strerror}"
            self.report["refused"] = {policy.name: why for policy in self._policies}
        else:
            _restore(self._lock)

    def _note(self, wanted: Mapping[Path, Optional[str]]) -> bool:
        """Write the journal to disk, and start the keeper, before anything is changed; without them nothing is."""
        was = {str(policy / "scaling_governor"): str(before) for policy, before in wanted.items()}
        document = {"boot_id": sysfs.read_text(_BOOT_ID), "governor": self._name, "was": was}
        try:
            if self._lock is not None:
                journal.write(self._lock, json.dumps(document))
            self._keeper = _start_keeper(self._folder / JOURNAL)
        except OSError as error:
            why = f"nothing would put it back after a crash: {error.strerror}"
            self.report["refused"].update({policy.name: why for policy in wanted})
            return False
        return True

    def _set(self, wanted: Mapping[Path, Optional[str]]) -> None:
        for policy, before in wanted.items():
            try:
                (policy / "scaling_governor").write_text(self._name)
            except OSError as error:  # noqa: PERF203 - a handful of files
                self.report["refused"][policy.name] = f"{error.strerror}"
            else:
                self.report["set"][policy.name] = before

    def restore(self) -> None:
        """Put back what was there; may be called whether or not anything was changed."""
        if self._lock is not None:
            _restore(self._lock)
            self.report["restored"] = not journal.read(self._lock)
            if self.report["restored"]:
                with suppress(OSError):
                    (self._folder / JOURNAL).unlink()
            self._lock.close()
            self._lock = None
        if self._keeper is not None:
            _end_keeper(self._keeper)
            self._keeper = None


@contextmanager
def governed(change: Optional[GovernorChange]) -> Iterator[None]:
    """The change inside, and nothing of it outside."""
    if change is None:
        yield
        return
    try:
        change.apply()
        yield
    finally:
        change.restore()


def recover(folder: Path, *, wait: bool = False) -> List[str]:
    """Put back what an agent changed that was killed; the places, none where nothing is to be done.

    Args:
        folder: The agent's.
        wait: Until the agent that owns the journal has ended, instead of leaving it alone.
    """
    place = folder / JOURNAL
    try:
        lock = journal.locked(place, create=False, wait=wait)
    except OSError:
        return []
    with lock:
        restored = _restore(lock)
        if not journal.read(lock):
            with suppress(OSError):
                place.unlink()
    return restored


def keep(place: str, stdin: IO[bytes]) -> int:
    """The keeper's whole life: wait until the agent has ended, then put back what it could not."""
    while stdin.read(1):
        pass
    recover(Path(place).parent, wait=True)
    return 0


def _why_not_writable(place: Path) -> Optional[str]:
    """Why this user may not write a file, in the system's words; None where it may."""
    try:
        with place.open("r+"):
            return None
    except OSError as error:
        return error.strerror


def _restore(file: IO[str]) -> List[str]:
    """Write back what the journal says, where the governor still is the one it set; the places written.

    What cannot be written back stays in the journal.
    """
    document = journal.read(file)
    boot_id = sysfs.read_text(_BOOT_ID)
    left: Dict[str, str] = {}
    done = []
    if document.get("boot_id") == boot_id:
        for place, before in document.get("was", {}).items():
            if not _PLACE.search(str(place)) or sysfs.read_text(Path(place)) != document.get("governor"):
                continue
            try:
                Path(place).write_text(str(before))
                done.append(place)
            except OSError:
                left[place] = before
    journal.write(file, json.dumps({**document, "was": left}) if left else "")
    return done


def _start_keeper(place: Path) -> "subprocess.Popen[bytes]":
    """A process that outlives this one by the moment it takes to restore; out of reach of its terminal's signals."""
    command, environment = agent_command("--keep-governor", str(place))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _end_keeper(keeper: "subprocess.Popen[bytes]") -> None:
    if keeper.stdin is not None:
        with suppress(OSError):
            keeper.stdin.close()
    try:
        keeper.wait(_KEEPER_EXIT_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
