"""Each stage on its own, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, Device, DeviceTensor, HipAttentionKernels, HipError, KVCache, Stream
from hipattn.attn import reference
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.inputs import poisoned, qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, EPSILON


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads_kv", [4, 2, 1])
def test_qk_t(stream: Stream, dtype: np.dtype, heads_kv: int) -> None:
    q, k, _ = (a.swapaxes(1, 2) for a in qkv(seq_k=21, heads_kv=heads_kv, dtype=dtype))
    expected = q.astype(float) @ np.repeat(k, 4 // heads_kv, 1).astype(float).swapaxes(2, 3)
    scores = poisoned(stream, expected.shape, np.float32)
    HipAttentionKernels(stream.device).compute_qk_t(*upload(stream, q, k), scores, stream=stream)
    assert_close(scores.numpy(), expected, atol=1e-4)
    HipAttentionKernels(stream.device).compute_qk_t(*upload(stream, q, k), scores, factor=-0.3, stream=stream)
    assert_close(scores.numpy(), -0.3 * expected, atol=1e-4)


def test_a_factor_of_zero_keeps_nan(stream: Stream) -> None:
    q = np.ones((1, 1, 3, 8), np.float32)
    q[0, 0, 1, 2], q[0, 0, 2, 3] = np.nan, np.inf
    tensors, scores = upload(stream, q, np.ones((1, 1, 5, 8), np.float32)), poisoned(stream, (1, 1, 3, 5), np.float32)
    HipAttentionKernels(stream.device).compute_qk_t(*tensors, scores, factor=0.0, stream=stream)
    np.testing.assert_array_equal(scores.numpy()[0, 0], np.array([[0.0], [np.nan], [np.nan]]) * np.ones(5))


def test_scale_inplace(stream: Stream) -> None:
    (scores,) = upload(stream, np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5))
    HipAttentionKernels(stream.device).scale_inplace(scores, -0.5, stream=stream)
    assert_close(scores.numpy(), -0.5 * np.arange(120).reshape(2, 3, 4, 5))


@pytest.mark.parametrize(("seq_q", "seq_k"), [(5, 5), (3, 9), (9, 3), (1, 4), (65, 130)])
def test_causal_mask(stream: Stream, seq_q: int, seq_k: int) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, seq_q, seq_k)).astype(np.float32)
    (scores,) = upload(stream, values)
    HipAttentionKernels(stream.device).apply_causal_mask(scores, stream=stream)
    assert_close(scores.numpy(), np.where(reference.causal_mask(seq_q, seq_k), values, -np.inf))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(stream: Stream, dtype: np.dtype) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 7, 300)).astype(np.float32) * 4
    values[0, 1, 2] = -np.inf
    expected, expected_lse = reference.softmax_rows(values.astype(float))
    (scores,) = upload(stream, values)
    weights, lse = poisoned(stream, values.shape, dtype), poisoned(stream, values.shape[:-1], np.float32)
    HipAttentionKernels(stream.device).compute_softmax(scores, weights, lse=lse, stream=stream)
    assert_close(weights.numpy(), expected, rtol=EPSILON[dtype] + 1e-5, atol=1e-7)
    assert_close(lse.numpy(), expected_lse, rtol=1e-6, atol=1e-6)
    HipAttentionKernels(stream.device).compute_softmax(scores, weights, causal=True, lse=lse, stream=stream)
    expected, _ = reference.softmax_rows(np.where(reference.causal_mask(7, 300), values, -np.inf).astype(float))
    assert_close(weights.numpy(), expected, rtol=EPSILON[dtype] + 1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads_kv", [4, 2, 1])
def test_weighted_v(stream: Stream, dtype: np.dtype, heads_kv: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((2, 4, 13, 21)).astype(dtype)
    v = rng.standard_normal((2, heads_kv, 21, 40)).astype(dtype)
    expected = weights.astype(float) @ np.repeat(v, 4 // heads_kv, 1).astype(float)
    out = poisoned(stream, expected.shape, dtype)
    HipAttentionKernels(stream.device).compute_attention_weighted_v(*upload(stream, weights, v), out, stream=stream)
    assert_close(out.numpy(), expected, rtol=EPSILON[dtype], atol=1e-4)


def test_causal_weighted_v_keeps_nan_and_inf_in_their_rows(stream: Stream) -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((2, 4, 30, 41)).astype(np.float32) * reference.causal_mask(30, 41)
    v = rng.standard_normal((2, 2, 41, 70)).astype(np.float32)
    v[0, 1, 20, 5], v[0, 1, 33, 64], v[1, 0, 40, 0] = np.nan, np.inf, np.nan
    expected = np.zeros((2, 4, 30, 70))
    for b, h in np.ndindex(2, 4):
        expected[b, h] = reference.weighted_sum(
            weights[b, h].astype(float), v[b, h // 2].astype(float), reference.causal_mask(30, 41)
        )
    out = poisoned(stream, expected.shape, np.float32)
    HipAttentionKernels(stream.device).compute_attention_weighted_v(
        *upload(stream, weights, v), out, causal=True, stream=stream
    )
    assert_close(out.numpy(), expected, atol=1e-4)


def bad_arguments() -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong → (the arguments that differ, what the message names)."""
    q, k, v = qkv()
    return {
        "rank of q": ({"q": q[0]}, "q has shape"),
        "rank of k": ({"k": k[None]}, "k has shape"),
        "heads": ({"q": q[:, :, :3], "k": k[:, :, :2], "v": v[:, :, :2]}, "3 heads"),
        "heads of v": ({"v": v[:, :, :2]}, "v has shape"),
        "head_dim": ({"k": k[..., :20]}, "k has shape"),
        "batch": ({"k": k[:1], "v": v[:1]}, "k has shape"),
        "seq_k": ({"v": v[:, :5]}, "v has shape"),
        "dtypes that differ": ({"k": k.astype(np.float16)}, "k is float16"),
        "layout": ({"layout": "sbhd"}, "layout is 'sbhd'"),
        "shape of out": ({"out": q[:, :-1]}, "out is float32"),
        "dtype of out": ({"out": q.astype(np.float16)}, "out is float16"),
        "shape of lse": ({"lse": q[0]}, "lse is float32"),
    }


