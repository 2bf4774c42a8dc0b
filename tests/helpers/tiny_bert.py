"""The files of a BERT encoder of 12 columns and 9 words, with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

__all__ = ["CONFIG", "WORDS", "tensors", "write"]

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 8,
    "type_vocab_size": 2,
    "vocab_size": 9,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", ".")


def tensors(positions: int = 8) -> dict[str, np.ndarray]:
    """Return what model.safetensors holds."""
    rng = np.random.default_rng(4)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (9, 12),
        "embeddings.position_embeddings.weight": (positions, 12),
        "embeddings.token_type_embeddings.weight": (2, 12),
        "embeddings.LayerNorm.weight": (12,),
        "embeddings.LayerNorm.bias": (12,),
        "pooler.dense.weight": (12, 12),
        "pooler.dense.bias": (12,),
    }
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{name}.weight": (12, 12), f"{layer}.{name}.bias": (12,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (20, 12), f"{layer}.intermediate.dense.bias": (20,)}
        shapes |= {f"{layer}.output.dense.weight": (12, 20), f"{layer}.output.dense.bias": (12,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (12,), f"{layer}.{name}.bias": (12,)}
    # So that texts differ: large biases would make all embeddings nearly one.
    scales = {
        name: 0.1 if name.endswith("bias") else 0.3 if "encoder" in name and len(shape) == 2 else 1.0
        for name, shape in shapes.items()
    }
    made = {name: (rng.standard_normal(shape) * scales[name]).astype(np.float32) for name, shape in shapes.items()}
    return made | {"embeddings.position_ids": np.arange(positions)[None]}


def write(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    changed: Mapping[str, np.ndarray | None] | None = None,
    *,
    positions: int = 8,
) -> Path:
    """Write the three files, with these changes (None drops), and return the folder."""
    safetensors = pytest.importorskip("safetensors.numpy")
    tokenizers = pytest.importorskip("tokenizers")
    entries = CONFIG | {"max_position_embeddings": positions} | dict(config or {})
    (folder / "config.json").write_text(json.dumps({k: value for k, value in entries.items() if value is not None}))
    found = tensors(positions) | dict(changed or {})
    safetensors.save_file({k: array for k, array in found.items() if array is not None}, folder / "model.safetensors")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    made.enable_truncation(5)  # as all-MiniLM-L6-v2's asks for
    made.enable_padding(length=5)
    made.save(str(folder / "tokenizer.json"))
    return folder
