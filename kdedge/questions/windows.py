"""Questions on long texts: windows of tokens that slide over the text, and answers out of their logits.

After Devlin et al. 2019 (arXiv:1810.04805, section 4.2 and its code): each window is (question, part of the context),
a net gives every token a logit to be the answer's start and one to be its end, and the best span of all windows is the
answer. For questions without one (section 4.3) the span of the first special token, [CLS], stands against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from kdedge.data.questions import Question
from kdedge.errors import DataError
from kdedge.text.tokenization import TextPreprocessing, TokenSet

# As tokenization's: encodings are large while they live.
_CHUNK_QUESTIONS = 512
_FAR = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class QuestionWindows:
    """W windows of L tokens over the contexts of N questions, those of one question in one run.

    Attributes:
        tokens: What the net takes; ``cut`` marks windows whose question did not fit whole.
        offsets: int32 [W, L, 2], begin and end of each context token in its context, in characters; −1 elsewhere.
        questions: int64 [W], the question that a window belongs to, ascending.
        null_positions: int64 [W], the first special token ([CLS]), which stands for no answer.
        starts: int64 [W], the first token of the question's first answer; the null position where the window does
            not hold that answer whole.
        ends: int64 [W], its last token, likewise.
    """

    tokens: TokenSet
    offsets: Tensor
    questions: Tensor
    null_positions: Tensor
    starts: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor) -> QuestionWindows:
        """The windows at ``index``, int64 [M]."""
        tensors = (self.offsets, self.questions, self.null_positions, self.starts, self.ends)
        return QuestionWindows(self.tokens.take(index), *(tensor[index] for tensor in tensors))


@dataclass(frozen=True)
class Answer:
    """A net's answer to one question.

    Attributes:
        text: Cut from the context; empty where there is none.
        score: Start logit plus end logit of the best span, −inf where no pair of the n best makes one.
        null_score: The same of the null position, the least over the question's windows.
    """

    text: str
    score: float
    null_score: float


def question_windows(questions: Sequence[Question], preprocessing: TextPreprocessing) -> QuestionWindows:
    """Windows over the contexts of one or more questions, with the labels for training.

    A question takes at most half of the window's room (``preprocessing.room``); what goes beyond is cut from its end.

    Args:
        questions: N questions.
        preprocessing: Tokenizer, length and ``doc_stride``.

    Raises:
        DataError: no questions, or ``doc_stride`` is not below half of the room, so that windows might not advance.
    """
    if not questions:
        raise DataError("no questions to make windows of")
    limit = preprocessing.room // 2
    if not 0 <= preprocessing.doc_stride < limit:
        raise DataError(
            f"doc_stride {preprocessing.doc_stride} does not fit windows of {preprocessing.max_length} tokens",
            cure=f"Set it from 0 to {limit - 1}, or take longer windows",
        )
    plain = preprocessing.tokenizer()
    cutting = preprocessing.cutting_tokenizer("only_second", preprocessing.doc_stride)
    parts = []
    for first in range(0, len(questions), _CHUNK_QUESTIONS):
        chunk = questions[first : first + _CHUNK_QUESTIONS]
        asked = [_fitting(question.question.lstrip(), plain, limit) for question in chunk]
        rows = [(text, question.context) for (text, _), question in zip(asked, chunk, strict=True)]
        groups = [[encoding, *encoding.overflowing] for encoding in cutting.encode_batch(rows)]
        owners = [row for row, group in enumerate(groups) for _ in group]
        encodings = [encoding for group in groups for encoding in group]
        tokens = preprocessing.token_set(encodings, [asked[row][1] for row in owners])
        parts.append(_labelled(tokens, encodings, [chunk[row] for row in owners], torch.tensor(owners) + first))
    tokens = TokenSet.concatenate([part.tokens for part in parts])
    names = ("offsets", "questions", "null_positions", "starts", "ends")
    return QuestionWindows(tokens, *(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _fitting(text: str, tokenizer: Tokenizer, limit: int) -> tuple[str, bool]:
    """``text`` cut behind its token ``limit``, and whether it had to be.

    What is left makes the same tokens as before: word pieces are taken from the left, and byte pairs and unigrams that
    are best in the whole are best up to a boundary of theirs.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return (text, False) if len(encoding) <= limit else (text[: encoding.offsets[limit - 1][1]], True)