@pytest.mark.parametrize("case", bad_arguments())
def test_bad_arguments(stream: Stream, case: str) -> None:
    changed, message = bad_arguments()[case]
    q, k, v = qkv()
    arguments = {
        name: upload(stream, value)[0] if isinstance(value, np.ndarray) else value
        for name, value in ({"q": q, "k": k, "v": v} | changed).items()
    }
    before = live()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        HipAttentionKernels(stream.device).compute_attention(**arguments, stream=stream)
    assert live() == before
    assert not [name for name, _ in calls if "Launch" in name or "Malloc" in name or "Gemm" in name]


def test_last_dimension_must_be_contiguous(stream: Stream) -> None:
    q, k, v = upload(stream, *qkv())
    with pytest.raises(ArgumentError, match="k has strides"):
        HipAttentionKernels(stream.device).compute_attention(q, _spread(stream, k), v, stream=stream)


def _spread(stream: Stream, tensor: DeviceTensor) -> DeviceTensor:
    wide = DeviceTensor.empty((*tensor.shape[:3], 2 * tensor.shape[3]), tensor.dtype, stream=stream)
    return wide[..., ::2]


def test_host_arrays_are_refused_by_the_pipeline(stream: Stream) -> None:
    with pytest.raises(ArgumentError, match="q is ndarray"):
        HipAttentionKernels(stream.device).compute_attention(*qkv(), stream=stream)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["q", "k", "v", "out", "lse"])
def test_tensors_of_another_device_are_refused(name: str) -> None:
    if Device.count() < 2:
        pytest.skip("needs two devices")
    q, k, v = qkv()
    arrays = {"q": q, "k": k, "v": v, "out": q, "lse": np.zeros((q.shape[0], q.shape[2], q.shape[1]), np.float32)}
    with Stream(Device(0)) as first, Stream(Device(1)) as second:
        tensors = {each: upload(second if each == name else first, array)[0] for each, array in arrays.items()}
        with bindings.record() as calls, pytest.raises(ArgumentError, match=f"{name} is on device 1"):
            HipAttentionKernels(Device(0)).compute_attention(**tensors, stream=first)
        assert not [call for call, _ in calls if "Malloc" in call or "Launch" in call or "Gemm" in call]


