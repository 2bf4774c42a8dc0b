"""The two products of the staged pipeline, and what its calls are planned from: shapes and strides, no memory."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hipattn.attn.options import Facts, check_shapes, laid_out
from hipattn.errors import ArgumentError
from hipattn.layout import row_major
from hipattn.runtime.blas import Matrices, Product
from hipattn.tensor import FLOAT32, DeviceTensor, as_dtype

__all__ = ["StagedPlan", "facts", "plan", "qk_product", "scratch_bytes", "weighted_v_product"]

# Rows of scores start at multiples of so many elements, so that kernels move 16 bytes at a time for any seq_k.
_ROW_MULTIPLE = 8

Layout = tuple[tuple[int, ...], tuple[int, ...]]


class StagedPlan:
    """What a call of all stages depends on but for its memory.

    Attributes
    ----------
    layout, causal, factor
        Of the call; the factor of the scores.
    dtype
        Of q, k, v and the result.
    scores : tuple of int
        [batch, heads_q, seq_q, seq_k], the shape of what lies between the stages.
    scores_strides : tuple of int
        Its strides: rows begin at multiples of 8 elements.
    out, lse : tuple of int
        The results' shapes.
    value_dim : int
    """

    def __init__(self, layout: str, causal: bool, scale: float | None, q: Facts, k: Facts, v: Facts) -> None:
        batch, heads, seq_q, seq_k, head_dim, self.value_dim = check_shapes(q, k, v, layout=layout)
        self.layout, self.causal, self.dtype = layout, causal, q.dtype
        self.factor = 1 / math.sqrt(head_dim) if scale is None else scale
        self.scores = batch, heads, seq_q, seq_k
        self.scores_strides = row_major(_padded(self.scores))
        self.lse = self.scores[:3]
        self.out = laid_out(layout, batch, heads, seq_q, self.value_dim)
        self._qkv = q, k, v

    @cached_property
    def qk(self) -> tuple[Product, float]:
        """The product of the scores, and what they are to be multiplied by after it."""
        q, k = (self._by_heads(*x) for x in self._qkv[:2])
        return qk_product(self.factor, *q, *k, FLOAT32, self.scores, self.scores_strides)

    def weighted_v(self, out_strides: tuple[int, ...]) -> Product:
        """Return the product of weights and v."""
        v, out = self._by_heads(*self._qkv[2]), self._by_heads(self.dtype, self.out, out_strides)
        return weighted_v_product(self.dtype, self.scores, self.scores_strides, *v, *out)

    def by_heads(self, tensor: DeviceTensor) -> DeviceTensor:
        """Return a tensor in the call's layout as [batch, heads, seq, dim]."""
        return tensor if self.layout == "bhsd" else tensor.transpose(0, 2, 1, 3)

    def _by_heads(self, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> Facts:
        if self.layout == "bhsd":
            return Facts(dtype, shape, strides)
        (b, s, h, d), (bs, ss, hs, ds) = shape, strides
        return Facts(dtype, (b, h, s, d), (bs, hs, ss, ds))


def plan(layout: str, causal: bool, scale: float | None, *qkv: DeviceTensor) -> StagedPlan:
    """Return the plan of a call: the same object for tensors of the same dtypes, shapes and strides.

    Raises
    ------
    ArgumentError
        A shape, dtype or layout does not fit.
    """
    of_qkv = [facts(tensor) for tensor in qkv]
    try:
        return _plan(layout, causal, scale, *of_qkv)
    except TypeError:  # a layout that cannot be hashed is none that is accepted
        return _plan.__wrapped__(layout, causal, scale, *of_qkv)


@lru_cache(maxsize=4096)
def _plan(layout: str, causal: bool, scale: float | None, *qkv: Any) -> StagedPlan:
    return StagedPlan(layout, causal, scale, *(Facts(*of_one) for of_one in qkv))


def _padded(scores: tuple[int, ...]) -> tuple[int, ...]:
    return *scores[:3], -(-scores[3] // _ROW_MULTIPLE) * _ROW_MULTIPLE


def scratch_bytes(scores: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the bytes of float32 scores of this shape, and of weights in `dtype`: 0 if they take the scores' place."""
    elements = math.prod(_padded(scores))
    return elements * FLOAT32.itemsize, 0 if dtype == FLOAT32 else elements * dtype.itemsize


def facts(tensor: DeviceTensor) -> tuple[Any, ...]:
    """Return the fields of `Facts`, without the time that making one takes."""
    return tensor.dtype, tensor.shape, tensor.strides


@lru_cache(maxsize=1024)
def qk_product(factor: float, *facts: Any) -> tuple[Product, float]:
    """Return factor · q @ kᵀ for the facts of q, k and scores, and what its result is to be multiplied by.

    A BLAS does not read what it multiplies by 0, and NaN would be lost.
    """
    (dtype, q, q_steps), (k_dtype, k, k_steps), (scores_dtype, scores, steps) = (
        facts[0:3],
        facts[3:6],
        facts[6:9],
    )
    if len(q) != 4 or len(k) != 4 or scores != (*q[:3], k[2]) or k[3] != q[3] or scores_dtype != FLOAT32:
        raise ArgumentError(
            f"q {q}, k {k} and scores {scores} {scores_dtype} do not fit; they take [batch, heads_q, seq_q, head_dim], "
            "[batch, heads_kv, seq_k, head_dim] and [batch, heads_q, seq_q, seq_k] in float32"
        )
    as_dtype(dtype, "q's dtype")
    if k_dtype != dtype:
        raise ArgumentError(f"k is {k_dtype}; q is {dtype}, and both must agree")
    transposed = (*k[:2], k[3], k[2]), (*k_steps[:2], k_steps[3], k_steps[2])
    a, b, out = _grouped((q, q_steps), transposed, (scores, steps))
    alpha, then = (factor, 1.0) if np.float32(factor) else (1.0, factor)
    return Product(Matrices(*a, dtype.name), Matrices(*b, dtype.name), Matrices(*out, "float32"), alpha=alpha), then


@lru_cache(maxsize=1024)
def weighted_v_product(*facts: Any) -> Product:
    """Return weights @ v for the facts of weights, v and out."""
    (dtype, weights, w_steps), (v_dtype, v, v_steps), (out_dtype, out, steps) = (
        facts[0:3],
        facts[3:6],
        facts[6:9],
    )
    if len(weights) != 4 or len(v) != 4 or out != (*weights[:3], v[3]) or v[2] != weights[3]:
        raise ArgumentError(
            f"weights {weights}, v {v} and out {out} do not fit; they take [batch, heads_q, seq_q, seq_k], "
            "[batch, heads_kv, seq_k, value_dim] and [batch, heads_q, seq_q, value_dim]"
        )
    if not dtype == v_dtype == out_dtype:
        raise ArgumentError(f"weights is {dtype}, v {v_dtype}, out {out_dtype}; all must agree")
    as_dtype(dtype, "weights's dtype")
    a, b, result = _grouped((weights, w_steps), (v, v_steps), (out, steps))
    return Product(Matrices(*a, dtype.name), Matrices(*b, dtype.name), Matrices(*result, dtype.name))


def _grouped(queries: Layout, keys: Layout, out: Layout) -> tuple[Layout, Layout, Layout]:
    """Split the query heads into [heads_kv, heads_q / heads_kv], and repeat each key head over its group."""
    heads_q, heads_kv = queries[0][1], keys[0][1]
    if queries[0][0] != keys[0][0] or (heads_q % heads_kv if heads_kv else heads_q):
        raise ArgumentError(
            f"queries are [batch, heads] {queries[0][:2]}, keys {keys[0][:2]}; batch must agree, and the heads of the "
            "queries be a multiple of those of the keys"
        )
    group = heads_q // heads_kv if heads_kv else 1

    def split(layout: Layout) -> Layout:
        (batch, _, *matrix), (batch_step, step, *matrix_steps) = layout
        return (batch, heads_kv, group, *matrix), (batch_step, step * group, step, *matrix_steps)

    (batch, _, *matrix), (batch_step, step, *matrix_steps) = keys
    repeated = (batch, heads_kv, group, *matrix), (batch_step, step, 0, *matrix_steps)
    return split(queries), repeated, split(out)
