"""A model's weights, from its file to the device."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from hipattn.models.weights import Weights
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["upload"]


def upload(weights: Weights, into: Mapping[str, DeviceTensor], *, stream: Stream) -> None:
    """Read every tensor of a file once, round it to its destination's dtype, and copy it there.

    On a terminal, a progress bar on stderr counts the file's bytes.

    Parameters
    ----------
    weights
        What the file holds.
    into
        A tensor for each name, all of one dtype; contiguous, of the weight's shape.
    stream
        Where the copies go. Synchronised.

    Raises
    ------
    ModelError
        A tensor holds NaN, infinity, or a number that the dtype cannot hold.
    HipError
        A copy fails.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"Loading {weights.file.path.name}", total=weights.nbytes)
        dtype = next(iter(into.values())).dtype
        for weight in weights.load(dtype):
            into[weight.name].copy_from(weight.array, stream=stream)
            progress.update(task, completed=weight.done)
