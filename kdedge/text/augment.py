"""Views of sentences for a student that follows a teacher: runs of tokens and blanked tokens, made again bit for bit.

A few thousand sentences are soon learnt by heart. Their parts are new sentences, and the teacher says what they mean:
its logits are computed on the very tokens that the student sees. Labels say less of a part, so runs are for stages with
guides; blanked tokens, a few, are for the others too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdedge.counters import generator_for
from kdedge.recipe import AugmentRecipe
from kdedge.text.tokenization import TextPreprocessing, TokenSet

BLANKS = ("[MASK]", "<mask>", "[UNK]", "<unk>")
"""What a blanked token becomes: the first of these that the tokenizer has."""


@dataclass(frozen=True)
class SentenceViews:
    """How sentences are changed.

    Attributes:
        blank_id: Id of the token that stands for a blanked one.
        pad_id: Id of the padding token.
        special_ids: int64 [S], ids that no view touches: padding, and what stands around every sentence.
        masked_tokens: See ``AugmentRecipe``.
        span_probability: See ``AugmentRecipe``.
        seed: Of the run.
    """

    blank_id: int
    pad_id: int
    special_ids: Tensor
    masked_tokens: float
    span_probability: float
    seed: int

    @classmethod
    def of(cls, recipe: AugmentRecipe, preprocessing: TextPreprocessing, seed: int) -> SentenceViews | None:
        """What the recipe asks for; None where it asks for nothing."""
        if not (recipe.masked_tokens or recipe.span_probability):
            return None
        tokenizer = preprocessing.tokenizer()
        known = (tokenizer.token_to_id(blank) for blank in BLANKS)
        blank = next((number for number in known if number is not None), preprocessing.pad_id)
        ids = torch.tensor(sorted({*tokenizer.encode("").ids, preprocessing.pad_id}), dtype=torch.int64)
        return cls(blank, preprocessing.pad_id, ids, recipe.masked_tokens, recipe.span_probability, seed)

    def apply(self, tokens: TokenSet, stage: str, view: int) -> TokenSet:
        """One view of all N sentences, in their order; special tokens stay where they are.

        Args:
            tokens: As they were read.
            stage: Of the training; with ``view`` and the seed the name of the view.
            view: Its number.
        """
        generator = generator_for(self.seed, stage, view, "tokens")
        drawn = torch.rand(len(tokens), 3, generator=generator)
        attended = tokens.attention_mask.bool()
        content = attended & ~torch.isin(tokens.input_ids.long(), self.special_ids)
        counts = content.sum(1)
        # A run of random length at a random place, of one token at least; the whole sentence where none is drawn.
        length = torch.where(drawn[:, 0] < self.span_probability, 1 + (drawn[:, 1] * counts).long(), counts)
        start = (drawn[:, 2] * (counts - length + 1)).long()
        rank = content.cumsum(1) - 1
        inside = (rank >= start[:, None]) & (rank < (start + length)[:, None])
        kept = attended & (~content | inside)
        ids = tokens.input_ids
        if self.masked_tokens:
            blanked = content & (torch.rand(ids.shape, generator=generator) < self.masked_tokens)
            ids = torch.where(blanked, self.blank_id, ids)
        return self._packed(TokenSet(ids, tokens.attention_mask, tokens.token_type_ids, tokens.cut), kept)

    def _packed(self, tokens: TokenSet, kept: Tensor) -> TokenSet:
        """The rows with what is kept, bool [N, L], moved together and padded."""
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
        mask = (torch.arange(kept.shape[1]) < kept.sum(1, keepdim=True)).to(tokens.attention_mask.dtype)
        ids = torch.where(mask.bool(), tokens.input_ids.gather(1, order), self.pad_id)
        types = tokens.token_type_ids
        return TokenSet(ids, mask, None if types is None else types.gather(1, order) * mask, tokens.cut)
