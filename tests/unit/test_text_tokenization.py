from __future__ import annotations

import json
import shutil
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdedge.data.sentences import read_sentences
from kdedge.errors import ArtifactError, ModelError
from kdedge.inputs import token_inputs
from kdedge.text.tokenization import MAX_TOKENIZER_BYTES, TextPreprocessing, pack_tokenizer, unpack_tokenizer
from tests.text_data import MINILM, SST2, byte_level, needs_bert, needs_sst2, saved, word_piece

TEXTS = ["The cat sat on the mat.", "Dogs do not sit on mats, they lie.", "A wall is no mat!"]


def preprocessing(folder: Path, **changes: Any) -> TextPreprocessing:
    return TextPreprocessing.from_folder_or_hub(folder, **{"max_length": 16, "token_types": True, **changes})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return saved(word_piece(TEXTS), tmp_path / "bert")


@needs_bert
@needs_sst2
@pytest.mark.parametrize("max_length", [24, 64])
def test_real_sentences_become_the_tokens_that_transformers_makes(max_length: int) -> None:
    import transformers

    texts = read_sentences(str(SST2))[0]["validation"].texts
    reference = transformers.AutoTokenizer.from_pretrained(str(MINILM))
    settings = {"truncation": True, "padding": "max_length", "max_length": max_length, "return_tensors": "pt"}
    ours = preprocessing(MINILM, max_length=max_length)
    for pairs in (None, texts[::-1]):
        expected = reference(list(texts), None if pairs is None else list(pairs), **settings)
        tokens = ours.encode_sentences(texts, pairs)
        assert tokens.token_type_ids is not None
        assert (tokens.input_ids.dtype, tokens.attention_mask.dtype) == (torch.int32, torch.uint8)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(getattr(tokens, name).long(), expected[name]), name
        whole = reference(list(texts), None if pairs is None else list(pairs), truncation=False, padding=False)
        assert tokens.cut.tolist() == [len(ids) > max_length for ids in whole["input_ids"]]


@needs_bert
@needs_sst2
def test_rows_that_were_cut_are_counted_over_all_chunks() -> None:
    train = read_sentences(str(SST2))[0]["train"]
    tokens = preprocessing(MINILM, max_length=64).encode_sentences(train.texts)
    assert (len(tokens), int(tokens.cut.sum())) == (6920, 4)
    row = int(tokens.cut.nonzero()[-1])
    alone = preprocessing(MINILM, max_length=64).encode_sentences([train.texts[row]])
    assert torch.equal(tokens.take(torch.tensor([row])).input_ids, alone.input_ids)


@needs_bert
def test_a_folder_with_a_vocabulary_alone_gives_the_same_tokenizer(tmp_path: Path) -> None:
    for name in ("vocab.txt", "config.json"):
        shutil.copy(MINILM / name, tmp_path)
    assert preprocessing(tmp_path) == preprocessing(MINILM)


