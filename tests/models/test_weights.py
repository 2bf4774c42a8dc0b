"""All tensors of a llama GGUF, in every quantisation, and the files that are refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from hipattn.errors import ArgumentError, ModelError
from hipattn.models import weights
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.weights import LlamaWeights
from tests.models.conftest import TENSORS, VOCABULARY

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]


def stored_as(kind: str, tensors: dict[str, np.ndarray] = TENSORS) -> tuple[dict, dict[str, np.ndarray]]:
    """What the writer takes for matrices of a kind (vectors stay float32), and the values that they then have."""
    entries, values = {}, {}
    for name, value in tensors.items():
        if value.ndim == 1 or kind == "F32":
            entries[name], values[name] = value, value
        else:
            stored = gguf.quantize(value, Kind[kind])
            values[name] = gguf.dequantize(stored, Kind[kind])
            entries[name] = (stored, Kind[kind])
    return entries, values


def load(path: Path) -> LlamaWeights:
    return LlamaWeights(GGUFFile(path))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor(make_gguf, monkeypatch: pytest.MonkeyPatch, kind: str, dtype) -> None:
    entries, values = stored_as(kind)
    found = load(make_gguf(tensors=entries))
    whole = {each.name: each.array for each in found.load(dtype)}
    assert set(whole) == set(TENSORS)
    for name, array in whole.items():
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, values[name].astype(dtype), err_msg=name)
        # Near what was quantised, as far as the kind can tell values apart: Q4_0 has 8 steps up to the largest.
        most = abs(TENSORS[name]).max()
        step = {"Q4_0": most / 8, "Q4_1": most / 15, "Q8_0": most / 254}.get(kind, 0)
        assert abs(array.astype(np.float32) - TENSORS[name]).max() <= step + most * 2.0**-8
    monkeypatch.setattr(weights, "CHUNK", 96)  # three rows of 32, and less than one of 64 at times
    for name, array in whole.items():
        np.testing.assert_array_equal(found.read(name, dtype), array)


def test_order_and_progress(make_gguf) -> None:
    entries, _ = stored_as("Q4_1", dict(reversed(TENSORS.items())))
    path = make_gguf(tensors=entries)
    found = load(path)
    read = list(found.load("bfloat16"))
    names = [each.name for each in read]
    assert names == list(found.shapes)
    assert (names[0], names[1], names[-1]) == ("token_embd.weight", "blk.0.attn_norm.weight", "output_norm.weight")
    stored = {name: (e[0] if isinstance(e, tuple) else e).nbytes for name, e in entries.items()}
    assert [each.done for each in read] == np.cumsum([stored[name] for name in names]).tolist()
    assert {each.total for each in read} == {found.nbytes} == {sum(stored.values())} == {read[-1].done}
    assert found.nbytes < path.stat().st_size


def test_nothing_is_read_before_it_is_asked_for(make_gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(make_gguf())
    asked = []
    read = found.read
    monkeypatch.setattr(found, "read", lambda name, dtype: asked.append(name) or read(name, dtype))
    iterator = found.load()
    assert asked == []
    first = next(iterator)
    assert asked == [first.name]


def test_tied_or_not(make_gguf) -> None:
    assert load(make_gguf()).tied
    output = np.ones((len(VOCABULARY), 32), np.float32)
    found = load(make_gguf(tensors=TENSORS | {"output.weight": output}))
    assert not found.tied
    assert list(found.shapes)[-1] == "output.weight"
    np.testing.assert_array_equal(found.read("output.weight"), output)


def test_two_layers(make_gguf) -> None:
    second = {name.replace("blk.0", "blk.1"): value + 1 for name, value in TENSORS.items() if "blk" in name}
    found = load(make_gguf({"llama.block_count": 2}, tensors=TENSORS | second))
    assert len(found.shapes) == 2 + 2 * 9
    np.testing.assert_array_equal(found.read("blk.1.ffn_up.weight"), TENSORS["blk.0.ffn_up.weight"] + 1)


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_tensor(make_gguf, name: str) -> None:
    path = make_gguf(tensors={key: value for key, value in TENSORS.items() if key != name})
    with pytest.raises(ModelError, match=f"lacks tensors: {name}$"):
        load(path)


def test_many_missing_tensors(make_gguf) -> None:
    path = make_gguf({"llama.block_count": 2})
    expected = r"lacks tensors: blk\.1\.attn_norm\.weight, blk\.1\.attn_q\.weight, .* and 6 more"
    with pytest.raises(ModelError, match=expected):
        load(path)


def test_more_layers_than_tensors(make_gguf) -> None:
    with pytest.raises(ModelError, match="is to have 4294967295 layers, and has 11 tensors"):
        load(make_gguf({"llama.block_count": 2**32 - 1}))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_k.weight", (8, 32), r"\(8, 32\), expected \(16, 32\): \[kv_heads \* head_dim, hidden\]"),
        ("blk.0.attn_q.weight", (32, 64), r"\(32, 64\), expected \(32, 32\): \[heads \* head_dim, hidden\]"),
        ("blk.0.ffn_down.weight", (64, 32), r"\(64, 32\), expected \(32, 64\): \[hidden, ffn\]"),
        ("blk.0.ffn_norm.weight", (1, 32), r"\(1, 32\), expected \(32,\): \[hidden\]"),
        ("token_embd.weight", (9, 32), rf"\(9, 32\), expected \({len(VOCABULARY)}, 32\): \[vocabulary, hidden\]"),
    ],
)
def test_a_wrong_shape(make_gguf, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=rf"tensor {name} has shape {message}"):
        load(make_gguf(tensors=TENSORS | {name: np.zeros(shape, np.float32)}))


def test_an_unknown_tensor_is_not_left_out(make_gguf) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    with pytest.raises(ModelError, match=r"has unknown tensors: blk\.0\.attn_q\.bias$"):
        load(make_gguf(tensors=TENSORS | bias))


def test_an_unsupported_quantisation(make_gguf) -> None:
    odd = {"blk.0.ffn_up.weight": np.zeros((64, 32), np.int16)}
    with pytest.raises(ModelError, match=r"tensor blk\.0\.ffn_up\.weight is I16, which cannot be dequantised"):
        load(make_gguf(tensors=TENSORS | odd))


def test_an_unsupported_architecture(make_gguf) -> None:
    with pytest.raises(ModelError, match="architecture 'qwen3' is not supported; llama is"):
        load(make_gguf(architecture="qwen3"))


def test_files_that_are_no_gguf_or_end_early(make_gguf, tmp_path: Path) -> None:
    path = make_gguf()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="truncated or damaged GGUF"):
        load(path)
    path.write_bytes(b"PK\x03\x04" + whole)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q8_0"])
def test_values_that_are_not_finite(make_gguf, kind: str, bad: float) -> None:
    name = "blk.0.ffn_up.weight"
    entries, _ = stored_as(kind)
    stored = np.array(entries[name][0] if kind != "F32" else entries[name])
    if kind == "F32":
        stored[63, 31] = bad
        entries[name] = stored
    else:  # the scale of the last row's block
        stored[63, :2] = np.array([bad], np.float16).view(np.uint8)
        entries[name] = (stored, Kind[kind])
    found = load(make_gguf(tensors=entries))
    with pytest.raises(ModelError, match=rf"tensor {name} holds NaN or infinity"):
        list(found.load("float16"))


def test_values_that_the_dtype_cannot_hold(make_gguf) -> None:
    large = np.full((64, 32), -7e4, np.float32)
    found = load(make_gguf(tensors=TENSORS | {"blk.0.ffn_up.weight": large}))
    assert found.read("blk.0.ffn_up.weight", "bfloat16").min() < -6e4
    with pytest.raises(ModelError, match=r"tensor blk\.0\.ffn_up\.weight holds 70000, which float16 cannot"):
        found.read("blk.0.ffn_up.weight", "float16")


def test_bad_arguments(make_gguf) -> None:
    found = load(make_gguf())
    with pytest.raises(ArgumentError, match="dtype is float64; accepted: float32, float16, bfloat16"):
        found.load(np.float64)
    with pytest.raises(ArgumentError, match=r"name is 'blk\.9', not one of the model's 11 tensors"):
        found.read("blk.9")


@pytest.mark.model
def test_real_model(real_file: GGUFFile) -> None:
    found = LlamaWeights(real_file)
    assert found.tied
    count = 0
    for weight in found.load(np.float16):
        assert weight.array.dtype == np.float16
        count += weight.array.size
    assert weight.done == weight.total
    assert count == 134515008  # the model card's 135M
