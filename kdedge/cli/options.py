"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
Data = Annotated[
    Optional[str],  # noqa: UP045  (typer reads the annotation at run time)
    typer.Option("--data", metavar="D", help="Hub name, folder in Hub layout, folder of class folders, or 'digits'."),
]
NewKey = Annotated[bool, typer.Option("--accept-new-host-key", help="Put the key of a host not known yet on record.")]
AtOnce = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Devices at a time, of several.")]
HostThreads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Threads of torch; by default the processors that this process may use."),
]
CacheDir = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--cache-dir", metavar="DIR", help="Of the caches; else KDEDGE_CACHE_DIR, else the user's cache folder."
    ),
]


def use_threads(threads: int | None) -> None:
    """Set torch's threads; OMP_NUM_THREADS counts where the option is not given."""
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)
        threads = len(affinity(0)) if affinity is not None else os.cpu_count()
    if threads is not None:
        torch.set_num_threads(threads)