@needs_bert
def test_a_real_tokenizer_packs_to_half_its_size() -> None:
    text = preprocessing(MINILM).tokenizer_json
    assert len(pack_tokenizer(text)) < 0.6 * len(text)
    assert unpack_tokenizer(pack_tokenizer(text)) == text


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    tokenizer = word_piece(TEXTS)
    plain = preprocessing(saved(tokenizer, tmp_path / "plain"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4, direction="left")
    assert preprocessing(saved(tokenizer, tmp_path / "cutting")) == plain
    assert "PAD" not in str(json.loads(plain.tokenizer_json)["padding"])


def test_tokens_of_a_pair(bert: Path) -> None:
    ours = preprocessing(bert)
    tokens = ours.encode_sentences(["the cat"], ["the mat the mat the mat the mat the mat"])
    assert tokens.token_type_ids is not None
    words = [ours.tokenizer().id_to_token(int(i)) for i in tokens.input_ids[0]]
    assert words == ["[CLS]", "the", "cat", "[SEP]", *["the", "mat"] * 5, "[SEP]", "[PAD]"]
    assert tokens.token_type_ids[0].tolist() == [0] * 4 + [1] * 11 + [0]
    assert tokens.attention_mask[0].tolist() == [1] * 15 + [0]
    assert not tokens.cut.any()


def test_inputs_are_in_the_order_of_their_names(bert: Path) -> None:
    for token_types in (True, False):
        made = preprocessing(bert, token_types=token_types)
        tokens = made.encode_sentences(TEXTS, TEXTS)
        inputs = made.prepare(tokens.columns)
        specs = token_inputs(16, token_types=token_types)
        assert made.inputs == specs
        assert [tuple(x.shape[1:]) for x in inputs] == [spec.shape for spec in specs]
        assert all(x.dtype == torch.int64 for x in inputs)
        named = dict(zip((spec.name for spec in specs), inputs, strict=True))
        assert all(torch.equal(named[name], getattr(tokens, name).long()) for name in named)


def test_no_rows_are_an_empty_set(bert: Path) -> None:
    tokens = preprocessing(bert).encode_sentences([])
    assert tokens.input_ids.shape == (0, 16)
    assert tokens.cut.dtype == torch.bool


def test_values_come_back_with_their_tokenizer_alone(bert: Path, tmp_path: Path) -> None:
    ours = preprocessing(bert, doc_stride=3, n_best=7, max_answer_length=9)
    data = json.loads(json.dumps(ours.to_dict()))
    assert "tokenizer_json" not in data
    assert TextPreprocessing.from_dict(data, ours.tokenizer_json) == ours
    other = preprocessing(saved(byte_level(TEXTS), tmp_path / "other"))
    with pytest.raises(ModelError, match="its SHA-256 is not the one that was noted"):
        TextPreprocessing.from_dict(data, other.tokenizer_json)
    assert ours.tokenizer_json not in repr(ours)


def test_a_tokenizer_in_python_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    with pytest.raises(ModelError, match=r"CanineTokenizer has no fast version.*Choose a model with a tokenizer\.json"):
        preprocessing(tmp_path)


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path) -> None:
    assert preprocessing(saved(byte_level(TEXTS), tmp_path / "a")).pad_id == 2
    with pytest.raises(ModelError, match=r"no padding token .* Add \[PAD\] or <pad>"):
        preprocessing(saved(byte_level(TEXTS, pad=False), tmp_path / "b"))


def test_sources_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        preprocessing(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", Path("nobody/nothing")):
        with pytest.raises(ModelError, match="cannot load a tokenizer") as caught:
            preprocessing(source)
        assert "\n" not in str(caught.value)
    for damaged in (b"{}", b'{"version": "1.0"', b"\xff"):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"cannot read the tokenizer: .*tokenizer\.json"):
            preprocessing(tmp_path)


def test_a_length_without_room_is_refused(bert: Path) -> None:
    assert preprocessing(bert, max_length=5).room == 2
    with pytest.raises(ModelError, match=r"max_length 4 leaves no room .* Set it to at least 5"):
        preprocessing(bert, max_length=4)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_its_packing(text: str) -> None:
    packed = pack_tokenizer(text)
    assert packed.isascii()
    assert unpack_tokenizer(packed) == text


def test_a_packed_bomb_is_not_unpacked() -> None:
    bomb = b64encode(zlib.compress(bytes(MAX_TOKENIZER_BYTES + 1), 9)).decode()
    assert len(bomb) < 100_000
    with pytest.raises(ArtifactError, match="larger than 64 MiB"):
        unpack_tokenizer(bomb)
    assert len(unpack_tokenizer(pack_tokenizer("a" * MAX_TOKENIZER_BYTES))) == MAX_TOKENIZER_BYTES


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_packing_is_an_error_or_no_damage(data: st.DataObject) -> None:
    text = '{"version": "1.0", "model": "é"}' * 3
    packed = pack_tokenizer(text)
    kept = data.draw(st.integers(0, len(packed) - 1))
    try:
        assert unpack_tokenizer(packed[:kept] + data.draw(st.text(max_size=3))) == text
    except ArtifactError as error:
        assert str(error).startswith("the embedded tokenizer is")


def test_what_follows_a_packing_is_an_error() -> None:
    trailing = b64encode(zlib.compress(b"{}") + b"more").decode()
    with pytest.raises(ArtifactError, match="cut or followed by something else"):
        unpack_tokenizer(trailing)
