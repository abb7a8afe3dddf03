"""kdedge's commands, each in a process of its own, forked from one that has imported the libraries.

Importing torch, torchvision, transformers, scikit-learn and torchmetrics is two thirds of the time of a short command,
and the tests run some two hundred of them. Of kdedge only what lets torchvision in is imported before the fork.
What has to begin from nothing (Ctrl-C, kills, several processes, the demo) starts Python itself.

As a program it is the process that forks: ``python tests/warm.py SOCKET``, until its stdin ends.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_LIBRARIES = (
    "kdedge.torchvision_compat", "torchvision", "transformers", "sklearn.datasets",
    "torchmetrics.functional.classification", "torchao.quantization.pt2e",
)  # fmt: skip


def run(
    words: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 900.0,
) -> subprocess.CompletedProcess[str]:
    """What ``python -m kdedge WORDS`` prints, and its exit code.

    Args:
        words: Of the command line.
        env: The environment, with one thread, as the libraries were imported; by default this process's own.
        cwd: Where it runs.
        timeout_s: Then it is killed.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    env = {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdedge", *map(str, words)]
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as connection:
        out, err = Path(name) / "stdout", Path(name) / "stderr"
        request = {"words": command[3:], "env": env, "cwd": str(cwd or Path.cwd()), "out": str(out), "err": str(err)}
        connection.settimeout(timeout_s)
        connection.connect(_server())
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile()
        pid = int(answers.readline())
        try:
            code = int(answers.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout_s) from None
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


@cache
def _server() -> str:
    """The socket of a server that ends with this process."""
    folder = tempfile.mkdtemp(prefix="kdedge-test-")
    path = f"{folder}/warm"
    process = subprocess.Popen(
        [sys.executable, __file__, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    atexit.register(_end, process, folder)
    return path


def _end(process: subprocess.Popen[str], folder: str) -> None:
    process.communicate()
    Path(folder, "warm").unlink()
    Path(folder).rmdir()


def _serve(path: str) -> None:
    sys.path.insert(0, str(_ROOT))
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # else each child looks at, copies and clears all of it when it ends
    del sys.path[0]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Run a command in a child and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request)
    connection.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: Mapping[str, object]) -> None:
    """``python -m kdedge`` from here on."""
    import runpy

    os.chdir(str(request["cwd"]))
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, request["out"], os.O_CREAT | os.O_WRONLY),
                                (2, request["err"], os.O_CREAT | os.O_WRONLY)):  # fmt: skip
        handle = os.open(str(name), flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(dict(request["env"]))  # type: ignore[call-overload]
    words = request["words"]
    assert isinstance(words, list)
    sys.argv = ["kdedge", *words]
    sys.path[0] = str(request["cwd"])
    runpy.run_module("kdedge", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