def _labelled(
    tokens: TokenSet, encodings: Sequence[Encoding], owners: Sequence[Question], numbers: Tensor
) -> QuestionWindows:
    """Windows with their offsets and labels; ``owners`` and ``numbers`` int64 [W] say whose each is."""
    in_context = torch.from_numpy(np.array([e.sequence_ids for e in encodings], np.float32) == 1)  # None becomes NaN
    offsets = torch.from_numpy(np.array([e.offsets for e in encodings], np.int32))
    offsets = offsets.masked_fill(~in_context[:, :, None], -1)
    null_positions = torch.from_numpy(np.array([e.special_tokens_mask for e in encodings]).argmax(axis=1))
    answer = torch.tensor([_answer_span(question) for question in owners], dtype=torch.int32)
    begins, ends = offsets.unbind(2)
    # A window's context tokens are a run, so its first begin and its last end say what it covers.
    covered = (begins.masked_fill(~in_context, _FAR).amin(1) <= answer[:, 0]) & (ends.amax(1) >= answer[:, 1])
    first = (in_context & (ends > answer[:, :1])).int().argmax(1)
    last = begins.shape[1] - 1 - (in_context & (begins < answer[:, 1:])).flip(1).int().argmax(1)
    holds = covered & (first <= last)
    return QuestionWindows(
        tokens,
        offsets,
        numbers,
        null_positions,
        torch.where(holds, first, null_positions),
        torch.where(holds, last, null_positions),
    )


def _answer_span(question: Question) -> tuple[int, int]:
    """Begin and end in characters of the first answer, without the blanks around it; (−1, −1) without an answer."""
    if not question.answers:
        return -1, -1
    text, start = question.answers[0], question.answer_starts[0]
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())


def decode(
    logits: Tensor,
    windows: QuestionWindows,
    questions: Sequence[Question],
    *,
    n_best: int,
    max_answer_length: int,
    unanswerable: bool = False,
) -> tuple[Answer, ...]:
    """The best answer of every question.

    In each window the ``n_best`` highest starts and ends among the context tokens are tried with each other; a pair
    counts where the end is not before the start and the span has at most ``max_answer_length`` tokens. Of equal
    scores the earlier window wins, then the better start, then the better end; of equal logits the earlier token.

    Args:
        logits: float [W, 2, L]: start and end logit of every token.
        windows: All windows of the questions.
        questions: N questions, those that the windows were made of.
        n_best: Starts and ends tried in each window.
        max_answer_length: In tokens.
        unanswerable: Whether a question may have no answer (SQuAD v2.0): the text is then empty where the null score
            is above the best span's.

    Returns:
        N answers.
    """
    logits = logits.float().cpu()
    in_context = windows.offsets[:, :, 0] >= 0
    (start_logits, starts), (end_logits, ends) = (
        _best(logits[:, side].masked_fill(~in_context, -torch.inf), n_best) for side in (0, 1)
    )
    lengths = ends[:, None, :] - starts[:, :, None] + 1
    scores = start_logits[:, :, None] + end_logits[:, None, :]
    scores = scores.masked_fill((lengths < 1) | (lengths > max_answer_length), -torch.inf).flatten(1)
    best, pair = scores.max(dim=1)
    rows = torch.arange(len(windows))
    tries = starts.shape[1]
    begin = windows.offsets[rows, starts[rows, pair // tries], 0]
    end = windows.offsets[rows, ends[rows, pair % tries], 1]
    nulls = logits[rows, :, windows.null_positions].sum(1)
    null_scores = torch.full((len(questions),), torch.inf).scatter_reduce(0, windows.questions, nulls, "amin")
    chosen = _best_windows(best, windows.questions)
    columns = (begin[chosen].tolist(), end[chosen].tolist(), best[chosen].tolist(), null_scores.tolist())
    return tuple(
        Answer(
            "" if score == -math.inf or (unanswerable and null_score > score) else question.context[a:b].strip(),
            score,
            null_score,
        )
        for question, a, b, score, null_score in zip(questions, *columns, strict=True)
    )


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest logits of each row and their positions, [W, count] each; of equal ones the earlier first."""
    values, positions = logits.sort(dim=1, descending=True, stable=True)
    return values[:, :count], positions[:, :count]


def _best_windows(scores: Tensor, owners: Tensor) -> Tensor:
    """The window of the highest score of each question, the earliest of equal ones: int64 [N]."""
    order = np.lexsort((-scores.numpy(), owners.numpy()))
    _, firsts = np.unique(owners.numpy()[order], return_index=True)
    return torch.from_numpy(order[firsts])
