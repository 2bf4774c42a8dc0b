"""``hipattn embed``: a sentence-embedding model over the lines of a text."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from hipattn import models
from hipattn.cli.models import add_platform_and_dtype, apply
from hipattn.cli.output import Commands, console
from hipattn.errors import ArgumentError
from hipattn.models.similarity import closest_pairs

__all__ = ["add_to", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "embed",
        help="find the most similar lines of a text",
        description="Embed each line of a text with all-MiniLM-L6-v2, which is fetched at first use, or another BERT "
        "encoder, and print the pairs of lines that are most alike. How long it took goes to stderr.",
    )
    parser.add_argument("file", metavar="FILE", help="UTF-8; blank lines are skipped; -: stdin")
    parser.add_argument("--pairs", type=int, default=10, help="how many pairs to print (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.npy", help="write the embeddings: float32, a row a line")
    parser.add_argument(
        "--model",
        default="minilm",
        help="minilm, or a folder with config.json, tokenizer.json and model.safetensors (default: %(default)s)",
    )
    add_platform_and_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Embed."""
    apply(arguments)
    if arguments.pairs < 0:
        raise ArgumentError(f"--pairs is {arguments.pairs}; it takes 0 or more")
    if arguments.output is not None and not arguments.output.parent.is_dir():
        raise ArgumentError(f"--output is {arguments.output}; there is no folder {arguments.output.parent}")
    lines = _lines(arguments.file)
    if arguments.model != "minilm" and not Path(arguments.model).is_dir():
        raise ArgumentError(f"--model is {arguments.model}; there is no such folder, and minilm is the only name")
    with models.load(arguments.model, dtype=arguments.dtype) as model:
        for number, line in lines.items():
            model.tokenizer.encode(line, f"line {number} of {arguments.file}")  # raises if it is too long
        start = time.perf_counter()
        embeddings = model.embed(list(lines.values()))
        seconds = time.perf_counter() - start
        device = model.stream.device.name
    if arguments.output is not None:
        _write(arguments.output, embeddings)
    if arguments.pairs and len(lines) > 1:
        console().print(_table(list(lines.items()), embeddings, arguments.pairs))
    print(f"{len(lines)} lines in {seconds:.2f} s, {len(lines) / seconds:.1f} lines/s, {device}", file=sys.stderr)
    return 0


def _lines(file: str) -> dict[int, str]:
    """Return the lines that are not blank, by their numbers."""
    try:
        text = (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except OSError as error:
        raise ArgumentError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise ArgumentError(f"{file} has no text")
    return lines


def _write(path: Path, embeddings: npt.NDArray[np.float32]) -> None:
    try:
        with path.open("wb") as file:  # np.save would append ".npy" to a path
            np.save(file, embeddings)
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror}") from error


def _table(lines: Sequence[tuple[int, str]], embeddings: npt.NDArray[np.float32], count: int) -> Table:
    table = Table("cosine", "line", "", "line", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (0, 1, 3):
        table.columns[column].justify = "right"
    for pair in closest_pairs(embeddings, count):
        (first, one), (second, other) = lines[pair.first], lines[pair.second]
        table.add_row(f"{pair.cosine:.3f}", str(first), one, str(second), other)
    return table
