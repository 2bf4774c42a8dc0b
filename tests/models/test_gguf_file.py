"""Tensors of a GGUF against the formulas of their blocks, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hipattn.errors import ModelError
from hipattn.models.gguf_file import GGUFFile
from tests.models.conftest import VOCABULARY

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType
RNG = np.random.default_rng(1)


def halves(count: int) -> np.ndarray:
    return RNG.uniform(-2, 2, count).astype(np.float16)


def q4_1(rows: int, blocks: int):
    """Bytes of blocks (scale, minimum, 32 nibbles: first 16 values low, the others high), and values."""
    data, values = [], []
    for scale, least in zip(halves(rows * blocks), halves(rows * blocks), strict=True):
        nibbles = RNG.integers(0, 16, 32)
        data.append(scale.tobytes() + least.tobytes() + bytes(int(n) for n in nibbles[:16] | nibbles[16:] << 4))
        values.append([float(scale) * int(n) + float(least) for n in nibbles])
    return data, values, Kind.Q4_1


def q4_0(rows: int, blocks: int):
    """As Q4_1, with 8 subtracted in place of a minimum added."""
    data, values = [], []
    for scale in halves(rows * blocks):
        nibbles = RNG.integers(0, 16, 32)
        data.append(scale.tobytes() + bytes(int(n) for n in nibbles[:16] | nibbles[16:] << 4))
        values.append([float(scale) * (int(n) - 8) for n in nibbles])
    return data, values, Kind.Q4_0


def q8_0(rows: int, blocks: int):
    """Scale and 32 signed bytes."""
    data, values = [], []
    for scale in halves(rows * blocks):
        signed = RNG.integers(-128, 128, 32).astype(np.int8)
        data.append(scale.tobytes() + signed.tobytes())
        values.append([float(scale) * int(n) for n in signed])
    return data, values, Kind.Q8_0


@pytest.mark.parametrize("blocks_of", [q4_1, q4_0, q8_0], ids=lambda f: f.__name__)
def test_quantised_blocks(make_gguf, blocks_of) -> None:
    rows, blocks = 37, 3
    data, values, kind = blocks_of(rows, blocks)
    stored = np.frombuffer(b"".join(data), np.uint8).reshape(rows, -1)
    file = GGUFFile(make_gguf(tensors={"w": (stored, kind)}))
    expected = np.array(values).reshape(rows, 32 * blocks)
    got = file.tensor("w")
    assert file.shape("w") == got.shape == expected.shape
    assert got.dtype == np.float32
    # One product and one sum in float32.
    np.testing.assert_allclose(got, expected, rtol=0, atol=32 * 2.0**-24 * 2)
    some = np.array([36, 0, 5, 5])
    np.testing.assert_array_equal(file.tensor("w", rows=some), got[some])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats(make_gguf, kind: str) -> None:
    values = RNG.standard_normal((5, 64)).astype(np.float32)
    if kind == "F16":
        values = values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    if kind == "BF16":
        values = (bits & 0xFFFF0000).view(np.float32)
    stored = {
        "F32": (values, None),
        "F16": (values.astype(np.float16), None),
        "BF16": ((bits >> 16).astype(np.uint16).view(np.uint8), Kind.BF16),
    }
    got = GGUFFile(make_gguf(tensors={"w": stored[kind]})).tensor("w")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values)


def test_metadata_and_names(make_gguf) -> None:
    file = GGUFFile(make_gguf({"a.text": "ü", "a.list": ["x", "y"], "a.flag": True, "a.number": 0.5}))
    assert file.metadata["a.text"] == "ü"
    assert file.metadata["a.list"] == ["x", "y"]
    assert file.metadata["a.flag"] is True
    assert file.metadata["a.number"] == 0.5
    assert "blk.0.attn_q.weight" in file
    assert "blk.1.attn_q.weight" not in file


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"GG", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not a GGUF file"):
            GGUFFile(path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*absent: No such file"):
        GGUFFile(tmp_path / "absent")


def test_truncated_anywhere(make_gguf) -> None:
    path = make_gguf()
    whole = path.read_bytes()
    # The last tensor's padding may be missing; its values may not.
    for length in [*range(4, len(whole) - 32, 997), len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="truncated or damaged GGUF"):
            GGUFFile(path)


@pytest.mark.parametrize("padding", ["", "x", "xx", "xxx"])
def test_an_array_that_claims_to_be_longer_than_the_file(make_gguf, padding: str) -> None:
    key = "tokenizer.ggml.token_type"
    path = make_gguf({"tokenizer.ggml.tokens": [*VOCABULARY[:-1], "'s" + padding]})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(key.encode()) + len(key) + 4 + 4 + 5] = 1  # type, type of the elements, length: + 2^40
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match="truncated or damaged GGUF file: "):
        GGUFFile(path)


def test_unsupported_quantisation(make_gguf) -> None:
    file = GGUFFile(make_gguf(tensors={"w": np.zeros((2, 32), np.int16)}))
    with pytest.raises(ModelError, match="tensor w is I16, which cannot be dequantised"):
        file.tensor("w")


def test_missing_tensor_and_wrong_shape(make_gguf) -> None:
    file = GGUFFile(make_gguf(tensors={"w": np.zeros((2, 32), np.float32)}))
    with pytest.raises(ModelError, match="has no tensor 'v' among its 1"):
        file.tensor("v")
    with pytest.raises(ModelError, match=r"tensor w has shape \(2, 32\), expected \(32, 2\)"):
        file.tensor("w", (32, 2))


def test_without_the_extra(make_gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"gguf is not installed: pip install 'hipattn\[models\]'"):
        GGUFFile(path)
