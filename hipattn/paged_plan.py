"""The execution plan over a paged cache: sequences of different lengths, which come and go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from hipattn.arguments import instance, integer
from hipattn.attn.decode import attention_decode
from hipattn.attn.paged_cache import PagedKVCache
from hipattn.errors import ArgumentError, ClosedError
from hipattn.layers import LayerSpec, LayerWeights
from hipattn.plan import ExecutionPlan, _Activations
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["PagedPlan"]

MAX_QUERIES = 64  # of a sequence that has keys already: what attention_decode takes


class PagedPlan(ExecutionPlan):
    """Layers whose keys and values are in a `PagedKVCache`, which is the caller's.

    ::

        sequences = [cache.new(), cache.new()]
        plan.extend(sequences, 1)  # room for one token each
        hidden = plan.hidden(2, 1)  # to be filled with embeddings
        plan.run(hidden)

    Parameters
    ----------
    spec
        What each layer computes; causal.
    layers
        Their weights.
    cache
        Where keys and values are kept, in the dtype of the weights or as e4m3. Its sequences may be forked, truncated
        and freed between runs. New tokens of sequences that all begin see each other as they were before they were
        rounded to e4m3.
    batch
        How many sequences a run takes at most.
    tokens
        How many new tokens of each, at most.
    method
        How attention of sequences that begin is computed: see `ExecutionPlan`. Otherwise it is `attention_decode`.
    stream
        Where all work goes. Default: the default stream of the weights' device.

    Attributes
    ----------
    pages : PagedKVCache
    lengths : DeviceTensor
        [sequences], int32: how many tokens each sequence of the next run has, its new ones among them.

    Raises
    ------
    ArgumentError
        An argument does not fit; of weights, the message names layer and stage.
    HipError
        The device has too little memory; nothing stays allocated.
    """

    def __init__(
        self,
        spec: LayerSpec,
        layers: Sequence[LayerWeights],
        cache: PagedKVCache,
        *,
        batch: int = 8,
        tokens: int = 512,
        method: str = "auto",
        stream: Stream | None = None,
    ) -> None:
        if instance("cache", cache, PagedKVCache).closed:
            raise ClosedError("cache is closed")
        if not instance("spec", spec, LayerSpec).causal:
            raise ArgumentError("spec is not causal; a cache is for layers that do not see tokens to come")
        super().__init__(spec, layers, batch=batch, tokens=tokens, method=method, stream=stream)
        kept = cache.layers, cache.heads_kv, cache.head_dim, cache.value_dim
        wanted = len(self.layers), spec.heads_kv, spec.head_dim, spec.head_dim
        if kept != wanted or (cache.dtype != self.dtype and cache.scales() is None):
            self.close()
            raise ArgumentError(
                f"cache has (layers, heads_kv, head_dim, value_dim, dtype) {(*kept, cache.dtype.name)}; the layers "
                f"take {(*wanted, self.dtype.name)}, or e4m3"
            )
        self.pages = cache
        self._sequences: tuple[int, ...] = ()
        self._new = 0  # tokens of each that `extend` made room for
        self._before: list[int] = []

    def extend(self, sequences: Sequence[int], tokens: int) -> None:
        """Make room in the cache for the next run, and bring its block table to the device.

        Parameters
        ----------
        sequences
            The batch of the next run.
        tokens
            How many new tokens each gets: up to 64 if one of them has tokens already.

        Raises
        ------
        ArgumentError
            A number is out of its range, or a sequence is unknown, freed or given twice.
        OutOfPagesError
            Too few pages are free. The cache is as it was.
        HipError
            The upload fails. The cache is as it was.
        """
        self._check_sizes("extend", len(sequences), integer("tokens", tokens))
        before = [self.pages.length(sequence) for sequence in sequences]
        if tokens > MAX_QUERIES and any(before):
            raise ArgumentError(
                f"tokens is {tokens}; sequences that have tokens already get at most {MAX_QUERIES} at a time"
            )
        self.pages.extend(sequences, tokens, stream=self.stream)
        self._sequences, self._new, self._before = tuple(sequences), tokens, before
        try:
            self.lengths, self._table = self.pages.lengths(sequences), self.pages.block_table(sequences)
            if tokens == 1 and self._decodes:
                capacity = self._table.shape[1] * self.pages.page_size
                self._reserve(len(sequences), capacity, float8=self.pages.scales() is not None)
        except BaseException:
            self._undo(0)
            raise

    def run(self, hidden: DeviceTensor) -> DeviceTensor:
        """Run all layers over the new tokens of the sequences that were extended, in place.

        Parameters
        ----------
        hidden : [sequences, tokens, hidden]
            As `extend` was told; contiguous, of the plan's dtype.

        Returns
        -------
        hidden : DeviceTensor
            The same.

        Raises
        ------
        ArgumentError
            `hidden` does not fit; nothing was launched.
        HipError
            A launch fails. The sequences are as they were before `extend`.
        """
        return super().run(hidden)

    def _check_run(self, hidden: DeviceTensor) -> None:
        if self._check("hidden", hidden) != (len(self._sequences), self._new):
            raise ArgumentError(
                f"hidden has shape {hidden.shape}; {len(self._sequences)} sequences were extended by {self._new} tokens"
            )

    def _fixed(self, batch: int) -> Hashable:
        if not any(self._before):
            return None
        return batch, *((x.pointer, x.shape) for x in (self.lengths, self._table))

    def _undo(self, length: int) -> None:  # noqa: ARG002
        for sequence, before in zip(self._sequences, self._before, strict=True):
            self.pages.truncate(sequence, before)
        self._sequences, self._new = (), 0

    def _admit(self, layer: int, on: _Activations) -> dict[str, Any]:  # noqa: ARG002
        pools = {"k_cache": self.pages.keys(layer), "v_cache": self.pages.values(layer)}
        return {**pools, "ends": self.lengths, "block_table": self._table, "scales": self.pages.scales(layer)}

    def _attend(self, layer: int, on: _Activations) -> None:
        if not any(self._before):
            self._attend_to(on.k, on.v, on)
            return
        k_scales, v_scales = self.pages.scales(layer) or (None, None)
        options: Any = {"block_table": self._table, "k_scales": k_scales, "v_scales": v_scales}
        options |= {"out": on.attended, "workspace": self._workspace, "stream": self.stream}
        attention_decode(on.q, self.pages.keys(layer), self.pages.values(layer), self.lengths, **options)
