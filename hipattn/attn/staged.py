"""Attention as a pipeline of stages: QKᵀ → scale → causal mask → softmax → ·V, device to device.

hipBLAS does the two products, hipattn's kernels the rest. Each stage can be had on its own; as a whole, the first
product scales as it writes and the softmax masks as it reads. The scores exist in memory, in float32: for
[batch, heads_q, seq_q, seq_k] they take 4 bytes each, and the attention weights 2 more for 16-bit inputs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hipattn.arguments import boolean, instance, number
from hipattn.attn import reference
from hipattn.attn.fallback import FAILURES, Fallback
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.options import Facts, check_result, check_shapes, laid_out
from hipattn.errors import ArgumentError
from hipattn.kernels import causal_mask, confine, scale, softmax
from hipattn.kernels.rows import check_device
from hipattn.runtime.blas import Blas, Matrices, Product
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.device import Device
from hipattn.runtime.scratch import Scratch
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor, as_dtype

__all__ = ["HipAttentionKernels"]

# Rows of scores start at multiples of so many elements, so that kernels move 16 bytes at a time for any seq_k.
_ROW_MULTIPLE = 8


@dataclass(frozen=True)
class _Between:
    """What lies between the stages, for the shape of a stream's last call: two views of its scratch memory."""

    buffer: DeviceBuffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scores: DeviceTensor
    weights: DeviceTensor

    @property
    def usable(self) -> bool:
        """Whether the memory is there, and the stream that it is for."""
        return not (self.buffer.closed or self.buffer.stream.closed)


