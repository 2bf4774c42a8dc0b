"""The whole pipeline, from arrays on the host to arrays on the host, against the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hipattn
from hipattn import DeviceTensor, HipAttentionKernels, KVCache, Stream, kernels
from hipattn.attn import reference
from hipattn.compiler.specialise import source_dir
from hipattn.runtime import bindings
from tests.helpers.inputs import check_attention, qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, attention_bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_forward(stream: Stream, dtype: np.dtype, causal: bool) -> None:
    check_attention(stream, *qkv(dtype=dtype), causal=causal)


@pytest.mark.parametrize("seq", [1, 31, 64, 257, 1000])
def test_lengths(stream: Stream, seq: int) -> None:
    check_attention(stream, *qkv(batch=1, seq_q=seq, heads_q=2), causal=True)


@pytest.mark.parametrize(("seq_q", "seq_k"), [(1, 300), (7, 65), (65, 7), (64, 63), (3, 1), (5, 0), (0, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_that_differ(stream: Stream, seq_q: int, seq_k: int, causal: bool) -> None:
    check_attention(stream, *qkv(seq_q=seq_q, seq_k=seq_k), causal=causal)


@pytest.mark.parametrize("batch", [0, 1, 3, 8])
def test_batch(stream: Stream, batch: int) -> None:
    check_attention(stream, *qkv(batch=batch), causal=True)


@pytest.mark.parametrize(("heads_q", "heads_kv"), [(1, 1), (9, 9), (9, 3), (9, 1), (8, 2)])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_heads(stream: Stream, heads_q: int, heads_kv: int, layout: str) -> None:
    q, k, v = qkv(heads_q=heads_q, heads_kv=heads_kv, seq_k=40)
    if layout == "bhsd":
        q, k, v = (np.ascontiguousarray(array.swapaxes(1, 2)) for array in (q, k, v))
    check_attention(stream, q, k, v, layout=layout, causal=True)


@pytest.mark.parametrize("head_dim", [1, 7, 32, 59, 128, 256])
def test_head_dims(stream: Stream, head_dim: int) -> None:
    check_attention(stream, *qkv(head_dim=head_dim, value_dim=head_dim + 3), causal=True)


def test_scale(stream: Stream) -> None:
    check_attention(stream, *qkv(), scale=0.3)


def test_large_logits_do_not_overflow(stream: Stream) -> None:
    q, k, v = qkv(batch=1, seq_q=17)
    check_attention(stream, q * 300, k * 300, v, causal=True)


def test_a_nan_stays_in_the_rows_it_reaches(stream: Stream) -> None:
    q, k, v = qkv(seq_q=20, seq_k=24)
    q[0, 3, 1, 0] = np.nan
    k[0, 15, 2, 5] = np.nan
    v[1, 10, 0, 7] = np.nan
    v[1, 12, 1, 2] = np.inf
    for causal in (False, True):
        check_attention(stream, q, k, v, causal=causal)


def test_packed_qkv_is_used_in_place(stream: Stream) -> None:
    rng = np.random.default_rng(1)
    packed = rng.standard_normal((2, 33, 3, 4, 24)).astype(np.float32)
    tensor = DeviceTensor.from_numpy(packed, stream=stream)
    views = [tensor[:, :, i] for i in range(3)]
    arrays = [packed[:, :, i] for i in range(3)]
    with HipAttentionKernels(stream.device) as kernels:
        out = kernels.compute_attention(*views, causal=True, stream=stream)
        assert_close(out.numpy(), reference.attention(*arrays, causal=True), atol=attention_bound(*arrays, causal=True))


def test_nothing_goes_through_the_host_and_nothing_synchronises(stream: Stream) -> None:
    tensors = upload(stream, *qkv())
    with HipAttentionKernels(stream.device) as kernels:
        with bindings.record() as calls:
            out = kernels.compute_attention(*tensors, causal=True, stream=stream)
        names = [name for name, _ in calls]
        assert not [name for name in names if "Memcpy" in name or "Synchronize" in name]
        assert names.count("hipModuleLaunchKernel") == 2
        assert any(name.startswith("hipblasGemm") for name in names)
        out.numpy()


def test_a_cache_filled_in_chunks_equals_one_pass(stream: Stream) -> None:
    q, k, v = qkv(seq_q=23, heads_kv=2)
    expected = reference.attention(q, k, v, causal=True)
    with (
        KVCache(2, 2, 23, 2, 40, dtype=np.float32, stream=stream) as cache,
        HipAttentionKernels(stream.device) as kernels,
    ):
        parts = []
        for start, stop in ((0, 7), (7, 8), (8, 9), (9, 23)):
            chunk = upload(stream, *(array[:, start:stop] for array in (q, k, v)))
            out = kernels.compute_attention(*chunk, causal=True, cache=cache, layer=1, stream=stream)
            parts.append(out.numpy())
        assert (cache.length(0), cache.length(1)) == (0, 23)
        assert_close(np.concatenate(parts, 1), expected, atol=attention_bound(q, k, v, causal=True))


def test_work_of_two_streams_does_not_mix(device: hipattn.Device) -> None:
    inputs = [qkv(seed=seed) for seed in range(4)]
    with HipAttentionKernels(device) as kernels, Stream(device) as first, Stream(device) as second:
        outs = []
        for i, arrays in enumerate(inputs):
            stream = (first, second)[i % 2]
            outs.append(kernels.compute_attention(*upload(stream, *arrays), stream=stream))
        for arrays, out in zip(inputs, outs, strict=True):
            assert_close(out.numpy(), reference.attention(*arrays), atol=attention_bound(*arrays))


def test_the_result_is_the_same_bits_each_time(stream: Stream) -> None:
    tensors = upload(stream, *qkv(dtype=np.float16))
    with HipAttentionKernels(stream.device) as kernels:
        first = kernels.compute_attention(*tensors, causal=True, stream=stream).numpy()
        for _ in range(20):
            again = kernels.compute_attention(*tensors, causal=True, stream=stream).numpy()
            assert first.tobytes() == again.tobytes()


def test_every_kernel_family_has_a_module() -> None:
    stems = {family.__name__.rpartition(".")[2] for family in kernels.FAMILIES}
    assert stems == {path.stem for path in source_dir().glob("*.hip")}


def test_scores_beyond_one_row_block(stream: Stream) -> None:
    """More keys than the original's 256-key shared array held, more than a block has threads."""
    q, k, v = qkv(batch=1, seq_q=3, seq_k=4100, heads_q=2, head_dim=64)
    check_attention(stream, q, k, v)
    assert math.prod(q.shape) < k.size
