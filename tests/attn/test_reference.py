"""The oracle against loops over single elements, and its behaviour at the edges."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipattn.attn.reference import attention, attention_varlen, causal_mask, softmax_rows
from hipattn.errors import ArgumentError
from tests.helpers.mismatch import assert_close, mismatch_report
from tests.helpers.tolerance import DTYPES, EPSILON, attention_bound, magnitude

NO_WINDOW = (None, None)


def inputs(batch=2, seq_q=5, seq_k=7, heads_q=4, heads_kv=2, dim=3, value_dim=6, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (batch, seq_q, heads_q, dim), (batch, seq_k, heads_kv, dim), (batch, seq_k, heads_kv, value_dim)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def brute_force(q, k, v, *, causal=False, scale=None, window=NO_WINDOW, alibi=None, softcap=None, sinks=None,
                bias=None, mask=None, score_mod=None, mask_mod=None):  # fmt: skip
    """One Python number at a time, with fsum; bshd, slopes as [batch][heads], bias and mask in full."""
    batch, seq_q, heads_q, dim = q.shape
    seq_k, heads_kv, value_dim = v.shape[1:]
    scale = 1 / math.sqrt(dim) if scale is None else scale
    out = np.empty((batch, seq_q, heads_q, value_dim))
    lse = np.empty((batch, heads_q, seq_q))
    for b, h, i in product(range(batch), range(heads_q), range(seq_q)):
        group = heads_q // heads_kv
        at = i + seq_k - seq_q
        scores = {}
        for j in range(seq_k):
            s = scale * math.fsum(float(q[b, i, h, d]) * float(k[b, j, h // group, d]) for d in range(dim))
            if softcap:
                s = softcap * math.tanh(s / softcap)
            if alibi is not None:
                s -= alibi[b][h] * abs(at - j)
            if bias is not None:
                s += bias[b][h][i][j]
            if score_mod:
                s = score_mod(s, b, h, i, j)
            hidden = (
                (causal and j > at)
                or (window[0] is not None and at - j > window[0])
                or (window[1] is not None and j - at > window[1])
                or (mask is not None and not mask[b][h][i][j])
                or (mask_mod and not mask_mod(b, h, i, j))
                or s == -math.inf
            )
            if not hidden:
                scores[j] = s
        logits = list(scores.values()) + ([sinks[h]] if sinks is not None else [])
        top = max(logits, default=0.0)
        total = math.fsum(math.exp(s - top) for s in logits)
        lse[b, h, i] = top + math.log(total) if logits else -math.inf
        for d in range(value_dim):
            parts = [math.exp(s - top) / total * float(v[b, j, h // group, d]) for j, s in scores.items()]
            out[b, i, h, d] = math.fsum(parts)
    return out, lse


RNG = np.random.default_rng(7)
BIAS = RNG.standard_normal((2, 4, 5, 7))
BIAS[0, 1, 2] = -np.inf
MASK = RNG.random((2, 4, 5, 7)) < 0.6
MASK[1, 2, 3] = False
SLOPES = RNG.random((2, 4))
SINKS = RNG.standard_normal(4)

OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "scale": {"scale": 0.3},
    "window": {"window": (2, 1)},
    "left": {"window": (1, None)},
    "right": {"window": (None, 0)},
    "causal window": {"causal": True, "window": (0, 4)},
    "alibi": {"alibi": SLOPES},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": SINKS},
    "bias": {"bias": BIAS},
    "mask": {"mask": MASK},
    "score_mod": {"score_mod": lambda s, b, h, i, j: s * (1 + h) + 0.1 * (i - j) - 0.3 * b},
    "mask_mod": {"mask_mod": lambda b, h, i, j: (i * 3 + j + h + b) % 3 != 0},
    "all": {
        "causal": True, "scale": 1.7, "window": (4, None), "alibi": SLOPES, "softcap": 2.0, "sinks": SINKS,
        "bias": BIAS, "mask": MASK, "score_mod": lambda s, _b, h, _i, j: s - 0.2 * (j + h),
        "mask_mod": lambda _b, _h, i, j: (i + j) % 4 != 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("seq_q", "seq_k"), [(5, 7), (7, 5), (1, 6), (6, 1), (4, 4)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_loops(options, seq_q, seq_k):
    q, k, v = inputs(seq_q=seq_q, seq_k=seq_k)
    options = dict(options)
    for name in ("bias", "mask"):
        if name in options:
            options[name] = np.resize(options[name], (2, 4, seq_q, seq_k))
    expected, expected_lse = brute_force(q, k, v, **options)
    if "alibi" in options:
        options["alibi_slopes"] = options.pop("alibi")
    out, lse = attention(q, k, v, **options, return_lse=True)
    assert out.dtype == np.float64
    assert lse.dtype == np.float32
    assert_close(out, expected, atol=1e-13, name="out")
    assert_close(lse, expected_lse, atol=1e-6, rtol=1e-6, name="lse")


@pytest.mark.parametrize(("heads_q", "heads_kv"), [(1, 1), (3, 3), (6, 2), (4, 1)])
def test_query_heads_share_kv_heads(heads_q, heads_kv):
    q, k, v = inputs(heads_q=heads_q, heads_kv=heads_kv)
    assert_close(attention(q, k, v), brute_force(q, k, v)[0], atol=1e-13)


def test_layouts_agree():
    q, k, v = inputs()
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    other, other_lse = attention(*(x.swapaxes(1, 2) for x in (q, k, v)), causal=True, return_lse=True, layout="bhsd")
    assert_close(other.swapaxes(1, 2), out)
    assert_close(other_lse, lse)


def test_bias_and_mask_broadcast():
    q, k, v = inputs()
    for shape in ((7,), (5, 1), (4, 1, 7), (2, 1, 5, 7)):
        bias = RNG.standard_normal(shape)
        mask = bias > -0.5
        full = np.broadcast_to(bias, (2, 4, 5, 7)), np.broadcast_to(mask, (2, 4, 5, 7))
        expected, _ = brute_force(q, k, v, bias=full[0], mask=full[1])
        assert_close(attention(q, k, v, bias=bias, mask=mask), expected, atol=1e-13)


def test_slopes_of_all_batches():
    q, k, v = inputs()
    assert_close(attention(q, k, v, alibi_slopes=SLOPES[0]), attention(q, k, v, alibi_slopes=SLOPES[:1]))


def test_query_without_key():
    q, k, v = inputs(seq_q=7, seq_k=4)
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert (out[:, :3] == 0).all()
    assert (lse[:, :, :3] == -np.inf).all()
    assert np.isfinite(lse[:, :, 3:]).all()
    assert (out[:, 3:] != 0).all()
    out, lse = attention(q, k, v, causal=True, sinks=SINKS, return_lse=True)
    assert (out[:, :3] == 0).all()
    assert_close(lse[:, :, 0], np.tile(SINKS, (2, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [{"batch": 0}, {"seq_q": 0}, {"seq_k": 0}, {"value_dim": 0}, {"seq_q": 0, "seq_k": 0}]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_empty(shape, dtype):
    q, k, v = inputs(**shape)
    out, lse = attention(q, k, v, causal=True, return_lse=True, dtype=dtype)
    assert out.shape == (len(q), q.shape[1], 4, v.shape[3])
    assert lse.shape == (len(q), 4, q.shape[1])
    assert (out == 0).all()
    if shape.get("seq_k") == 0:
        assert (lse == -np.inf).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nan_reaches_the_rows_that_see_it(bad, dtype):
    options = {"causal": True, "window": (3, None), "dtype": dtype}
    q, k, v = inputs(seq_q=6, seq_k=8)
    clean = attention(q, k, v, **options)
    seen = causal_mask(6, 8) & (np.arange(8) >= np.arange(6)[:, None] + 2 - 3)

    poisoned = v.copy()
    poisoned[0, 4, 1, 2] = bad
    out = attention(q, k, poisoned, **options)
    expected = clean.copy()
    expected[0, seen[:, 4], 2:, 2] = bad
    assert_close(out, expected, name="v")

    if np.isnan(bad):
        poisoned = k.copy()
        poisoned[0, 4, 1, 2] = bad
        expected = clean.copy()
        expected[0, seen[:, 4], 2:] = bad
        assert_close(attention(q, poisoned, v, **options), expected, name="k")

        poisoned = q.copy()
        poisoned[1, 2, 3, 0] = bad
        expected = clean.copy()
        expected[1, 2, 3] = bad
        assert_close(attention(poisoned, k, v, **options), expected, name="q")


def test_nan_in_a_query_without_key_is_not_seen():
    q, k, v = inputs(seq_q=3, seq_k=2)
    q[:, 0] = np.nan
    assert (attention(q, k, v, causal=True)[:, 0] == 0).all()


def test_large_logits():
    q, k, v = inputs(dim=4)
    for factor in (1e2, -1e2, 5e2):
        out, lse = attention(q * factor, k * factor, v, return_lse=True)
        expected, expected_lse = brute_force(q * factor, k * factor, v)
        assert_close(out, expected, atol=1e-9)
        assert_close(lse, expected_lse, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_low_precision_rounds_each_stage(dtype):
    q, k, v = inputs(batch=1, heads_q=1, heads_kv=1, seq_q=9, seq_k=33, dim=16, dtype=dtype)
    out = attention(q, k, v, dtype=dtype, scale=0.5)
    assert out.dtype == dtype
    wide = [x[0, :, 0].astype(np.float32) for x in (q, k, v)]
    scores = ((wide[0] @ wide[1].T) * np.float32(0.5)).astype(dtype).astype(np.float32)
    top = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (top / top.sum(axis=1, keepdims=True)).astype(dtype).astype(np.float32)
    assert_close(out[0, :, 0], (weights @ wide[2]).astype(dtype), rtol=2 * EPSILON[dtype])
    error = np.abs(out.astype(np.float64) - attention(q, k, v, scale=0.5)).max()
    assert 0 < error < 8 * EPSILON[dtype] * magnitude(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bound(dtype):
    q, k, v = inputs(seq_q=40, seq_k=60, dim=32, dtype=dtype)
    expected = attention(q, k, v, causal=True)
    bound = attention_bound(q, k, v, causal=True, expected=expected, return_lse=True)
    assert bound == attention_bound(q, k, v, causal=True)
    assert_close(attention(q, k, v, causal=True, dtype=dtype), expected, atol=bound)
    assert 0 < bound < 16 * max(EPSILON[dtype], 1e-6) * magnitude(expected)
    with pytest.raises(AssertionError, match="outside"):
        assert_close(expected + 1.01 * bound, expected, atol=bound)


def test_bound_where_float16_overflows():
    q, k, v = inputs(dtype=np.float16)
    bound = attention_bound(q * np.float16(300), k * np.float16(300), v)
    assert 0 < bound < 10


def test_varlen_is_each_sequence_alone():
    lengths_q, lengths_k = [3, 0, 5, 1], [4, 2, 0, 6]
    starts_q, starts_k = np.cumsum([0, *lengths_q]), np.cumsum([0, *lengths_k])
    q, k, v = (x[0] for x in inputs(batch=1, seq_q=9, seq_k=12))
    slopes = RNG.random((4, 4))
    options = {"causal": True, "softcap": 3.0, "sinks": SINKS}
    mods = {
        "score_mod": lambda s, b, _h, i, j: s + b * (j - i),
        "mask_mod": lambda b, _h, i, j: (i + j + b) % 3 != 0,
    }
    out, lse = attention_varlen(q, k, v, starts_q, starts_k, alibi_slopes=slopes, return_lse=True, **options, **mods)
    for n in range(4):
        rows, keys = slice(starts_q[n], starts_q[n + 1]), slice(starts_k[n], starts_k[n + 1])
        # Place the sequence at batch entry n of a longer batch: the callables see that index.
        batched = [np.repeat(x[None], 4, axis=0) for x in (q[rows], k[keys], v[keys])]
        expected, expected_lse = attention(*batched, alibi_slopes=slopes, return_lse=True, **options, **mods)
        assert_close(out[rows], expected[n])
        assert_close(lse[:, rows], expected_lse[n])


def test_causal_mask():
    for seq_q, seq_k in ((0, 3), (3, 0), (1, 1), (3, 5), (5, 3)):
        mask = causal_mask(seq_q, seq_k)
        assert mask.shape == (seq_q, seq_k)
        assert mask.dtype == bool
        for i, j in product(range(seq_q), range(seq_k)):
            assert mask[i, j] == (j <= i + seq_k - seq_q)


def test_softmax_rows():
    scores = np.array([[1.0, 2.0, -np.inf], [-np.inf] * 3, [0.0, np.nan, 1.0], [np.inf, 0.0, 0.0], [-3e5, -3e5, -4e5]])
    probabilities, lse = softmax_rows(scores)
    e = math.e
    expected = [[1 / (1 + e), e / (1 + e), 0], [0, 0, 0], [np.nan] * 3, [np.nan] * 3, [0.5, 0.5, 0]]
    assert_close(probabilities, expected, rtol=1e-15)
    assert_close(lse[[0, 1, 4]], [2 + math.log1p(1 / e), -np.inf, -3e5 + math.log(2)], rtol=1e-15)
    assert np.isnan(lse[[2, 3]]).all()
    empty, lse = softmax_rows(np.zeros((2, 0)))
    assert empty.shape == (2, 0)
    assert (lse == -np.inf).all()


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.floats(-1e3, 1e3),
    st.randoms(use_true_random=False),
)
def test_softmax_properties(row, shift, random):
    scores = np.array([row])
    probabilities, lse = softmax_rows(scores)
    assert_close(probabilities.sum(axis=1), [1], atol=1e-14)
    shifted, shifted_lse = softmax_rows(scores + shift)
    assert_close(shifted, probabilities, atol=1e-12)
    assert_close(shifted_lse, lse + shift, atol=1e-11)
    order = list(range(len(row)))
    random.shuffle(order)
    assert_close(softmax_rows(scores[:, order])[0], probabilities[:, order], atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.s_[0]}, "q has shape"),
        ({"k": np.s_[:, :-1]}, "do not fit"),
        ({"v": np.s_[:1]}, "do not fit"),
        ({"q": np.s_[:, :, :3]}, "heads"),
        ({"layout": "sbhd"}, "layout"),
        ({"window": (-1, 0)}, "window"),
        ({"softcap": 0.0}, "softcap"),
        ({"sinks": np.zeros(3)}, "sinks"),
        ({"alibi_slopes": np.zeros(3)}, "alibi_slopes"),
        ({"bias": np.zeros((3, 7))}, "bias"),
        ({"mask": np.ones((5, 6), bool)}, "mask"),
        ({"mask": np.ones((5, 7))}, "mask"),
    ],
)
def test_arguments_are_refused_by_name(change, message):
    arguments = dict(zip("qkv", inputs(), strict=True))
    for name, value in change.items():
        arguments[name] = arguments[name][value] if name in arguments else value
    with pytest.raises(ArgumentError, match=message):
        attention(**arguments)


def test_varlen_arguments_are_refused_by_name():
    q, k, v = (x[0] for x in inputs(batch=1))
    for starts_q, starts_k, name in (
        ([0, 4], [0, 7], "cu_seqlens_q"),
        ([0, 5], [1, 7], "cu_seqlens_k"),
        ([0, 3, 2, 5], [0, 1, 2, 7], "cu_seqlens_q"),
        ([0, 5], [0, 3, 7], "entries"),
        ([], [], "cu_seqlens_q"),
    ):
        with pytest.raises(ArgumentError, match=name):
            attention_varlen(q, k, v, starts_q, starts_k)
    with pytest.raises(ArgumentError, match="bias"):
        attention_varlen(q, k, v, [0, 5], [0, 7], bias=np.zeros(7))


def test_mismatch_report_separates_kinds():
    expected = np.array([1.0, np.nan, np.inf, 4.0, 5.0, -np.inf])
    actual = np.array([np.nan, np.nan, 3.0, 4.5, 7.0, np.inf])
    report = mismatch_report(actual, expected, atol=0.1)
    assert "NaN where none is expected: 1 of 6\n  [0]" in report
    assert "no +inf where one is expected: 1 of 6\n  [2]" in report
    assert "+inf where none is expected: 1 of 6\n  [5]" in report
    assert report.index("[4]: 7, expected 5") < report.index("[3]: 4.5, expected 4")
    assert mismatch_report(expected, expected) is None
    assert "shape (2,), expected (3,)" in mismatch_report(np.zeros(2), np.zeros(3))