class HipAttentionKernels:
    """The stages of attention, each on its own and as a whole.

    No stage synchronises: each adds work to a stream and returns. Read results after ``stream.sync()``, or through
    `DeviceTensor.numpy`, which does that. The scratch memory between the stages is kept for the next call, one piece
    per stream. An object is for one thread at a time.

    A stage whose launch fails is recomputed with NumPy (HIPATTN_FALLBACK=cpu, the default): a warning is logged once
    a cause, and the stage is counted in `fallbacks`. With HIPATTN_FALLBACK=error the error is raised.

    Parameters
    ----------
    device
        Default: device 0.

    Attributes
    ----------
    device : Device
    """

    STAGES = (
        "compute_qk_t",
        "scale_inplace",
        "apply_causal_mask",
        "compute_softmax",
        "compute_attention_weighted_v",
    )

    def __init__(self, device: Device | None = None) -> None:
        self.device = Device.of(device)
        self._fallback = Fallback()
        self._scratch = Scratch()
        self._between: dict[int, _Between] = {}  # by the stream's handle

    @property
    def fallbacks(self) -> Counter[str]:
        """Stage → how many times it was recomputed with NumPy."""
        return self._fallback.counts

    def compute_qk_t(
        self,
        q: DeviceTensor,
        k: DeviceTensor,
        scores: DeviceTensor,
        *,
        factor: float = 1.0,
        stream: Stream | None = None,
    ) -> None:
        """Scores = factor · q @ kᵀ, through hipBLAS with float32 accumulation.

        Parameters
        ----------
        q
            [batch, heads_q, seq_q, head_dim]; float32, float16 or bfloat16, contiguous last dimension.
        k
            [batch, heads_kv, seq_k, head_dim] of q's dtype; query head h reads head h · heads_kv / heads_q.
        scores
            [batch, heads_q, seq_q, seq_k], float32; rows contiguous, evenly spaced.
        factor
            With 1/√head_dim, `scale_inplace` is not needed.
        stream
            Default: the device's default stream.

        Raises
        ------
        ArgumentError
            A shape, dtype, layout or device does not fit.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream, factor = self._stream(stream), number("factor", factor)
        check_device(stream, q=q, k=k, scores=scores)
        alone = not np.float32(factor)  # a BLAS does not read what it multiplies by 0, and NaN would be lost
        product = _qk_product(1.0 if alone else factor, *_facts(q), *_facts(k), *_facts(scores))

        def on_gpu() -> None:
            _multiply(product, q, k, scores, stream)
            if alone:
                scale.launch(scores, factor, stream=stream)

        def on_cpu() -> None:
            keys = _repeat_heads(_download(k), q.shape[1])
            scores.copy_from(_download(q) @ keys.swapaxes(2, 3) * np.float32(factor), stream=stream)

        self._stage("compute_qk_t", on_gpu, on_cpu)

    def scale_inplace(self, scores: DeviceTensor, factor: float, *, stream: Stream | None = None) -> None:
        """Scores *= factor. Arithmetic in float32.

        Parameters
        ----------
        scores
            Any shape; float32, float16 or bfloat16; rows contiguous, evenly spaced.
        factor
            Usually 1/√head_dim.
        stream
            Default: the device's default stream.

        Raises
        ------
        ArgumentError
            A layout or device does not fit.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream, factor = self._stream(stream), number("factor", factor)
        self._stage(
            "scale_inplace",
            lambda: scale.launch(scores, factor, stream=stream),
            lambda: scores.copy_from(_download(scores) * np.float32(factor), stream=stream),
        )

    def apply_causal_mask(self, scores: DeviceTensor, *, stream: Stream | None = None) -> None:
        """scores[..., i, j] = −inf where j > i + seq_k − seq_q: the last query is aligned with the last key.

        Other scores keep their bits, but some are written back: no other stream may write to them meanwhile.

        Parameters
        ----------
        scores
            [..., seq_q, seq_k]; float32, float16 or bfloat16; rows contiguous, evenly spaced.
        stream
            Default: the device's default stream.

        Raises
        ------
        ArgumentError
            A layout or device does not fit.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream = self._stream(stream)

        def on_cpu() -> None:
            seen = reference.causal_mask(*scores.shape[-2:])
            scores.copy_from(np.where(seen, _download(scores), -np.inf), stream=stream)

        self._stage("apply_causal_mask", lambda: causal_mask.launch(scores, stream=stream), on_cpu)

    def compute_softmax(
        self,
        scores: DeviceTensor,
        weights: DeviceTensor | None = None,
        *,
        causal: bool = False,
        lse: DeviceTensor | None = None,
        stream: Stream | None = None,
    ) -> None:
        """Weights = softmax(scores) along the last dimension, in float32, with the row's maximum subtracted.

        Parameters
        ----------
        scores
            [..., seq_k].
        weights
            Same shape, any of the dtypes. Default: in place. A row of −inf gives zeros.
        causal
            The scores are [..., seq_q, seq_k], and those that `apply_causal_mask` would hide count as −inf: they are
            not read.
        lse
            [...] without the last dimension, float32: takes log Σ exp(scores), −inf for a row of −inf.
        stream
            Default: the device's default stream.

        Raises
        ------
        ArgumentError
            A shape, dtype, layout or device does not fit.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream, causal = self._stream(stream), boolean("causal", causal)
        target = scores if weights is None else weights

        def on_cpu() -> None:
            values = _download(scores)
            if causal:
                values = np.where(reference.causal_mask(*scores.shape[-2:]), values, np.float32(-np.inf))
            rows, log_sum = reference.softmax_rows(values)
            target.copy_from(rows, stream=stream)
            if lse is not None:
                lse.copy_from(log_sum, stream=stream)

        def on_gpu() -> None:
            softmax.launch(scores, target, causal=causal, lse=lse, stream=stream)

        self._stage("compute_softmax", on_gpu, on_cpu)

    def compute_attention_weighted_v(
        self,
        weights: DeviceTensor,
        v: DeviceTensor,
        out: DeviceTensor,
        *,
        causal: bool = False,
        stream: Stream | None = None,
    ) -> None:
        """Out = weights @ v, through hipBLAS with float32 accumulation.

        Parameters
        ----------
        weights
            [batch, heads_q, seq_q, seq_k] of v's dtype; rows contiguous, evenly spaced.
        v
            [batch, heads_kv, seq_k, value_dim], contiguous last dimension.
        out
            [batch, heads_q, seq_q, value_dim] of v's dtype, contiguous last dimension.
        causal
            The weights are causal: a NaN or infinity in v stays in the rows that see its key, although 0 · NaN is
            NaN in a matrix product.
        stream
            Default: the device's default stream.

        Raises
        ------
        ArgumentError
            A shape, dtype, layout or device does not fit.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream = self._stream(stream)
        check_device(stream, weights=weights, v=v, out=out)
        product = _weighted_v_product(*_facts(weights), *_facts(v), *_facts(out))

        def on_gpu() -> None:
            _multiply(product, weights, v, out, stream)
            if causal and weights.shape[2] > 1:  # a single query sees every key
                confine.launch(weights, v, out, stream=stream)

        def on_cpu() -> None:
            seen = reference.causal_mask(*weights.shape[2:]) if causal else np.ones(weights.shape[2:], bool)
            rows, values = _download(weights), _repeat_heads(_download(v), weights.shape[1])
            result = np.zeros(out.shape, np.float32)
            for b, h in np.ndindex(*rows.shape[:2]):
                result[b, h] = reference.weighted_sum(rows[b, h], values[b, h], seen)
            out.copy_from(result, stream=stream)

        self._stage("compute_attention_weighted_v", on_gpu, on_cpu)

    def compute_attention(
        self,
        q: DeviceTensor,
        k: DeviceTensor,
        v: DeviceTensor,
        *,
        causal: bool = False,
        scale: float | None = None,
        layout: str = "bshd",
        cache: KVCache | None = None,
        layer: int = 0,
        out: DeviceTensor | None = None,
        lse: DeviceTensor | None = None,
        stream: Stream | None = None,
    ) -> DeviceTensor:
        """Run all stages, without synchronising and without a copy to the host.

        Parameters
        ----------
        q
            [batch, seq_q, heads_q, head_dim], with layout "bhsd" heads before the sequence; float32, float16 or
            bfloat16; any strides with a contiguous last dimension.
        k, v
            [batch, seq_k, heads_kv, head_dim or value_dim]; heads_q is a multiple of heads_kv.
        causal
            Query i sees key j iff j ≤ i + seq_k − seq_q.
        scale
            Default: 1/√head_dim.
        layout
            "bshd" or "bhsd", of q, k, v and out.
        cache
            Append k and v to this layer of a cache first, and attend to all that the layer then holds.
        layer
            The cache's layer.
        out
            [batch, seq_q, heads_q, value_dim] of q's dtype. Default: allocated.
        lse
            [batch, heads_q, seq_q], float32: takes the natural log-sum-exp of the scaled scores.
        stream
            Default: the device's default stream.

        Returns
        -------
        out : DeviceTensor

        Raises
        ------
        ArgumentError
            A shape, dtype, layout or device does not fit. Nothing was launched or appended.
        CacheFullError
            The cache has no room. Nothing was launched or appended.
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        stream = self._stream(stream)
        causal = boolean("causal", causal)
        past = 0 if cache is None else instance("cache", cache, KVCache).length(layer)
        check_device(stream, q=q, k=k, v=v)
        facts = _facts(q), _facts(k), _facts(v)
        try:
            sizes = _sizes(layout, *facts)
        except TypeError:  # a layout that cannot be hashed is none that is accepted
            sizes = _sizes.__wrapped__(layout, *facts)
        batch, heads_q, seq_q, new, head_dim, value_dim = sizes
        if scale is None:
            scale = 1 / math.sqrt(head_dim)
        else:
            scale = number("scale", scale)
        wanted = laid_out(layout, batch, heads_q, seq_q, value_dim)
        if out is not None:
            check_result("out", *_facts(instance("out", out, DeviceTensor)), wanted, q.dtype)
            check_device(stream, out=out)
            for name, tensor in (("v", v), *((("cache", cache.view(layer)[1]),) if cache is not None else ())):
                if out.shares_memory(tensor):
                    raise ArgumentError(f"out shares memory with {name}, which is read while out is written")
        if lse is not None:
            check_result("lse", *_facts(instance("lse", lse, DeviceTensor)), sizes[:3], FLOAT32)
            check_device(stream, lse=lse)

        new_k, new_v = _as(layout, "bshd", k), _as(layout, "bshd", v)
        if cache is not None:
            cache.check(layer, new_k, new_v)

        for given in (q, k, v, out, lse):
            if given is not None:
                given.pointer  # noqa: B018  raises if the buffer is closed

        self._score_tensors(
            (batch, heads_q, seq_q, past + new), q.dtype, stream
        )  # which may fail, so before the cache grows
        if out is None:
            out = DeviceTensor.empty(wanted, q.dtype, stream=stream)
        if cache is not None:
            cache.append(layer, new_k, new_v, stream=stream)
            k, v = (_as("bshd", layout, kept) for kept in cache.view(layer))
        try:
            self.run_checked(q, k, v, out, causal=causal, scale=scale, layout=layout, lse=lse, stream=stream)
        except BaseException:
            if cache is not None:
                cache.truncate(layer, past)
            raise
        return out

    def run_checked(
        self,
        q: DeviceTensor,
        k: DeviceTensor,
        v: DeviceTensor,
        out: DeviceTensor,
        *,
        causal: bool,
        scale: float,
        layout: str,
        lse: DeviceTensor | None,
        stream: Stream,
    ) -> None:
        """Run the stages of a call whose shapes, options and memory are checked, as `compute_attention` does.

        Raises
        ------
        HipError
            A call fails, and HIPATTN_FALLBACK is error.
        """
        q, k, v, out = [_as(layout, "bhsd", tensor) for tensor in (q, k, v, out)]
        scores, weights = self._score_tensors((*q.shape[:3], k.shape[2]), q.dtype, stream)
        self.compute_qk_t(q, k, scores, factor=scale, stream=stream)
        self.compute_softmax(scores, weights, causal=causal, lse=lse, stream=stream)
        self.compute_attention_weighted_v(weights, v, out, causal=causal, stream=stream)

    def close(self) -> None:
        """Free the scratch memory, after the work that uses it. The object can be used again."""
        self._between.clear()
        self._scratch.close()

    def __enter__(self) -> HipAttentionKernels:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stream(self, stream: Stream | None) -> Stream:
        if stream is None:
            return self.device.default_stream
        return instance("stream", stream, Stream, "; Stream.from_handle wraps another library's")

    def _score_tensors(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream
    ) -> tuple[DeviceTensor, DeviceTensor]:
        """Return scratch for the float32 scores and for the weights, which take the scores' place in float32."""
        held = self._between.get(stream.handle)
        if held is not None and held.shape == shape and held.dtype == dtype and held.usable:
            return held.scores, held.weights
        *rows, columns = shape
        padded = (*rows, -(-columns // _ROW_MULTIPLE) * _ROW_MULTIPLE)
        scores_bytes = math.prod(padded) * FLOAT32.itemsize
        nbytes = scores_bytes + (0 if dtype == FLOAT32 else math.prod(padded) * dtype.itemsize)
        buffer = self._scratch.get(nbytes, stream)
        weights = scores = DeviceTensor(buffer, padded, FLOAT32)[..., :columns]
        if dtype != FLOAT32:
            weights = DeviceTensor(buffer, padded, dtype, offset=scores_bytes // dtype.itemsize)[..., :columns]
        self._between = {handle: each for handle, each in self._between.items() if each.usable}
        self._between[stream.handle] = _Between(buffer, shape, dtype, scores, weights)
        return scores, weights

    def _stage(self, name: str, on_gpu: Callable[[], None], on_cpu: Callable[[], None]) -> None:
        try:
            on_gpu()
        except FAILURES as error:
            self._fallback.recover(name, error)
            on_cpu()


def _as(layout: str, wanted: str, tensor: DeviceTensor) -> DeviceTensor:
    return tensor if layout == wanted else tensor.transpose(0, 2, 1, 3)


@lru_cache(maxsize=4096)
def _sizes(layout: str, *qkv: Any) -> tuple[int, int, int, int, int, int]:
    q, k, v = (Facts(*facts) for facts in qkv)
    return check_shapes(q, k, v, layout=layout)


def _facts(tensor: DeviceTensor) -> tuple[Any, ...]:
    """Return the fields of `Facts`, without the time that making one takes."""
    return tensor.dtype, tensor.shape, tensor.strides


@lru_cache(maxsize=1024)
def _qk_product(factor: float, *facts: Any) -> Product:
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
    return Product(Matrices(*a, dtype.name), Matrices(*b, dtype.name), Matrices(*out, "float32"), alpha=factor)


@lru_cache(maxsize=1024)
def _weighted_v_product(*facts: Any) -> Product:
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


Layout = tuple[tuple[int, ...], tuple[int, ...]]


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


def _multiply(product: Product, a: DeviceTensor, b: DeviceTensor, out: DeviceTensor, stream: Stream) -> None:
    for tensor in (a, b, out):
        tensor.buffer.used_on(stream)
    product.run(Blas.of(stream.device), stream, a.native, b.native, out.native)


def _download(tensor: DeviceTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.numpy().astype(np.float32)


def _repeat_heads(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    return np.repeat(array, heads // array.shape[1], axis=1)
