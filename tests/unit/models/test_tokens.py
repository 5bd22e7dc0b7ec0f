"""Tokenising: shared by threads, cut where asked, and the same as the tokenizer's own call."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from legit_embedding.errors import ConfigurationError
from legit_embedding.models import tokens as tokens_module
from legit_embedding.models.tokens import TextEncoder, TooManyTokens
from legit_embedding.testing.checkpoints import save_small_bert

TEXTS = ["hello world", "a", "  spaces   and\ttabs ", "Ünïcode and 漢字", "x" * 40, "one two three four five six seven"]
LIMIT = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(save_small_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return TextEncoder(tokenizer, limit=LIMIT, lower_case=False)


@pytest.mark.parametrize("side", ["right", "left"])
def test_cut_texts_are_those_of_the_tokenizers_own_call(tokenizer, side):
    tokenizer.truncation_side = side
    encoder = TextEncoder(tokenizer, limit=LIMIT, lower_case=False)
    expected = tokenizer(TEXTS, truncation=True, max_length=LIMIT)["input_ids"]
    tokenizer.truncation_side = "right"
    assert [tokens.ids.tolist() for tokens in encoder.encode(TEXTS, truncate=True)] == expected


def test_a_text_that_must_not_be_cut_is_counted(tokenizer, encoder):
    found = encoder.encode(TEXTS, truncate=False)
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    counts = [one.count if isinstance(one, TooManyTokens) else len(one.ids) for one in found]
    assert counts == lengths
    assert [isinstance(one, TooManyTokens) for one in found] == [length > LIMIT for length in lengths]


LONG = " ".join(f"word{number} and {number * 7919}" for number in range(2000))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_text_is_cut_as_if_all_of_it_had_been_tokenised(tokenizer, side):
    tokenizer.truncation_side = side
    encoder = TextEncoder(tokenizer, limit=LIMIT, lower_case=False)
    expected = tokenizer([LONG], truncation=True, max_length=LIMIT)["input_ids"]
    tokenizer.truncation_side = "right"
    assert [tokens.ids.tolist() for tokens in encoder.encode([LONG], truncate=True)] == expected


@given(st.lists(st.text(alphabet="ab é漢.\n", min_size=1, max_size=400), min_size=1, max_size=4))
def test_excerpts_change_no_token(encoder, texts):
    """Whatever the text: the ids are those of the whole, and so is the verdict where it must not be cut."""
    with pytest.MonkeyPatch.context() as patch:
        cut, counted = encoder.encode(texts, truncate=True), encoder.encode(texts, truncate=False)
        patch.setattr(tokens_module, "EXCERPT_CHARACTERS_A_TOKEN", 10_000)
        assert [one.ids.tolist() for one in cut] == [one.ids.tolist() for one in encoder.encode(texts, truncate=True)]
        for one, whole in zip(counted, encoder.encode(texts, truncate=False), strict=True):
            assert type(one) is type(whole)
            assert not isinstance(one, TooManyTokens) or one.count <= whole.count


def test_no_more_of_a_long_text_is_tokenised_than_decides(encoder):
    """Eight megabytes of words would take most of a gigabyte; what they become does not depend on the rest."""
    (tokens,) = encoder.encode(["word " * 1_600_000], truncate=True)
    (refused,) = encoder.encode(["word " * 1_600_000], truncate=False)
    assert len(tokens.ids) == LIMIT
    assert not refused.exact
    assert LIMIT < refused.count < 100 * LIMIT


def test_a_long_text_of_few_tokens_is_read_to_its_end(tokenizer, encoder):
    text = "a" + " " * 5000 + "b"
    assert encoder.encode([text], truncate=False)[0].ids.tolist() == tokenizer(["a b"])["input_ids"][0]


def test_texts_are_tokenised_in_groups_and_come_back_in_order(encoder, monkeypatch):
    whole = [tokens.ids.tolist() for tokens in encoder.encode(TEXTS, truncate=True)]
    monkeypatch.setattr(tokens_module, "CHARACTERS_AT_ONCE", 20)
    assert [tokens.ids.tolist() for tokens in encoder.encode(TEXTS, truncate=True)] == whole
    assert encoder.encode([], truncate=True) == []


def test_no_text_holds_more_than_is_reserved_for_it(encoder):
    assert max(tokens.nbytes for tokens in encoder.encode(TEXTS, truncate=True)) <= encoder.tokens_nbytes


def test_many_threads_share_one_encoder(encoder):
    """All start at once, half of them cutting and half of them not; transformers' own call fails here."""
    together = threading.Barrier(8)

    def work(number):
        together.wait(10)
        return [
            [
                getattr(one, "count", None) or one.ids.tolist()
                for one in encoder.encode(TEXTS, truncate=bool(number % 2))
            ]
            for _ in range(20)
        ]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert all(result == results[number % 2] for number, result in enumerate(results))
    assert all(round_ == results[0][0] for round_ in results[0])


def test_a_prompts_tokens_are_counted_with_the_special_one_before_and_without_the_one_behind(encoder):
    assert encoder.prompt_length("abc") == 4


def test_lower_casing_comes_before_the_tokenizers_own_rules(tokenizer):
    cased = TextEncoder(tokenizer, limit=LIMIT, lower_case=True)
    assert cased.encode(["ABC"], truncate=True)[0].ids.tolist() == tokenizer("abc")["input_ids"]


def test_a_limit_that_leaves_no_room_for_text_is_refused(tokenizer):
    with pytest.raises(ConfigurationError, match="2 tokens"):
        TextEncoder(tokenizer, limit=2, lower_case=False)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        TextEncoder(object(), limit=LIMIT, lower_case=False)
