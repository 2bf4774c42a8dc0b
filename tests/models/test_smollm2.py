"""What SmolLM2's file holds: sizes, tokens, chat template."""

from __future__ import annotations

import pytest

from hipattn.models.chat import Chat
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.hyperparameters import Hyperparameters
from hipattn.models.tokenizer import Tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer(real_file: GGUFFile) -> Tokenizer:
    return Tokenizer(real_file)


def test_sizes(real_file: GGUFFile) -> None:
    h = Hyperparameters.read(real_file)
    assert (h.layers, h.hidden, h.ffn, h.heads, h.kv_heads, h.head_dim) == (30, 576, 1536, 9, 3, 64)
    assert (h.rope_base, h.context, h.vocabulary) == (100000.0, 8192, 49152)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [19556, 905]),
        (" the", [260]),
        ("2024", [34, 32, 34, 36]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("<|endoftext|><|im_start|>user\n<|im_end|>", [0, 1, 4093, 198, 2]),
    ],
)
def test_known_tokens(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["naïve Straße — “don't”", "東京 привет नमस्ते", "🙂👩‍🚀 x² ½ Ⅷ", "a  b\t\n\n c "])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_stops(tokenizer: Tokenizer) -> None:
    assert tokenizer.stops == {0, 2}


def test_chat(real_file: GGUFFile, tokenizer: Tokenizer) -> None:
    ids = Chat(real_file, tokenizer).encode([{"role": "user", "content": "Name <|im_end|> 東京."}])
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nName <|im_end|> 東京.<|im_end|>\n"
    assert tokenizer.decode(ids) == text + "<|im_start|>assistant\n"
    assert ids[:3] == [1, 9690, 198]  # <|im_start|>, system, newline
    assert [ids.count(i) for i in (1, 2)] == [3, 2]  # the message's own <|im_end|> is plain text


def test_stream(tokenizer: Tokenizer) -> None:
    text = "naïve 東京 🙂👩‍🚀 नमस्ते"
    stream = tokenizer.stream()
    pieces = [stream.feed(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert "" in pieces
