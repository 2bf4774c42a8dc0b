"""Pretrained models on the device. Needs ``pip install 'hipattn[models]'``.

::

    with hipattn.models.load("smollm2") as model:
        for piece in model.generate("What is the capital of France?"):
            print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
from typing import Any

import numpy.typing as npt

from hipattn.models import smollm2
from hipattn.models.llama import Llama
from hipattn.runtime.stream import Stream

__all__ = ["load"]


def load(
    name: str | os.PathLike[str],
    *,
    dtype: npt.DTypeLike | None = None,
    method: str = "auto",
    stream: Stream | None = None,
) -> Llama:
    """Return a model, its weights on the device.

    Parameters
    ----------
    name
        "smollm2", whose file is fetched on first use, or the path of a GGUF file of the llama architecture.
    dtype, method, stream
        See `Llama`.

    Raises
    ------
    ModelError
        The file cannot be fetched or read, or the model is not supported.
    HipError
        The device has too little memory.
    """
    options: Any = {"dtype": dtype, "method": method, "stream": stream}
    return smollm2.load(None if name == "smollm2" else name, **options)
