"""The execution plan of a transformer's layers.

A layer is: QKV projection → split → RoPE → KV cache → attention → output projection, then the feed-forward network,
each of the two with a residual connection and a norm before it (llama) or after it (BERT).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from hipattn.arguments import instance, integer
from hipattn.attn.decode import attention_decode
from hipattn.attn.functional import attention
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.options import EVERY_KEY
from hipattn.errors import ArgumentError, CacheFullError, ClosedError
from hipattn.kernels import activation, add, flash_decode, flash_fwd, norm, rope, rope_append
from hipattn.kernels.rows import check_device
from hipattn.layers import LayerSpec, LayerWeights
from hipattn.matmul import matmul
from hipattn.runtime.device import Device
from hipattn.runtime.replay import Replay
from hipattn.runtime.stream import Stream
from hipattn.tensor import INT32, UINT8, DeviceTensor, as_dtype

__all__ = ["ExecutionPlan", "check_method"]

METHODS = ("auto", "flash", "staged")
MAX_SHAPES = 64  # whose views are kept


class ExecutionPlan:
    """Layers over their weights, with the memory that they work in.

    Nothing is allocated while they run but what `hipattn.attention` keeps for itself: with "staged" the scores, whose
    memory doubles where a longer cache needs more.

    Parameters
    ----------
    spec
        What each layer computes.
    layers
        Their weights.
    batch
        How many sequences there are; without a cache, at most.
    tokens
        How many tokens of each sequence a call takes at most.
    capacity
        How many tokens of each sequence the KV cache holds. None: there is no cache, and a token sees only those of
        the same call.
    method
        How attention is computed: "flash" or "staged", as in `hipattn.attention`. "auto": "flash" on a GPU,
        where it takes the head_dim; on a simulated one "staged", whose products run at the speed of the host, but
        "flash" where `reset` is given a `present`, which only "flash" takes.
    stream
        Where all work goes. Default: the default stream of the weights' device.

    Attributes
    ----------
    spec : LayerSpec
    layers : tuple of LayerWeights
    dtype : numpy.dtype
        Of weights, activations and cache.
    batch, tokens : int
    method : str
    cache : KVCache or None
    stream : Stream

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
        *,
        batch: int = 1,
        tokens: int = 512,
        capacity: int | None = None,
        method: str = "auto",
        stream: Stream | None = None,
    ) -> None:
        if isinstance(layers, LayerWeights):
            raise ArgumentError("layers is a LayerWeights; it takes a list of them")
        self.spec, self.layers = instance("spec", spec, LayerSpec), tuple(layers)
        self.batch, self.tokens = integer("batch", batch, 1), integer("tokens", tokens, 1)
        if not self.layers:
            raise ArgumentError("layers is empty; it takes one or more LayerWeights")
        for layer, weights in enumerate(self.layers):
            instance(f"layers[{layer}]", weights, LayerWeights)
        first = instance("layer 0, QKV projection: qkv", self.layers[0].qkv, DeviceTensor)
        self.stream = first.device.default_stream if stream is None else instance("stream", stream, Stream)
        self.dtype = as_dtype(first.dtype, "layer 0, QKV projection: qkv's dtype")
        for layer, weights in enumerate(self.layers):
            weights.check(spec, self.dtype, layer, self.stream)
        self.method = check_method(method)
        self._not_flash = flash_fwd.supports(self.stream.device, self.dtype, spec.head_dim, spec.head_dim)
        if method == "flash" and self._not_flash:
            raise ArgumentError(f"method is 'flash': {self._not_flash}; 'staged' takes it")
        if capacity is not None:
            capacity = integer("capacity", capacity, 1)
            if not spec.causal:
                raise ArgumentError("capacity is given; the layers are not causal, and tokens to come would be seen")
        self._products = [
            {name: getattr(weights, name).transpose(1, 0) for name in ("qkv", "out", "up", "down")}
            for weights in self.layers
        ]
        group = spec.heads // spec.heads_kv
        self._decodes = not flash_decode.supports(self.device, self.dtype, spec.head_dim, spec.head_dim, group)
        self._replay = Replay(self.stream)
        turn = spec.rope
        self._rope: dict[str, Any] = (
            {"style": "half", "rotary_dim": 0}
            if turn is None
            else {name: getattr(turn, name) for name in ("style", "base", "rotary_dim", "factors")}
        )
        self._workspace = flash_decode.Workspace()
        self._present: DeviceTensor | None = None
        self._lengths: DeviceTensor | None = None  # of the step that is about to run
        self._length = 0  # which they are
        self._shapes: dict[tuple[int, int], _Activations] = {}
        self.cache: KVCache | None = None
        rows = self.batch * self.tokens
        widths = {"hidden": spec.hidden, "normed": spec.hidden, "projected": spec.projected}
        widths |= {"attended": spec.heads * spec.head_dim, "inner": spec.inner}
        self._memory: dict[str, DeviceTensor] = {}
        try:
            for name, width in widths.items():
                self._memory[name] = DeviceTensor.empty((rows, width), self.dtype, stream=self.stream)
            if capacity is not None:
                sizes = len(self.layers), self.batch, capacity, spec.heads_kv, spec.head_dim
                self.cache = KVCache(*sizes, dtype=self.dtype, stream=self.stream)
                if self._decodes and self.method != "staged":
                    self._lengths = DeviceTensor.empty((self.batch,), INT32, stream=self.stream)
                    self._reserve(self.batch, capacity)
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> Device:
        """The device."""
        return self.stream.device

    @property
    def length(self) -> int:
        """How many tokens of each sequence the cache holds: the position of the next one. 0 without a cache."""
        return 0 if self.cache is None else self.cache.length(0)

    def reset(self, present: DeviceTensor | None = None) -> None:
        """Begin with new sequences.

        Parameters
        ----------
        present : [batch, keys], uint8, contiguous
            Not 0 where there is a token, for sequences of different lengths. With a cache, keys is its capacity and
            what is missing stands before a sequence's first token, so that all sequences end together: a token's
            position is its place in the cache, and RoPE, to which only differences of positions matter, gives each
            sequence what it would give it alone. Without a cache, batch and keys are the numbers of sequences and
            tokens of the calls that follow, and what is missing may stand anywhere. What is computed for missing
            tokens means nothing. The tensor is used in place. None: all are there.

        Raises
        ------
        ArgumentError
            `present` does not fit, or attention is "staged", by the plan's method or for its head_dim.
        """
        if present is not None:
            check_device(self.stream, present=present)
            keys = self.tokens if self.cache is None else self.cache.capacity
            fits = len(present.shape) == 2 and present.shape[0] <= self.batch and 0 < present.shape[1] <= keys
            if self.cache is not None:
                fits = present.shape == (self.batch, keys)
            if not fits or present.dtype != UINT8 or not present.is_contiguous:
                at_most = "at most " if self.cache is None else ""
                raise ArgumentError(
                    f"present is {present.dtype.name} {present.shape}; it takes uint8 {at_most}{(self.batch, keys)}, "
                    "contiguous"
                )
            if self.method == "staged":
                raise ArgumentError("present is given; the plan's method is 'staged', and only 'flash' takes it")
            if self._not_flash:
                raise ArgumentError(f"present is given, which only method 'flash' takes: {self._not_flash}")
        self._present = None if present is None else present.reshape(present.shape[0], 1, 1, present.shape[1])
        if self.cache is not None:
            self.cache.reset()

    def hidden(self, batch: int, tokens: int) -> DeviceTensor:
        """Return [batch, tokens, hidden], the plan's own memory, to be filled with embeddings for `run`.

        `hipattn.kernels.embedding.launch` fills it on the device, `DeviceTensor.copy_from` from the host.

        Raises
        ------
        ArgumentError
            There are more sequences or tokens than the plan has memory for, or, with a cache, fewer sequences.
        """
        return self._activations(batch, tokens).hidden

    def run(self, hidden: DeviceTensor) -> DeviceTensor:
        """Run all layers over new tokens, in place.

        Parameters
        ----------
        hidden : [batch, tokens, hidden]
            Contiguous, of the plan's dtype: `ExecutionPlan.hidden`'s, or another.

        Returns
        -------
        hidden : DeviceTensor
            The same; with `norm_first`, before the model's last norm.

        Raises
        ------
        ArgumentError
            `hidden` does not fit; nothing was launched.
        CacheFullError
            The cache has no room for the tokens; nothing was launched.
        HipError
            A launch fails. The cache is as it was.
        """
        self._check_run(hidden)
        length = self.length
        try:
            self._run(hidden)
        except BaseException:
            self._undo(length)
            raise
        return hidden

    def step(
        self,
        hidden: DeviceTensor,
        *,
        before: Callable[[], object],
        after: Callable[[], object],
        key: Hashable = None,
    ) -> None:
        """Run all layers over one new token of each sequence, and what goes before and after them, as one graph.

        A step is captured the second time that it is asked for, and replayed from then on: it costs the host one
        launch. With method "staged", whose launches depend on the length, and on the null stream it is `run` between
        the two.

        Parameters
        ----------
        hidden : [batch, 1, hidden]
            As of `run`.
        before, after
            Add work to the plan's stream: what fills `hidden`, and what takes it from there. They are captured: see
            `Graph` for what they may do.
        key
            What the launches of the two depend on, beyond `hidden`.

        Raises
        ------
        ArgumentError, CacheFullError, HipError
            As of `run`.
        """
        self._check_run(hidden)
        if hidden.shape[1] != 1:
            raise ArgumentError(f"hidden has {hidden.shape[1]} tokens; a step takes one")
        length = self.length

        def work() -> None:
            self._rewind(length)  # a capture that failed has counted
            before()
            self._run(hidden)
            after()

        try:
            fixed = self._fixed(hidden.shape[0])
            hidden.buffer.used_on(self.stream)
            if fixed is None:
                work()
            elif not self._replay.run((fixed, key, hidden.pointer, hidden.shape), work):
                self._advance()
        except BaseException:
            self._undo(length)
            raise

    def _check_run(self, hidden: DeviceTensor) -> None:
        self._check("hidden", hidden)
        length = self.length
        if self.cache is not None and length + hidden.shape[1] > self.cache.capacity:
            raise CacheFullError(
                f"the cache holds {length} of {self.cache.capacity} tokens; {hidden.shape[1]} more do not fit"
            )

    def _run(self, hidden: DeviceTensor) -> None:
        for layer, weights in enumerate(self.layers):
            self._residual(self.self_attention, hidden, layer, weights.attention_norm, weights.attention_norm_bias)
            self._residual(self.feed_forward, hidden, layer, weights.ffn_norm, weights.ffn_norm_bias)

    def _fixed(self, batch: int) -> Hashable:  # noqa: ARG002
        """Bring to the device what changes from step to step, and return what does not; None if no graph holds it."""
        if self._lengths is None or self._attention_method != "flash":
            return None
        self._set_length(self.length + 1)
        if self._present is None:
            return ()
        self._present.buffer.used_on(self.stream)
        return self._present.pointer

    def _advance(self) -> None:
        """Count what a graph has done."""
        for layer in range(len(self.layers)):
            self._count(layer, 1)

    def _set_length(self, length: int) -> None:
        assert self._lengths is not None
        if length != self._length:
            self._length = 0
            self._lengths.fill(length, stream=self.stream)
            self._length = length

    def _reserve(self, batch: int, capacity: int, *, float8: bool = False) -> None:
        """Allocate what `attention_decode` works in, for one query of each sequence: no step does, nor its capture."""
        spec = self.spec
        scores, dims = (batch, spec.heads, 1, capacity), (spec.heads_kv, spec.head_dim, spec.head_dim)
        formula = 1.0, True, EVERY_KEY, None
        splits = flash_decode.best_splits(self.device, self.dtype, scores, *dims, formula, float8)
        self._workspace.reserve(batch * spec.heads, splits, spec.head_dim, self.stream)

    def truncate(self, length: int) -> None:
        """Forget the tokens of each sequence from `length` on.

        Raises
        ------
        ArgumentError
            `length` is negative or more than the cache holds.
        """
        if integer("length", length) > self.length:
            raise ArgumentError(f"length is {length}; the cache holds {self.length} tokens")
        self._rewind(length)

    def _undo(self, length: int) -> None:
        """Take back what an error leaves half done."""
        self._rewind(length)

    def _rewind(self, length: int) -> None:
        if self.cache is not None:
            for layer in range(len(self.layers)):
                self.cache.truncate(layer, min(length, self.cache.length(layer)))

    def self_attention(
        self, hidden: DeviceTensor, layer: int, *, out: DeviceTensor, accumulate: bool = False
    ) -> DeviceTensor:
        """QKV projection, split, RoPE, cache, attention, output projection.

        Q, K and V are strided views of the projection. RoPE turns Q and K there by the positions that follow the
        cache's, and the same launch copies K and V into the cache, where attention reads them.

        Parameters
        ----------
        hidden : [batch, tokens, hidden]
            Contiguous, of the plan's dtype.
        layer
            Which layer's weights and cache.
        out : like `hidden`
            It may be `hidden`, which has been read by then.
        accumulate
            Add to what `out` holds.

        Returns
        -------
        out : DeviceTensor

        Raises
        ------
        ArgumentError
            A shape, dtype or device does not fit; the message names the stage.
        CacheFullError
            The layer's cache has no room.
        HipError
            A launch fails.
        """
        weights, products = self._layer(layer)
        on = self._activations(*self._check("QKV projection: hidden", hidden))
        if self._check("output projection: out", out) != hidden.shape[:2]:
            raise ArgumentError(f"output projection: out has shape {out.shape}; hidden has {hidden.shape}")
        stream = self.stream
        where = self._admit(layer, on)
        matmul(_flat(hidden), products["qkv"], on.projected, stream=stream)
        if weights.qkv_bias is not None:
            add.launch(on.projected, weights.qkv_bias, stream=stream)
        if where:
            rope_append.launch(on.q, on.k, on.v, **where, **self._rope, stream=stream)
            self._count(layer, hidden.shape[1])
        elif self.spec.rope is not None:
            rope.launch(on.qk, **self._rope, stream=stream)
        self._attend(layer, on)
        matmul(on.attended_rows, products["out"], _flat(out), accumulate=accumulate, stream=stream)
        if weights.out_bias is not None:
            add.launch(out, weights.out_bias, stream=stream)
        return out

    def _admit(self, layer: int, on: _Activations) -> dict[str, Any]:
        """Check that there is room for new keys and values, and return where they go; nothing without a cache."""
        if self.cache is None:
            return {}
        self.cache.check(layer, on.k, on.v)
        k_cache, v_cache = self.cache.whole(layer)
        length = self.cache.length(layer)
        if not self._is_step(on):
            return {"k_cache": k_cache, "v_cache": v_cache, "start": length}
        self._set_length(length + 1)
        return {"k_cache": k_cache, "v_cache": v_cache, "ends": self._lengths}

    def _count(self, layer: int, tokens: int) -> None:
        """Count a layer's new tokens, which are in the cache."""
        if self.cache is not None:
            self.cache.advance(layer, tokens)

    def _is_step(self, on: _Activations) -> bool:
        """Whether positions come from device memory, so that launches do not depend on the length."""
        return self._lengths is not None and on.q.shape[1] == 1 and self._attention_method == "flash"

    def _attend(self, layer: int, on: _Activations) -> None:
        """Let the queries attend to what there is, the new keys among them."""
        if self.cache is None:
            self._attend_to(on.k, on.v, on)
        elif self._is_step(on):
            options: Any = {"mask": self._present, "out": on.attended}
            options |= {"workspace": self._workspace, "stream": self.stream}
            attention_decode(on.q, *self.cache.whole(layer), self._lengths, **options)
        else:
            self._attend_to(*self.cache.view(layer), on)

    def _attend_to(self, k: DeviceTensor, v: DeviceTensor, on: _Activations) -> None:
        mask = None if self._present is None else self._present[..., : k.shape[1]]
        options: Any = {"causal": self.spec.causal, "mask": mask, "method": self._attention_method}
        attention(on.q, k, v, out=on.attended, stream=self.stream, **options)

    @property
    def _attention_method(self) -> str:
        if self.method != "auto":
            return self.method
        slow = self.device.simulated and self._present is None
        return "staged" if slow or self._not_flash else "flash"

    def feed_forward(
        self, hidden: DeviceTensor, layer: int, *, out: DeviceTensor, accumulate: bool = False
    ) -> DeviceTensor:
        """Compute down(activation(gate) · up), or down(activation(up)). Arguments and errors as of `self_attention`."""
        weights, products = self._layer(layer)
        on = self._activations(*self._check("feed-forward network: hidden", hidden))
        if self._check("feed-forward network: out", out) != hidden.shape[:2]:
            raise ArgumentError(f"feed-forward network: out has shape {out.shape}; hidden has {hidden.shape}")
        stream, spec = self.stream, self.spec
        matmul(_flat(hidden), products["up"], on.inner, stream=stream)
        bias = weights.up_bias
        if spec.gated and bias is not None:
            add.launch(on.inner, bias, stream=stream)
            bias = None
        activation.launch(on.active, kind=spec.activation, up=on.up, bias=bias, stream=stream)
        matmul(on.active, products["down"], _flat(out), accumulate=accumulate, stream=stream)
        if weights.down_bias is not None:
            add.launch(out, weights.down_bias, stream=stream)
        return out

    def _residual(
        self, sublayer: Sublayer, x: DeviceTensor, layer: int, weight: DeviceTensor, bias: DeviceTensor | None
    ) -> None:
        """Write x + sublayer(norm(x)), or norm(x + sublayer(x)), to x."""
        options: Any = {"bias": bias, "eps": self.spec.norm_eps, "kind": self.spec.norm, "stream": self.stream}
        if self.spec.norm_first:
            normed = self._activations(*x.shape[:2]).normed
            norm.launch(x, weight, normed, **options)
            sublayer(normed, layer, out=x, accumulate=True)
        else:
            sublayer(x, layer, out=x, accumulate=True)
            norm.launch(x, weight, **options)

    def _layer(self, layer: int) -> tuple[LayerWeights, dict[str, DeviceTensor]]:
        if integer("layer", layer) >= len(self.layers):
            raise ArgumentError(f"layer is {layer}; the plan has layers 0 to {len(self.layers) - 1}")
        return self.layers[layer], self._products[layer]

    def _check(self, what: str, tensor: DeviceTensor) -> tuple[int, int]:
        """Check a tensor of [batch, tokens, hidden] and return the first two."""
        check_device(self.stream, **{what: tensor})
        shape = tensor.shape
        if len(shape) != 3 or shape[2] != self.spec.hidden or tensor.dtype != self.dtype or not tensor.is_contiguous:
            raise ArgumentError(
                f"{what} is {tensor.dtype.name} {shape} with strides {tensor.strides}; it takes {self.dtype.name} "
                f"[batch, tokens, {self.spec.hidden}], contiguous"
            )
        self._check_sizes(what, *shape[:2])
        if self._present is not None and self.cache is None:
            present = self._present.shape[0], self._present.shape[3]
            if present != shape[:2]:
                raise ArgumentError(f"{what} has {shape[0]} sequences of {shape[1]} tokens; present is of {present}")
        return shape[:2]

    def _check_sizes(self, what: str, batch: int, tokens: int) -> None:
        least = 1 if self.cache is None else self.batch
        if not least <= batch <= self.batch or not 1 <= tokens <= self.tokens:
            raise ArgumentError(
                f"{what} has {batch} sequences of {tokens} tokens; the plan takes "
                f"{self.batch if least == self.batch else f'1 to {self.batch}'} of 1 to {self.tokens}"
            )

    def _activations(self, batch: int, tokens: int) -> _Activations:
        if (batch, tokens) not in self._shapes:
            if self._memory["hidden"].buffer.closed:
                raise ClosedError("the plan is closed")
            self._check_sizes("hidden", integer("batch", batch), integer("tokens", tokens))
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[batch, tokens] = _Activations.of(self.spec, self._memory, batch, tokens)
        return self._shapes[batch, tokens]

    def close(self) -> None:
        """Free the plan's memory and its cache, after the work that uses them. The weights stay."""
        self._replay.close()
        self._workspace.close()
        self._shapes.clear()
        for tensor in (*self._memory.values(), self._lengths):
            if tensor is not None:
                tensor.buffer.close()
        if self.cache is not None:
            self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_method(method: str) -> str:
    """Return a plan's method.

    Raises
    ------
    ArgumentError
        It is none.
    """
    if method not in METHODS:
        raise ArgumentError(f"method is {method!r}; accepted: {', '.join(METHODS)}")
    return method


