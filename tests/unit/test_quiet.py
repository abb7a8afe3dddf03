"""Libraries are silent inside, and logging is afterwards as if nothing had happened."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest

from kdedge_exporters.quiet import quiet


def test_nothing_comes_out_and_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with pytest.raises(ValueError, match="inside"), quiet():
        print("printed", file=sys.stderr)  # noqa: T201
        warnings.warn("warned", stacklevel=1)
        logging.warning("logged")
        raise ValueError("inside")
    assert (root.level, root.handlers) == before
    assert capfd.readouterr() == ("", "")


def test_logging_works_afterwards_where_nobody_had_set_it_up() -> None:
    """``logging.info`` sets it up for good with the stderr that it finds, which would be ours."""
    program = (
        "import logging\nfrom kdedge_exporters.quiet import quiet\n"
        "with quiet():\n    logging.info('inside')\n"
        "logging.getLogger('later').warning('heard')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "heard\n")
