"""The layer over plain multiplications: divisions that only the largest heads get."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import Stream
from hipattn.kernels import flash_fwd
from hipattn.kernels.flash_tiles import Tiles
from tests.helpers.flash import check_flash
from tests.helpers.inputs import qkv


@pytest.mark.usefixtures("_fresh_plans")
@pytest.mark.parametrize("strip", [8, 16])
def test_a_block_of_the_fewest_rows(stream: Stream, monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    """One wave of one row a lane, as where q, k and v of a large head leave no room for more."""
    rows = stream.device.wave_size // 8
    k_row, v_row = 20 + 4 * (20 % 8 == 0), 32
    lds = 4 * (16 * (k_row + v_row) + rows * (k_row + strip + 8))
    smallest = Tiles("mma_fma.h", 1, rows, 16, lds)
    monkeypatch.setattr(flash_fwd, "choose", lambda *_: smallest)
    check_flash(stream, *qkv(1, 9, 35, 2, 1, 20, 24, np.float32), causal=True)
