"""The small programs that run on the device before the agent can: find a Python, look around, store a file.

They are text, given to ``sh`` or ``python -c`` as one quoted word. They run under any Python (2.7 too, so
that one that is too old can be named), and use neither backslashes nor exclamation marks, which some login
shells read inside quotes, nor line breaks, at which csh and tcsh end a quoted word. Each answers with one line
that begins with ``ANSWER``, after a line break: what else appears on stdout is the noise of a login script, which
need not end its last line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

ANSWER = "kdedge-answer "
OLDEST_PYTHON = (3, 8)
#: Stands for kdedge's own environment on the device, in a list of interpreters to try.
OWN_VENV = "@venv"
_LINE_BREAK = "^"


def program(text: str) -> str:
    """A Python program as the one line that ``python -c`` gets on a device.

    Python looks for modules in the folder where it was started first. That is the user's home there (or, on this
    machine, any folder), whose ``random.py`` or ``platform.py`` is not the library's and not ours to run.

    Args:
        text: Without ``^`` and three double quotes in a row.
    """
    joined = text.strip().replace("\n", _LINE_BREAK)
    return (
        "import sys;sys.path[:]=[folder for folder in sys.path if folder];"
        f'exec("""{joined}{_LINE_BREAK}""".replace("{_LINE_BREAK}",chr(10)))'
    )


# Its words: the program for Python, the program's request, the interpreters to try.
FIND_PYTHON = (
    "program=$1; request=$2; shift 2; "
    'for python in "$@"; do '
    "case $python in "
    "@venv) python=$HOME/.cache/kdedge/venv/bin/python ;; "
    '"~/"*) python=$HOME/${python#"~/"} ;; '
    "esac; "
    'if command -v "$python" >/dev/null 2>&1; then exec "$python" -c "$program" "$request"; fi; '
    "done; "
    """echo; echo 'kdedge-answer {"error": "no-python"}'"""
)

LOOK_AROUND = program("""
import fcntl, hashlib, json, os, platform, sys, time
request = json.loads(sys.argv[1])
cache = os.path.join(os.path.expanduser("~"), ".cache", "kdedge")
def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1048576), b""):
            digest.update(chunk)
    return digest.hexdigest()
have = []
for name, wanted in sorted(request["files"].items()):
    path = os.path.join(cache, name)
    try:
        if sha256(path) == wanted:
            os.utime(path, None)
            have.append(name)
        else:
            os.unlink(path)
    except (IOError, OSError):
        pass
def others():
    "Whether an agent runs: its file may look old where the clock was set meanwhile."
    for name in os.listdir(cache) if os.path.isdir(cache) else []:
        try:
            lock = open(os.path.join(cache, name, "lock"), "r+")
        except (IOError, OSError):
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (IOError, OSError):
            return True
        finally:
            lock.close()
    return False
now = time.time()
tidy = request["tidy"] and not others()
places = ((cache, "agent-"), (os.path.join(cache, "artifacts"), "")) if tidy else ()
for folder, prefix in places:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in names:
        path = os.path.join(folder, name)
        stale_days = 1 if name.endswith(".part") else 30
        if not (name.startswith(prefix) or name.endswith(".part")) or not os.path.isfile(path):
            continue
        try:
            if now - os.path.getmtime(path) > stale_days * 86400:
                os.unlink(path)
        except (IOError, OSError):
            pass
folder = cache
while not os.path.isdir(folder):
    folder = os.path.dirname(folder)
disk = os.statvfs(folder)
machine = platform.machine()
if sys.maxsize < 2 ** 32:
    # The kernel names the processor; a 32-bit system on it can only load 32-bit wheels.
    machine = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
answer = {
    "python": sys.executable,
    "version": list(sys.version_info[:3]),
    "cache": cache,
    "have": have,
    "free_bytes": disk.f_bavail * disk.f_frsize,
    "machine": machine,
    "system": platform.system(),
    "libc": list(platform.libc_ver()),
    "in_venv": not getattr(sys, "base_prefix", sys.prefix) == sys.prefix,
}
print(chr(10) + "kdedge-answer " + json.dumps(answer))
""")

STORE = program("""
import errno, hashlib, json, os, signal, sys, tempfile
target, wanted, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.umask(63)
def stop(number, frame):
    raise SystemExit(1)
for name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), stop)
def answer(**words):
    print(chr(10) + "kdedge-answer " + json.dumps(words))
    sys.stdout.flush()
