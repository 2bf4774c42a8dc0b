"""The numbers of a llama model, and the options that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn.errors import ModelError
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.hyperparameters import Hyperparameters
from tests.models.conftest import VOCABULARY


def test_read(make_gguf) -> None:
    assert Hyperparameters.read(GGUFFile(make_gguf())) == Hyperparameters(
        architecture="llama",
        layers=1,
        hidden=32,
        ffn=64,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rope_base=100.0,
        norm_eps=float(np.float32(1e-5)),
        context=16,
        vocabulary=len(VOCABULARY),
    )


def test_defaults(make_gguf) -> None:
    changes = {"llama.attention.head_count_kv": None, "llama.rope.freq_base": None}
    found = Hyperparameters.read(GGUFFile(make_gguf(changes)))
    assert found.kv_heads == found.heads
    assert found.rope_base == 10000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count is None, expected a positive int"),
        ({"llama.block_count": 0}, "llama.block_count is 0, expected a positive int"),
        ({"llama.rope.freq_base": "high"}, "llama.rope.freq_base is 'high', expected a positive float"),
        ({"llama.attention.head_count_kv": 3}, "4 heads are no multiple of 3 KV heads"),
        ({"llama.attention.key_length": 7}, "head_dim is 7; RoPE turns pairs, and takes an even number"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4; only 8 is supported"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'; only 'none' is supported"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8; only 0 is supported"),
    ],
)
def test_refused(make_gguf, changes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Hyperparameters.read(GGUFFile(make_gguf(changes)))


def test_own_frequencies_are_refused(make_gguf) -> None:
    with pytest.raises(ModelError, match="own frequencies"):
        Hyperparameters.read(GGUFFile(make_gguf(tensors={"rope_freqs.weight": np.ones(4, np.float32)})))


def test_other_architecture(make_gguf) -> None:
    with pytest.raises(ModelError, match="architecture 'gpt2' is not supported; llama is"):
        Hyperparameters.read(GGUFFile(make_gguf(architecture="gpt2")))
