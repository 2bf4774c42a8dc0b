"""RMSNorm and RoPE on the host against their formulas, one number at a time."""

from __future__ import annotations

import math

import numpy as np

from hipattn.models.host import rms_norm, rope

RNG = np.random.default_rng(2)


def half_split(x, positions, base):
    """RoPE as the model was trained with: pairs (i, i + head_dim/2)."""
    dim = x.shape[-1]
    angles = np.tile(positions[:, None] * base ** (-np.arange(0, dim, 2) / dim), 2)[:, None, :]
    turned = np.concatenate((-x[..., dim // 2 :], x[..., : dim // 2]), axis=-1)
    return x * np.cos(angles) + turned * np.sin(angles)


def restore_rows(weight, heads):
    """Rows of a head in the half-split order, from a GGUF's: (2i, 2i+1) back to (i, i + head_dim/2)."""
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def test_rms_norm() -> None:
    x = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    weight = RNG.standard_normal(5).astype(np.float32)
    got = rms_norm(x, weight, 0.25)
    assert got.dtype == np.float64
    for index in np.ndindex(2, 3):
        row = [float(a) for a in x[index]]
        root = math.sqrt(math.fsum(a * a for a in row) / 5 + 0.25)
        np.testing.assert_allclose(got[index], [a / root * float(w) for a, w in zip(row, weight, strict=True)])


def test_rope_turns_each_pair() -> None:
    x = RNG.standard_normal((2, 4, 3, 6)).astype(np.float32)
    positions = np.array([0, 1, 7, 8000])
    got = rope(x, positions, 100.0)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got[:, 0], x[:, 0])
    for b, s, h, i in np.ndindex(2, 4, 3, 3):
        a = int(positions[s]) * 100.0 ** (-2 * i / 6)
        even, odd = (float(n) for n in x[b, s, h, 2 * i : 2 * i + 2])
        expected = [even * math.cos(a) - odd * math.sin(a), even * math.sin(a) + odd * math.cos(a)]
        np.testing.assert_allclose(got[b, s, h, 2 * i : 2 * i + 2], expected, rtol=1e-9, atol=1e-11)


def test_scores_are_those_of_the_half_split_style() -> None:
    seq, heads, dim, hidden = 9, 3, 8, 24
    x = RNG.standard_normal((1, seq, hidden))
    wq, wk = RNG.standard_normal((2, heads * dim, hidden))
    positions = np.arange(seq)

    def scores(turn, wq, wk):
        q, k = (turn((x @ w.T).reshape(1, seq, heads, dim), positions, 1e5) for w in (wq, wk))
        return np.einsum("bqhd,bkhd->bhqk", q, k)

    ours = scores(rope, wq, wk)
    theirs = scores(half_split, restore_rows(wq, heads), restore_rows(wk, heads))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * abs(theirs).max())
