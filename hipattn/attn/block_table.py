"""What kernels need to know about a list of sequences, in device memory: lengths, new tokens, pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hipattn.attn.page_table import PageTable
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, DeviceTensor

__all__ = ["BlockTable"]


class BlockTable:
    """Lengths and pages of a list of sequences on the device, uploaded in one transfer when they have changed.

    The memory stays where it is, and shapes as they are, until the table has to widen. It then gets up to a quarter
    more room than it needs, so that this is rare: what was prepared for these shapes can be used again until then.

    Parameters
    ----------
    pages
        What is mirrored.
    sequences
        One or more, in the order of the batch.
    stream
        Orders the allocation.

    Attributes
    ----------
    distinct : bool
        Whether no sequence is in the list twice.
    added : tuple of int
        How many tokens the last `extend` added to each sequence.
    lengths : DeviceTensor
        [batch], int32: the tokens that each sequence holds.
    starts : DeviceTensor
        [batch + 1], int32: where the added tokens of each start if they are packed, and the end.
    pages : DeviceTensor
        [batch, max_pages], int32: each sequence's pages, then 0.
    """

    added: tuple[int, ...]
    lengths: DeviceTensor
    starts: DeviceTensor
    pages: DeviceTensor

    def __init__(self, pages: PageTable, sequences: Sequence[int], stream: Stream) -> None:
        self._source, self._stream = pages, stream
        self._width = 0
        self._there: NDArray[np.int32] | None = None  # what the device holds, once it holds something
        self.take(sequences)

    def take(self, sequences: Sequence[int]) -> None:
        """Become the table of another list, of as many sequences, in the same memory, from the next update on."""
        self._sequences = tuple(sequences)
        self.distinct = len(set(sequences)) == len(sequences)
        self._version = -1  # of the source, when it was last looked at

    def update(self) -> None:
        """Bring the device up to date. Synchronises if something is uploaded.

        Raises
        ------
        ArgumentError
            A sequence was freed.
        HipError
            The device has no memory left, or the upload fails: what the device holds is not known, make another table.
        """
        source = self._source
        if source.version == self._version:
            return
        held = [source.pages_of(sequence) for sequence in self._sequences]
        self.added = tuple(source.added(sequence) for sequence in self._sequences)
        widest = max(map(len, held))
        if self._there is None or widest > self._width:
            self._allocate(max(widest, self._width))
        batch = len(held)
        wanted = np.zeros(self._memory.size, INT32)
        wanted[:batch] = [source.length(sequence) for sequence in self._sequences]
        np.cumsum(self.added, out=wanted[batch + 1 : 2 * batch + 1])
        rows = wanted[2 * batch + 1 :].reshape(batch, self._width)
        for row, numbers in zip(rows, held, strict=True):
            row[: len(numbers)] = numbers
        self._upload(wanted)
        self._version = source.version

    def _allocate(self, width: int) -> None:
        self._there = None
        batch, width = len(self._sequences), _roomy(width)
        # All three in one piece, the short ones first: they change with each step, and can be uploaded alone.
        memory = DeviceTensor.empty((2 * batch + 1 + batch * width,), INT32, stream=self._stream)
        self._memory, self._width = memory, width
        self.lengths, self.starts = memory[:batch], memory[batch : 2 * batch + 1]
        self.pages = memory[2 * batch + 1 :].reshape(batch, width)

    def _upload(self, wanted: NDArray[np.int32]) -> None:
        end = wanted.size
        if self._there is not None:
            different = np.flatnonzero(wanted != self._there)
            end = int(different[-1]) + 1 if different.size else 0
        if end:
            after_readers = self._memory.buffer.join()
            self._memory[:end].copy_from(wanted[:end], stream=after_readers)
        self._there = wanted


def _roomy(width: int) -> int:
    """Round up to three significant bits."""
    step = 1 << max(0, width.bit_length() - 3)
    return -(-width // step) * step