def test_results_have_neighbours_in_their_last_dimension(stream: Stream) -> None:
    q, k, v = upload(stream, *qkv())
    batch, seq_q, heads, dim = q.shape
    with HipAttentionKernels(stream.device) as kernels:
        out = poisoned(stream, (batch, seq_q, heads, 2 * dim), np.float32)[..., ::2]
        with pytest.raises(ArgumentError, match=r"out has strides .*; its last dimension must be contiguous"):
            kernels.compute_attention(q, k, v, out=out, stream=stream)
        lse = poisoned(stream, (batch, heads, 2 * seq_q), np.float32)[..., ::2]
        with pytest.raises(ArgumentError, match=r"lse has strides .*; its last dimension must be contiguous"):
            kernels.compute_attention(q, k, v, lse=lse, stream=stream)


@pytest.mark.parametrize("layout", ["sbhd", ["bshd"]], ids=str)
def test_another_layout_is_refused(stream: Stream, layout: Any) -> None:
    with pytest.raises(ArgumentError, match=r"layout is .*; accepted: 'bshd', 'bhsd'"):
        HipAttentionKernels(stream.device).compute_attention(*upload(stream, *qkv()), layout=layout, stream=stream)


def test_memory_for_all_keys_is_there_before_the_cache_grows(stream: Stream, fail: Any) -> None:
    q, k, v = upload(stream, *qkv(1, 8, 8, 2, 2, 16))
    sizes = {"dtype": np.float32, "stream": stream}
    with HipAttentionKernels(stream.device) as kernels, KVCache(1, 1, 600, 2, 16, **sizes) as cache:
        out = kernels.compute_attention(q, k, v, stream=stream)  # memory for the 8 new ones is there
        old = upload(stream, np.zeros((1, 500, 2, 16), np.float32))[0]
        cache.append(0, old, old, stream=stream)
        call = "hipMallocAsync" if stream.device.memory_pools else "hipMalloc"
        failures = fail(f"{call}:1,{call}:2")  # twice the memory is asked for first
        with failures, bindings.record() as calls, pytest.raises(HipError, match=call):
            kernels.compute_attention(q, k, v, cache=cache, out=out, stream=stream)
        assert not [name for name, _ in calls if "Launch" in name]
        assert cache.length() == 500


def test_scratch_memory_is_kept_for_four_streams_at_most(device: Device) -> None:
    before, _ = live()
    streams: list[Stream] = []
    with HipAttentionKernels(device) as kernels:
        for n in range(12):
            streams.append(Stream(device))
            out = kernels.compute_attention(*upload(streams[-1], *qkv()), stream=streams[-1])
            del out
            if live()[0] - before > 4:
                gc.collect()
            assert live()[0] - before <= 4
            if n % 2:
                streams[-1].close()
    for stream in streams:
        stream.close()


def test_a_longer_cache_keeps_the_scratch_memory_of_the_stream(stream: Stream) -> None:
    q, k, v = upload(stream, *qkv(batch=1, seq_q=1, seq_k=200))
    with HipAttentionKernels(stream.device) as kernels:
        kernels.compute_attention(q, k[:, :100], v[:, :100], stream=stream).buffer.close()
        with bindings.record() as calls:
            for length in range(101, 200):
                kernels.compute_attention(q, k[:, :length], v[:, :length], stream=stream).buffer.close()
        assert [name for name, _ in calls].count("hipMallocAsync") <= 99 + 2


