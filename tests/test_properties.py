"""Properties of attention that hold for all inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hipattn import Device, DeviceTensor, HipAttentionKernels, KVCache, Stream
from tests.helpers.inputs import Array, poisoned, qkv, upload
from tests.helpers.mismatch import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")

examples = settings(max_examples=15)
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "seq_q": st.integers(1, 40),
        "seq_k": st.integers(1, 70),
        "heads_kv": st.integers(1, 3),
        "head_dim": st.integers(1, 48),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def make(shape: dict[str, int], group: int = 2) -> tuple[Array, Array, Array]:
    return qkv(heads_q=shape["heads_kv"] * group, **shape)


def attend(device: Device, q: Array, k: Array, v: Array, *, causal: bool = False) -> Array:
    with Stream(device) as stream, HipAttentionKernels(device) as kernels:
        return kernels.compute_attention(*upload(stream, q, k, v), causal=causal, stream=stream).numpy()


def weights_of(device: Device, scores: Array) -> Array:
    with Stream(device) as stream, HipAttentionKernels(device) as kernels:
        (tensor,) = upload(stream, scores)
        out = poisoned(stream, scores.shape, np.float32)
        kernels.compute_softmax(tensor, out, stream=stream)
        return out.numpy()


@examples
@given(rows=st.integers(1, 9), columns=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_softmax_rows_sum_to_one(device: Device, rows: int, columns: int, seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * 10
    weights = weights_of(device, scores)
    assert_close(weights.sum(-1, dtype=np.float64), np.ones(rows), atol=1e-5)
    assert (weights >= 0).all()


@examples
@given(columns=st.integers(1, 300), shift=st.integers(-1000, 1000), seed=st.integers(0, 2**32 - 1))
def test_shifting_a_row_changes_nothing(device: Device, columns: int, shift: int, seed: int) -> None:
    # Multiples of 1/64 below 2^13 are exact in float32, so the shifted scores are the same differences.
    scores = np.random.default_rng(seed).integers(-640, 640, (3, columns)).astype(np.float32) / 64
    assert weights_of(device, scores).tobytes() == weights_of(device, scores + np.float32(shift)).tobytes()


@examples
@given(shape=shapes, data=st.data())
def test_causal_output_does_not_depend_on_later_keys(
    device: Device, shape: dict[str, int], data: st.DataObject
) -> None:
    q, k, v = make(shape)
    i = data.draw(st.integers(0, shape["seq_q"] - 1), label="query")
    seen = max(0, min(shape["seq_k"], i + shape["seq_k"] - shape["seq_q"] + 1))
    before = attend(device, q, k, v, causal=True)
    k[:, seen:], v[:, seen:] = 7.5, -3.25
    assert before[:, : i + 1].tobytes() == attend(device, q, k, v, causal=True)[:, : i + 1].tobytes()


@examples
@given(shape=shapes, data=st.data())
def test_permuting_batch_or_heads_permutes_the_output(
    device: Device, shape: dict[str, int], data: st.DataObject
) -> None:
    q, k, v = make(shape, group=1)
    batch = data.draw(st.permutations(range(shape["batch"])), label="batch")
    heads = data.draw(st.permutations(range(shape["heads_kv"])), label="heads")
    out = attend(device, q, k, v)
    permuted = attend(device, *(array[batch][:, :, heads] for array in (q, k, v)))
    assert_close(permuted, out[batch][:, :, heads], atol=1e-6)


@examples
@given(shape=shapes, group=st.integers(1, 4))
def test_gqa_equals_repeated_heads(device: Device, shape: dict[str, int], group: int) -> None:
    q, k, v = make(shape, group)
    repeated = attend(device, q, np.repeat(k, group, 2), np.repeat(v, group, 2), causal=True)
    assert_close(attend(device, q, k, v, causal=True), repeated, atol=1e-6)


@examples
@given(shape=shapes, data=st.data())
def test_chunked_decoding_equals_one_pass(device: Device, shape: dict[str, int], data: st.DataObject) -> None:
    shape = shape | {"seq_k": shape["seq_q"]}
    q, k, v = make(shape)
    cuts = sorted({0, shape["seq_q"], *data.draw(st.lists(st.integers(1, shape["seq_q"]), max_size=4), label="cuts")})
    sizes = (1, shape["batch"], shape["seq_q"], shape["heads_kv"], shape["head_dim"])
    with (
        Stream(device) as stream,
        KVCache(*sizes, dtype=np.float32, stream=stream) as cache,
        HipAttentionKernels(device) as kernels,
    ):
        parts = []
        for start, stop in itertools.pairwise(cuts):
            chunk = upload(stream, *(array[:, start:stop] for array in (q, k, v)))
            parts.append(kernels.compute_attention(*chunk, causal=True, cache=cache, stream=stream).numpy())
    assert_close(np.concatenate(parts, 1), attend(device, q, k, v, causal=True), atol=2e-6)


@examples
@given(shape=shapes)
def test_strides_do_not_matter(device: Device, shape: dict[str, int]) -> None:
    q, k, v = make(shape)
    with Stream(device) as stream, HipAttentionKernels(device) as kernels:
        views = []
        for array in (q, k, v):
            wide = np.full((*array.shape[:3], array.shape[3] + 5), np.nan, np.float32)
            wide[..., 2:-3] = array
            views.append(DeviceTensor.from_numpy(wide, stream=stream)[..., 2:-3])
        out = kernels.compute_attention(*views, causal=True, stream=stream).numpy()
    assert_close(out, attend(device, q, k, v, causal=True), atol=1e-6)
