"""Compare arrays, and say where and how far apart they are: NaN and the infinities apart, the worst first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["assert_close", "mismatch_report"]


def assert_close(
    actual: ArrayLike, expected: ArrayLike, *, atol: float = 0.0, rtol: float = 0.0, name: str = "result"
) -> None:
    """Assert ``|actual - expected| <= atol + rtol * |expected|``, NaN and each infinity in the same places.

    Raises
    ------
    AssertionError
        With `mismatch_report`.
    """
    report = mismatch_report(actual, expected, atol=atol, rtol=rtol)
    if report is not None:
        raise AssertionError(f"{name}: {report}")


def mismatch_report(
    actual: ArrayLike, expected: ArrayLike, *, atol: float = 0.0, rtol: float = 0.0, limit: int = 8
) -> str | None:
    """Describe how two arrays differ, or return None if they agree.

    Parameters
    ----------
    actual, expected : array
        Any real dtype; compared in float64.
    atol, rtol : float
        As in `assert_close`.
    limit : int
        How many elements of each kind to list.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        a, e = np.asarray(actual).astype(np.float64), np.asarray(expected).astype(np.float64)
    if a.shape != e.shape:
        return f"shape {a.shape}, expected {e.shape}"

    lines = []
    for kind, is_kind in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        for words, where in (
            (f"{kind} where none is expected", is_kind(a) & ~is_kind(e)),
            (f"no {kind} where one is expected", ~is_kind(a) & is_kind(e)),
        ):
            if where.any():
                lines += [f"{words}: {where.sum()} of {a.size}", *_elements(a, e, np.argwhere(where)[:limit])]

    both = np.isfinite(a) & np.isfinite(e)
    error = np.abs(np.where(both, a, 0) - np.where(both, e, 0))
    bound = atol + rtol * np.abs(np.where(both, e, 0))
    wrong = error > bound
    if wrong.any():
        worst = np.argsort(np.where(wrong, error, -1), axis=None)[::-1][: min(limit, int(wrong.sum()))]
        lines.append(f"outside atol {atol:.3g} + rtol {rtol:.3g}: {wrong.sum()} of {a.size}, worst {error.max():.3g}")
        lines += _elements(a, e, np.stack(np.unravel_index(worst, a.shape), axis=1))
    return "\n".join(lines) if lines else None


def _elements(a: NDArray[np.float64], e: NDArray[np.float64], indices: NDArray[Any]) -> list[str]:
    lines = []
    for row in indices:
        at = tuple(int(x) for x in row)
        lines.append(f"  {list(at)}: {a[at]:.9g}, expected {e[at]:.9g}, apart {abs(a[at] - e[at]):.3g}")
    return lines