def test_a_stage_that_was_queued_is_not_computed_again(
    fail: Any, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    monkeypatch.setenv("HIPATTN_SYNC", "1")
    with Stream(stream.device) as checked, HipAttentionKernels(stream.device) as kernels:
        (x,) = upload(checked, np.full(100, 2, np.float32))
        with fail("hipStreamSynchronize:1"), pytest.raises(HipError, match="hipStreamSynchronize"):
            kernels.scale_inplace(x, 3, stream=checked)
        assert not kernels.fallbacks
        assert_close(x.numpy(), np.full(100, 6))


def test_an_output_that_overlaps_itself_is_refused(stream: Stream) -> None:
    q, k, v = upload(stream, *qkv())
    out = DeviceTensor(q.buffer, q.shape, q.dtype, (q.strides[0], q.strides[1], 1, 1))
    with pytest.raises(ArgumentError, match=r"out has shape .* overlap"):
        HipAttentionKernels(stream.device).compute_attention(q, k, v, out=out, stream=stream)


@pytest.mark.parametrize("scale", ["0.5", [1]])
def test_a_scale_that_is_no_number_is_refused(stream: Stream, scale: Any) -> None:
    with bindings.record() as calls, pytest.raises(ArgumentError, match="scale is"):
        HipAttentionKernels(stream.device).compute_attention(*upload(stream, *qkv()), scale=scale, stream=stream)
    assert not [name for name, _ in calls if "Launch" in name]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_calls_in_turn_get_their_own_results(stream: Stream, dtype: np.dtype) -> None:
    """What is kept of a call does not reach into others: of other values, shapes, options or results elsewhere."""
    rng = np.random.default_rng(0)
    arrays = [qkv(batch=2, seq_q=9, seq_k=11 + n % 2, heads_kv=2, dtype=dtype, seed=n) for n in range(4)]
    for n, (_, _, v) in enumerate(arrays):
        v[n % 2, rng.integers(v.shape[1]), 0, n] = np.nan
    inputs = [upload(stream, *each) for each in arrays]
    with HipAttentionKernels(stream.device) as kernels:
        for turn in range(3):
            for n, (q, k, v) in enumerate(arrays):
                causal, scale = bool((n + turn) % 2), (None, 0.3)[turn % 2]
                space = poisoned(stream, (*q.shape[:3], q.shape[3] + 3 * (turn % 2)), dtype)
                out = space[..., : q.shape[3]]
                lse = poisoned(stream, (2, q.shape[2], q.shape[1]), np.float32) if turn == 1 else None
                options = {"causal": causal, "scale": scale}
                kernels.compute_attention(*inputs[n], **options, out=out, lse=lse, stream=stream)
                expected, sums = reference.attention(*(a.astype(float) for a in (q, k, v)), **options, return_lse=True)
                assert_close(out.numpy(), expected, atol=8 * EPSILON[dtype] + 1e-5)
                if lse is not None:
                    assert_close(lse.numpy(), sums, atol=1e-4)


def test_strides_that_hipblas_cannot_express_are_refused_before_there_is_memory(stream: Stream) -> None:
    (x,) = upload(stream, np.ones((1, 1, 2, 8), np.float32))
    repeated = x.broadcast_to((1, 5, 2, 8))
    before = live()
    with HipAttentionKernels(stream.device) as kernels, bindings.record() as calls:
        with pytest.raises(ArgumentError, match="matrix strides"):
            kernels.compute_attention(repeated, repeated, repeated, stream=stream)
        assert live() == before
    assert not [name for name, _ in calls if "Malloc" in name]


def test_a_stage_s_result_in_the_place_of_what_it_reads_is_refused(stream: Stream) -> None:
    kernels = HipAttentionKernels(stream.device)
    a, b = (poisoned(stream, (1, 2, 8, 8), np.float32) for _ in range(2))
    with bindings.record() as calls:
        for first, second, out, name in ((a, b, a, "q"), (a, b, b, "k")):
            with pytest.raises(ArgumentError, match=f"scores shares memory with {name}, which is read while scores is"):
                kernels.compute_qk_t(first, second, out, stream=stream)
        for first, second, out, name in ((a, b, a, "weights"), (a, b, b, "v")):
            with pytest.raises(ArgumentError, match=f"out shares memory with {name}"):
                kernels.compute_attention_weighted_v(first, second, out, stream=stream)
        with pytest.raises(ArgumentError, match="weights shares memory with scores"):
            kernels.compute_softmax(a[:, :, :7], a[:, :, 1:], stream=stream)
    assert not [name for name, _ in calls if "Launch" in name or "Gemm" in name]


def test_softmax_in_place_by_another_name(stream: Stream) -> None:
    (scores,) = upload(stream, np.zeros((2, 4), np.float32))
    HipAttentionKernels(stream.device).compute_softmax(scores, scores[:], stream=stream)
    assert (scores.numpy() == 0.25).all()
