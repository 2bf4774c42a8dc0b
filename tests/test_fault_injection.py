"""Every HIP call of a forward pass fails once: an error that names it, nothing leaked, and the next call works."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest

from hipattn import HipAttentionKernels, HipError, KVCache, Stream
from hipattn.attn import reference
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.inputs import Array, qkv, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import attention_bound

pytestmark = pytest.mark.skipif(not bindings.platform().simulated, reason="only the simulator can be made to fail")


def forward(stream: Stream, arrays: tuple[Array, Array, Array]) -> Array:
    q, k, v = arrays
    batch, seq, heads, dim = k.shape
    with (
        KVCache(1, batch, seq, heads, dim, dtype=k.dtype, stream=stream) as cache,
        HipAttentionKernels(stream.device) as kernels,
    ):
        out = kernels.compute_attention(*upload(stream, q, k, v), causal=True, cache=cache, stream=stream)
        return out.numpy(stream=stream)


def calls_of_a_forward_pass() -> Counter[str]:
    with Stream() as stream, bindings.record() as calls:
        forward(stream, qkv(batch=2, seq_q=9, heads_kv=2, dtype=np.float16))
    # A failed release is another matter: test_buffer.
    ignored = ("Free", "Destroy", "GetError", "StatusToString")
    return Counter(name for name, _ in calls if not any(word in name for word in ignored) and name[0] == "h")


def test_every_call_can_fail(fail: object) -> None:
    arrays = qkv(batch=2, seq_q=9, heads_kv=2, dtype=np.float16)
    expected = reference.attention(*arrays, causal=True)
    bound = attention_bound(*arrays, causal=True)
    counts = calls_of_a_forward_pass()
    assert {
        "hipMallocAsync",
        "hipMemcpyAsync",
        "hipModuleLaunchKernel",
        "hipblasGemmStridedBatchedEx",
    } <= set(counts)
    for name, count in counts.items():
        for n in range(1, count + 1):
            with Stream() as stream:
                before = live()
                with fail(f"{name}:{n}"):  # type: ignore[operator]
                    said = ""
                    try:
                        out = forward(stream, arrays)
                    except HipError as error:
                        said, out = str(error), None
                if out is None:
                    assert name in said
                else:  # a release may get by without the call
                    assert_close(out, expected, atol=bound, name=f"with {name}:{n}")
                gc.collect()
                assert live() == before, f"{name}:{n} leaks"
                assert_close(forward(stream, arrays), expected, atol=bound, name=f"after {name}:{n}")


def test_a_failed_launch_leaves_the_cache_as_it_was(fail: object, stream: Stream) -> None:
    q, k, v = qkv(batch=1, seq_q=4)
    with (
        KVCache(1, 1, 8, 4, 40, dtype=np.float32, stream=stream) as cache,
        HipAttentionKernels(stream.device) as kernels,
    ):
        tensors = upload(stream, q, k, v)
        kernels.compute_attention(*tensors, cache=cache, stream=stream)
        with fail("hipModuleLaunchKernel:3"), pytest.raises(HipError):  # type: ignore[operator]
            kernels.compute_attention(*tensors, cache=cache, stream=stream)
        assert cache.length() == 4


@pytest.mark.parametrize("n", range(1, 5))
def test_a_failed_stage_falls_back_to_the_cpu(
    fail: object, stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n: int
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(heads_kv=2, dtype=np.float16)
    with HipAttentionKernels(stream.device) as kernels:
        tensors = upload(stream, *arrays)
        for _ in range(2):
            with fail(f"hipModuleLaunchKernel:{n}"):  # type: ignore[operator]
                out = kernels.compute_attention(*tensors, causal=True, stream=stream)
            assert_close(
                out.numpy(),
                reference.attention(*arrays, causal=True),
                atol=attention_bound(*arrays, causal=True),
            )
        assert kernels.fallbacks.total() == 2
        warnings = [record for record in caplog.records if "recomputed on the CPU" in record.message]
        assert len(warnings) == 1, "one cause is logged once"


@pytest.mark.parametrize("n", [1, 2])
def test_a_failed_product_falls_back_to_the_cpu(
    fail: object, stream: Stream, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setenv("HIPATTN_FALLBACK", "cpu")
    arrays = qkv(batch=1, heads_kv=2)
    with HipAttentionKernels(stream.device) as kernels:
        with fail(f"hipblasGemmStridedBatchedEx:{n}"):  # type: ignore[operator]
            out = kernels.compute_attention(*upload(stream, *arrays), causal=True, stream=stream)
        assert kernels.fallbacks.total() == 1
        assert_close(out.numpy(), reference.attention(*arrays, causal=True), atol=attention_bound(*arrays))
