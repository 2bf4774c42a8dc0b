"""attention() under the names and signatures of torch's and flash-attention's functions, with their semantics.

Arrays are those that `hipattn.attention` takes: torch's, CuPy's and hipattn's on the device are used in place, NumPy's
and others of the host are uploaded. Gradients are not computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.arguments import boolean, number
from hipattn.attn.functional import attention
from hipattn.attn.options import Facts, Window, check_shapes
from hipattn.attn.varlen import attention_varlen
from hipattn.errors import ArgumentError
from hipattn.layout import row_major
from hipattn.tensor import BOOL, FLOAT32, DeviceTensor, host_like, in_place, like

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "scaled_dot_product_attention"]

Array = DeviceTensor | npt.NDArray[Any]


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute attention as ``torch.nn.functional.scaled_dot_product_attention`` does.

    Parameters
    ----------
    query
        [..., heads_q, L, E], or [L, E].
    key, value
        [..., heads_kv, S, E] and [..., heads_kv, S, Ev], with the same leading dimensions.
    attn_mask
        Broadcasts to [..., heads_q, L, S]. bool: True where the query sees the key; float32 or query's dtype: added
        to the scores.
    dropout_p
        0.
    is_causal
        Query i sees key j iff j ≤ i: aligned **top-left**, as torch does. Not together with `attn_mask`.
    scale
        Default: 1/√E.
    enable_gqa
        Allow heads_q to be a multiple of heads_kv.

    Returns
    -------
    out
        [..., heads_q, L, Ev], where and what `query` is. A query that sees no key yields zeros.

    Raises
    ------
    ArgumentError
        An argument does not fit, or asks for what is not supported; see `hipattn.attention` for this and other errors.
    """
    _no_dropout(dropout_p)
    is_causal, enable_gqa = boolean("is_causal", is_causal), boolean("enable_gqa", enable_gqa)
    if is_causal and attn_mask is not None:
        raise ArgumentError("attn_mask is given and is_causal is True; one of them is accepted")
    names = ("query", "key", "value")
    given = [
        in_place(array, stream=None, argument=name) for name, array in zip(names, (query, key, value), strict=True)
    ]
    dims = len(given[0].shape)
    for name, array in zip(names, given, strict=True):
        if len(array.shape) < 2 or len(array.shape) != dims:
            raise ArgumentError(
                f"{name} has shape {array.shape}, query {given[0].shape}; they take 2 or more dimensions, as many each"
            )
        if array.shape[:-3] != given[0].shape[:-3]:
            raise ArgumentError(
                f"{name} has shape {array.shape}, query {given[0].shape}; all but the last 3 dimensions must agree"
            )
    q, k, v = (_four(name, array) for name, array in zip(names, given, strict=True))
    _, heads_q, rows, keys, _, _ = check_shapes(*map(_facts, (q, k, v)), layout="bhsd", names=names)
    if heads_q != k.shape[1] and not enable_gqa:
        raise ArgumentError(f"query has {heads_q} heads, key {k.shape[1]}; they may differ with enable_gqa=True only")
    options: dict[str, Any] = {}
    if attn_mask is not None:
        mask = in_place(attn_mask, stream=None, argument="attn_mask", accepted=dict.fromkeys((BOOL, FLOAT32, q.dtype)))
        options["mask" if mask.dtype == BOOL else "bias"] = _four_scores(mask, (*given[0].shape[:-1], keys))
    elif is_causal and keys >= rows:  # the keys after the last query are seen by none
        k, v, options["causal"] = k[:, :, :rows], v[:, :, :rows], True
    elif is_causal:  # p = i + keys - rows is the position that attention() gives to query i
        options["window"] = None, rows - keys
    result = attention(q, k, v, scale=scale, layout="bhsd", **options)
    result = result.reshape(*given[0].shape[:-1], given[2].shape[-1])
    return host_like(result, query) if isinstance(result, np.ndarray) else like(result, query)


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Compute attention as ``flash_attn.flash_attn_func`` does.

    Parameters
    ----------
    q, k, v
        [batch, seq, heads, head_dim]; heads of q a multiple of those of k and v.
    dropout_p
        0.
    softmax_scale
        Default: 1/√head_dim.
    causal
        Aligned bottom-right. A query that sees no key yields zeros.
    window_size
        (left, right): keys that a query sees beside its own position; −1 is no limit.
    softcap
        0 is none.
    alibi_slopes
        [heads] or [batch, heads], float32.
    deterministic
        The result always is.
    return_attn_probs
        Return ``(out, softmax_lse, S_dmask)``. S_dmask is None, as in flash-attention without dropout: no
        probabilities exist in memory. softmax_lse is −inf for a query that sees no key.

    Returns
    -------
    out
        [batch, seq_q, heads, value_dim], where and what `q` is.
    softmax_lse
        [batch, heads, seq_q], float32.

    Raises
    ------
    ArgumentError
        An argument does not fit, or asks for what is not supported; see `hipattn.attention` for this and other errors.
    """
    options = _flash_options(dropout_p, softmax_scale, causal, window_size, softcap, deterministic)
    return_lse = boolean("return_attn_probs", return_attn_probs)
    result = attention(q, k, v, alibi_slopes=alibi_slopes, return_lse=return_lse, **options)
    return (*result, None) if return_lse else result


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,  # noqa: ARG001
    max_seqlen_k: int,  # noqa: ARG001
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Any = None,
) -> Any:
    """Compute attention as ``flash_attn.flash_attn_varlen_func`` does.

    Parameters
    ----------
    q, k, v
        [total, heads, head_dim]: sequences packed one after the other.
    cu_seqlens_q, cu_seqlens_k
        [sequences + 1], as in `hipattn.attention_varlen`.
    max_seqlen_q, max_seqlen_k
        Not needed, and not looked at.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
        As in `flash_attn_func`; slopes are [heads] or [sequences, heads].
    block_table
        None.

    Returns
    -------
    out
        [total_q, heads, value_dim], where and what `q` is.
    softmax_lse
        [heads, total_q], float32.

    Raises
    ------
    ArgumentError
        An argument does not fit, or asks for what is not supported; see `hipattn.attention` for this and other errors.
    """
    if block_table is not None:
        raise ArgumentError("block_table is given; it takes None: a paged cache is not supported")
    options = _flash_options(dropout_p, softmax_scale, causal, window_size, softcap, deterministic)
    return_lse = boolean("return_attn_probs", return_attn_probs)
    starts = cu_seqlens_q, cu_seqlens_k
    result = attention_varlen(q, k, v, *starts, alibi_slopes=alibi_slopes, return_lse=return_lse, **options)
    return (*result, None) if return_lse else result


def _no_dropout(dropout_p: Any) -> None:
    if number("dropout_p", dropout_p):
        raise ArgumentError(f"dropout_p is {dropout_p}; it takes 0: dropout is not supported")


def _flash_options(
    dropout_p: Any, softmax_scale: Any, causal: Any, window_size: Any, softcap: Any, deterministic: Any
) -> dict[str, Any]:
    """Return flash-attention's options under our names."""
    _no_dropout(dropout_p)
    boolean("deterministic", deterministic)
    cap = number("softcap", softcap)
    return {
        "causal": boolean("causal", causal),
        "scale": None if softmax_scale is None else number("softmax_scale", softmax_scale),
        "window": _window(window_size),
        "softcap": cap or None,
    }


