"""Caches of sequences of different lengths, in one piece or in pages, full of NaN where no sequence has a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from hipattn import DeviceTensor, Stream, attention_decode
from hipattn.attn import reference
from hipattn.attn.functional import fallback
from hipattn.kernels import flash_decode
from tests.helpers.features import of_reference
from tests.helpers.framed import Framed
from tests.helpers.inputs import Array, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import FLOOR, magnitude

__all__ = ["Caches", "check_decode", "decode"]


@dataclass(frozen=True)
class Caches:
    """Queries and caches, as `hipattn.attention_decode` takes them.

    Attributes
    ----------
    q, k, v : ndarray
    lengths : ndarray of int32
    table : ndarray of int32 or None
        Pages in no order; numbers of no page past each sequence's last.
    scales : two ndarrays of float32, or None
        Of k and v in e4m3; these hold the bits then.
    float8 : numpy.dtype or None
        Which e4m3.
    """

    q: Array
    k: Array
    v: Array
    lengths: Array
    table: Array | None = None
    scales: tuple[Array, Array] | None = None
    float8: np.dtype[Any] | None = None

    @classmethod
    def random(
        cls,
        lengths: Sequence[int],
        seq_q: int = 1,
        heads: tuple[int, int] = (4, 2),
        dims: tuple[int, int] = (40, 24),
        dtype: Any = np.float16,
        spare: int = 3,
        seed: int = 0,
    ) -> Caches:
        """Return caches in one piece, of `spare` rows more than the longest sequence has keys."""
        rng = np.random.default_rng(seed)
        batch, capacity = len(lengths), max(lengths, default=0) + spare
        q = rng.standard_normal((batch, seq_q, heads[0], dims[0])).astype(dtype)
        k, v = (rng.standard_normal((batch, capacity, heads[1], dim)).astype(dtype) for dim in dims)
        for b, length in enumerate(lengths):
            k[b, length:], v[b, length:] = np.nan, np.nan
        return cls(q, k, v, np.array(lengths, np.int32))

    def paged(self, page_size: int, seed: int = 0) -> Caches:
        """Return the same keys in pages of a pool, among pages of nobody's."""
        batch, capacity = self.k.shape[:2]
        pages = -(-capacity // page_size)
        order = np.random.default_rng(seed).permutation(batch * pages + 2)[: batch * pages].reshape(batch, pages)
        pools = []
        for cache in (self.k, self.v):
            padded = np.full((batch, pages * page_size, *cache.shape[2:]), np.nan, cache.dtype)
            padded[:, :capacity] = cache
            pool = np.full((batch * pages + 2, page_size, *cache.shape[2:]), np.nan, cache.dtype)
            pool[order] = padded.reshape(batch, pages, page_size, *cache.shape[2:])
            pools.append(pool)
        used = np.arange(pages) * page_size < self.lengths[:, None]
        return Caches(self.q, *pools, self.lengths, np.where(used, order, -(10**6)).astype(np.int32))

    def in_float8(self, float8: np.dtype[Any]) -> Caches:
        """Return the same keys and values, rounded to e4m3 with a scale a head."""
        steps = np.arange(self.k.shape[2], dtype=np.float32)
        scales = 0.013 + 0.007 * steps, 0.02 * 0.9**steps
        stored = [
            (x.astype(np.float32) / scale[:, None]).clip(-240, 240).astype(float8).view(np.uint8)
            for x, scale in zip((self.k, self.v), scales, strict=True)
        ]
        return replace(self, k=stored[0], v=stored[1], scales=scales, float8=float8)

    def sequence(self, b: int) -> Caches:
        """Return one sequence, alone."""
        one = slice(b, b + 1)
        if self.table is None:
            return replace(self, q=self.q[one], k=self.k[one], v=self.v[one], lengths=self.lengths[one])
        return replace(self, q=self.q[one], lengths=self.lengths[one], table=self.table[one])

    @property
    def capacity(self) -> int:
        return self.k.shape[1] * (1 if self.table is None else self.table.shape[1])

    def reference(self, **options: Any) -> Any:
        """Return what `hipattn.attn.reference.attention_decode` gives."""
        k, v = self.k, self.v
        if self.scales is not None:
            pairs = zip((k, v), self.scales, strict=True)
            k, v = (x.view(self.float8).astype(np.float64) * scale[:, None] for x, scale in pairs)
        return reference.attention_decode(self.q, k, v, self.lengths, block_table=self.table, **options)


def decode(stream: Stream, caches: Caches, **options: Any) -> tuple[Array, Array]:
    """Compute attention and its LSE with the fused kernel, all of it on the device, into a guarded output."""
    heads_kv, (_, seq_q, heads, head_dim) = caches.k.shape[2], caches.q.shape
    value_dim = caches.v.shape[3]
    sizes = head_dim, value_dim, seq_q * heads // heads_kv
    refused = flash_decode.supports(stream.device, caches.q.dtype, *sizes, caches.float8 is not None)
    if refused:
        pytest.skip(refused)
    tensors = upload(stream, caches.q, caches.k, caches.v)
    beside: dict[str, Any] = {
        name: DeviceTensor.from_numpy(value, stream=stream) if isinstance(value, np.ndarray) else value
        for name, value in ({"lengths": caches.lengths, "block_table": caches.table} | options).items()
    }
    if caches.scales is not None:
        beside |= zip(("k_scales", "v_scales"), upload(stream, *caches.scales), strict=True)
    out = Framed(stream, (*caches.q.shape[:3], value_dim), caches.q.dtype)
    before = fallback.counts.total()
    given, lse = attention_decode(*tensors, **beside, out=out.tensor, return_lse=True, method="flash", stream=stream)
    assert given is out.tensor
    assert fallback.counts.total() == before
    return out.numpy(), lse.numpy()


def check_decode(stream: Stream, caches: Caches, **options: Any) -> None:
    """Compare output and LSE with float64, within the project's tolerance."""
    plain = {"causal": True} | of_reference({name: x for name, x in options.items() if name != "num_splits"})
    expected, expected_lse = caches.reference(return_lse=True, **plain)
    low = caches.reference(dtype=caches.q.dtype, **plain).astype(np.float64)
    bound = max(2 * float(np.abs(low - expected).max(initial=0)), FLOOR[caches.q.dtype] * magnitude(expected))
    out, lse = decode(stream, caches, **options)
    where = f" on {stream.device.arch}"
    assert_close(out, expected, atol=bound, name=f"out{where}")
    assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5, name=f"lse{where}")
