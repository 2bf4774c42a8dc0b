"""attention_varlen(): attention of sequences that are packed one after the other."""

from __future__ import annotations

from typing import Any

from hipattn.arguments import boolean, instance
from hipattn.attn import execute, operands
from hipattn.attn.exchange import exchanged, planned
from hipattn.attn.options import EVERY_KEY, Window, check_window, plan_varlen
from hipattn.errors import ArgumentError
from hipattn.kernels.mods import MaskMod, ScoreMod
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["attention_varlen"]


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = EVERY_KEY,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    out: Any = None,
    return_lse: bool = False,
    method: str = "auto",
    stream: Stream | None = None,
) -> Any:
    """Compute `attention` of each of several sequences, which are packed without padding.

    Queries of a sequence see keys of that sequence only; positions, and so causal, window and ALiBi, count within it.

    Parameters
    ----------
    q
        [total_q, heads_q, head_dim], otherwise as in `attention`.
    k, v
        [total_k, heads_kv, head_dim or value_dim].
    cu_seqlens_q, cu_seqlens_k
        [sequences + 1]: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1] − 1. Both start at 0, end at the total,
        and never fall; an empty sequence is legal. In host memory: integers, which are checked and uploaded. On the
        device: int32, contiguous, used in place and **not checked**, which would have to wait for the device: wrong
        numbers read and write wrong memory.
    causal, scale, window, softcap, sinks, score_mod, mask_mod
        As in `attention`. The modifications' ``b`` is the sequence, ``q`` and ``k`` count from its start.
    alibi_slopes
        [heads_q] or [sequences, heads_q].
    out
        [total_q, heads_q, value_dim]: where to write the result, as in `attention`.
    return_lse
        Also return the LSE.
    method
        As in `attention`; "staged" takes no packed sequences.
    stream
        As in `attention`.

    Returns
    -------
    out
        [total_q, heads_q, value_dim], as of `attention`.
    lse
        With `return_lse`: [heads_q, total_q], float32, likewise.

    Raises
    ------
    ArgumentError, ClosedError, PlatformError, CompileError, HipError, CodeObjectError
        As `attention`.
    """
    if stream is not None and type(stream) is not Stream:
        instance("stream", stream, Stream, "; Stream.from_handle wraps another library's")
    return_lse = boolean("return_lse", return_lse)
    if window is not EVERY_KEY:
        window = check_window(window)
    for name, starts in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if starts is None:
            raise ArgumentError(f"{name} is None; it takes where the sequences start")
    given = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "alibi_slopes": alibi_slopes, "sinks": sinks}
    given |= {"score_mod": score_mod, "mask_mod": mask_mod}
    others = {name: value for name, value in given.items() if value is not None}
    options = causal, scale, window, softcap, method, tuple(others)

    def make(device: Any, arrays: Any, beside: Any) -> Any:
        shape = beside["cu_seqlens_q"].shape
        if len(shape) != 1 or not shape[0]:
            raise ArgumentError(f"cu_seqlens_q has shape {shape}; it takes (sequences + 1,)")
        return planned(plan_varlen, device, shape[0] - 1, arrays, options)

    if type(q) is type(k) is type(v) is DeviceTensor and (out is None or type(out) is DeviceTensor):
        if stream is None:
            stream = q.buffer.device.default_stream
        beside = operands.found(others, q.dtype, stream)
        call = make(stream.device, (q, k, v), beside)
        result, lse = execute.on_device(call, (q, k, v), out, beside, return_lse=return_lse, stream=stream)
        return (result, lse) if return_lse else result
    return exchanged((q, k, v), out, others, make, return_lse=return_lse, on_host=method == "reference", stream=stream)
