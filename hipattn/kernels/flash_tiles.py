"""How a flash kernel divides its work on a chip: the layer it is written over, tile sizes, waves, local memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hipattn.compiler.target import ARCHS, lds_limit, wave_size

__all__ = ["Tiles", "choose"]

_PAD = 8  # elements after a row of 16-bit elements in local memory, kernels_src/include/tile_rows.h
_NO_MATRICES = tuple(arch for arch in ARCHS if arch.startswith(("gfx90", "gfx10")) and arch not in ("gfx908", "gfx90a"))
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
    elif dtype == "float32" or arch in _NO_MATRICES:
        tiles = _fma(arch, head_dim, value_dim)
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


def _fma(arch: str, head_dim: int, value_dim: int) -> Tiles | None:
    """For ``mma_fma.h``: the first that fits; a lane takes `rows` x `keys` scores, `strip` keys' weights wait at once."""
    k_row, v_row = _up(head_dim, 4), _up(value_dim, 32)
    k_row += 0 if k_row % 8 else 4
    row_lanes = wave_size(arch) // 8
    for waves, rows, keys, strip in ((4, 128 // 4 // row_lanes, 4, 16), (4, 1, 2, 16), (4, 1, 1, 8), (2, 1, 1, 8), (1, 1, 1, 8)):
        block_m, block_n = waves * rows * row_lanes, 8 * keys
        lds = 4 * (block_n * (k_row + v_row) + block_m * (k_row + strip + 8))
        if lds <= lds_limit(arch) - 64:
            return Tiles("mma_fma.h", waves, rows * row_lanes, block_n, lds)
    return None
