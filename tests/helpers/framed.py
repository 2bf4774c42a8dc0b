"""An array in the middle of a larger one, which must stay as it was."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from hipattn import DeviceTensor, Stream
from tests.helpers.padded import same_bits

__all__ = ["Framed"]

FILL = -77.0  # a value that no test computes


class Framed:
    """An array of NaN, to be written, with elements on both sides in every dimension that must stay.

    Parameters
    ----------
    stream
        Where the larger array is uploaded.
    shape, dtype
        Of the array.
    margin
        Elements on each side in the last dimension: by default as many as move at once, so that rows stay aligned where
        they are without a frame. In the other dimensions it is 1.

    Attributes
    ----------
    tensor : DeviceTensor
        The array: a view.
    """

    def __init__(self, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike, margin: int = 8) -> None:
        margins = [1] * (len(shape) - 1) + [margin]
        self._inner = tuple(slice(around, around + size) for around, size in zip(margins, shape, strict=True))
        self._before = np.full([size + 2 * around for around, size in zip(margins, shape, strict=True)], FILL, dtype)
        self._before[self._inner] = np.nan
        self._whole = DeviceTensor.from_numpy(self._before, stream=stream)
        self.tensor = self._whole[self._inner]

    def numpy(self) -> NDArray[np.generic]:
        """Return the array as it is on the device, after checking what is around it."""
        now = self._whole.numpy()
        values = now[self._inner].copy()
        now[self._inner] = self._before[self._inner]
        assert same_bits(now, self._before), "an element around the array has changed"
        return values
