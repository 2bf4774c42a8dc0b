"""How a flash kernel divides its work on a chip: the layer it is written over, tile sizes, waves, local memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hipattn.compiler.target import lds_limit

__all__ = ["Tiles", "choose"]

_PAD = 8  # elements after a row of 16-bit elements in local memory, kernels_src/include/tile_rows.h
_CDNA = ("gfx908", "gfx90a", "gfx942", "gfx950")


@dataclass(frozen=True)
class Tiles:
    """One way to divide the work.

    Attributes
    ----------
    layer : str
        The header of matrix operations that the kernel is compiled over.
    waves, wave_rows : int
        Waves of a block, query rows that each takes.
    block_n : int
        Keys of a tile.
    lds_bytes : int
        Local memory of a block.
    min_waves : int
        The second number of ``__launch_bounds__``: waves that a SIMD is to hold, which bounds their registers.
    matrix_rows : int
        Rows of a matrix instruction, where the chip has several.
    """

    layer: str
    waves: int
    wave_rows: int
    block_n: int
    lds_bytes: int
    min_waves: int = 1
    matrix_rows: int = 16

    @property
    def block_m(self) -> int:
        """Query rows of a block."""
        return self.waves * self.wave_rows


@lru_cache
def choose(arch: str, dtype: str, head_dim: int, value_dim: int) -> Tiles | None:
    """Return how to divide attention of these sizes on `arch`; None where a block's tiles do not fit the chip."""
    tiles = None
    if dtype != "float32" and arch in _CDNA:
        tiles = _cdna(arch, head_dim, value_dim)
    return tiles if tiles is not None and tiles.lds_bytes <= lds_limit(arch) else None


def _cdna(arch: str, head_dim: int, value_dim: int) -> Tiles:
    rows = 32
    block_n = 64 if max(head_dim, value_dim) <= 128 else 32
    step = 512 // rows
    k_row, v_columns = _up(head_dim, step) + _PAD, _up(value_dim, rows)
    lds = 2 * (block_n * k_row + v_columns * (block_n + _PAD))
    return Tiles("mma_cdna.h", 4, 32, block_n, lds, 2 if max(head_dim, value_dim) <= 128 else 1, rows)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
