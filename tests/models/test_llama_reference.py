"""The NumPy llama that device plans are compared with, and what the real model knows."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hipattn.models.chat import Chat
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.llama_reference import LlamaReference
from hipattn.models.tokenizer import Tokenizer
from hipattn.models.weights import LlamaWeights, Weight
from tests.models.conftest import TENSORS, VOCABULARY

IDS = [7, 250, 7, 0, 31, 100, 262]


@pytest.fixture
def weights(make_gguf) -> LlamaWeights:
    second = {name.replace("blk.0", "blk.1"): value[::-1] for name, value in TENSORS.items() if "blk" in name}
    return LlamaWeights(GGUFFile(make_gguf({"llama.block_count": 2}, tensors=TENSORS | second)))


@pytest.fixture
def tiny(weights: LlamaWeights) -> LlamaReference:
    return LlamaReference(weights.hyperparameters, weights.load())


def test_by_hand(weights: LlamaWeights) -> None:
    """One token sees itself alone: no softmax, and at position 0 no RoPE."""
    w = {weight.name.removesuffix(".weight"): weight.array.astype(np.float64) for weight in weights.load()}
    eps = float(np.float32(1e-5))

    def norm(x, weight):
        return x / (sum(float(e) ** 2 for e in x) / len(x) + eps) ** 0.5 * weight

    x = w["token_embd"][42]
    for layer in ("blk.0.", "blk.1."):
        v = w[layer + "attn_v"] @ norm(x, w[layer + "attn_norm"])
        x = x + w[layer + "attn_output"] @ np.concatenate([v[:8], v[:8], v[8:], v[8:]])  # two query heads a KV head
        h = norm(x, w[layer + "ffn_norm"])
        g = w[layer + "ffn_gate"] @ h
        x = x + w[layer + "ffn_down"] @ (g / (1 + np.exp(-g)) * (w[layer + "ffn_up"] @ h))
    expected = w["token_embd"] @ norm(x, w["output_norm"])
    got = LlamaReference(weights.hyperparameters, weights.load()).forward([42])
    assert got.shape == (1, len(VOCABULARY))
    np.testing.assert_allclose(got[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6], [3], [2, 6]])
def test_the_cache_changes_nothing(tiny: LlamaReference, cuts: list[int]) -> None:
    whole = tiny.forward(IDS)
    tiny.reset()
    assert tiny.length == 0
    parts = [tiny.forward(part) for part in np.split(np.array(IDS), cuts)]
    assert tiny.length == len(IDS)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-12)


def test_no_token_sees_a_later_one(tiny: LlamaReference) -> None:
    first = tiny.forward(IDS)
    tiny.reset()
    second = tiny.forward([*IDS[:4], 1, 2, 3])
    np.testing.assert_allclose(second[:4], first[:4], rtol=1e-12, atol=1e-12)
    assert (abs(second[4:] - first[4:]).max(axis=1) > 0.1).all()


def test_order_matters_and_position_alone_does_not(tiny: LlamaReference) -> None:
    first = tiny.forward([5, 6, 7])[-1]
    tiny.reset()
    assert abs(tiny.forward([6, 5, 7])[-1] - first).max() > 0.1
    # RoPE is relative: with nothing but one token to see, its position makes no difference.
    tiny.reset()
    np.testing.assert_allclose(*tiny.forward([9] * 2), rtol=1e-12, atol=1e-12)


def test_output_of_its_own(weights: LlamaWeights) -> None:
    output = np.random.default_rng(2).standard_normal((len(VOCABULARY), 32)).astype(np.float32)
    model = LlamaReference(weights.hyperparameters, [*weights.load(), Weight("output.weight", output, 1, 1)])
    logits = model.forward(IDS)
    model.reset()
    np.testing.assert_allclose(logits, model.hidden(IDS) @ output.T.astype(np.float64))


def test_generate(tiny: LlamaReference) -> None:
    answer = tiny.generate(IDS, 5)
    assert len(answer) == 5
    assert tiny.length == len(IDS) + 4
    tiny.reset()
    for n, token in enumerate(answer):
        assert tiny.forward([*IDS, *answer[:n]])[-1].argmax() == token
        tiny.reset()
    stop = answer[2]
    assert tiny.generate(IDS, 5, {stop}) == answer[: answer.index(stop)]


def test_float32(weights: LlamaWeights, tiny: LlamaReference) -> None:
    got = LlamaReference(weights.hyperparameters, weights.load(), np.float32).forward(IDS)
    assert got.dtype == np.float32
    exact = tiny.forward(IDS)
    assert exact.dtype == np.float64
    assert abs(got - exact).max() < 1e-4 * abs(exact).max()


@pytest.fixture(scope="module")
def model(real_file: GGUFFile) -> LlamaReference:
    weights = LlamaWeights(real_file)
    return LlamaReference(weights.hyperparameters, weights.load(), np.float32)


@pytest.fixture(scope="module")
def tokenizer(real_file: GGUFFile) -> Tokenizer:
    return Tokenizer(real_file)


@pytest.mark.model
class TestRealModel:
    """What SmolLM2-135M-Instruct knows."""

    @pytest.mark.parametrize(
        ("prompt", "answer"),
        [
            ("The capital of France is", " Paris."),
            ("The opposite of hot is", " cold."),
            ("1, 2, 3, 4,", " 5, 6"),
        ],
    )
    def test_facts(self, tokenizer: Tokenizer, model: LlamaReference, prompt: str, answer: str) -> None:
        model.reset()
        count = len(tokenizer.encode(answer))
        assert tokenizer.decode(model.generate(tokenizer.encode(prompt), count)) == answer

    def test_chat(self, real_file: GGUFFile, tokenizer: Tokenizer, model: LlamaReference) -> None:
        stream = tokenizer.stream()
        model.reset()
        prompt = Chat(real_file, tokenizer).encode([{"role": "user", "content": "What is the capital of France?"}])
        answer = model.generate(prompt, 20, tokenizer.stops)
        assert "".join(map(stream.feed, answer)) == "The capital of France is Paris."

    def test_far_positions(self, tokenizer: Tokenizer, model: LlamaReference) -> None:
        """Counting on is easy wherever it is, if attention finds the number before."""
        ids = np.array(tokenizer.encode(", ".join(map(str, range(100, 160)))))
        model.reset()
        start = time.perf_counter()
        logits = model.forward(ids)
        assert len(ids) > 200
        assert time.perf_counter() - start < 60
        logits = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(logits).sum(axis=1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]
        assert losses[100:].mean() < 0.1

    def test_in_float64(self, real_file: GGUFFile, tokenizer: Tokenizer, model: LlamaReference) -> None:
        weights = LlamaWeights(real_file)
        ids = tokenizer.encode("The capital of France is")
        model.reset()
        rough = model.forward(ids)
        exact = LlamaReference(weights.hyperparameters, weights.load()).forward(ids)
        assert tokenizer.decode([int(exact[-1].argmax())]) == " Paris"
        assert abs(rough - exact).max() < 1e-4 * abs(exact).max()
