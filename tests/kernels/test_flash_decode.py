"""How decoding divides its work: tiles, and parts of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from hipattn.compiler.target import CHECKED_ARCHS, NVIDIA_ARCHS, lds_limit
from hipattn.kernels import flash_decode
from hipattn.kernels.flash_tiles import FLAG_BYTES, choose_decode
from tests.helpers.tolerance import DTYPES


@pytest.mark.parametrize("arch", [*CHECKED_ARCHS, *NVIDIA_ARCHS])
def test_each_chip_has_tiles_for_heads_up_to_256(arch: str) -> None:
    for dtype, dim, rows in product(DTYPES, (1, 40, 64, 96, 128, 192, 256), (1, 7, 16, 17, 64, 1024)):
        tiles = choose_decode(arch, dtype.name, dim, dim, rows)
        assert tiles is not None
        assert tiles.lds_bytes + FLAG_BYTES <= lds_limit(arch)
        assert tiles.block_m <= 64


@pytest.mark.parametrize("arch", [*CHECKED_ARCHS, *NVIDIA_ARCHS])
@pytest.mark.parametrize("float8", [False, True])
def test_whether_heads_fit_does_not_depend_on_how_many_queries_there_are(arch: str, float8: bool) -> None:
    for dtype, dim, value_dim in product(DTYPES, (40, 256, 320, 512), (24, 256, 320, 512)):
        found = {choose_decode(arch, dtype.name, dim, value_dim, rows, float8) is None for rows in (1, 4, 17, 40, 512)}
        assert len(found) == 1


def test_a_ring_of_tiles_where_two_blocks_have_room() -> None:
    layers = {
        (arch, dim, float8): choose_decode(arch, "float16", dim, dim, 4, float8).layer  # type: ignore[union-attr]
        for arch, dim, float8 in product(("sm_80", "sm_86", "sm_90"), (64, 128, 256), (False, True))
    }
    rings = {key for key, layer in layers.items() if layer == "mma_nvidia_ring.h"}
    assert rings == {("sm_80", 64, False), *(("sm_90", dim, False) for dim in (64, 128, 256))}
    assert set(layers.values()) == {"mma_nvidia.h", "mma_nvidia_ring.h"}


@dataclass(frozen=True)
class Chip:
    arch: str
    compute_units: int


@pytest.mark.parametrize("chip", [Chip("gfx942", 304), Chip("gfx1100", 48), Chip("sm_90", 132)], ids=str)
def test_the_device_is_busy_whatever_the_batch(chip: Any) -> None:
    tiles = choose_decode(chip.arch, "float16", 128, 128, 4)
    assert tiles is not None
    for batch, keys in product((1, 8, 32, 64, 1000), (1, 100, 2048, 131072)):
        blocks = batch * 8
        splits = flash_decode._splits(chip.compute_units, blocks, 4, keys, tiles.keys_on_the_way, 512)
        assert 1 <= splits <= min(256, -(-keys // tiles.block_n))
        if keys == 131072:
            assert blocks * splits >= chip.compute_units
        if keys == 1:
            assert splits == 1
