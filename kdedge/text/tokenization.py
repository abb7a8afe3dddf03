"""What happens to a text between the file and the net: tokens of a fast tokenizer, cut and padded to one length."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from kdedge.errors import ArtifactError, ModelError
from kdedge.inputs import InputSpec, token_inputs

if TYPE_CHECKING:
    from kdedge.data.sentences import TextSet
    from kdedge.examples import Examples
    from kdedge.questions.examples import QuestionPart

TOKENIZER = "tokenizer.json"
PAD_TOKENS = ("[PAD]", "<pad>")
# Well above any vocabulary that an edge device would hold.
MAX_TOKENIZER_BYTES = 64 << 20
# Encodings take some hundred bytes a token while they live, tensors nine.
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class TokenSet:
    """Tokens of N texts or pairs of texts, padded to one length L.

    Attributes:
        input_ids: int32 [N, L].
        attention_mask: uint8 [N, L], 1 on tokens, 0 on padding.
        token_type_ids: uint8 [N, L], 1 on the second text of a pair; None for nets that do not tell the two apart.
        cut: bool [N], whether a text did not fit and lost its end.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    cut: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, index: Tensor) -> TokenSet:
        """The rows at ``index``, int64 [M]."""
        types = None if self.token_type_ids is None else self.token_type_ids[index]
        return TokenSet(self.input_ids[index], self.attention_mask[index], types, self.cut[index])

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The tensors in the order of ``inputs.token_inputs``."""
        tensors = (self.input_ids, self.attention_mask, self.token_type_ids)
        return tuple(tensor for tensor in tensors if tensor is not None)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenSet]) -> TokenSet:
        """All rows of one or more sets, in order."""
        types = [part.token_type_ids for part in parts if part.token_type_ids is not None]
        return cls(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.attention_mask for part in parts]),
            torch.cat(types) if types else None,
            torch.cat([part.cut for part in parts]),
        )


@dataclass(frozen=True)
class TextPreprocessing:
    """Texts -> tokens of one length, with the special tokens that the tokenizer's own post-processor sets.

    Attributes:
        tokenizer_json: A fast tokenizer as the tokenizers library writes it, without truncation and padding.
        max_length: Tokens a row, special ones and padding included.
        pad_id: Id of the padding token.
        token_types: Whether the net takes token_type_ids.
        doc_stride: Of a text longer than one window, tokens that a window shares with the next. (Hugging Face's
            meaning of the word; in BERT's first code it is the step from one window to the next.)
        n_best: Best starts and best ends that are tried with each other in a window.
        max_answer_length: Tokens of the longest answer.
    """

    tokenizer_json: str = field(repr=False)
    max_length: int
    pad_id: int
    token_types: bool
    doc_stride: int = 128
    n_best: int = 20
    max_answer_length: int = 30

    @classmethod
    def from_folder_or_hub(
        cls,
        source: str | Path,
        *,
        max_length: int,
        token_types: bool,
        doc_stride: int = 128,
        n_best: int = 20,
        max_answer_length: int = 30,
    ) -> TextPreprocessing:
        """With the tokenizer of a model: a folder (its tokenizer.json or older files), or a Hub name.

        Raises:
            ModelError: no such tokenizer, one in Python only, one without padding, or ``max_length`` leaves no room.
        """
        file = Path(source).expanduser() / TOKENIZER
        if file.is_file():
            try:
                tokenizer = _parsed(file.read_text(encoding="utf-8"), file)
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"cannot read the tokenizer: {error}", where=file) from error
            pad_id = _pad_id(tokenizer)
        else:
            tokenizer, pad_id = _from_transformers(str(source))
        if pad_id is None:
            raise ModelError(
                "the tokenizer has no padding token", where=source, cure=f"Add {' or '.join(PAD_TOKENS)} to it"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        made = cls(tokenizer.to_str(), max_length, pad_id, token_types, doc_stride, n_best, max_answer_length)
        if made.room < 2:
            raise ModelError(
                f"max_length {max_length} leaves no room for a pair of texts",
                where=source,
                cure=f"Set it to at least {max_length - made.room + 2}",
            )
        return made

    kind: ClassVar[str] = "text"

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Token ids, mask, and token types where the net tells segments apart."""
        return token_inputs(self.max_length, token_types=self.token_types)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return int(self.tokenizer().get_vocab_size())

    def prepare(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Columns of a ``TokenSet`` -> int64 [N, L] each; token types are left out where the net has none."""
        return tuple(column.long() for column in columns[: len(self.inputs)])

    def encode(self, part: TextSet | QuestionPart) -> Examples:
        """Tokens of the sentences, or windows over the contexts of the questions."""
        from kdedge.questions.examples import QuestionExamples, QuestionPart
        from kdedge.text.examples import SentenceExamples

        if isinstance(part, QuestionPart):
            from kdedge.questions.windows import question_windows

            windows = question_windows(part.questions, self)
            return QuestionExamples(windows, part.questions, self.n_best, self.max_answer_length)
        return SentenceExamples(self.encode_sentences(part.texts, part.pairs), part.labels)

    def files(self) -> dict[str, str]:
        """The tokenizer."""
        return {TOKENIZER: self.tokenizer_json}

    @property
    def room(self) -> int:
        """Tokens that the two texts of a pair share, the special ones apart."""
        return self.max_length - self.tokenizer().num_special_tokens_to_add(is_pair=True)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, parsed anew: it can be configured without changing another's.

        Raises:
            ModelError: this version of the tokenizers library does not know it.
        """
        return _parsed(self.tokenizer_json, TOKENIZER)

    def cutting_tokenizer(self, strategy: str, stride: int = 0) -> Tokenizer:
        """A tokenizer that cuts and pads to ``max_length``.

        Args:
            strategy: What is cut of a pair: ``longest_first`` or ``only_second``.
            stride: Tokens that the parts of a cut text share.
        """
        tokenizer = self.tokenizer()
        tokenizer.enable_truncation(self.max_length, stride=stride, strategy=strategy)
        pad_token = tokenizer.id_to_token(self.pad_id)
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=pad_token, length=self.max_length)
        return tokenizer

    def encode_sentences(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> TokenSet:
        """Tokens of N sentences, or of N pairs; of a pair that is too long the longer one is cut first.

        Args:
            texts: N sentences, the first of each pair where there are pairs.
            pairs: The second of each pair.
        """
        tokenizer = self.cutting_tokenizer("longest_first")
        rows: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        parts = []
        for start in range(0, max(len(rows), 1), _CHUNK_ROWS):
            encodings = tokenizer.encode_batch_fast(rows[start : start + _CHUNK_ROWS])
            parts.append(self.token_set(encodings, [bool(encoding.overflowing) for encoding in encodings]))
        return TokenSet.concatenate(parts)

    def token_set(self, encodings: Sequence[Encoding], cut: Sequence[bool]) -> TokenSet:
        """Rows of tensors from encodings of ``max_length`` tokens."""

        def stacked(name: str, dtype: type[np.generic]) -> Tensor:
            rows = np.array([getattr(encoding, name) for encoding in encodings], dtype)
            return torch.from_numpy(rows.reshape(len(encodings), self.max_length))

        return TokenSet(
            stacked("ids", np.int32),
            stacked("attention_mask", np.uint8),
            stacked("type_ids", np.uint8) if self.token_types else None,
            torch.tensor(cut, dtype=torch.bool),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the tokenizer as its SHA-256, for it is kept beside them."""
        data = asdict(self)
        return {"kind": self.kind, "tokenizer_sha256": _sha256(data.pop("tokenizer_json")), **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any], tokenizer_json: str) -> TextPreprocessing:
        """From ``to_dict``'s values and the tokenizer they were made with.

        Raises:
            ModelError: it is another tokenizer.
        """
        if _sha256(tokenizer_json) != data["tokenizer_sha256"]:
            raise ModelError("the tokenizer is damaged or another one: its SHA-256 is not the one that was noted")
        return cls(
            tokenizer_json,
            int(data["max_length"]),
            int(data["pad_id"]),
            bool(data["token_types"]),
            int(data["doc_stride"]),
            int(data["n_best"]),
            int(data["max_answer_length"]),
        )


def pack_tokenizer(tokenizer_json: str) -> str:
    """A tokenizer small and in ASCII, for an artifact's metadata: zlib (RFC 1950), then base64 (RFC 4648)."""
    return base64.b64encode(zlib.compress(tokenizer_json.encode(), 9)).decode("ascii")


def unpack_tokenizer(packed: str) -> str:
    """The tokenizer that ``pack_tokenizer`` packed; never more than ``MAX_TOKENIZER_BYTES``.

    Raises:
        ArtifactError: damaged, cut, or larger than that.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(packed, validate=True), MAX_TOKENIZER_BYTES + 1)
        if len(data) > MAX_TOKENIZER_BYTES:
            raise ArtifactError(f"the embedded tokenizer is larger than {MAX_TOKENIZER_BYTES >> 20} MiB")
        if not stream.eof or stream.unused_data:
            raise ArtifactError("the embedded tokenizer is cut or followed by something else")
        return data.decode()
    except (ValueError, zlib.error) as error:
        raise ArtifactError(f"the embedded tokenizer is damaged: {error}") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(tokenizer_json: str, where: object) -> Tokenizer:
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises the bare class
        raise ModelError(f"cannot read the tokenizer: {error}", where=where) from error


def _pad_id(tokenizer: Tokenizer) -> int | None:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    return next((i for i in map(tokenizer.token_to_id, PAD_TOKENS) if i is not None), None)


def _from_transformers(source: str) -> tuple[Tokenizer, int | None]:
    """The fast tokenizer that transformers finds or makes of a vocabulary, and the id of its padding token."""
    import kdedge.torchvision_compat  # noqa: F401, I001  (transformers imports torchvision where it is installed)
    import transformers

    if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise ModelError("no such folder", where=source, cure="Give the folder of a model, or a Hub name")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(Path(source).expanduser()), trust_remote_code=False)
    except Exception as error:  # the library raises many kinds for a name that is wrong or a file that is missing
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load a tokenizer: {line}", where=source, cure="Check the folder or the Hub name, and the network"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} has no fast version, which kdedge needs to put it into bundle and artifact",
            where=source,
            cure=f"Choose a model with a {TOKENIZER}",
        )
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer.pad_token_id
