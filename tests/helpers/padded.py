"""Rows with memory around them, which must stay as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from hipattn import DeviceTensor, Stream

__all__ = ["Padded", "same_bits"]


class Padded:
    """An array of rows inside a larger one, which is full of a value that no test computes.

    Parameters
    ----------
    stream
        Where the larger array is uploaded.
    values
        The array.
    before, after
        Elements on each side of each row: `before` and their sum decide how rows are aligned.

    Attributes
    ----------
    tensor : DeviceTensor
        The array on the device: a view.
    """

    FILL = -77.0

    def __init__(self, stream: Stream, values: NDArray[Any], *, before: int = 0, after: int = 0) -> None:
        *rows, columns = values.shape
        self._columns = slice(before, before + columns)
        self._whole = np.full((*rows, before + columns + after), self.FILL, values.dtype)
        self._whole[..., self._columns] = values
        self._tensor = DeviceTensor.from_numpy(self._whole, stream=stream)
        self.tensor = self._tensor[..., self._columns]

    @classmethod
    def poisoned(
        cls, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike, *, before: int = 0, after: int = 0
    ) -> Padded:
        """Return an array of NaN, to be written."""
        return cls(stream, np.full(shape, np.nan, dtype), before=before, after=after)

    def numpy(self) -> NDArray[Any]:
        """Return the array as it is on the device, after checking the memory around it."""
        now = self._tensor.numpy()
        values = now[..., self._columns].copy()
        now[..., self._columns] = self._whole[..., self._columns]
        assert same_bits(now, self._whole), "an element outside the rows has changed"
        return values


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are the same byte for byte: a NaN equals itself, 0 differs from -0."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
