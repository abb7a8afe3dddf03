from __future__ import annotations

import pytest
import torch
from kdedge.errors import RecipeError
from kdedge.recipe import AugmentRecipe
from kdedge.recipe_file import load_recipe
from kdedge.text.augment import SentenceViews
from kdedge.text.examples import SentenceExamples
from kdedge.text.tokenization import TextPreprocessing, TokenSet
from kdedge.training.feeds import TokenFeed, make_feed
from tests.text_data import word_piece

WORDS = [f"word{number}" for number in range(40)]
PREPROCESSING = TextPreprocessing(word_piece([" ".join(WORDS)]).to_str(), 16, 0, token_types=True)


@pytest.fixture
def tokens() -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    texts = []
    for _ in range(300):
        count = int(torch.randint(1, 14, (1,), generator=generator))
        texts.append(" ".join(WORDS[i] for i in torch.randint(0, 40, (count,), generator=generator).tolist()))
    return PREPROCESSING.encode_sentences(texts)


def views(**keys: float) -> SentenceViews:
    made = SentenceViews.of(AugmentRecipe(**keys), PREPROCESSING, seed=0)  # type: ignore[arg-type]
    assert made is not None
    return made


def rows(tokens: TokenSet) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)]


def test_a_span_is_a_run_of_the_sentence_between_its_special_tokens(tokens: TokenSet) -> None:
    cut = views(span_probability=1.0).apply(tokens, "student", 0)
    shorter = 0
    for whole, part in zip(rows(tokens), rows(cut), strict=True):
        assert (part[0], part[-1]) == (whole[0], whole[-1])
        inner = part[1:-1]
        assert inner
        assert any(inner == whole[at : at + len(inner)] for at in range(1, len(whole)))
        shorter += len(part) < len(whole)
    assert 150 < shorter < 300
    padding = cut.attention_mask == 0
    assert bool((cut.input_ids[padding] == PREPROCESSING.pad_id).all())
    assert cut.input_ids.dtype == tokens.input_ids.dtype
    assert cut.token_type_ids is not None
    assert not cut.token_type_ids.any()


def test_about_as_many_sentences_and_tokens_change_as_are_asked_for(tokens: TokenSet) -> None:
    cut = views(span_probability=0.5).apply(tokens, "student", 0)
    same = sum(a == b for a, b in zip(rows(tokens), rows(cut), strict=True))
    assert 130 < same < 200  # half, and the runs that happen to be whole
    blanked = views(masked_tokens=0.2).apply(tokens, "student", 0)
    changed = blanked.input_ids != tokens.input_ids
    mask_id = PREPROCESSING.tokenizer().token_to_id("[MASK]")
    assert set(blanked.input_ids[changed].tolist()) == {mask_id or PREPROCESSING.tokenizer().token_to_id("[UNK]")}
    content = int(tokens.attention_mask.sum()) - 2 * len(tokens)
    assert 0.15 < int(changed.sum()) / content < 0.25
    assert torch.equal(blanked.attention_mask, tokens.attention_mask)


def test_a_view_is_fixed_by_seed_stage_and_number(tokens: TokenSet) -> None:
    made = views(span_probability=0.7, masked_tokens=0.1)
    first = made.apply(tokens, "student", 1)
    assert torch.equal(first.input_ids, made.apply(tokens, "student", 1).input_ids)
    assert not torch.equal(first.input_ids, made.apply(tokens, "student", 2).input_ids)
    assert not torch.equal(first.input_ids, made.apply(tokens, "qat", 1).input_ids)


@pytest.mark.parametrize(("key", "changed_when_guided"), [("masked_tokens", True), ("word_dropout", False)])
def test_labels_alone_and_a_teacher_have_views_of_their_own(
    key: str, changed_when_guided: bool, tokens: TokenSet
) -> None:
    data = SentenceExamples(tokens, torch.zeros(len(tokens), dtype=torch.int64))
    feed = make_feed(data, PREPROCESSING, AugmentRecipe(**{key: 0.2}), seed=0, classes=2)  # type: ignore[arg-type]
    assert isinstance(feed, TokenFeed)
    for guided in (True, False):
        changed = not torch.equal(feed.tokens("student", 0, guided=guided)[0], tokens.input_ids)
        assert changed is (guided is changed_when_guided)


def test_nothing_asked_for_is_nothing_done_and_questions_are_refused() -> None:
    assert SentenceViews.of(AugmentRecipe(), PREPROCESSING, seed=0) is None
    with pytest.raises(RecipeError, match="span_probability' must be 0"):
        load_recipe("squad-minilm-cpu", ["augment.span_probability=0.5"])
