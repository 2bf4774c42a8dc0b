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


@pytest.mark.parametrize("bad", [-1, len(VOCABULARY)])
def test_unknown_id(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(ArgumentError, match=f"ids has {bad}; the vocabulary's are 0 to {len(VOCABULARY) - 1}"):
        tokenizer.decode([5, bad])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer 'gpt2' with split 'qwen2'; only gpt2 with smollm works"),
        ({"tokenizer.ggml.model": None}, "tokenizer None with split 'smollm'"),
        ({"tokenizer.ggml.tokens": None}, "vocabulary, token types or merges are damaged"),
        ({"tokenizer.ggml.token_type": [1]}, "vocabulary, token types or merges are damaged"),
        ({"tokenizer.ggml.merges": ["he"]}, "vocabulary, token types or merges are damaged"),
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
