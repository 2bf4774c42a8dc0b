"""The first layer's Q, K and V: of a tiny model by hand, and of the real weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hipattn.errors import ArgumentError, ModelError
from hipattn.models import smollm2
from hipattn.models.host import rms_norm
from tests.models.conftest import TENSORS, VOCABULARY
from tests.models.test_host import half_split, restore_rows


@pytest.fixture
def tiny(make_gguf) -> smollm2.SmolLM2:
    return smollm2.load(make_gguf())


def test_first_layer_by_hand(tiny: smollm2.SmolLM2) -> None:
    weights = {name: value.astype(np.float64) for name, value in TENSORS.items()}
    ids = [7, 250, 7, 0]
    q, k, v = tiny.first_layer_qkv(ids)
    assert (q.shape, k.shape, v.shape) == ((1, 4, 4, 8), (1, 4, 2, 8), (1, 4, 2, 8))
    assert q.dtype == k.dtype == v.dtype == np.float32
    for s, token in enumerate(ids):
        row = weights["token_embd.weight"][token]
        row = row / math.sqrt(float(np.mean(row**2)) + np.float32(1e-5)) * weights["blk.0.attn_norm.weight"]
        np.testing.assert_allclose(v[0, s].ravel(), weights["blk.0.attn_v.weight"] @ row, rtol=1e-6, atol=1e-6)
        for got, name in ((q, "q"), (k, "k")):
            flat = weights[f"blk.0.attn_{name}.weight"] @ row
            pairs = flat.reshape(-1, 4, 2)
            for h, i in np.ndindex(pairs.shape[:2]):
                turned = complex(*pairs[h, i]) * np.exp(1j * s * 100.0 ** (-i / 4))
                np.testing.assert_allclose(
                    got[0, s, h, 2 * i : 2 * i + 2], [turned.real, turned.imag], rtol=1e-6, atol=1e-6
                )


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [1] * 17, [-1], [len(VOCABULARY)]], ids=str)
def test_bad_tokens(tiny: smollm2.SmolLM2, tokens) -> None:
    with pytest.raises(ArgumentError, match=r"^tokens "):
        tiny.first_layer_qkv(tokens)


def test_tensor_of_the_wrong_shape(make_gguf) -> None:
    wrong = TENSORS | {"blk.0.attn_k.weight": np.zeros((8, 32), np.float32)}
    with pytest.raises(ModelError, match=r"attn_k\.weight has shape \(8, 32\), expected \(16, 32\)"):
        smollm2.load(make_gguf(tensors=wrong)).first_layer_qkv([1])


@pytest.mark.model
class TestRealModel:
    """SmolLM2-135M-Instruct."""

    def test_sizes(self, real_model: smollm2.SmolLM2) -> None:
        h = real_model.hyperparameters
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
    def test_known_tokens(self, real_model: smollm2.SmolLM2, text: str, ids: list[int]) -> None:
        assert real_model.tokenizer.encode(text) == ids
        assert real_model.tokenizer.decode(ids) == text

    @pytest.mark.parametrize("text", ["naïve Straße — “don't”", "東京 привет नमस्ते", "🙂👩‍🚀 x² ½ Ⅷ", "a  b\t\n\n c "])
    def test_round_trip(self, real_model: smollm2.SmolLM2, text: str) -> None:
        assert real_model.tokenizer.decode(real_model.tokenizer.encode(text)) == text

    def test_stops(self, real_model: smollm2.SmolLM2) -> None:
        assert real_model.tokenizer.stops == {0, 2}

    def test_chat(self, real_model: smollm2.SmolLM2) -> None:
        ids = real_model.encode_chat([{"role": "user", "content": "Name <|im_end|> 東京."}])
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nName <|im_end|> 東京.<|im_end|>\n"
        assert real_model.tokenizer.decode(ids) == text + "<|im_start|>assistant\n"
        assert ids[:3] == [1, 9690, 198]  # <|im_start|>, system, newline
        assert [ids.count(i) for i in (1, 2)] == [3, 2]  # the message's own <|im_end|> is plain text

    def test_stream(self, real_model: smollm2.SmolLM2) -> None:
        text = "naïve 東京 🙂👩‍🚀 नमस्ते"
        stream = real_model.tokenizer.stream()
        pieces = [stream.feed(i) for i in real_model.tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert "" in pieces

    def test_first_layer_scores_are_those_of_the_half_split_style(self, real_model: smollm2.SmolLM2) -> None:
        ids = real_model.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 8)
        q, k, v = real_model.first_layer_qkv(ids)
        seq = len(ids)
        assert (q.shape, k.shape, v.shape) == ((1, seq, 9, 64), (1, seq, 3, 64), (1, seq, 3, 64))

        weights = real_model.weights
        x = weights.tensor("token_embd.weight", rows=np.array(ids))
        x = rms_norm(x, weights.tensor("blk.0.attn_norm.weight"), real_model.hyperparameters.norm_eps)

        def projected(name: str, heads: int) -> np.ndarray:
            weight = restore_rows(weights.tensor(f"blk.0.attn_{name}.weight"), heads).astype(np.float64)
            return half_split((x @ weight.T).reshape(1, seq, heads, 64), np.arange(seq), 1e5)

        group = np.repeat(np.arange(3), 3)
        ours = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k.astype(np.float64)[:, :, group])
        theirs = np.einsum("bqhd,bkhd->bhqk", projected("q", 9), projected("k", 3)[:, :, group])
        assert abs(ours - theirs).max() <= 1e-6 * abs(theirs).max()
