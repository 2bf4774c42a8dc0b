"""What a transformer's layer computes, and the weights that it computes with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hipattn.arguments import boolean, instance, integer, number
from hipattn.errors import ArgumentError
from hipattn.kernels import activation, norm, rope
from hipattn.kernels.rows import check_device
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["LayerSpec", "LayerWeights", "Rope"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of Q and K: the arguments of `hipattn.kernels.rope.launch`.

    Attributes
    ----------
    style : str
        "interleaved": pair i of a head is (x[2i], x[2i + 1]), as GGUF files of llama have it; "half": it is
        (x[i], x[i + rotary_dim / 2]), as Hugging Face's models have it.
    base : float
        Pair i is turned by position · base^(−2i / rotary_dim).
    rotary_dim : int or None
        How many elements of a head are turned, from the first. None: all.
    factors : tuple of float or None
        Numbers that divide the frequencies, one a pair, as Llama 3.1 has them.
    """

    style: str
    base: float = 10000.0
    rotary_dim: int | None = None
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.style not in rope.STYLES:
            raise ArgumentError(f"style is {self.style!r}; accepted: {', '.join(rope.STYLES)}")
        if number("base", self.base) <= 0:
            raise ArgumentError(f"base is {self.base}; it takes a number above 0")
        if self.factors is not None and not all(number("factors", factor) > 0 for factor in self.factors):
            raise ArgumentError(f"factors is {self.factors}; it takes numbers above 0")
        if self.factors is not None:
            object.__setattr__(self, "factors", tuple(self.factors))


