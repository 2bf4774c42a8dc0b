"""How a flash kernel divides its work on a chip: the layer it is written over, tile sizes, waves, local memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from hipattn.compiler.occupancy import waves_per_simd
from hipattn.compiler.target import ARCHS, NVIDIA_ARCHS, lds_limit, wave_size

__all__ = ["FLAG_BYTES", "Tiles", "choose", "choose_decode", "resident"]

FLAG_BYTES = 16  # of local memory that the kernel takes beside the tiles
_NVIDIA_TAKEN = 1024 + FLAG_BYTES  # of local memory, for a block, beside its tiles
_PAD = 8  # elements after a row of 16-bit elements in local memory, kernels_src/include/tile_rows.h
_NO_MATRICES = tuple(arch for arch in ARCHS if arch.startswith(("gfx90", "gfx10")) and arch not in ("gfx908", "gfx90a"))
_CDNA = ("gfx908", "gfx90a", "gfx942", "gfx950")
_RDNA3 = ("gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153")
_RDNA4 = ("gfx1200", "gfx1201")


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
        Local memory of a block's tiles.
    min_waves : int
        The second number of ``__launch_bounds__``: waves that a SIMD is to hold, which bounds their registers.
    matrix_rows : int
        Rows of a matrix instruction, where the chip has several.
    key_lanes : int
        Lanes of a wave that share a row, where there are no matrix instructions.
    row_waves : int or None
        How many waves have rows, if not all: the others only bring keys.
    stages : int
        Tiles of keys that a block has room for.
    """

    layer: str
    waves: int
    wave_rows: int
    block_n: int
    lds_bytes: int
    min_waves: int = 1
    matrix_rows: int = 16
    key_lanes: int = 8
    row_waves: int | None = None
    stages: int = 1

    @property
    def block_m(self) -> int:
        """Query rows of a block."""
        return (self.row_waves or self.waves) * self.wave_rows

    @property
    def keys_on_the_way(self) -> int:
        """Keys that a block waits for while it computes, or else where it has one tile."""
        return max(1, self.stages - 1) * self.block_n


@lru_cache
def choose(arch: str, dtype: str, head_dim: int, value_dim: int) -> Tiles | None:
    """Return how to divide attention of these sizes on `arch`; None where a block's tiles do not fit the chip."""
    tiles = None
    if dtype != "float32" and arch in _CDNA:
        tiles = _cdna(arch, head_dim, value_dim)
    elif dtype != "float32" and arch in _RDNA3 + _RDNA4:
        tiles = _rdna(arch, head_dim, value_dim)
    elif dtype != "float32" and arch in NVIDIA_ARCHS:
        tiles = _nvidia(arch, head_dim, value_dim)
    elif arch in NVIDIA_ARCHS:
        tiles = _nvidia_float(arch, head_dim, value_dim) or _fma(arch, head_dim, value_dim)
    elif dtype == "float32" or arch in _NO_MATRICES:
        tiles = _fma(arch, head_dim, value_dim)
    return tiles if tiles is not None and tiles.lds_bytes + FLAG_BYTES <= lds_limit(arch) else None


@lru_cache
def choose_decode(
    arch: str, dtype: str, head_dim: int, value_dim: int, rows: int, float8: bool = False, splits: int = 1
) -> Tiles | None:
    """Return how to divide attention of few queries, `rows` with those of all heads that read the same keys.

    `float8`: keys and values are stored in 8 bits. `splits`: among how many blocks a sequence's keys are split.

    A wave takes the fewest rows that there is an instruction for. A block has no more waves than the rows need, as what
    keeps the memory busy are many blocks; or some that have no rows and only bring keys, where that is worth their
    registers. None where a block's tiles do not fit the chip.
    """
    largest, tiles = max(head_dim, value_dim), None
    waves = 1 if rows <= 16 else 2 if rows <= 32 else 4
    if dtype != "float32" and arch in _CDNA:
        block_n = 64 if largest <= (128 if arch == "gfx950" else 64) else 32
        tiles = _cdna_tiles(head_dim, value_dim, waves, 16, block_n, 16, 1 if waves < 4 else 2, overlapped=False)
    elif dtype != "float32" and arch in _RDNA3 + _RDNA4:
        # More waves share what is on its way to local memory, where few have no registers for it.
        row_waves = waves
        if largest > 128:
            waves = 16 if arch in _RDNA3 and largest > 192 else 8
        elif largest > 64:
            waves = 4 if arch in _RDNA3 else max(waves, 2)
        tiles = _rdna_tiles(arch, head_dim, value_dim, waves, 16, row_waves)
        while row_waves > 1 and tiles.lds_bytes + FLAG_BYTES > lds_limit(arch):
            row_waves //= 2
            tiles = _rdna_tiles(arch, head_dim, value_dim, waves, 16, row_waves)
    elif dtype != "float32" and arch in NVIDIA_ARCHS:
        tiles = _nvidia_decode(arch, head_dim, value_dim, waves, float8, splits)
    elif dtype == "float32" or arch in _NO_MATRICES:
        tiles = _fma(arch, head_dim, value_dim, rows) or _fma(arch, head_dim, value_dim)
    return tiles if tiles is not None and tiles.lds_bytes + FLAG_BYTES <= lds_limit(arch) else None


