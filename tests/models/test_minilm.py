"""A BERT encoder's files, its NumPy reference, and what the real model says of sentences."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn.errors import ArgumentError, ModelError
from hipattn.models import minilm
from hipattn.models.bert_file import BertHyperparameters, BertTokenizer, BertWeights
from hipattn.models.bert_reference import BertReference
from hipattn.models.safetensors_file import SafetensorsFile
from tests.helpers import tiny_bert
from tests.models.conftest import fetched

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")


@pytest.fixture
def make_folder(tmp_path: Path):
    return functools.partial(tiny_bert.write, tmp_path)


class Files:
    """What a folder holds, nothing of it on a device."""

    def __init__(self, folder: Path) -> None:
        self.hyperparameters = BertHyperparameters.read(folder / "config.json")
        self.tokenizer = BertTokenizer(folder / "tokenizer.json", self.hyperparameters)
        self.weights = BertWeights(SafetensorsFile(folder / "model.safetensors"), self.hyperparameters)
        self.reference = BertReference(self.hyperparameters, self.weights.load())


def test_read(make_folder) -> None:
    model = Files(make_folder())
    assert model.hyperparameters == BertHyperparameters(
        layers=2, hidden=12, ffn=20, heads=3, head_dim=4, norm_eps=1e-12, context=8, vocabulary=9, types=2
    )
    read = {weight.name: weight for weight in model.weights.load("float16")}
    expected = {
        name: value
        for name, value in tiny_bert.tensors().items()
        if "position_ids" not in name and "pooler" not in name
    }
    assert set(read) == set(expected)
    for name, weight in read.items():
        np.testing.assert_array_equal(weight.array, expected[name].astype(np.float16))
    assert weight.done == weight.total == sum(value.nbytes for value in expected.values())


def test_tokens_are_neither_cut_nor_filled_up(make_folder) -> None:
    tokenizer = Files(make_folder()).tokenizer
    assert tokenizer.encode("the cats sat.") == [2, 4, 5, 7, 6, 8, 3]
    assert tokenizer.encode("") == [2, 3]
    assert tokenizer.decode([2, 4, 5]) == "[CLS] the cat"
    with pytest.raises(ArgumentError, match="text has 9 tokens; the model takes 8"):
        tokenizer.encode("the cat sat. the cat sat")
    with pytest.raises(ArgumentError, match=r"^text is 'cat \\ud800'; it takes a text that can be written in UTF-8"):
        tokenizer.encode("cat \ud800")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert' is supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"hidden_act": None}, "hidden_act is None; only 'gelu' is supported"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a positive int"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', expected a positive float"),
        ({"num_attention_heads": 5}, "hidden_size 12 is no multiple of 5 heads"),
        ({"vocab_size": 8}, r"tokenizer\.json has 9 tokens, the model 8"),
        (
            {"vocab_size": 10},
            r"word_embeddings\.weight has shape \(9, 12\), expected \(10, 12\): \[vocabulary, hidden\]",
        ),
        ({"num_hidden_layers": 1}, r"has unknown tensors: encoder\.layer\.1\..* and 13 more"),
        ({"num_hidden_layers": 3}, r"lacks tensors: encoder\.layer\.2\.attention\.self\.query\.weight, .* and 13 more"),
    ],
)
def test_refused(make_folder, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        minilm.load(make_folder(config))


def test_integers_in_place_of_weights(make_folder) -> None:
    with pytest.raises(ModelError, match=r"tensor embeddings\.LayerNorm\.bias is I64; accepted"):
        minilm.load(make_folder(changed={"embeddings.LayerNorm.bias": np.zeros(12, np.int64)}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_that_are_absent_or_damaged(make_folder, name: str) -> None:
    path = make_folder() / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=f"{name} is no "):
        minilm.load(path.parent)
    path.unlink()
    with pytest.raises(ModelError, match=f"cannot read .*{name}: No such file"):
        minilm.load(path.parent)


def test_a_config_that_is_a_list(make_folder) -> None:
    path = make_folder() / "config.json"
    path.write_text("[]")
    with pytest.raises(ModelError, match="holds a list, expected an object"):
        minilm.load(path.parent)


def test_reference_by_hand(make_folder) -> None:
    """One token: attention is its value."""
    model = Files(make_folder())
    w = {weight.name: weight.array.astype(np.float64) for weight in model.weights.load()}

    def norm(x, name):
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((e - mean) ** 2 for e in x) / len(x) + 1e-12)
        return (x - mean) / deviation * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    def dense(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    words, positions, types = (w[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
    x = norm(words[6] + positions[0] + types[0], "embeddings")
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        value = dense(x, f"{layer}.attention.self.value")
        x = norm(x + dense(value, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        inner = dense(x, f"{layer}.intermediate.dense")
        gelu = np.array([e * 0.5 * math.erfc(-e / math.sqrt(2)) for e in inner])
        x = norm(x + dense(gelu, f"{layer}.output.dense"), f"{layer}.output")
    reference = model.reference
    np.testing.assert_allclose(reference.forward([6])[0], x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reference.embed([6]), x / np.linalg.norm(x), rtol=1e-12, atol=1e-12)


def test_reference_sees_both_ways(make_folder) -> None:
    reference = Files(make_folder()).reference
    change = abs(reference.forward([2, 4, 5, 3]) - reference.forward([2, 4, 6, 3])).max(axis=1)
    assert (change > 1e-3).all()


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> Files:
    return Files(fetched(request, minilm.FILE).parent)


@pytest.mark.model
class TestRealModel:
    """all-MiniLM-L6-v2."""

    def test_sizes(self, real: Files) -> None:
        h = real.hyperparameters
        assert (h.layers, h.hidden, h.ffn, h.heads, h.head_dim) == (6, 384, 1536, 12, 32)
        assert (h.context, h.vocabulary, h.types) == (512, 30522, 2)

    def test_known_tokens(self, real: Files) -> None:
        assert real.tokenizer.encode("Hello, world!") == [101, 7592, 1010, 2088, 999, 102]

    def test_known_similarities(self, real: Files) -> None:
        """Those that sentence-transformers' documentation shows for this model."""
        sentences = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
        embedded = np.array([real.reference.embed(real.tokenizer.encode(sentence)) for sentence in sentences])
        expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
        np.testing.assert_allclose(embedded @ embedded.T, expected, atol=6e-5)

    def test_paraphrases_are_closer_than_strangers(self, real: Files) -> None:
        pairs = [
            ("A man is eating pasta.", "Someone is having a plate of noodles."),
            ("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
            ("How do I reset my password?", "I forgot my login and need a new one."),
        ]
        first, second = (
            np.array([real.reference.embed(real.tokenizer.encode(text)) for text in texts])
            for texts in zip(*pairs, strict=True)
        )
        similarity = first @ second.T
        strangers = similarity[~np.eye(len(pairs), dtype=bool)]
        assert np.diag(similarity).min() > strangers.max() + 0.3
