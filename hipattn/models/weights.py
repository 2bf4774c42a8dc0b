"""All tensors of a model: checked against its sizes before the first is read, then read one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.hyperparameters import Hyperparameters
from hipattn.tensor import as_dtype

__all__ = ["LlamaWeights", "TensorFile", "Weight", "Weights", "layers"]

# How many values are held in float32 on the way to another dtype.
CHUNK = 1 << 22

# Of each layer, and of the model; blk.N. before the former and .weight after both. Matrices are [out, in].
LAYER = {
    "attn_norm": ("hidden",),
    "attn_q": ("heads * head_dim", "hidden"),
    "attn_k": ("kv_heads * head_dim", "hidden"),
    "attn_v": ("kv_heads * head_dim", "hidden"),
    "attn_output": ("hidden", "heads * head_dim"),
    "ffn_norm": ("hidden",),
    "ffn_gate": ("ffn", "hidden"),
    "ffn_up": ("ffn", "hidden"),
    "ffn_down": ("hidden", "ffn"),
}
EMBEDDING, NORM, OUTPUT = "token_embd.weight", "output_norm.weight", "output.weight"


class TensorFile(Protocol):
    """A file of named tensors: a `GGUFFile`, for one."""

    path: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""

    def nbytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def tensor(self, name: str, *, rows: slice) -> npt.NDArray[np.float32]:
        """Return rows of a tensor as float32."""


@dataclass(frozen=True)
class Weight:
    """A tensor that has been read, and how far the reading is.

    Attributes
    ----------
    name : str
        The tensor's name in the file.
    array : array
        Its values: contiguous, writable, nobody else's.
    done, total : int
        Bytes of the file's tensors: up to this one and including it, and of all that will be read.
    """

    name: str
    array: npt.NDArray[Any]
    done: int
    total: int


class Weights:
    """A model's tensors, each of which is there, has the right shape and can be read.

    Parameters
    ----------
    file
        The file that holds them.
    dimensions
        Tensor → the names of its dimensions, in the order in which the tensors are to be read.
    sizes
        What each name of a dimension stands for.
    ignored
        Tensors of the file that the model does not need. Any other is refused: leaving out a bias, say, would
        give another model.

    Attributes
    ----------
    file : TensorFile
        The file.
    shapes : mapping of str to tuple of int
        Tensor → shape, in reading order.
    nbytes : int
        What the tensors take in the file.

    Raises
    ------
    ModelError
        A tensor is missing, has another shape, is not known, or has a quantisation that is not supported.
    """

    def __init__(
        self,
        file: TensorFile,
        dimensions: Mapping[str, tuple[str, ...]],
        sizes: Mapping[str, int],
        *,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        self.file = file
        self.shapes = {name: tuple(sizes[each] for each in names) for name, names in dimensions.items()}
        present = set(file.names)
        _refuse(file, "lacks", [name for name in self.shapes if name not in present])
        for name, shape in self.shapes.items():
            got = file.shape(name)
            if got != shape:
                wanted = ", ".join(dimensions[name])
                raise ModelError(f"{file.path}: tensor {name} has shape {got}, expected {shape}: [{wanted}]")
            file.tensor(name, rows=slice(0, 1))  # raises if it cannot be dequantised
        _refuse(file, "has unknown", [name for name in file.names if name not in self.shapes and name not in ignored])
        self.nbytes = sum(map(file.nbytes, self.shapes))

    def read(self, name: str, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """Return one tensor, dequantised and rounded to `dtype`: float32, float16 or bfloat16.

        Raises
        ------
        ArgumentError
            `name` is not one of the model's tensors, or `dtype` is another one.
        ModelError
            The tensor holds a NaN, an infinity, or a value that `dtype` cannot hold.
        """
        dtype = as_dtype(dtype)
        if name not in self.shapes:
            raise ArgumentError(f"name is {name!r}, not one of the model's {len(self.shapes)} tensors")
        shape = self.shapes[name]
        out = np.empty(shape, dtype)
        step = max(1, CHUNK // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            rows = slice(start, start + step)
            exact = self.file.tensor(name, rows=rows)
            with np.errstate(invalid="ignore", over="ignore"):
                out[rows] = exact
            if not np.isfinite(exact).all():
                raise ModelError(f"{self.file.path}: tensor {name} holds NaN or infinity")
            if not np.isfinite(out[rows]).all():
                most = np.abs(exact).max()
                raise ModelError(f"{self.file.path}: tensor {name} holds {most:g}, which {dtype.name} cannot")
        return out

    def load(self, dtype: npt.DTypeLike = np.float32) -> Iterator[Weight]:
        """Return an iterator over all tensors, each read when it is asked for.

        ::

            for weight in weights.load(np.float16):
                upload(weight.name, weight.array)
                progress.update(task, completed=weight.done, total=weight.total)

        Raises
        ------
        ArgumentError
            `dtype` is not float32, float16 or bfloat16. Raised at once.
        ModelError
            As by `read`, from the iterator.
        """
        return self._load(as_dtype(dtype))

    def _load(self, dtype: np.dtype[Any]) -> Iterator[Weight]:
        done = 0
        for name in self.shapes:
            done += self.file.nbytes(name)
            yield Weight(name, self.read(name, dtype), done, self.nbytes)


class LlamaWeights(Weights):
    """The tensors of a GGUF of the llama architecture: embedding, layer after layer, last norm, output.

    Parameters
    ----------
    file
        The GGUF.

    Attributes
    ----------
    hyperparameters : Hyperparameters
        The sizes.
    tied : bool
        Whether the output projection is the embedding: there is no tensor ``output.weight`` then.

    Raises
    ------
    ModelError
        The architecture is not supported, a tensor is missing, has another shape than the sizes want, is not
        known, or has a quantisation that is not supported.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.hyperparameters = h = Hyperparameters.read(file)
        self.tied = OUTPUT not in file
        dimensions: dict[str, tuple[str, ...]] = {EMBEDDING: ("vocabulary", "hidden")}
        for layer in layers(file, h.layers):
            dimensions |= {f"blk.{layer}.{name}.weight": names for name, names in LAYER.items()}
        dimensions[NORM] = ("hidden",)
        if not self.tied:
            dimensions[OUTPUT] = ("vocabulary", "hidden")
        sizes = {
            "vocabulary": h.vocabulary,
            "hidden": h.hidden,
            "ffn": h.ffn,
            "heads * head_dim": h.heads * h.head_dim,
            "kv_heads * head_dim": h.kv_heads * h.head_dim,
        }
        super().__init__(file, dimensions, sizes)


def layers(file: TensorFile, count: int) -> range:
    """Return the numbers of a model's layers.

    Raises
    ------
    ModelError
        There are more layers than tensors: `count` is damaged.
    """
    if count > len(file.names):
        raise ModelError(f"{file.path} is to have {count} layers, and has {len(file.names)} tensors")
    return range(count)


def _refuse(file: TensorFile, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(f"{file.path} {what} tensors: {', '.join(names[:3])}{more}")