def resident(arch: str, tiles: Tiles) -> int:
    """Return for how many blocks a compute unit has room, if a lane has 256 registers.

    Compute units are those that HIP counts: from gfx10 on, pairs that share local memory.
    """
    if arch in NVIDIA_ARCHS:
        return max(1, min(_resident(arch, tiles), 8 // tiles.waves))
    lds, threads = tiles.lds_bytes + FLAG_BYTES, tiles.waves * wave_size(arch)
    return max(1, int(waves_per_simd(arch, threads=threads, vgprs=256, sgprs=100, lds=lds) * 4) // tiles.waves)


def _cdna(arch: str, head_dim: int, value_dim: int) -> Tiles:
    largest = max(head_dim, value_dim)
    waves, rows, block_n, min_waves = 4, 32, 32, 2
    if largest > 192:  # fewer queries a wave, or their sums would not fit its registers
        waves, rows, min_waves = (8, 16, 2) if largest <= 256 and arch != "gfx908" else (4, 16, 1)
    elif largest > 128 or (largest > 64 and arch == "gfx908"):
        min_waves = 1
    elif arch == "gfx950" or (arch == "gfx942" and largest <= 64):
        block_n = 64
    overlapped = arch == "gfx942" and 64 < largest <= 128
    return _cdna_tiles(head_dim, value_dim, waves, rows, block_n, rows, min_waves, overlapped)


def _cdna_tiles(
    head_dim: int,
    value_dim: int,
    waves: int,
    wave_rows: int,
    block_n: int,
    matrix_rows: int,
    min_waves: int,
    overlapped: bool,
) -> Tiles:
    k_row, v_columns = _up(head_dim, 512 // matrix_rows) + _PAD, _up(value_dim, matrix_rows)
    lds = 2 * (block_n * k_row + v_columns * (block_n + _PAD))
    layer = "mma_cdna_overlap.h" if overlapped else "mma_cdna.h"
    return Tiles(layer, waves, wave_rows, block_n, lds, min_waves, matrix_rows)


def _rdna(arch: str, head_dim: int, value_dim: int) -> Tiles:
    held = 128 if arch in _RDNA3 else 192
    largest = max(head_dim, value_dim)
    waves, block_n = (8, 64) if largest <= 64 else (8, 32) if largest <= held else (4, 16)
    return _rdna_tiles(arch, head_dim, value_dim, waves, block_n)


def _rdna_tiles(
    arch: str, head_dim: int, value_dim: int, waves: int, block_n: int, row_waves: int | None = None
) -> Tiles:
    k_row, v_columns = _up(head_dim, 16) + _PAD, _up(value_dim, 16)
    lds = 2 * (block_n * k_row + v_columns * (block_n + _PAD))
    if head_dim > (128 if arch in _RDNA3 else 192):  # the queries are in local memory
        lds += 2 * (row_waves or waves) * 16 * k_row
    layer = "mma_rdna3.h" if arch in _RDNA3 else "mma_rdna4.h"
    return Tiles(layer, waves, 16, block_n, lds, row_waves=row_waves)


def _nvidia(arch: str, head_dim: int, value_dim: int) -> Tiles | None:
    largest = max(head_dim, value_dim)
    if arch == "sm_90" and largest <= 256:
        waves = 4 if largest <= 128 else 8
        lds = 2 * (2 * 64 * (_up(head_dim, 64) + _up(value_dim, 64)) + waves * 16 * _up(head_dim, 64))
        return Tiles("mma_hopper.h", waves, 16, 64, lds, 4 if largest <= 64 else 2)
    for block_n in (64, 32, 16):
        tiles = _nvidia_tiles(head_dim, value_dim, 4, 32 if largest <= 128 else 16, block_n)
        if tiles.lds_bytes + FLAG_BYTES <= lds_limit(arch):
            return tiles
    return None


def _nvidia_decode(arch: str, head_dim: int, value_dim: int, row_waves: int, float8: bool, splits: int) -> Tiles:
    """For `row_waves` waves of rows. Blocks of a multiprocessor count most: without two of them it often waits."""
    largest = max(head_dim, value_dim)
    if not float8:
        # 32 KB of keys and values on the way, the fastest on an H100; so were the waves, which bring them together.
        # More are slower: they come by way of L1, which has what local memory leaves. Smaller tiles begin and end a
        # walk sooner, which counts where several blocks share the keys; a long walk takes 1 % longer with them, and
        # with heads of 64, 20 %.
        rings = [(2, 128, 2), (4, 64, 3)]
        if largest > 64:
            rings = [(4, 64, 2), (4, 32, 3)] if largest <= 128 else [(4, 16, 3)]
        for waves, block_n, stages in rings if splits < 4 else rings[-1:]:
            ring = _nvidia_tiles(head_dim, value_dim, max(waves, row_waves), 16, block_n, stages=stages)
            if _resident(arch, ring) >= 2:
                return ring
    block_n = 64 if largest <= 128 else 32
    choices = [_nvidia_tiles(head_dim, value_dim, waves, 16, block_n, float8=float8) for waves in (1, 2, 4)]
    enough = [tiles for tiles in choices if tiles.waves >= row_waves and _resident(arch, tiles)]
    return max(enough or choices[:1], key=lambda tiles: (_resident(arch, tiles), tiles.waves))


def _resident(arch: str, tiles: Tiles) -> int:
    """Return for how many blocks a multiprocessor of NVIDIA's has memory."""
    return (lds_limit(arch) + _NVIDIA_TAKEN) // (tiles.lds_bytes + _NVIDIA_TAKEN)


def _nvidia_tiles(
    head_dim: int,
    value_dim: int,
    waves: int,
    wave_rows: int,
    block_n: int,
    *,
    stages: int = 1,
    float8: bool = False,
) -> Tiles:
    q_row, v_row = _up(head_dim, 16) + _PAD, _up(value_dim, 16) + _PAD
    lds = 2 * (stages * block_n * (q_row + v_row) + waves * wave_rows * q_row)
    if float8:  # what is not converted yet
        lds += block_n * (q_row + v_row - 2 * _PAD)
    layer = "mma_nvidia.h" if stages == 1 else "mma_nvidia_ring.h"
    return Tiles(layer, waves, wave_rows, block_n, lds, stages=stages)


def _nvidia_float(arch: str, head_dim: int, value_dim: int) -> Tiles | None:
    """Of what fits, the division of which eight waves find room on a multiprocessor, or most of them."""
    largest = max(head_dim, value_dim)
    if largest > 256:  # its sums would not fit a wave's registers
        return None
    rows = 32 if largest <= 128 else 16
    divisions = ((4, 32), (8, 32), (4, 16), (2, 16), (1, 16))  # the first of equals was the fastest on an H100
    choices = [_nvidia_float_tiles(head_dim, value_dim, waves, rows, block_n) for waves, block_n in divisions]
    best = max(choices, key=lambda tiles: min(8, _resident(arch, tiles) * tiles.waves))
    return best if _resident(arch, best) else None


def _nvidia_float_tiles(head_dim: int, value_dim: int, waves: int, wave_rows: int, block_n: int) -> Tiles:
    qk_row, v_row = _up(head_dim, 16), _up(value_dim, 16) + 4
    qk_row += 0 if qk_row % 32 else 16
    lds = 4 * (block_n * (qk_row + v_row) + waves * wave_rows * qk_row)
    return Tiles("mma_nvidia_float.h", waves, wave_rows, block_n, lds)


def _fma(arch: str, head_dim: int, value_dim: int, few_rows: int | None = None) -> Tiles | None:
    """For ``mma_fma.h``: of what keeps a compute unit busy, the division with the fewest reads of local memory.

    With `few_rows`, of a block that is no larger than they need, up to 64.
    """
    lanes, limit, nvidia = wave_size(arch), lds_limit(arch), arch in NVIDIA_ARCHS
    enough = 8 if nvidia else 4  # waves of a compute unit
    taken = _NVIDIA_TAKEN if nvidia else FLAG_BYTES
    # Of a lane, by the count below: what compilers were seen to hold without spilling, of 255 or more.
    most_registers = 176 if lanes == 32 and not nvidia else 244
    k_row = _up(head_dim, 4)
    k_row += 0 if k_row % 8 else 4
    best, found = None, (0, 0.0)
    widths = (8, 16) if nvidia and few_rows is None else (8,)  # lanes that share a row
    # The first of equals: two blocks of four waves keep each other busy at their barriers.
    for width, waves, strip, rows, keys in product(widths, (4, 8, 2, 1), (64, 32, 16, 8), (8, 4, 2, 1), (8, 4, 2, 1)):
        v_row = _up(value_dim, 4 * width)
        block_m, block_n, columns = waves * rows * lanes // width, width * keys, v_row // width
        lds = 4 * (block_n * (k_row + v_row) + block_m * (k_row + strip + 8))
        # Scores, sums, maximum and sum of a row; four elements of each row and key; what is on its way to LDS.
        registers = rows * (keys + columns + 2) + 4 * (rows + keys)
        registers += 0 if nvidia else block_n * max(k_row, v_row) // (waves * lanes)
        if block_n % strip or strip % width or lds + FLAG_BYTES > limit or registers > most_registers:
            continue
        if few_rows is not None and (waves > 1 or rows > 1) and block_m > min(64, _power_of_two(few_rows)):
            continue
        resident = min((limit + taken) // (lds + taken) * waves, enough)
        reads = head_dim * (1 / rows + 1 / keys) + value_dim * (1 / rows + 1 / columns)
        quality = resident, -reads
        if best is None or quality > found:
            best, found = Tiles("mma_fma.h", waves, rows * lanes // width, block_n, lds, key_lanes=width), quality
    return best


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