class Sublayer(Protocol):
    """`ExecutionPlan.self_attention` or `ExecutionPlan.feed_forward`."""

    def __call__(
        self, hidden: DeviceTensor, layer: int, *, out: DeviceTensor, accumulate: bool = False
    ) -> DeviceTensor:
        """Compute it."""


@dataclass(frozen=True)
class _Activations:
    """The plan's memory, seen as so many sequences of so many tokens."""

    hidden: DeviceTensor  # [batch, tokens, hidden]
    normed: DeviceTensor
    projected: DeviceTensor  # [batch · tokens, columns of Q, K and V]
    q: DeviceTensor  # [batch, tokens, heads, head_dim] in there
    k: DeviceTensor
    v: DeviceTensor
    qk: DeviceTensor  # heads of Q, then those of K
    attended: DeviceTensor  # [batch, tokens, heads, head_dim]
    attended_rows: DeviceTensor  # [batch · tokens, heads · head_dim]
    inner: DeviceTensor  # [batch · tokens, inner columns]
    active: DeviceTensor  # [batch · tokens, ffn] in there: what the activation is applied to
    up: DeviceTensor | None  # and what it is multiplied by

    @classmethod
    def of(cls, spec: LayerSpec, memory: Mapping[str, DeviceTensor], batch: int, tokens: int) -> _Activations:
        flat = {name: tensor[: batch * tokens] for name, tensor in memory.items()}
        heads = spec.heads + 2 * spec.heads_kv
        projected = flat["projected"].reshape(batch, tokens, heads, spec.head_dim)
        keys, values = spec.heads, spec.heads + spec.heads_kv
        return cls(
            hidden=flat["hidden"].reshape(batch, tokens, spec.hidden),
            normed=flat["normed"].reshape(batch, tokens, spec.hidden),
            projected=flat["projected"],
            q=projected[:, :, :keys],
            k=projected[:, :, keys:values],
            v=projected[:, :, values:],
            qk=projected[:, :, :values],
            attended=flat["attended"].reshape(batch, tokens, spec.heads, spec.head_dim),
            attended_rows=flat["attended"],
            inner=flat["inner"],
            active=flat["inner"][:, : spec.ffn],
            up=flat["inner"][:, spec.ffn :] if spec.gated else None,
        )


def _flat(hidden: DeviceTensor) -> DeviceTensor:
    """See [batch, tokens, hidden] as [batch · tokens, hidden]: no copy, the tensor is contiguous."""
    batch, tokens, columns = hidden.shape
    return hidden.reshape(batch * tokens, columns)