@dataclass(frozen=True)
class LayerSpec:
    """What a layer computes.

    Attributes
    ----------
    hidden, heads, heads_kv, head_dim, ffn : int
        Sizes; `heads` is a multiple of `heads_kv`. heads · head_dim may differ from `hidden`.
    norm : str
        "rms" or "layer".
    norm_eps : float
        Added to the mean square, or the variance.
    norm_first : bool
        Where norms are: x + f(norm(x)), as llama has it, or norm(x + f(x)), as BERT has it.
    activation : str
        "silu", "gelu" or "gelu_tanh".
    gated : bool
        Whether the feed-forward network is down(activation(gate(x)) · up(x)) or down(activation(up(x))).
    bias : bool
        Whether the four products have a bias. LayerNorm always has one, RMSNorm never.
    rope : Rope or None
        Applied to Q and K after the projection and before the cache, which holds turned keys.
    causal : bool
        Whether a token sees only those up to itself.

    Raises
    ------
    ArgumentError
        A value is not accepted.
    """

    hidden: int
    heads: int
    heads_kv: int
    head_dim: int
    ffn: int
    norm: str
    norm_eps: float
    norm_first: bool
    activation: str
    gated: bool
    bias: bool
    rope: Rope | None
    causal: bool

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "heads_kv", "head_dim", "ffn"):
            integer(name, getattr(self, name), 1)
        for name in ("norm_first", "gated", "bias", "causal"):
            boolean(name, getattr(self, name))
        if self.heads % self.heads_kv:
            raise ArgumentError(f"heads is {self.heads}, which is no multiple of heads_kv, {self.heads_kv}")
        for name, accepted in (("norm", norm.KINDS), ("activation", activation.KINDS)):
            if getattr(self, name) not in accepted:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        if number("norm_eps", self.norm_eps) < 0:
            raise ArgumentError(f"norm_eps is {self.norm_eps}; it takes 0 or more")
        if self.rope is not None:
            self._check_rope(instance("rope", self.rope, Rope))

    def _check_rope(self, turned: Rope) -> None:
        pairs = rope.pairs_of(self.head_dim, turned.rotary_dim)
        if turned.factors is not None and len(turned.factors) != pairs:
            raise ArgumentError(f"rope has {len(turned.factors)} factors; it takes {pairs}, one a pair")

    @property
    def projected(self) -> int:
        """How many columns the QKV projection has: query heads, then key heads, then value heads."""
        return (self.heads + 2 * self.heads_kv) * self.head_dim

    @property
    def inner(self) -> int:
        """How many columns the feed-forward network's first product has: with a gate, its columns come first."""
        return 2 * self.ffn if self.gated else self.ffn

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a `LayerWeights`, by name; what is not here is None there."""
        matrices = {
            "qkv": (self.projected, self.hidden),
            "out": (self.hidden, self.heads * self.head_dim),
            "up": (self.inner, self.hidden),
            "down": (self.hidden, self.ffn),
        }
        shapes: dict[str, tuple[int, ...]] = {"attention_norm": (self.hidden,), "ffn_norm": (self.hidden,)}
        if self.norm == "layer":
            shapes |= {f"{name}_bias": shape for name, shape in shapes.items()}
        if self.bias:
            shapes |= {f"{name}_bias": shape[:1] for name, shape in matrices.items()}
        return matrices | shapes


STAGES = {
    "qkv": "QKV projection",
    "out": "output projection",
    "up": "feed-forward network",
    "down": "feed-forward network",
    "attention_norm": "norm of attention",
    "ffn_norm": "norm of the feed-forward network",
}


@dataclass(frozen=True)
class LayerWeights:
    """A layer's weights on the device: contiguous, all of one dtype. Matrices are [out, in].

    Attributes
    ----------
    qkv : [(heads + 2 · heads_kv) · head_dim, hidden]
        The rows of the query heads, then of the key heads, then of the value heads.
    out : [hidden, heads · head_dim]
    up : [ffn, hidden], or [2 · ffn, hidden] with the gate's rows first
    down : [hidden, ffn]
    attention_norm, ffn_norm : [hidden]
    qkv_bias, out_bias, up_bias, down_bias, attention_norm_bias, ffn_norm_bias : or None
        As many as the matrix has rows, or [hidden].
    """

    qkv: DeviceTensor
    out: DeviceTensor
    up: DeviceTensor
    down: DeviceTensor
    attention_norm: DeviceTensor
    ffn_norm: DeviceTensor
    qkv_bias: DeviceTensor | None = None
    out_bias: DeviceTensor | None = None
    up_bias: DeviceTensor | None = None
    down_bias: DeviceTensor | None = None
    attention_norm_bias: DeviceTensor | None = None
    ffn_norm_bias: DeviceTensor | None = None

    @classmethod
    def empty(cls, spec: LayerSpec, dtype: npt.DTypeLike, *, stream: Stream) -> LayerWeights:
        """Allocate a layer's weights, to be filled.

        Raises
        ------
        HipError
            The device has too little memory.
        """
        made: dict[str, DeviceTensor] = {}
        try:
            for name, shape in spec.shapes.items():
                made[name] = DeviceTensor.empty(shape, dtype, stream=stream)
        except BaseException:
            for tensor in made.values():
                tensor.buffer.close()
            raise
        return cls(**made)

    @property
    def tensors(self) -> Iterator[tuple[str, DeviceTensor | None]]:
        """Yield (name, tensor or None)."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def check(self, spec: LayerSpec, dtype: np.dtype[Any], layer: int, stream: Stream) -> None:
        """Check the weights against the layer's description.

        Raises
        ------
        ArgumentError
            One is missing, not wanted, or has another shape, dtype, layout or device.
        """
        wanted = spec.shapes
        for name, tensor in self.tensors:
            what = f"layer {layer}, {STAGES[name.removesuffix('_bias')]}: {name}"
            if name not in wanted:
                if tensor is not None:
                    raise ArgumentError(f"{what} is given; the layer's description has none")
                continue
            tensor = instance(what, tensor, DeviceTensor)
            check_device(stream, **{what: tensor})
            if tensor.shape != wanted[name] or tensor.dtype != dtype or not tensor.is_contiguous:
                raise ArgumentError(
                    f"{what} is {tensor.dtype.name} {tensor.shape} with strides {tensor.strides}; it takes "
                    f"{dtype.name} {wanted[name]}, contiguous"
                )

    def close(self) -> None:
        """Free the weights, after the work that uses them."""
        for _, tensor in self.tensors:
            if tensor is not None:
                tensor.buffer.close()
