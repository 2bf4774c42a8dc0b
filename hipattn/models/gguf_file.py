"""Read a GGUF file: its metadata at once, its tensors when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hipattn.errors import ModelError
from hipattn.models.extra import models_extra

__all__ = ["GGUFFile"]


class GGUFFile:
    """A GGUF file, memory-mapped.

    Parameters
    ----------
    path
        The file.

    Attributes
    ----------
    path : Path
        The file.
    metadata : mapping of str to Any
        Key → str, int, float, bool, or a list of one of them.

    Raises
    ------
    ModelError
        The file cannot be read, is no GGUF, or is truncated or damaged.
    """

    path: Path
    metadata: Mapping[str, Any]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with models_extra():
            import gguf
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        if magic != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
        try:
            reader = _strict(gguf.GGUFReader)(self.path)
            # Plain values: the reader's own fields hold an array for each word of the vocabulary.
            self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is a truncated or damaged GGUF file: {error}") from error
        if reader.byte_order != "I":
            raise ModelError(f"{path} is a GGUF file of the other byte order than this machine's")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __contains__(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self._tensors

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the file's order."""
        return tuple(self._tensors)

    def nbytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes.

        Raises
        ------
        ModelError
            There is no such tensor.
        """
        return int(self._entry(name).n_bytes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, slowest dimension first.

        Raises
        ------
        ModelError
            There is no such tensor.
        """
        return tuple(int(n) for n in reversed(self._entry(name).shape))

    def tensor(
        self, name: str, shape: tuple[int, ...] | None = None, *, rows: NDArray[np.integer] | slice | None = None
    ) -> NDArray[np.float32]:
        """Return a tensor's values as float32, dequantised now. The array may be read-only.

        Parameters
        ----------
        name
            The tensor's name, for example ``blk.0.attn_q.weight``. Matrices are [out, in].
        shape
            The shape that the whole tensor must have.
        rows
            Which of the first dimension to read; all by default.

        Raises
        ------
        ModelError
            There is no such tensor, its shape differs, or its quantisation is not supported.
        """
        import gguf

        entry = self._entry(name)
        if shape is not None and self.shape(name) != shape:
            raise ModelError(f"{self.path}: tensor {name} has shape {self.shape(name)}, expected {shape}")
        data = np.asarray(entry.data if rows is None else entry.data[rows])
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # infinite scales of damaged blocks
                return np.asarray(gguf.dequantize(data, entry.tensor_type), np.float32)
        except NotImplementedError:
            kind = entry.tensor_type.name
            raise ModelError(f"{self.path}: tensor {name} is {kind}, which cannot be dequantised") from None
        except ValueError as error:
            raise ModelError(f"{self.path}: tensor {name} is damaged: {error}") from error

    def _entry(self, name: str) -> Any:
        if name not in self._tensors:
            raise ModelError(f"{self.path} has no tensor {name!r} among its {len(self._tensors)}")
        return self._tensors[name]


def _strict(reader: Any) -> Any:
    """Return a reader that does not read past the file's end.

    gguf's takes what is there: from an array whose length is damaged it can read nothing for hours.
    """

    class Strict(reader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, *others: Any, **named: Any) -> Any:
            got = super()._get(offset, dtype, count, *others, **named)
            if len(got) < count:
                raise ValueError(f"it ends before {count} values at byte {offset}")
            return got

    return Strict
