"""How decoding divides its work: tiles, and parts of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from hipattn.compiler.target import CHECKED_ARCHS, NVIDIA_ARCHS, lds_limit
from hipattn.kernels import flash_decode
from hipattn.kernels.division import set_divisor
from hipattn.kernels.flash_tiles import FLAG_BYTES, choose_decode, resident
from tests.helpers.tolerance import DTYPES


@pytest.mark.parametrize("arch", [*CHECKED_ARCHS, *NVIDIA_ARCHS])
def test_each_chip_has_tiles_for_heads_up_to_256(arch: str) -> None:
    for dtype, dim, rows in product(DTYPES, (1, 40, 64, 96, 128, 192, 256), (1, 7, 16, 17, 64, 1024)):
        tiles = choose_decode(arch, dtype.name, dim, dim, rows)
        assert tiles is not None
        assert tiles.lds_bytes + FLAG_BYTES <= lds_limit(arch)
        assert tiles.block_m <= 64
        many = choose_decode(arch, dtype.name, dim, dim, rows, splits=8)
        assert many is not None
        assert many.lds_bytes + FLAG_BYTES <= lds_limit(arch)
        assert -(-rows // many.block_m) == -(-rows // tiles.block_m)
        assert many.keys_on_the_way == tiles.keys_on_the_way  # or it would be split otherwise


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
    assert rings == {*product(("sm_80",), (64, 128), (False,)), *product(("sm_90",), (64, 128, 256), (False,))}
    assert set(layers.values()) == {"mma_nvidia.h", "mma_nvidia_ring.h"}


def test_smaller_tiles_where_many_blocks_share_the_keys() -> None:
    for dim, few, many in ((64, 128, 64), (128, 64, 32)):
        found = [choose_decode("sm_90", "float16", dim, dim, 4, splits=splits) for splits in (1, 3, 4, 256)]
        assert [tiles and tiles.block_n for tiles in found] == [few, few, many, many]


@dataclass(frozen=True)
class Chip:
    arch: str
    compute_units: int


CHIPS = [Chip("gfx942", 304), Chip("gfx1100", 48), Chip("sm_90", 132)]


@pytest.mark.parametrize("chip", CHIPS, ids=str)
def test_the_device_is_busy_whatever_the_batch(chip: Any) -> None:
    tiles = choose_decode(chip.arch, "float16", 128, 128, 4)
    assert tiles is not None
    room = chip.compute_units, resident(chip.arch, tiles)
    for batch, keys in product((1, 8, 32, 64, 1000), (1, 100, 2048, 131072)):
        blocks = batch * 8
        splits = flash_decode._splits(*room, blocks, 4, keys, tiles.keys_on_the_way, 512)
        assert 1 <= splits <= min(256, -(-keys // tiles.block_n))
        if keys == 131072:
            assert blocks * splits >= chip.compute_units
        if keys == 1:
            assert splits == 1


@pytest.mark.parametrize("chip", CHIPS, ids=str)
def test_few_blocks_are_not_left_to_the_last(chip: Any) -> None:
    tiles = choose_decode(chip.arch, "float16", 128, 128, 4)
    assert tiles is not None
    units, at_once = chip.compute_units, resident(chip.arch, tiles)
    for batch in range(1, 65):
        blocks = batch * 8 * flash_decode._splits(units, at_once, batch * 8, 4, 32768, tiles.keys_on_the_way, 512)
        turns = -(-blocks // (units * at_once))
        assert blocks > 0.7 * turns * units * at_once, batch


def test_how_many_blocks_have_room() -> None:
    def found(arch: str, dim: int, splits: int = 1, float8: bool = False) -> int:
        tiles = choose_decode(arch, "float16", dim, dim, 4, float8, splits)
        assert tiles is not None
        return resident(arch, tiles)

    assert found("sm_90", 128) == found("sm_90", 128, splits=32) == found("sm_90", 64, splits=32) == 2  # registers
    assert found("sm_90", 128, float8=True) == 4
    assert found("gfx942", 128) == 3  # 64 KB of LDS
    assert found("gfx942", 256) == found("gfx1100", 256) == 1


def test_division_by_a_product_and_a_shift() -> None:
    p = flash_decode.FlashDecodeParams()
    for divisor in (*range(1, 300), 65535, 65536, 65537, 2**31 - 1):
        set_divisor(p, "groups", divisor)
        near = {k * divisor + d for k in (0, 1, 2, 1000, (2**31 - 1) // divisor) for d in (-1, 0, 1)}
        for n in (*near, 2**31 - 2, 2**31 - 1):
            if 0 <= n < 2**31:
                assert n * p.groups_reciprocal >> p.groups_shift == n // divisor
                assert n * p.groups_reciprocal < 2**64
