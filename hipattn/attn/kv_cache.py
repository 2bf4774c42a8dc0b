"""The key and value cache of a model's layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hipattn.arguments import instance, integer
from hipattn.errors import ArgumentError, CacheFullError, ClosedError
from hipattn.kernels import kv_append
from hipattn.runtime.stream import Stream
from hipattn.tensor import BFLOAT16, INT32, DeviceTensor, as_dtype

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of past tokens, per layer, in device memory that is allocated once.

    All sequences of the batch have the same length; each layer has its own, so that layers may be appended to one
    after the other.

    Parameters
    ----------
    layers, batch, capacity, heads_kv, head_dim
        Sizes, 1 or more. `capacity` is the number of tokens that each sequence can hold.
    value_dim
        Size of a value. Default: `head_dim`.
    dtype
        float32, float16 or bfloat16.
    stream
        Orders the allocation. Default: the default stream of device 0.

    Raises
    ------
    ArgumentError
        A size is not a positive integer, or the dtype is not accepted.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        capacity: int,
        heads_kv: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: npt.DTypeLike = BFLOAT16,
        stream: Stream | None = None,
    ) -> None:
        layers, batch = integer("layers", layers, 1), integer("batch", batch, 1)
        capacity, heads_kv = integer("capacity", capacity, 1), integer("heads_kv", heads_kv, 1)
        head_dim = integer("head_dim", head_dim, 1)
        value_dim = head_dim if value_dim is None else integer("value_dim", value_dim, 1)
        self.batch, self.capacity, self.heads_kv = batch, capacity, heads_kv
        self.head_dim, self.value_dim = head_dim, value_dim
        rows = (layers, batch, capacity, heads_kv)
        try:
            self.dtype = as_dtype(dtype)
        except ArgumentError as error:
            if "float8_e4m3" in str(dtype):
                raise ArgumentError(f"{error}; a PagedKVCache holds float8_e4m3 too") from None
            raise
        self._keys = DeviceTensor.empty((*rows, head_dim), self.dtype, stream=stream)
        try:
            self._values = DeviceTensor.empty((*rows, value_dim), self.dtype, stream=stream)
        except BaseException:
            self._keys.buffer.close()
            raise
        self._lengths = [0] * layers
        self._every_length: DeviceTensor | None = None  # [capacity + 1, batch]: row n is n, for each sequence
        self._layers = [(self._keys[at], self._values[at]) for at in range(layers)]  # every step asks for them

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._lengths)

    @property
    def closed(self) -> bool:
        """Whether the memory was freed."""
        return bool(self._keys.buffer.closed)

    @property
    def nbytes(self) -> int:
        """Device memory that the cache holds."""
        lengths = 0 if self._every_length is None else self._every_length.nbytes
        return self._keys.nbytes + self._values.nbytes + lengths

    def length(self, layer: int = 0) -> int:
        """Return how many tokens a layer holds."""
        return self._lengths[self._layer(layer)]

    def append(self, layer: int, k: DeviceTensor, v: DeviceTensor, *, stream: Stream | None = None) -> None:
        """Copy new keys and values behind those that the layer holds, on the device, in one launch.

        Parameters
        ----------
        layer
            0 .. layers - 1.
        k, v
            [batch, tokens, heads_kv, head_dim or value_dim] in the cache's dtype; any strides with a contiguous last
            dimension.
        stream
            Where the copy goes. Default: the default stream of the tensors' device.

        Raises
        ------
        ArgumentError
            A shape, dtype or device does not fit the cache.
        CacheFullError
            The layer has no room for so many tokens; the cache is as it was.
        """
        self.check(layer, k, v)
        length, tokens = self._lengths[layer], k.shape[1]
        stream = stream or self._keys.device.default_stream
        kv_append.launch(k, v, *self._layers[layer], length, stream=stream)
        self._lengths[layer] = length + tokens

    def advance(self, layer: int, tokens: int) -> None:
        """Count new tokens of a layer that were written to `whole` without this object.

        Raises
        ------
        ArgumentError
            There is no such layer, or `tokens` is no integer of 0 or more.
        CacheFullError
            The layer has no room for so many tokens; the cache is as it was.
        ClosedError
            The cache is closed.
        """
        layer = self._layer(layer)
        self._check_open()
        self._check_room(layer, integer("tokens", tokens))
        self._lengths[layer] += tokens

    def check(self, layer: int, k: DeviceTensor, v: DeviceTensor) -> None:
        """Check that `append` would take these tensors, and raise what it would raise."""
        self._layer(layer)
        self._check_open()
        for name, tensor, size in (("k", k, self.head_dim), ("v", v, self.value_dim)):
            instance(name, tensor, DeviceTensor)
            wanted = (self.batch, k.shape[1] if k.ndim == 4 else "tokens", self.heads_kv, size)
            if tensor.shape != wanted:
                raise ArgumentError(f"{name} has shape {tensor.shape}; the cache takes {wanted}")
            if tensor.dtype != self.dtype:
                raise ArgumentError(f"{name} is {tensor.dtype.name}; the cache holds {self.dtype.name}")
        self._check_room(layer, k.shape[1])

    def _check_room(self, layer: int, tokens: int) -> None:
        length = self._lengths[layer]
        if length + tokens > self.capacity:
            raise CacheFullError(
                f"layer {layer} holds {length} of {self.capacity} tokens; {tokens} more do not fit "
                "(reset the cache, or make one with a larger capacity)"
            )

    def view(self, layer: int = 0) -> tuple[DeviceTensor, DeviceTensor]:
        """Return the layer's keys and values, [batch, length, heads_kv, head_dim or value_dim], without copying.

        Later appends do not move them; they do not lengthen the views either.
        """
        keys, values = self.whole(layer)
        length = self._lengths[layer]
        return keys[:, :length], values[:, :length]

    def whole(self, layer: int = 0) -> tuple[DeviceTensor, DeviceTensor]:
        """Return all of the layer's memory, [batch, capacity, heads_kv, head_dim or value_dim]."""
        self._layer(layer)
        self._check_open()
        return self._layers[layer]

    def lengths(self, layer: int = 0) -> DeviceTensor:
        """Return how many tokens each sequence of a layer holds: [batch], int32, on the device.

        What is returned never changes: ask again when the layer has grown. It is part of a table of all lengths up to
        the capacity, 4 bytes for each token of the cache, which the first call uploads and waits for, so that no later
        one has anything to do on the device.

        Raises
        ------
        ArgumentError
            There is no such layer.
        ClosedError
            The cache is closed.
        HipError
            The upload fails.
        """
        layer = self._layer(layer)
        self._check_open()
        if self._every_length is None:
            every = np.repeat(np.arange(self.capacity + 1, dtype=INT32)[:, None], self.batch, axis=1)
            self._every_length = DeviceTensor.from_numpy(every, stream=self._keys.device.default_stream)
        return self._every_length[self._lengths[layer]]

    def reset(self) -> None:
        """Forget all tokens. The memory stays allocated."""
        if self.closed:
            raise ClosedError("the KV cache is closed")
        self._lengths = [0] * self.layers

    def truncate(self, layer: int, length: int) -> None:
        """Forget the tokens of a layer from `length` on.

        Raises
        ------
        ArgumentError
            `length` is negative or more than the layer holds.
        """
        if integer("length", length) > self.length(layer):
            raise ArgumentError(f"length is {length}; layer {layer} holds {self.length(layer)} tokens")
        self._lengths[layer] = length

    def close(self) -> None:
        """Free the memory, after the work that uses it. Closing twice does nothing."""
        for tensor in (self._keys, self._values, self._every_length):
            if tensor is not None:
                tensor.buffer.close()

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _layer(self, layer: int) -> int:
        if integer("layer", layer) >= self.layers:
            raise ArgumentError(f"layer is {layer!r}; the cache has layers 0 to {self.layers - 1}")
        return int(layer)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the KV cache is closed")

    def __repr__(self) -> str:
        held = f"{min(self._lengths)}-{max(self._lengths)}" if len(set(self._lengths)) > 1 else f"{self._lengths[0]}"
        state = "closed, " if self.closed else ""
        return f"<KVCache {state}{self.layers} layers, {held} of {self.capacity} tokens, {self.dtype.name}>"
