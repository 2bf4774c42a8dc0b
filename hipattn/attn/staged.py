"""Attention as a pipeline of stages: QKᵀ → scale → causal mask → softmax → ·V, device to device.

hipBLAS does the two products, hipattn's kernels the rest. Each stage can be had on its own; as a whole, the first
product scales as it writes and the softmax masks as it reads. The scores exist in memory, in float32: for
[batch, heads_q, seq_q, seq_k] they take 4 bytes each, and the attention weights 2 more for 16-bit inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from hipattn.arguments import boolean, instance, number
from hipattn.attn import reference, stage_products
from hipattn.attn.fallback import FAILURES, Fallback
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.options import check_result
from hipattn.attn.stage_products import StagedPlan, facts, qk_product, weighted_v_product
from hipattn.errors import ArgumentError, ClosedError
from hipattn.kernels import causal_mask, confine, scale, softmax
from hipattn.kernels.rows import check_device
from hipattn.layout import row_major
from hipattn.runtime.blas import Blas, Product
from hipattn.runtime.device import Device
from hipattn.runtime.module import Launch
from hipattn.runtime.scratch import Scratch
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor

__all__ = ["HipAttentionKernels"]


class _Between:
    """What lies between the stages of a stream's last call: two views of its scratch memory, and launches over them."""

    def __init__(self, plan: StagedPlan, scratch: Scratch, stream: Stream) -> None:
        plan.qk  # noqa: B018  what hipBLAS cannot do is refused before there is memory
        usual = row_major(plan.out)
        self._last = usual, plan.weighted_v(usual)
        scores_bytes, weights_bytes = stage_products.scratch_bytes(plan.scores, plan.dtype)
        buffer = scratch.get(scores_bytes + weights_bytes, stream)
        self.plan, self._stream, self._buffer = plan, stream, buffer
        self.weights = self.scores = DeviceTensor(buffer, plan.scores, FLOAT32, plan.scores_strides)
        if weights_bytes:
            behind = scores_bytes // plan.dtype.itemsize
            self.weights = DeviceTensor(buffer, plan.scores, plan.dtype, plan.scores_strides, behind)
        self._confine: tuple[tuple[int, ...], Launch[confine.ConfineParams] | None] | None = None

    def usable(self, plan: StagedPlan) -> bool:
        """Whether it is that of this plan, and the memory is there."""
        return self.plan is plan and not (self._buffer.closed or self._buffer.stream.closed)

    @cached_property
    def softmax(self) -> Launch[softmax.SoftmaxParams] | None:
        """The softmax of all scores, without the LSE."""
        return softmax.prepare(self.scores, self.weights, causal=self.plan.causal, stream=self._stream)

    def weighted_v(self, out: DeviceTensor) -> Product:
        """Return the last product, for a result with the strides of `out`."""
        if self._last[0] != out.strides:
            self._last = out.strides, self.plan.weighted_v(out.strides)
        return self._last[1]

    def confine(self, v: DeviceTensor, out: DeviceTensor) -> Launch[confine.ConfineParams] | None:
        """Return what follows it if the weights are causal, over this v and out."""
        if self._confine is None or self._confine[0] != out.strides:
            by_heads = self.plan.by_heads(v), self.plan.by_heads(out)
            self._confine = out.strides, confine.prepare(self.weights, *by_heads, stream=self._stream)
        launch = self._confine[1]
        if launch is not None:
            launch.arguments.v, launch.arguments.out = v.pointer, out.pointer
        return launch


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
        product = qk_product(factor, *facts(q), *facts(k), *facts(scores))
        _check_apart("scores", scores, q=q, k=k)
        self._stage(
            "compute_qk_t",
            lambda: _qk_on_gpu(product, q, k, scores, stream),
            lambda: _qk_on_cpu(q, k, scores, factor, stream),
        )

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
            Same shape, any of the dtypes, other memory. Default: in place. A row of −inf gives zeros.
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
        if target is not scores:
            check_device(stream, scores=scores, weights=target)
            if target.pointer != scores.pointer or facts(target) != facts(scores):  # not in place
                _check_apart("weights", target, scores=scores)
        self._stage(
            "compute_softmax",
            lambda: softmax.launch(scores, target, causal=causal, lse=lse, stream=stream),
            lambda: _softmax_on_cpu(scores, target, causal, lse, stream),
        )

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
        product = weighted_v_product(*facts(weights), *facts(v), *facts(out))
        _check_apart("out", out, weights=weights, v=v)

        def on_gpu() -> None:
            _multiply(product, weights, v, out, stream)
            if causal and weights.shape[2] > 1:  # a single query sees every key
                confine.launch(weights, v, out, stream=stream)

        self._stage("compute_attention_weighted_v", on_gpu, lambda: _weighted_v_on_cpu(weights, v, out, causal, stream))

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
        for name, tensor in (("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse)):
            if tensor is not None:
                _check(stream, name, tensor)
        if scale is not None:
            scale = number("scale", scale)
        plan = stage_products.plan(layout, causal, scale, q, k, v)
        if out is not None:
            check_result("out", *facts(out), plan.out, plan.dtype)
            _check_apart("out", out, v=v, **({} if cache is None else {"cache": cache.view(layer)[1]}))
        if lse is not None:
            check_result("lse", *facts(lse), plan.lse, FLOAT32)
        if cache is None:
            between = self._between_stages(plan, stream)  # may refuse strides
            if out is None:
                out = DeviceTensor.empty(plan.out, plan.dtype, stream=stream)
            self._run(between, q, k, v, out, lse, stream)
            return out

        by_token = (0, 1, 2, 3) if layout == "bshd" else (0, 2, 1, 3)  # and back
        new = k.transpose(*by_token), v.transpose(*by_token)
        cache.check(layer, *new)
        scores = *plan.scores[:3], past + plan.scores[3]
        self._scratch.get(sum(stage_products.scratch_bytes(scores, plan.dtype)), stream)  # before the cache grows
        if out is None:
            out = DeviceTensor.empty(plan.out, plan.dtype, stream=stream)
        cache.append(layer, *new, stream=stream)
        try:
            k, v = (kept.transpose(*by_token) for kept in cache.view(layer))
            self.run_checked(q, k, v, out, causal=causal, scale=scale, layout=layout, lse=lse, stream=stream)
        except BaseException:
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
        scale: float | None,
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
        plan = stage_products.plan(layout, causal, scale, q, k, v)
        self._run(self._between_stages(plan, stream), q, k, v, out, lse, stream)

    def _run(
        self,
        between: _Between,
        q: DeviceTensor,
        k: DeviceTensor,
        v: DeviceTensor,
        out: DeviceTensor,
        lse: DeviceTensor | None,
        stream: Stream,
    ) -> None:
        plan, scores, weights = between.plan, between.scores, between.weights

        def softmax_on_gpu() -> None:
            if lse is not None:
                softmax.launch(scores, weights, causal=plan.causal, lse=lse, stream=stream)
            elif between.softmax is not None:
                between.softmax.run(stream)

        def weighted_v_on_gpu() -> None:
            _multiply(between.weighted_v(out), weights, v, out, stream)
            if plan.causal and plan.scores[2] > 1:  # a single query sees every key
                launch = between.confine(v, out)
                if launch is not None:
                    launch.run(stream)

        self._stage(
            "compute_qk_t",
            lambda: _qk_on_gpu(plan.qk, q, k, scores, stream),
            lambda: _qk_on_cpu(plan.by_heads(q), plan.by_heads(k), scores, plan.factor, stream),
        )
        self._stage(
            "compute_softmax",
            softmax_on_gpu,
            lambda: _softmax_on_cpu(scores, weights, plan.causal, lse, stream),
        )
        self._stage(
            "compute_attention_weighted_v",
            weighted_v_on_gpu,
            lambda: _weighted_v_on_cpu(weights, plan.by_heads(v), plan.by_heads(out), plan.causal, stream),
        )

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

    def _between_stages(self, plan: StagedPlan, stream: Stream) -> _Between:
        """Return scratch for the float32 scores and for the weights, and what is known of a call that uses it."""
        held = self._between.get(stream.handle)
        if held is None or not held.usable(plan):
            held = _Between(plan, self._scratch, stream)
            self._between = {handle: each for handle, each in self._between.items() if each.usable(each.plan)}
            self._between[stream.handle] = held
        return held

    def _stage(self, name: str, on_gpu: Callable[[], None], on_cpu: Callable[[], None]) -> None:
        try:
            on_gpu()
        except FAILURES as error:
            self._fallback.recover(name, error)
            on_cpu()


def _check(stream: Stream, name: str, tensor: DeviceTensor) -> None:
    """Check that it is a tensor on the stream's device whose memory is there."""
    if type(tensor) is not DeviceTensor or tensor.buffer.device is not stream.device:
        check_device(stream, **{name: tensor})
    if tensor.buffer.closed:
        raise ClosedError(f"{name} is closed: its buffer of {tensor.buffer.nbytes} bytes")


def _check_apart(name: str, written: DeviceTensor, **read: DeviceTensor) -> None:
    for other, tensor in read.items():
        if written.shares_memory(tensor):
            raise ArgumentError(f"{name} shares memory with {other}, which is read while {name} is written")


def _multiply(product: Product, a: DeviceTensor, b: DeviceTensor, out: DeviceTensor, stream: Stream) -> None:
    for tensor in (a, b, out):
        tensor.buffer.used_on(stream)
    product.run(Blas.of(stream.device), stream, a.native, b.native, out.native)


def _qk_on_gpu(
    product: tuple[Product, float], q: DeviceTensor, k: DeviceTensor, scores: DeviceTensor, stream: Stream
) -> None:
    qk, then = product
    _multiply(qk, q, k, scores, stream)
    if then != 1.0:
        scale.launch(scores, then, stream=stream)


def _qk_on_cpu(q: DeviceTensor, k: DeviceTensor, scores: DeviceTensor, factor: float, stream: Stream) -> None:
    keys = _repeat_heads(_download(k), q.shape[1])
    scores.copy_from(_download(q) @ keys.swapaxes(2, 3) * np.float32(factor), stream=stream)


def _softmax_on_cpu(
    scores: DeviceTensor, weights: DeviceTensor, causal: bool, lse: DeviceTensor | None, stream: Stream
) -> None:
    values = _download(scores)
    if causal:
        values = np.where(reference.causal_mask(*scores.shape[-2:]), values, np.float32(-np.inf))
    rows, log_sum = reference.softmax_rows(values)
    weights.copy_from(rows, stream=stream)
    if lse is not None:
        lse.copy_from(log_sum, stream=stream)


def _weighted_v_on_cpu(weights: DeviceTensor, v: DeviceTensor, out: DeviceTensor, causal: bool, stream: Stream) -> None:
    seen = reference.causal_mask(*weights.shape[2:]) if causal else np.ones(weights.shape[2:], bool)
    rows, values = _download(weights), _repeat_heads(_download(v), weights.shape[1])
    result = np.zeros(out.shape, np.float32)
    for b, h in np.ndindex(*rows.shape[:2]):
        result[b, h] = reference.weighted_sum(rows[b, h], values[b, h], seen)
    out.copy_from(result, stream=stream)


def _download(tensor: DeviceTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.numpy().astype(np.float32)


def _repeat_heads(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    return np.repeat(array, heads // array.shape[1], axis=1)