def _window(window_size: Any) -> Window:
    try:
        left, right = (int(side) for side in window_size if side == int(side) >= -1)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(
            f"window_size is {window_size!r}; it takes (left, right), each -1 (no limit) or a number of keys >= 0"
        ) from None
    return (None if left < 0 else left, None if right < 0 else right)


def _facts(array: Array) -> Facts:
    strides = array.strides if isinstance(array, DeviceTensor) else row_major(array.shape)
    return Facts(array.dtype, array.shape, strides)


def _four(name: str, array: Array) -> Array:
    """Return [..., heads, seq, dim] as [batch, heads, seq, dim]; 3 dimensions are [batch, seq, dim], of one head."""
    *leading, rows, columns = array.shape
    heads = leading.pop() if len(leading) > 1 else 1
    shape = (math.prod(leading), heads, rows, columns)
    if isinstance(array, np.ndarray):
        return array.reshape(shape)
    if len(array.shape) > 3:
        return _merged(name, array, len(leading))
    array = array.broadcast_to((1,) * (3 - array.ndim) + array.shape)
    return array.broadcast_to((1, *array.shape)).transpose(1, 0, 2, 3)


def _four_scores(mask: Array, scores: tuple[int, ...]) -> Array:
    """Return a mask that broadcasts to scores [..., heads, L, S] as one that does to [batch, heads, L, S]."""
    dims = len(scores)
    fits = len(mask.shape) <= dims and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(scores), strict=False)
    )
    if not fits:
        raise ArgumentError(f"attn_mask has shape {mask.shape}; it takes one that broadcasts to {scores}")
    if dims == 3 and len(mask.shape) == 3:
        return _four("attn_mask", mask)
    if len(mask.shape) <= 4 and dims <= 4:
        return mask
    full = scores[: dims - 3] + (1, 1, 1, *mask.shape)[-3:]
    if isinstance(mask, np.ndarray):
        return _four("attn_mask", np.broadcast_to(mask, full))
    if all(size == 1 for size in mask.shape[:-3]):
        return mask if mask.ndim <= 3 else _merged("attn_mask", mask, mask.ndim - 3)
    return _merged("attn_mask", mask.broadcast_to(full), dims - 3)


def _merged(name: str, tensor: DeviceTensor, leading: int) -> DeviceTensor:
    """See the leading dimensions of a tensor as one, which needs them evenly spaced."""
    shape, strides = tensor.shape, tensor.strides
    size, step = 1, 0
    for here, stride in zip(reversed(shape[:leading]), reversed(strides[:leading]), strict=True):
        if here == 1:
            continue
        if size == 1:
            step = stride
        elif stride != size * step:
            raise ArgumentError(
                f"{name} has shape {shape} and strides {strides}; its first {leading} dimensions must be evenly spaced"
            )
        size *= here
    return tensor._view((size, *shape[leading:]), (step, *strides[leading:]), tensor.offset)
