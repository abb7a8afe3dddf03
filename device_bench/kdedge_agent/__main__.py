"""``python3 agent.pyz`` or ``python -m kdedge_agent``: the agent.

With ``--worker`` one of its workers; with ``--keep-governor`` what puts the clock's governor back when it is killed.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def _leave(code: int) -> NoReturn:
    """End at once: a thread may still wait for stdin, and an orderly shutdown would trip over its lock."""
    try:
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> NoReturn:
    """Serve the host on stdin and stdout, then end this process."""
    if sys.version_info < (3, 8):
        sys.stderr.write("kdedge agent: Python 3.8 or later is needed, this is %d.%d\n" % sys.version_info[:2])
        _leave(2)
    if sys.argv[1:] == ["--worker"]:
        from kdedge_agent import worker

        _leave(worker.main())
    if sys.argv[1:2] == ["--keep-governor"] and len(sys.argv) == 3:
        from kdedge_agent import governor

        _leave(governor.keep(sys.argv[2], sys.stdin.buffer))
    from kdedge_agent import server, wire

    _leave(server.serve(sys.stdin.buffer, wire.claim_stdout()))


if __name__ == "__main__":
    main()
