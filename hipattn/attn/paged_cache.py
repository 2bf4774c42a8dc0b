"""The key and value cache of sequences of different lengths, in pages that they may share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance, integer
from hipattn.attn.block_table import BlockTable
from hipattn.attn.page_table import PageTable, sequence_list
from hipattn.errors import ArgumentError, ClosedError
from hipattn.kernels import page_copy, paged_append
from hipattn.kernels.float8 import e4m3
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import BFLOAT16, FLOATS, UINT8, DeviceTensor, as_dtype

__all__ = ["PagedKVCache"]

_BATCHES = 8  # lists of sequences whose tables are kept on the device


class PagedKVCache:
    """Keys and values of many sequences, in pages of device memory that is allocated once.

    A sequence holds pages as it grows. Sequences that begin alike share pages: `fork` copies nothing, and a page is
    copied when one of those that share it writes to it. A page has the same number in every layer, so that one block
    table serves all. All methods but `append` count pages on the host; each either does what it says or raises and
    changes nothing.

    A step of a model makes room once, then appends and attends in each layer:

    >>> prompts = [cache.new(), cache.new()]  # numbers
    >>> cache.extend(prompts, 1, stream=stream)  # room for one token each; copies shared pages that are written now
    >>> for layer in range(cache.layers):
    ...     q, k, v = project(layer, hidden)  # k, v: [2, 1, heads_kv, dim]
    ...     cache.append(layer, prompts, k, v, stream=stream)
    ...     out = hipattn.attention_decode(q, cache, layer=layer, sequences=prompts, stream=stream)

    Sequences are changed (extended, forked, truncated, freed) between steps, not between the `extend` and the appends
    of one. The work of a cache belongs in one stream, or in streams that the caller orders.

    Parameters
    ----------
    layers, pages, heads_kv, head_dim
        Sizes, 1 or more. `pages` is what the sequences share; it holds fewer than 2^31 tokens.
    page_size
        Tokens of a page, 1 to 256.
    value_dim
        Size of a value. Default: `head_dim`.
    dtype
        float32, float16 or bfloat16, of which new keys and values are then too; or "float8_e4m3", in which keys and
        values of any of the three are stored in 8 bits: FNUZ on gfx942, elsewhere the OCP's. `attention_decode` reads
        them, with queries of any of the three.
    k_scales, v_scales
        For "float8_e4m3": [layers, heads_kv], positive. What is stored is a key or value divided by its scale, rounded
        to nearest even; what is too large becomes the largest number (240 in FNUZ, otherwise 448). Default: 1.
    stream
        Orders the allocation. Default: the default stream of device 0.

    Attributes
    ----------
    layers, pages, page_size, heads_kv, head_dim, value_dim : int
    dtype : numpy.dtype
        What the pools hold; e4m3 is ml_dtypes' float8_e4m3fnuz or float8_e4m3fn, its bits in pools of uint8.

    Raises
    ------
    ArgumentError
        A size or the dtype is not accepted.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_size: int,
        heads_kv: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: npt.DTypeLike = BFLOAT16,
        k_scales: npt.ArrayLike | None = None,
        v_scales: npt.ArrayLike | None = None,
        stream: Stream | None = None,
    ) -> None:
        self._table = PageTable(pages, page_size)
        self.pages, self.page_size = self._table.pages, self._table.page_size
        self.layers, self.heads_kv = integer("layers", layers, 1), integer("heads_kv", heads_kv, 1)
        self.head_dim = integer("head_dim", head_dim, 1)
        self.value_dim = self.head_dim if value_dim is None else integer("value_dim", value_dim, 1)
        stream = stream or Device(0).default_stream
        float8 = e4m3(stream.device.arch)
        named = isinstance(dtype, str) and dtype == "float8_e4m3"
        try:
            self.dtype = float8 if named else as_dtype(dtype, accepted=(*FLOATS, float8))
        except ArgumentError as error:
            raise ArgumentError(f"{error}, which every chip calls float8_e4m3") from None
        given = {"k_scales": k_scales, "v_scales": v_scales}
        scales = [_scales(name, array, (self.layers, self.heads_kv)) for name, array in given.items()]
        if self.dtype != float8 and (k_scales is not None or v_scales is not None):
            raise ArgumentError(f"k_scales or v_scales is given; the dtype is {self.dtype.name}, which has none")
        self._batches: dict[tuple[int, ...], BlockTable] = {}
        self._left: dict[int, BlockTable] = {}  # of lists that are no more, by how many sequences they had
        self._memory: list[DeviceTensor] = []
        rows = self.layers, self.pages, self.page_size, self.heads_kv
        try:
            for dim in (self.head_dim, self.value_dim):
                kept = UINT8 if self.dtype == float8 else self.dtype
                self._memory.append(DeviceTensor.empty((*rows, dim), kept, stream=stream))
            for array in scales if self.dtype == float8 else ():
                self._memory.append(DeviceTensor.from_numpy(array, stream=stream))
        except BaseException:
            self.close()
            raise
        self._keys, self._values, *per_head = self._memory
        # Views of each layer: every step asks for them.
        self._pools = [(self._keys[at], self._values[at]) for at in range(self.layers)]
        self._scales = [(per_head[0][at], per_head[1][at]) if per_head else None for at in range(self.layers)]

    @property
    def free_pages(self) -> int:
        """How many pages no sequence holds."""
        return self._table.free_pages

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences that the cache holds, oldest first."""
        return self._table.sequences

    @property
    def nbytes(self) -> int:
        """Device memory of the pools."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def closed(self) -> bool:
        """Whether the memory was freed."""
        return bool(self._keys.buffer.closed)

    def length(self, sequence: int) -> int:
        """Return how many tokens a sequence holds."""
        return self._table.length(sequence)

    def new(self) -> int:
        """Make an empty sequence and return its number, which no other sequence ever gets."""
        self._check_open()
        return self._table.new()

    def fork(self, sequence: int, length: int | None = None) -> int:
        """Make a sequence that begins with the first `length` tokens of another, by default all, and share its pages.

        So a prefix that many sequences have in common (a system prompt) is kept once, and a search goes on from one
        point in several ways.

        Raises
        ------
        ArgumentError
            The sequence is unknown or freed, or holds fewer tokens.
        """
        self._check_open()
        return self._table.fork(sequence, length)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on: drafted tokens that were not accepted.

        Raises
        ------
        ArgumentError
            The sequence is unknown or freed, or holds fewer tokens.
        """
        self._check_open()
        self._table.truncate(sequence, length)

    def free(self, sequence: int) -> None:
        """Forget a sequence. The pages that it alone held are free.

        Raises
        ------
        ArgumentError
            The sequence is unknown or already freed.
        """
        self._check_open()
        self._table.free(sequence)
        self._forget([sequence])

    def evict(self, pages: int, sequences: Sequence[int]) -> tuple[int, ...]:
        """Free sequences in the order given until `pages` pages are free, and return those that were freed.

        Raises
        ------
        ArgumentError
            A sequence is unknown, freed or given twice.
        OutOfPagesError
            Freeing all of them would not be enough; none was freed.
        """
        self._check_open()
        evicted = self._table.evict(pages, sequences)
        self._forget(evicted)
        return evicted

    def pages_needed(self, sequences: Sequence[int], tokens: int | Sequence[int]) -> int:
        """Return how many free pages `extend` would take, copies of shared pages among them."""
        self._check_open()
        return self._table.pages_needed(sequences, tokens)

    def extend(self, sequences: Sequence[int], tokens: int | Sequence[int], *, stream: Stream | None = None) -> None:
        """Make room for new tokens behind those that sequences hold, in all layers; `append` then writes them.

        They count from now on: until they are written, `attention_decode` reads what happens to be there. A page that
        is written now and shared is copied first, in all layers, in one launch; otherwise nothing goes to the device.

        Parameters
        ----------
        sequences
            Different ones.
        tokens
            How many each gets: one number for all, or one each.
        stream
            Where copies go. Default: the default stream of the cache's device.

        Raises
        ------
        ArgumentError
            A sequence is unknown, freed or given twice, or a number is negative.
        OutOfPagesError
            Too few pages are free.
        HipError
            The copies cannot be launched.
        """
        self._check_open()
        where = self._stream(stream)
        self._table.extend(
            sequences, tokens, lambda copies: page_copy.launch(self._keys, self._values, copies, stream=where)
        )

    def append(
        self, layer: int, sequences: Sequence[int], k: DeviceTensor, v: DeviceTensor, *, stream: Stream | None = None
    ) -> None:
        """Write the keys and values of the tokens that `extend` made room for, of one layer, in one launch.

        Parameters
        ----------
        layer
            0 .. layers - 1.
        sequences
            As given to `extend`, or some of them in any order: the batch.
        k, v
            [batch, tokens, heads_kv, head_dim or value_dim], if each sequence got as many tokens; or packed,
            [total, heads_kv, head_dim or value_dim], those of the first sequence first. In the cache's dtype, or what
            e4m3 is made of; any strides with a contiguous last dimension.
        stream
            Where the copy goes. Default: the default stream of the cache's device.

        Raises
        ------
        ArgumentError
            A shape, dtype or device does not fit, a sequence is unknown, freed or given twice, or the tokens are not
            as many as `extend` made room for.
        HipError
            The launch or the upload of the block table fails. The append can be repeated.
        """
        at = self._layer(layer)
        batch = self._batch(sequences)
        packed = self._check(batch, k, v)
        paged_append.launch(
            k,
            v,
            *self._pools[at],
            lengths=batch.lengths,
            block_table=batch.pages,
            starts=batch.starts if packed else None,
            scales=self._scales[at],
            stream=self._stream(stream),
        )

    def keys(self, layer: int = 0) -> DeviceTensor:
        """Return a layer's pool of keys, [pages, page_size, heads_kv, head_dim]: a view."""
        return self._pools[self._layer(layer)][0]

    def values(self, layer: int = 0) -> DeviceTensor:
        """Return a layer's pool of values, [pages, page_size, heads_kv, value_dim]: a view."""
        return self._pools[self._layer(layer)][1]

    def scales(self, layer: int = 0) -> tuple[DeviceTensor, DeviceTensor] | None:
        """Return a layer's scales of keys and of values, [heads_kv] of float32 each. None if the dtype has none."""
        return self._scales[self._layer(layer)]

    def lengths(self, sequences: Sequence[int]) -> DeviceTensor:
        """Return how many tokens sequences hold: [batch], int32, on the device.

        Good until a sequence of them is changed: ask again then. What the device does not have yet is uploaded, with
        the block table in one transfer, and the host waits for it.

        Raises
        ------
        ArgumentError
            A sequence is unknown or freed, or there is none.
        HipError
            The upload fails.
        """
        return self._batch(sequences).lengths

    def block_table(self, sequences: Sequence[int]) -> DeviceTensor:
        """Return the pages of sequences: [batch, max_pages], int32, on the device.

        Token t of sequence b is in slot t % page_size of page [b, t // page_size], in every layer. Behind a sequence's
        pages a row is 0; it may be wider than the longest sequence needs. Good until a sequence of them is changed, and
        uploaded as `lengths` is.

        While the longest sequence fits the width, what is returned for the same list is the same memory. So a step
        that was captured in a `Graph` can be launched after each `extend` and `lengths`, for as long as its caller
        holds on to both tensors and finds the table where it was (its ``pointer``); then it is captured anew. When a
        sequence is freed, the memory of its lists goes to the next list of as many sequences.

        Raises
        ------
        ArgumentError
            A sequence is unknown or freed, or there is none.
        HipError
            The upload fails.
        """
        return self._batch(sequences).pages

    def close(self) -> None:
        """Free the memory, after the work that uses it. Closing twice does nothing; other changes raise ClosedError."""
        self._batches.clear()
        self._left.clear()
        for tensor in self._memory:
            tensor.buffer.close()

    def __enter__(self) -> PagedKVCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _batch(self, sequences: Sequence[int]) -> BlockTable:
        """Return the block table of sequences, up to date."""
        self._check_open()
        key = sequence_list(sequences)
        batch = self._batches.pop(key, None)
        if batch is None:
            if not key:
                raise ArgumentError("sequences is empty; it takes 1 or more")
            batch = self._left.pop(len(key), None)
            if batch is None:
                batch = BlockTable(self._table, key, self._keys.buffer.stream)
            else:
                batch.take(key)
        batch.update()  # one that fails is not kept
        self._batches[key] = batch  # the last used is the last
        while len(self._batches) > _BATCHES:
            del self._batches[next(iter(self._batches))]
        return batch

    def _forget(self, sequences: Sequence[int]) -> None:
        gone = set(sequences)
        for key in [key for key in self._batches if not gone.isdisjoint(key)]:
            self._left.pop(len(key), None)
            self._left[len(key)] = self._batches.pop(key)
        while len(self._left) > _BATCHES:
            del self._left[next(iter(self._left))]

    def _check(self, batch: BlockTable, k: DeviceTensor, v: DeviceTensor) -> bool:
        """Check new keys and values, and return whether they are packed."""
        if not batch.distinct:
            raise ArgumentError("sequences are the same more than once; an append takes each once")
        packed = instance("k", k, DeviceTensor).ndim == 3
        if not packed and len(set(batch.added)) > 1:
            raise ArgumentError(
                f"k has shape {k.shape}; the sequences were extended by {batch.added} tokens, which go packed: "
                "[total, heads_kv, head_dim]"
            )
        room = (sum(batch.added),) if packed else (len(batch.added), batch.added[0])
        for name, tensor, size in (("k", k, self.head_dim), ("v", v, self.value_dim)):
            wanted = (*room, self.heads_kv, size)
            if instance(name, tensor, DeviceTensor).shape != wanted:
                missing = "" if any(batch.added) else ": extend makes room for new ones first"
                raise ArgumentError(
                    f"{name} has shape {tensor.shape}; it takes {wanted} for sequences extended by {batch.added} "
                    f"tokens{missing}"
                )
            if tensor.dtype != self.dtype and self._scales[0] is None:
                raise ArgumentError(f"{name} is {tensor.dtype.name}; the cache holds {self.dtype.name}")
        return packed

    def _layer(self, layer: int) -> int:
        self._check_open()
        if integer("layer", layer) >= self.layers:
            raise ArgumentError(f"layer is {layer!r}; the cache has layers 0 to {self.layers - 1}")
        return int(layer)

    def _stream(self, stream: Stream | None) -> Stream:
        return stream or self._keys.device.default_stream

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the KV cache is closed")

    def __repr__(self) -> str:
        state = "closed, " if self.closed else ""
        return (
            f"<PagedKVCache {state}{self.layers} layers, {len(self.sequences)} sequences, {self.free_pages} of "
            f"{self.pages} pages of {self.page_size} tokens free, {self.dtype.name}>"
        )


def _scales(name: str, array: npt.ArrayLike | None, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    if array is None:
        return np.ones(shape, np.float32)
    scales = np.asarray(array)
    if scales.shape != shape or scales.dtype.kind not in "fiu":
        raise ArgumentError(f"{name} is {scales.dtype} {scales.shape}; it takes numbers, [layers, heads_kv]: {shape}")
    scales = scales.astype(np.float32)
    if not np.all((scales > 0) & np.isfinite(scales)):
        raise ArgumentError(f"{name} has {scales.min()} to {scales.max()}; it takes positive, finite numbers")
    return scales
