"""The options of attention, each made for the sizes at hand, as `hipattn.attention` and the reference take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hipattn import MaskMod, ScoreMod

__all__ = ["FEATURES", "Sizes", "of_reference"]


@dataclass(frozen=True)
class Sizes:
    """What an option is made for."""

    batch: int
    heads: int
    seq_q: int
    seq_k: int
    dtype: Any

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seq_q * 1000 + self.seq_k)

    def normal(self, *shape: int, dtype: Any = np.float32) -> Any:
        return self.random.standard_normal(shape).astype(dtype)


def _bias(at: Sizes) -> Any:
    bias = at.normal(at.batch, at.heads, at.seq_q, at.seq_k)
    bias[:, 0, at.seq_q // 2] = -np.inf  # a query that sees nothing
    return bias


def _mask(at: Sizes) -> Any:
    mask = at.random.random((at.batch, at.heads, at.seq_q, at.seq_k)) < 0.4
    mask[:, -1, at.seq_q // 2] = False
    return mask


def _score_mod(at: Sizes) -> ScoreMod:
    return ScoreMod(
        "score * gain[h] + slope * (k - q) / (1 + q + k) + (b == shift ? 0.5f : 0.0f)",
        python=lambda score, b, h, q, k, gain, slope, shift: (
            score * gain[h] + slope * (k - q) / (1 + q + k) + (0.5 if b == shift else 0)
        ),
        gain=at.normal(at.heads),
        slope=0.75,
        shift=1,
    )


def _mask_mod(at: Sizes) -> MaskMod:
    return MaskMod(
        "(q / 24 == k / 24 || k == first[h]) && (q + b) % 7 != 0",
        python=lambda b, h, q, k, first: ((q // 24 == k // 24) | (k == first[h])) & ((q + b) % 7 != 0),
        first=(np.arange(at.heads) * 3).astype(np.int32),
    )


# Each gives options of the reference for some sizes.
FEATURES: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "plain": lambda at: {},
    "causal": lambda at: {"causal": True},
    "window": lambda at: {"window": (at.seq_k // 5, at.seq_k // 9)},
    "left": lambda at: {"window": (at.seq_k // 7, None)},
    "right": lambda at: {"window": (None, at.seq_q // 3)},
    "causal window": lambda at: {"causal": True, "window": (at.seq_k // 4, 3)},
    "diagonal": lambda at: {"window": (0, 0)},
    "scale": lambda at: {"scale": 0.31},
    "negative scale": lambda at: {"scale": -0.31},
    "zero scale": lambda at: {"scale": 0.0},
    "softcap": lambda at: {"softcap": 0.8},
    "alibi": lambda at: {"alibi_slopes": 2.0 ** -np.arange(1, at.heads + 1, dtype=np.float32)},
    "alibi of batch": lambda at: {"alibi_slopes": at.normal(at.batch, at.heads) / 8},
    "sinks": lambda at: {"sinks": at.normal(at.heads) * 2},
    "bias": lambda at: {"bias": _bias(at)},
    "bias of heads": lambda at: {"bias": at.normal(at.heads, 1, at.seq_k)},
    "bias in dtype": lambda at: {"bias": at.normal(at.batch, 1, at.seq_q, at.seq_k, dtype=at.dtype)},
    "mask": lambda at: {"mask": _mask(at)},
    "mask of batch": lambda at: {"mask": _mask(at)[:, :1, :, :]},
    "padding mask": lambda at: {"mask": _mask(at)[:, :1, :1, :]},
    "score_mod": lambda at: {"score_mod": _score_mod(at)},
    "mask_mod": lambda at: {"mask_mod": _mask_mod(at)},
    "all": lambda at: {
        "causal": True,
        "scale": 0.4,
        "window": (at.seq_k // 2, None),
        "softcap": 3.0,
        "alibi_slopes": at.normal(at.batch, at.heads) / 8,
        "sinks": at.normal(at.heads),
        "bias": _bias(at),
        "mask": at.random.random((at.seq_q, at.seq_k)) < 0.8,
        "score_mod": _score_mod(at),
        "mask_mod": MaskMod("(q + k) % 5 != 3", python=lambda b, h, q, k: (q + k) % 5 != 3),
    },
}


def of_reference(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as the reference takes them: Python functions in place of expressions."""
    return {
        name: value.on_host() if isinstance(value, ScoreMod | MaskMod) else value for name, value in options.items()
    }
