"""How tensors are seen as rows, and rows shared among threads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipattn.errors import ArgumentError
from hipattn.kernels.rows import BLOCK, MAX_BLOCKS, Rows, as_rows, joined, power_of_two, share, vector_width


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), Rows(1, 1, 0)),
        ((7,), (1,), Rows(1, 7, 0)),
        ((3, 7), (7, 1), Rows(3, 7, 7)),
        ((3, 7), (10, 1), Rows(3, 7, 10)),
        ((2, 3, 7), (30, 10, 1), Rows(6, 7, 10)),
        ((2, 1, 7), (30, 999, 1), Rows(2, 7, 30)),
        ((3, 1), (5, 999), Rows(3, 1, 5)),
        ((3, 0), (5, 1), Rows(3, 0, 0)),
        ((0, 4), (5, 1), Rows(0, 4, 0)),
    ],
)
def test_as_rows(shape: tuple[int, ...], strides: tuple[int, ...], expected: Rows) -> None:
    assert as_rows("x", shape, strides) == expected


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((3, 7), (7, 2)), ((2, 3, 7), (31, 10, 1)), ((3, 7), (0, 1)), ((3, 7), (6, 1)), ((2, 3, 7), (0, 7, 1))],
)
def test_as_rows_refuses(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"scores has .*strides"):
        as_rows("scores", shape, strides)


def test_joined_only_if_all_are_contiguous() -> None:
    contiguous, padded = Rows(3, 7, 7), Rows(3, 7, 8)
    assert joined(contiguous, contiguous) == (Rows(1, 21, 0), Rows(1, 21, 0))
    assert joined(contiguous, padded) == (contiguous, padded)


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ([(0, 4, (8,))], 4),
        ([(0, 2, (8,))], 8),
        ([(0, 4, (8,)), (0, 2, (8,))], 4),
        ([(0, 4, (7,))], 1),
        ([(0, 4, (6,))], 2),
        ([(8, 4, (8,))], 2),
        ([(2, 2, (8,))], 1),
        ([(0, 4, (8,)), (6, 2, (8,))], 1),
        ([(0, 4, (0,))], 4),
    ],
)
def test_vector_width(operands: list[tuple[int, int, tuple[int, ...]]], expected: int) -> None:
    assert vector_width(*operands) == expected


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.sampled_from([1, 2, 4, 8]))
def test_share_fits_a_grid(rows: int, columns: int, vector: int) -> None:
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    (blocks, _, _), (threads, _, _) = config.grid, config.block
    assert threads == BLOCK
    assert BLOCK % 2**row_shift == 0
    assert blocks <= MAX_BLOCKS
    assert blocks % blocks_per_row == 0
    # No block is without work.
    assert (blocks_per_row - 1) * 2**row_shift * vector < columns
    assert (blocks // blocks_per_row - 1) * (BLOCK >> row_shift) < rows


def test_power_of_two() -> None:
    assert [power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1000, 1024)] == [1, 1, 2, 4, 4, 8, 1024, 1024]
