"""The tokenizer of a small vocabulary, whose answers can be told by hand."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.tokenizer import Tokenizer
from tests.models.conftest import VOCABULARY, byte_letters


@pytest.fixture
def tokenizer(make_gguf) -> Tokenizer:
    return Tokenizer(GGUFFile(make_gguf()))


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [VOCABULARY[i] for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the", ["t", "he"]),
        (" the", ["Ġthe"]),
        ("  the", ["Ġ", "Ġthe"]),
        # 's is a word of its own, so its merge applies; across words none does.
        ("he's", ["he", "'s"]),
        ("t h e", ["t", "Ġ", "h", "Ġ", "e"]),
        (" 1", ["Ġ", "1"]),
        ("the\n", ["t", "he", "Ċ"]),
        ("é", ["Ã", "©"]),
        ("<|im_start|> the", ["<|im_start|>", "Ġthe"]),
        ("<|im_start>", list("<|im_start>")),
        ("", []),
    ],
)
def test_known_splits(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    assert words(tokenizer, text) == expected


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text())
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone(make_gguf) -> None:
    merges = ["1 2", "Ġ 1"]
    changes = {
        "tokenizer.ggml.tokens": [*VOCABULARY, "12", "Ġ1"],
        "tokenizer.ggml.token_type": [1] * (len(VOCABULARY) + 2),
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = Tokenizer(GGUFFile(make_gguf(changes)))
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a 12")] == ["a", " ", "1", "2"]


def test_begin_token(make_gguf) -> None:
    tokenizer = Tokenizer(GGUFFile(make_gguf({"tokenizer.ggml.add_bos_token": True})))
    assert words(tokenizer, " the") == ["<|im_start|>", "Ġthe"]


def test_part_of_a_character(tokenizer: Tokenizer) -> None:
    first = VOCABULARY.index(byte_letters()["é".encode()[0]])
    assert tokenizer.decode([first]) == "\N{REPLACEMENT CHARACTER}"


def letters(data: bytes) -> list[int]:
    return [VOCABULARY.index(byte_letters()[byte]) for byte in data]


def test_a_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.feed(i) for i in letters("aé東🙂.".encode())]
    assert pieces == ["a", "", "é", "", "", "東", "", "", "", "🙂", "."]
    assert stream.finish() == ""


def test_what_is_no_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    # Cut off by a control token; cut off by the end; whole after that.
    pieces = [stream.feed(i) for i in [*letters("🙂".encode()[:2]), 2, *letters("é".encode()[:1])]]
    assert pieces == ["", "", "\N{REPLACEMENT CHARACTER}<|im_end|>", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert [stream.feed(i) for i in letters("é".encode())] == ["", "é"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.integers(0, len(VOCABULARY) - 1)))
def test_a_stream_is_what_decode_says(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.integers(0, len(VOCABULARY) - 1)))
def test_decode_is_the_librarys(tokenizer: Tokenizer, ids: list[int]) -> None:
    from tokenizers import decoders

    assert tokenizer.decode(ids) == decoders.ByteLevel().decode([VOCABULARY[i] for i in ids])


def test_names_that_are_plain_text(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "<|im_end|>") == ["<|im_end|>"]
    ids = tokenizer.encode("<|im_start|>a<~|im_end|>~", mark="~")
    assert [VOCABULARY[i] for i in ids] == ["<|im_start|>", "a", *"<|im_end|>"]


def test_the_longest_name_counts(make_gguf) -> None:
    names = ("<|im_end|><|im_end|>", "<é ü>")
    changes = {
        "tokenizer.ggml.tokens": [*VOCABULARY, *names],
        "tokenizer.ggml.token_type": [3 if n < 3 or n >= len(VOCABULARY) else 1 for n in range(len(VOCABULARY) + 2)],
    }
    tokenizer = Tokenizer(GGUFFile(make_gguf(changes)))
    text = "<|im_end|><|im_end|><|im_end|><é ü>"
    assert tokenizer.encode(text) == [len(VOCABULARY), 2, len(VOCABULARY) + 1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_stops(make_gguf) -> None:
    def stops(changes) -> frozenset[int]:
        return Tokenizer(GGUFFile(make_gguf(changes))).stops

    assert stops({}) == {0, 2}  # <|endoftext|> by its name, <|im_end|> as eos
    assert stops({"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 9}) == {0, 2, 7, 9}
    plain = {"tokenizer.ggml.token_type": [1] * len(VOCABULARY), "tokenizer.ggml.eos_token_id": None}
    assert stops(plain) == frozenset()


@pytest.mark.parametrize("bad", [-1, len(VOCABULARY)])
def test_unknown_id(tokenizer: Tokenizer, bad: int) -> None:
    expected = f"ids has {bad}; the vocabulary's are 0 to {len(VOCABULARY) - 1}"
    with pytest.raises(ArgumentError, match=expected):
        tokenizer.decode([5, bad])
    with pytest.raises(ArgumentError, match=expected):
        tokenizer.stream().feed(bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer 'gpt2' with split 'qwen2'; only gpt2 with smollm works"),
        ({"tokenizer.ggml.model": None}, "tokenizer None with split 'smollm'"),
        ({"tokenizer.ggml.tokens": None}, "vocabulary, token types or merges are damaged"),
        ({"tokenizer.ggml.token_type": [1]}, "vocabulary, token types or merges are damaged"),
        ({"tokenizer.ggml.merges": ["he"]}, "vocabulary, token types or merges are damaged"),
        ({"tokenizer.ggml.eos_token_id": len(VOCABULARY)}, "the tokenizer's eos token is 263, of 263"),
        ({"tokenizer.ggml.bos_token_id": "one"}, "the tokenizer's bos token is 'one', of 263"),
        ({"tokenizer.ggml.merges": ["he xyz"]}, "the tokenizer's merges are damaged: "),
    ],
)
def test_refused(make_gguf, changes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Tokenizer(GGUFFile(make_gguf(changes)))


def test_without_the_extra(make_gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile(make_gguf())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModelError, match=r"tokenizers is not installed: pip install 'hipattn\[models\]'"):
        Tokenizer(file)
