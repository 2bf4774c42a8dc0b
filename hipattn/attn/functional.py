"""attention(): the function that most users need."""

from __future__ import annotations

from typing import Any

from hipattn.arguments import boolean, instance
from hipattn.attn import execute, operands
from hipattn.attn.exchange import exchanged, planned
from hipattn.attn.execute import fallback, free_scratch
from hipattn.attn.options import EVERY_KEY, Window, check_window, plan
from hipattn.kernels.mods import MaskMod, ScoreMod
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["attention", "fallback", "free_scratch"]


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bshd",
    window: Window = EVERY_KEY,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    bias: Any = None,
    mask: Any = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    out: Any = None,
    return_lse: bool = False,
    method: str = "auto",
    stream: Stream | None = None,
) -> Any:
    """Compute softmax(scale · q @ kᵀ) @ v for each head.

    Parameters
    ----------
    q
        [batch, seq_q, heads_q, head_dim]; float32, float16 or bfloat16; any strides with a contiguous last dimension.
        An array in host memory (NumPy, torch) is uploaded; one in device memory (a `DeviceTensor`, or anything with
        DLPack or ``__cuda_array_interface__``, as of torch or CuPy) is used in place.
    k, v
        [batch, seq_k, heads_kv, head_dim or value_dim] of q's dtype. heads_q is a multiple of heads_kv: query head h
        reads head h · heads_kv / heads_q.
    causal
        Query i sees key j iff j ≤ p, where p = i + seq_k − seq_q is its own position: the last query is aligned with
        the last key. A query that sees no key yields zeros.
    scale
        Default: 1/√head_dim.
    layout
        "bshd", or "bhsd" for heads before the sequence; of q, k, v and out.
    window
        (left, right): query i sees keys p − left to p + right only; None is no limit.
    alibi_slopes
        [heads_q] or [batch, heads_q], float32: subtracts slope · |p − j| from each score. Lists and NumPy's arrays
        of other numbers are rounded to float32.
    softcap
        Bound of the scaled scores, softcap · tanh(score / softcap), before anything is added to them.
    sinks
        [heads_q], float32: a logit per head that takes part in the softmax and has no value. Rounded as
        `alibi_slopes` are.
    bias
        Broadcasts to [batch, heads_q, seq_q, seq_k]; float32 or q's dtype. Added to the scores; −inf hides the key.
    mask
        Broadcasts to [batch, heads_q, seq_q, seq_k]; bool, or uint8: not 0 where the query sees the key.
    score_mod, mask_mod
        Changes of the scores, and what is seen, as expressions: see `ScoreMod` and `MaskMod`. A score_mod comes after
        all that the other options do to a score.
    out
        Where to write the result: an array where q is, of memory that q, k and v do not share. Default: new memory.
    return_lse
        Also return the natural log-sum-exp of the scores (and sink), −inf for a query that sees no key.
    method
        "flash": one fused kernel. "staged": `HipAttentionKernels`, which takes causal and scale only. "reference":
        NumPy in float64 on the host, and synchronously. "auto": "flash" where it can, otherwise "staged" where that
        can.
    stream
        Where the work goes. Default: the default stream of the arrays' device. For arrays on the device the call
        returns before the work is done; results in host memory are complete.

    Returns
    -------
    out
        [batch, seq_q, heads_q, value_dim] of q's dtype, where q is. In host memory: of torch for torch, otherwise of
        NumPy. On the device: of torch or CuPy for theirs, otherwise a `DeviceTensor`. Gradients are not computed:
        tensors that require them are refused.
    lse
        With `return_lse`: [batch, heads_q, seq_q], float32, likewise.

    Raises
    ------
    ArgumentError
        An argument does not fit, or the method cannot serve it; nothing was allocated or launched for the
        computation.
    ClosedError
        A tensor's memory was freed.
    PlatformError
        No platform can be used on this machine.
    CompileError
        An expression of score_mod or mask_mod does not compile: the message shows its line.
    HipError, CodeObjectError
        Memory cannot be allocated or copied; or the computation fails, and HIPATTN_FALLBACK is error. By default it is
        recomputed with NumPy, a warning is logged, and `hipattn.attn.functional.fallback` counts it; a score_mod or
        mask_mod needs its Python function, and what a graph captures is not recomputed.
    """
    if stream is not None and type(stream) is not Stream:
        instance("stream", stream, Stream, "; Stream.from_handle wraps another library's")
    return_lse = boolean("return_lse", return_lse)
    if window is not EVERY_KEY:
        window = check_window(window)
    others: dict[str, Any] = {}
    if not (alibi_slopes is sinks is bias is mask is None and score_mod is None and mask_mod is None):
        given = {"alibi_slopes": alibi_slopes, "sinks": sinks, "bias": bias, "mask": mask}
        given |= {"score_mod": score_mod, "mask_mod": mask_mod}
        others = {name: value for name, value in given.items() if value is not None}
    options = causal, scale, window, softcap, method, tuple(others)
    if type(q) is type(k) is type(v) is DeviceTensor and (out is None or type(out) is DeviceTensor):
        if stream is None:
            stream = q.buffer.device.default_stream
        beside = operands.found(others, q.dtype, stream) if others else others
        call = planned(plan, stream.device, layout, (q, k, v), options)
        result, lse = execute.on_device(call, (q, k, v), out, beside, return_lse=return_lse, stream=stream)
        return (result, lse) if return_lse else result
    return exchanged(
        (q, k, v),
        out,
        others,
        lambda device, arrays, _: planned(plan, device, layout, arrays, options),
        return_lse=return_lse,
        on_host=method == "reference",
        stream=stream,
    )