part = None
try:
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        os.makedirs(folder, 448)
    handle, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    digest, got = hashlib.sha256(), 0
    with os.fdopen(handle, "wb") as stream:
        while got < size:
            chunk = sys.stdin.buffer.read1(min(1048576, size - got))
            if not chunk:
                break
            digest.update(chunk)
            got += len(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    with open(part, "rb") as stream:
        written = hashlib.sha256()
        for chunk in iter(lambda: stream.read(1048576), b""):
            written.update(chunk)
    if written.hexdigest() == wanted:
        os.rename(part, target)
        part = None
        answer(ok=True)
    else:
        answer(error="corrupt", detail="%d of %d bytes" % (got, size))
except EnvironmentError as error:
    answer(error=errno.errorcode.get(error.errno, "EIO"), detail=str(error.strerror))
finally:
    if part is not None:
        os.unlink(part)
""")

GUARD = program("""
import os, select, signal, subprocess, sys
# Not in the user's home: python -m, and what that starts in turn, would look for modules there.
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")
while child.poll() is None:
    ready = select.select([0], [], [], 0.1)[0]
    if ready and not os.read(0, 4096):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
sys.exit(child.returncode if child.returncode >= 0 else 1)
""")

REMOVE = program("""
import json, os, shutil, sys
cache = os.path.join(os.path.expanduser("~"), ".cache", "kdedge")
for name in json.loads(sys.argv[1]):
    path = os.path.normpath(os.path.join(cache, name))
    if path == cache or path.startswith(cache + os.sep):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)
print(chr(10) + "kdedge-answer {}")
""")


_NAME = re.compile(r"[A-Za-z0-9_.-]{0,32}")
_GLIBC = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})(?![0-9])")
#: No count of bytes is larger, and what is larger may be no float.
_COUNT_LIMIT = 1 << 63


@dataclass(frozen=True)
class Ground:
    """What there is on the device before the agent runs.

    Attributes:
        python: Absolute path of the interpreter.
        version: Of that Python.
        cache: kdedge's folder there.
        have: Files asked for that are there with the right hash, relative to ``cache``.
        free_bytes: Of the file system that holds the cache.
        machine: ``aarch64``, ``x86_64``, …
        system: ``Linux``, ``Darwin``.
        libc: Name and version, empty where unknown (musl).
        in_venv: Whether that Python is a virtual environment's.
    """

    python: str
    version: tuple[int, int, int]
    cache: str
    have: frozenset[str] = field(default_factory=frozenset)
    free_bytes: int = 0
    machine: str = ""
    system: str = ""
    libc: tuple[str, str] = ("", "")
    in_venv: bool = False

    def path(self, name: str) -> str:
        """The path on the device of a file in its cache."""
        return f"{self.cache}/{name}"

    @property
    def version_text(self) -> str:
        """``3.11.2``."""
        return ".".join(map(str, self.version))

    @property
    def glibc(self) -> tuple[int, int] | None:
        """Version of glibc; None for another C library."""
        name, version = self.libc
        numbers = _GLIBC.match(version)
        return (int(numbers[1]), int(numbers[2])) if name == "glibc" and numbers else None


def parse_answer(stdout: bytes) -> dict[str, Any] | None:
    """The answer of one of these programs, None if there is none (Any: the values of a JSON object)."""
    for line in reversed(stdout.decode("utf-8", "replace").splitlines()):
        if line.startswith(ANSWER):
            try:
                answer = json.loads(line[len(ANSWER) :])
            except (ValueError, RecursionError):
                return None
            return answer if isinstance(answer, dict) else None
    return None


def parse_ground(answer: dict[str, Any]) -> Ground:
    """What ``LOOK_AROUND`` saw.

    Raises:
        ValueError: a value that is missing, of another type, or out of bounds.
    """
    try:
        version = [_checked_count(number, 1000) for number in answer["version"][:3]]
        libc = answer.get("libc", ["", ""])
        return Ground(
            python=checked_path(answer["python"]),
            version=(version[0], version[1], version[2]),
            cache=checked_path(answer["cache"]),
            have=frozenset(str(name) for name in answer.get("have", [])),
            free_bytes=_checked_count(answer["free_bytes"]),
            machine=_checked_name(answer.get("machine", "")),
            system=_checked_name(answer.get("system", "")),
            libc=(_checked_name(libc[0]), _checked_name(libc[1])),
            in_venv=answer.get("in_venv") is True,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the device's answer lacks or distorts a value: {error!r}") from None


def _checked_count(value: object, limit: int = _COUNT_LIMIT) -> int:
    if not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"the device named a number that cannot be: {ascii(value)[:80]}")
    return value


def _checked_name(value: object) -> str:
    """A word that is shown to the user and put into names of wheels."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"the device named a system that is none: {ascii(value)[:80]}")
    return value


def checked_path(value: object) -> str:
    """A path that the device names for itself; it is only ever used on that device, as one quoted word.

    Raises:
        ValueError: no absolute path of printable characters.
    """
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 4096 or not value.isprintable():
        raise ValueError(f"the device named a path that is none: {ascii(value)[:80]}")
    return value
