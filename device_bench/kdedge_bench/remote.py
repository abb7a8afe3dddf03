"""The small programs that run on the device before the agent can: find a Python, look around, store a file.

They are text, given to ``sh`` or ``python -c`` as one quoted word. They run under any Python (2.7 too, so
that one that is too old can be named), and use neither backslashes nor exclamation marks, which some login
shells read inside quotes. Each answers with one line that begins with ``ANSWER``: what else appears on
stdout is the noise of a login script.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

ANSWER = "kdedge-answer "
OLDEST_PYTHON = (3, 8)
#: Stands for kdedge's own environment on the device, in a list of interpreters to try.
OWN_VENV = "@venv"

FIND_PYTHON = """
program=$1; shift
for python in "$@"; do
  case $python in
    @venv) python=$HOME/.cache/kdedge/venv/bin/python ;;
    "~/"*) python=$HOME/${python#"~/"} ;;
  esac
  if command -v "$python" >/dev/null 2>&1; then exec "$python" -c "$program" "$KDEDGE_REQUEST"; fi
done
echo 'kdedge-answer {"error": "no-python"}'
"""

LOOK_AROUND = """
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
answer = {
    "python": sys.executable,
    "version": list(sys.version_info[:3]),
    "cache": cache,
    "have": have,
    "free_bytes": disk.f_bavail * disk.f_frsize,
    "machine": platform.machine(),
    "system": platform.system(),
    "libc": list(platform.libc_ver()),
    "in_venv": getattr(sys, "base_prefix", sys.prefix) != sys.prefix,
}
print("kdedge-answer " + json.dumps(answer))
"""

STORE = """
import errno, hashlib, json, os, signal, sys, tempfile
target, wanted, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.umask(63)
def stop(number, frame):
    raise SystemExit(1)
for name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), stop)
def answer(**words):
    print("kdedge-answer " + json.dumps(words))
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
"""

INSTALLED = """
import importlib.metadata, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print("kdedge-answer " + json.dumps(found))
"""

GUARD = """
import os, select, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
while child.poll() is None:
    ready = select.select([0], [], [], 0.1)[0]
    if ready and not os.read(0, 4096):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
sys.exit(child.returncode if child.returncode >= 0 else 1)
"""

REMOVE = """
import json, os, shutil, sys
cache = os.path.join(os.path.expanduser("~"), ".cache", "kdedge")
for name in json.loads(sys.argv[1]):
    path = os.path.normpath(os.path.join(cache, name))
    if path == cache or path.startswith(cache + os.sep):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)
print("kdedge-answer {}")
"""


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
        parts = version.split(".")
        if name != "glibc" or len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
            return None
        return int(parts[0]), int(parts[1])


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
        version = answer["version"]
        libc = answer.get("libc", ["", ""])
        return Ground(
            python=checked_path(answer["python"]),
            version=(int(version[0]), int(version[1]), int(version[2])),
            cache=checked_path(answer["cache"]),
            have=frozenset(str(name) for name in answer.get("have", [])),
            free_bytes=int(answer["free_bytes"]),
            machine=str(answer.get("machine", ""))[:32],
            system=str(answer.get("system", ""))[:32],
            libc=(str(libc[0])[:32], str(libc[1])[:32]),
            in_venv=answer.get("in_venv") is True,
        )
    except (KeyError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(f"the device's answer lacks or distorts a value: {error!r}") from None


def checked_path(value: object) -> str:
    """A path that the device names for itself; it is only ever used on that device, as one quoted word.

    Raises:
        ValueError: no absolute path of printable characters.
    """
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 4096 or not value.isprintable():
        raise ValueError(f"the device named a path that is none: {ascii(value)[:80]}")
    return value
