"""Inputs of attention, and the check of its result against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from hipattn import DeviceTensor, HipAttentionKernels, Stream
from hipattn.attn import reference
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import attention_bound

__all__ = ["check_attention", "poisoned", "qkv", "upload"]

Array = NDArray[Any]


def qkv(
    batch: int = 2,
    seq_q: int = 33,
    seq_k: int | None = None,
    heads_q: int = 4,
    heads_kv: int | None = None,
    head_dim: int = 40,
    value_dim: int | None = None,
    dtype: npt.DTypeLike = np.float32,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Return random q, k, v, [batch, seq, heads, dim]."""
    rng = np.random.default_rng(seed)
    seq_k = seq_q if seq_k is None else seq_k
    heads_kv = heads_q if heads_kv is None else heads_kv
    shapes = (
        (batch, seq_q, heads_q, head_dim),
        (batch, seq_k, heads_kv, head_dim),
        (batch, seq_k, heads_kv, head_dim if value_dim is None else value_dim),
    )
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)  # type: ignore[return-value]


def upload(stream: Stream, *arrays: Array) -> list[DeviceTensor]:
    """Copy arrays to the stream's device."""
    return [DeviceTensor.from_numpy(array, stream=stream) for array in arrays]


def poisoned(stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceTensor:
    """Return a tensor full of NaN, so that an element that nothing writes shows."""
    return DeviceTensor.from_numpy(np.full(shape, np.nan, dtype), stream=stream)


def check_attention(stream: Stream, q: Array, k: Array, v: Array, *, layout: str = "bshd", **options: Any) -> None:
    """Run the staged pipeline into a poisoned output, and compare output and LSE with float64."""
    expected, expected_lse = reference.attention(q, k, v, layout=layout, return_lse=True, **options)
    out = poisoned(stream, expected.shape, q.dtype)
    lse = poisoned(stream, expected_lse.shape, np.float32)
    with HipAttentionKernels(stream.device) as kernels:
        kernels.compute_attention(*upload(stream, q, k, v), layout=layout, out=out, lse=lse, stream=stream, **options)
        assert not kernels.fallbacks
    bound = attention_bound(q, k, v, expected=expected, layout=layout, **options)
    assert_close(out.numpy(), expected, atol=bound, name="out")
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-5, name="lse")
