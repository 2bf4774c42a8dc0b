"""Read a safetensors file: its index at once, its tensors when they are asked for."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipattn.errors import ModelError
from hipattn.models.extra import models_extra

__all__ = ["SafetensorsFile"]

# The dtypes that are read, and the bytes of a value.
ITEMSIZES = {"F32": 4, "F16": 2, "BF16": 2}


class SafetensorsFile:
    """A safetensors file, memory-mapped.

    Parameters
    ----------
    path
        The file.

    Attributes
    ----------
    path : Path
        The file.

    Raises
    ------
    ModelError
        The file cannot be read, is no safetensors file, or is truncated or damaged.
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with models_extra():
            from safetensors import SafetensorError, safe_open
        self.path = Path(path)
        try:
            self.path.open("rb").close()
            file: Any = safe_open(self.path, "np")
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ModelError(f"{path} is no safetensors file, or a truncated or damaged one: {error}") from error
        self._slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, sorted."""
        return tuple(sorted(self._slices))

    def nbytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes.

        Raises
        ------
        ModelError
            There is no such tensor, or it holds no floating-point numbers of a supported size.
        """
        return math.prod(self.shape(name)) * self._itemsize(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises
        ------
        ModelError
            There is no such tensor.
        """
        return tuple(self._slice(name).get_shape())

    def tensor(self, name: str, *, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return a tensor's values as float32.

        Parameters
        ----------
        name
            The tensor's name.
        rows
            Which of the first dimension to read, without a step; all by default.

        Raises
        ------
        ModelError
            There is no such tensor, or it is not float32, float16 or bfloat16.
        """
        self._itemsize(name)
        start, stop, _ = rows.indices(self.shape(name)[0])  # the library refuses an end past the last row
        return np.asarray(self._slice(name)[start:stop], np.float32)

    def _slice(self, name: str) -> Any:
        if name not in self._slices:
            raise ModelError(f"{self.path} has no tensor {name!r} among its {len(self._slices)}")
        return self._slices[name]

    def _itemsize(self, name: str) -> int:
        kind = self._slice(name).get_dtype()
        if kind not in ITEMSIZES:
            raise ModelError(f"{self.path}: tensor {name} is {kind}; accepted: {', '.join(ITEMSIZES)}")
        return ITEMSIZES[kind]
