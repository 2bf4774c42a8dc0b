"""Attention in NumPy, float64: the formula that every kernel is checked against, with every option.

For one batch entry and one query head, with ``p = i + seq_k - seq_q`` the key position of query ``i``
(bottom-right alignment: the last query stands at the last key)::

    score[i, j] = scale * sum_d q[i, d] * k[j, d]
                  -> softcap * tanh(score / softcap)        softcap
                  -> score - slope * |p - j|                ALiBi
                  -> score + bias[i, j]                     additive bias
                  -> score_mod(score, b, h, i, j)           any function
    seen[i, j]  = j <= p                                    causal
                  and p - left <= j <= p + right            sliding window
                  and mask[i, j] and mask_mod(b, h, i, j)   boolean masks
                  and score[i, j] != -inf
    total[i]    = sum_seen exp(score[i, j]) + exp(sink)     sinks: a key with no value
    out[i]      = sum_seen exp(score[i, j]) / total[i] * v[j]
    lse[i]      = log(total[i])

A query that sees no key yields zeros, and its LSE is -inf (the sink, where there is one). A NaN in ``q[i]``
reaches row ``i``; a NaN in ``k[j]`` or ``v[j]`` reaches the rows that see ``j``, from ``v`` its column only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from hipattn.errors import ArgumentError

__all__ = ["attention", "attention_decode", "attention_varlen", "causal_mask", "softmax_rows", "weighted_sum"]

Array: TypeAlias = NDArray[Any]
Window: TypeAlias = tuple[int | None, int | None]
ScoreMod: TypeAlias = Callable[[Array, int, int, Array, Array], Array]
MaskMod: TypeAlias = Callable[[int, int, Array, Array], Array]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bshd",
    window: Window = (None, None),
    alibi_slopes: ArrayLike | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    return_lse: bool = False,
    dtype: DTypeLike = np.float64,
) -> Any:
    """Compute attention by the module's formula.

    Parameters
    ----------
    q : ndarray, [batch, seq_q, heads_q, head_dim]
        Any real dtype, ``ml_dtypes.bfloat16`` included. The shapes here are those of layout ``"bshd"``;
        with ``"bhsd"`` heads stand before the sequence, in the result too.
    k : ndarray, [batch, seq_k, heads_kv, head_dim]
        ``heads_q`` is a multiple of ``heads_kv``; query head ``h`` reads head ``h * heads_kv // heads_q``.
    v : ndarray, [batch, seq_k, heads_kv, value_dim]
    causal : bool
        Query ``i`` sees key ``j`` iff ``j <= i + seq_k - seq_q``.
    scale : float, optional
        1/sqrt(head_dim) by default.
    window : (int or None, int or None)
        Keys to the left and right of the query's own position that it sees; None is no limit.
    alibi_slopes : array, [heads_q] or [batch, heads_q]
    softcap : float, optional
        Bound of the scaled scores, positive.
    sinks : array, [heads_q]
        A logit per head that takes part in the denominator.
    bias : array that broadcasts to [batch, heads_q, seq_q, seq_k]
        Added to the scores; -inf hides the key.
    mask : boolean array that broadcasts to [batch, heads_q, seq_q, seq_k]
        True where the query sees the key.
    score_mod : callable (score, b, h, i, j) -> score
        ``score`` is [seq_q, seq_k], ``b`` and ``h`` are integers, ``i`` is [seq_q, 1], ``j`` is [1, seq_k].
    mask_mod : callable (b, h, i, j) -> bool array
    return_lse : bool
        Return ``(out, lse)``, the LSE as natural logarithm, float32, [batch, heads_q, seq_q].
    dtype : dtype
        The precision of the evaluation and of the result. With float16, bfloat16 or float32 the arithmetic is
        float32, and the scores, the probabilities and the output are each rounded to `dtype`: the
        low-precision formula that tolerances are derived from.

    Returns
    -------
    out : ndarray of `dtype`, [batch, seq_q, heads_q, value_dim]

    Raises
    ------
    ArgumentError
        If shapes, layout, window or softcap do not fit; the message names the argument.
    """
    if layout not in ("bshd", "bhsd"):
        raise ArgumentError(f"layout is {layout!r}; it takes 'bshd' or 'bhsd'")
    for name, array in (("q", q), ("k", k), ("v", v)):
        if array.ndim != 4:
            raise ArgumentError(f"{name} has shape {array.shape}; it takes 4 dimensions, {layout}")
    if layout == "bshd":
        q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
    batch, heads_q, seq_q, head_dim = q.shape
    _, heads_kv, seq_k, value_dim = v.shape
    if k.shape != (batch, heads_kv, seq_k, head_dim) or v.shape[0] != batch:
        raise ArgumentError(f"q {q.shape}, k {k.shape} and v {v.shape}, as bhsd, do not fit together")
    if heads_q and (not heads_kv or heads_q % heads_kv):
        raise ArgumentError(f"q has {heads_q} heads, which is no multiple of the {heads_kv} heads of k and v")
    if softcap is not None and not softcap > 0:
        raise ArgumentError(f"softcap is {softcap}; it takes a positive number")
    if any(side is not None and side < 0 for side in window):
        raise ArgumentError(f"window is {window}; each side takes None (no limit) or a number of keys >= 0")

    work = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)

    def rounded(x: Array) -> Array:
        return x.astype(dtype).astype(work)

    full = (batch, heads_q, seq_q, seq_k)
    slopes = _broadcast("alibi_slopes", alibi_slopes, (batch, heads_q))
    sink = _broadcast("sinks", sinks, (heads_q,))
    bias = _broadcast("bias", bias, full)
    mask = _broadcast("mask", mask, full)
    if mask is not None and mask.dtype != bool:
        raise ArgumentError(f"mask has dtype {mask.dtype}; it takes bool (numbers to add are a bias)")
    scale = scale if scale is not None else 1 / np.sqrt(max(head_dim, 1))
    left, right = window
    i = np.arange(seq_q)[:, None]
    j = np.arange(seq_k)[None, :]
    position = i + seq_k - seq_q
    out = np.zeros((batch, heads_q, seq_q, value_dim), dtype)
    lse = np.full((batch, heads_q, seq_q), -np.inf, np.float32)

    # NaN and inf are values here, not accidents.
    with np.errstate(invalid="ignore", over="ignore"):
        for b, h in np.ndindex(batch, heads_q):
            h_kv = h * heads_kv // heads_q
            score = q[b, h].astype(work) @ k[b, h_kv].astype(work).T * work.type(scale)
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            if slopes is not None:
                score = score - work.type(slopes[b, h]) * np.abs(position - j).astype(work)
            if bias is not None:
                score = score + bias[b, h].astype(work)
            if score_mod is not None:
                score = score_mod(score, b, h, i, j)

            seen = causal_mask(seq_q, seq_k) if causal else np.ones((seq_q, seq_k), bool)
            if left is not None:
                seen &= j >= position - left
            if right is not None:
                seen &= j <= position + right
            if mask is not None:
                seen &= mask[b, h]
            if mask_mod is not None:
                seen &= mask_mod(b, h, i, j)

            score = np.where(seen, rounded(score), -np.inf)
            weights, lse[b, h] = softmax_rows(score, sink=None if sink is None else float(sink[h]))
            out[b, h] = weighted_sum(rounded(weights), v[b, h_kv].astype(work), score != -np.inf)

    if layout == "bshd":
        out = out.swapaxes(1, 2)
    return (out, lse) if return_lse else out


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    return_lse: bool = False,
    dtype: DTypeLike = np.float64,
    **options: Any,
) -> Any:
    """Compute attention for sequences packed one after the other: `attention` of each, on its own.

    Parameters
    ----------
    q : ndarray, [total_q, heads_q, head_dim]
    k, v : ndarray, [total_k, heads_kv, head_dim or value_dim]
    cu_seqlens_q, cu_seqlens_k : integer array, [batch + 1]
        Sequence ``b`` is rows ``cu[b]`` to ``cu[b + 1] - 1``; both start at 0, end at the total, never fall.
    alibi_slopes : array, [heads_q] or [batch, heads_q]
    score_mod, mask_mod : callable
        As in `attention`; ``b`` is the sequence, ``i`` and ``j`` count from its start.
    return_lse : bool
        Return ``(out, lse)``, the LSE float32, [heads_q, total_q].
    **options
        The other options of `attention`, except layout, bias and mask.

    Returns
    -------
    out : ndarray of `dtype`, [total_q, heads_q, value_dim]

    Raises
    ------
    ArgumentError
        If the cumulative lengths do not describe `q` and `k`, or an option has no packed form.
    """
    for name in ("layout", "bias", "mask"):
        if name in options:
            raise ArgumentError(f"{name} has no packed form; use score_mod or mask_mod")
    starts_q, starts_k = np.asarray(cu_seqlens_q), np.asarray(cu_seqlens_k)
    for name, starts, total in (("cu_seqlens_q", starts_q, len(q)), ("cu_seqlens_k", starts_k, len(k))):
        rising = starts.ndim == 1 and len(starts) and not (np.diff(starts) < 0).any()
        if not (rising and starts[0] == 0 and starts[-1] == total):
            raise ArgumentError(f"{name} is {starts}; it takes a rising sequence from 0 to {total}")
    if len(starts_q) != len(starts_k):
        raise ArgumentError(
            f"cu_seqlens_q has {len(starts_q)} entries, cu_seqlens_k {len(starts_k)}; they take one number"
        )

    batch, heads_q = len(starts_q) - 1, q.shape[1]
    slopes = _broadcast("alibi_slopes", alibi_slopes, (batch, heads_q))
    out = np.zeros((len(q), heads_q, v.shape[2]), dtype)
    lse = np.zeros((heads_q, len(q)), np.float32)
    for n in range(batch):
        rows, keys = slice(starts_q[n], starts_q[n + 1]), slice(starts_k[n], starts_k[n + 1])
        part, part_lse = attention(
            q[None, rows],
            k[None, keys],
            v[None, keys],
            alibi_slopes=None if slopes is None else slopes[n],
            score_mod=score_mod and _for_sequence(score_mod, n, 1),
            mask_mod=mask_mod and _for_sequence(mask_mod, n, 0),
            return_lse=True,
            dtype=dtype,
            **options,
        )
        out[rows], lse[:, rows] = part[0], part_lse[0]
    return (out, lse) if return_lse else out


def attention_decode(
    q: Array,
    k: Array,
    v: Array,
    lengths: ArrayLike | None = None,
    *,
    block_table: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    return_lse: bool = False,
    dtype: DTypeLike = np.float64,
    **options: Any,
) -> Any:
    """Compute attention over caches of which each sequence fills its own length: `attention` of each, on its own.

    Parameters
    ----------
    q : ndarray, [batch, seq_q, heads_q, head_dim]
    k, v : ndarray, [batch, capacity, heads_kv, head_dim or value_dim]
        With `block_table`, [pages, page_size, heads_kv, head_dim or value_dim].
    lengths : integer array, [batch]
        How many keys each sequence has; the capacity by default.
    block_table : integer array, [batch, pages of a sequence]
        Key ``j`` of sequence ``b`` is row ``j % page_size`` of page ``block_table[b, j // page_size]``.
    alibi_slopes : array, [heads_q] or [batch, heads_q]
    bias, mask : array that broadcasts to [batch, heads_q, seq_q, capacity]
    score_mod, mask_mod : callable
        As in `attention`.
    return_lse : bool
        Return ``(out, lse)``, the LSE float32, [batch, heads_q, seq_q].
    **options
        The other options of `attention`, except layout.

    Returns
    -------
    out : ndarray of `dtype`, [batch, seq_q, heads_q, value_dim]
    """
    batch, seq_q, heads_q, _ = q.shape
    table = None if block_table is None else np.asarray(block_table)
    capacity = k.shape[1] if table is None else table.shape[1] * k.shape[1]
    used = np.full(batch, capacity) if lengths is None else np.asarray(lengths)
    full = batch, heads_q, seq_q, capacity
    slopes = _broadcast("alibi_slopes", alibi_slopes, (batch, heads_q))
    bias, mask = _broadcast("bias", bias, full), _broadcast("mask", mask, full)
    out = np.zeros((batch, seq_q, heads_q, v.shape[3]), dtype)
    lse = np.zeros((batch, heads_q, seq_q), np.float32)
    for b in range(batch):
        keys = slice(0, int(used[b]))
        if table is None:
            k_b, v_b = (x[b, keys] for x in (k, v))
        else:
            pages = table[b, : -(-int(used[b]) // k.shape[1])]
            k_b, v_b = (x[pages].reshape(-1, *x.shape[2:])[keys] for x in (k, v))
        part, part_lse = attention(
            q[None, b],
            k_b[None],
            v_b[None],
            alibi_slopes=None if slopes is None else slopes[b],
            score_mod=score_mod and _for_sequence(score_mod, b, 1),
            mask_mod=mask_mod and _for_sequence(mask_mod, b, 0),
            return_lse=True,
            dtype=dtype,
            bias=None if bias is None else bias[b : b + 1, ..., keys],
            mask=None if mask is None else mask[b : b + 1, ..., keys],
            **options,
        )
        out[b], lse[b] = part[0], part_lse[0]
    return (out, lse) if return_lse else out


def causal_mask(seq_q: int, seq_k: int) -> NDArray[np.bool_]:
    """Return which keys each query sees under bottom-right causal alignment.

    Parameters
    ----------
    seq_q, seq_k : int
        Numbers of queries and keys.

    Returns
    -------
    seen : bool array, [seq_q, seq_k]
        True iff ``j <= i + seq_k - seq_q``.
    """
    return np.tri(seq_q, seq_k, seq_k - seq_q, dtype=bool)


def softmax_rows(scores: Array, *, sink: float | None = None) -> tuple[Array, Array]:
    """Turn scores into probabilities along the last axis, with the natural logarithm of the denominator.

    Parameters
    ----------
    scores : float array, [..., keys]
        -inf where a key is not seen.
    sink : float, optional
        A logit that adds to the denominator only.

    Returns
    -------
    probabilities : array like `scores`
        ``exp(score) / total``; zeros in a row of -inf; NaN throughout a row that holds a NaN or +inf.
    lse : array, [...]
        ``log(total)``; -inf for a row of -inf without a sink.
    """
    start = -np.inf if sink is None else sink
    highest = scores.max(axis=-1, keepdims=True, initial=start)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Subtracting a highest score of -inf would give NaN; any finite number does for such a row.
        shift = np.where(highest == -np.inf, 0, highest)
        exponentials = np.exp(scores - shift)
        total = exponentials.sum(axis=-1, keepdims=True)
        if sink is not None:
            total += np.exp(sink - shift)
        probabilities = exponentials / np.where(total == 0, 1, total)
        return probabilities, (np.log(total) + shift)[..., 0]


def weighted_sum(weights: Array, v: Array, seen: NDArray[np.bool_]) -> Array:
    """Sum the value rows that each query sees. Its weight of the others is 0, but 0 * NaN is not.

    Parameters
    ----------
    weights : array, [seq_q, seq_k]
    v : array, [seq_k, value_dim]
    seen : bool array, [seq_q, seq_k]

    Returns
    -------
    out : array, [seq_q, value_dim]
    """
    finite = np.isfinite(v)
    out: Array = weights @ np.where(finite, v, 0)
    for key in np.flatnonzero(~finite.all(axis=1)):
        rows = seen[:, key]
        out[rows] += weights[rows, key, None] * np.where(finite[key], 0, v[key])
    return out


def _broadcast(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Broadcast an optional argument; an error names it."""
    if value is None:
        return None
    array = np.asarray(value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ArgumentError(f"{name} has shape {array.shape}; it takes one that broadcasts to {shape}") from None


def _for_sequence(function: Callable[..., Array], sequence: int, place: int) -> Callable[..., Array]:
    """Replace the batch index among a callable's arguments, which is 0 for each sequence run alone."""
    return lambda *given: function(*given[:place], sequence, *given[place + 1 :])
