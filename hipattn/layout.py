"""Arithmetic of shapes and strides, in elements. What every call asks is remembered."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["broadcast", "is_row_major", "overlaps", "permuted", "row_major", "span"]


@lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous array of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@lru_cache(maxsize=4096)
def is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements lie row-major without gaps."""
    expected = row_major(shape)
    return 0 in shape or all(
        size == 1 or step == want for size, step, want in zip(shape, strides, expected, strict=True)
    )


@lru_cache(maxsize=4096)
def permuted(
    shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return shape and strides with the axes in another order. None if `axes` is no permutation."""
    if sorted(axes) != list(range(len(shape))):
        return None
    return tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes)


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements lie between the first and the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


@lru_cache(maxsize=4096)
def broadcast(shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the strides with which an array is seen in the shape `wanted`: 0 where it repeats. None if it does not."""
    new = len(wanted) - len(shape)
    old = (1,) * new + shape
    if new < 0 or any(size not in (1, want) for size, want in zip(old, wanted, strict=True)):
        return None
    steps = (0,) * new + strides
    return tuple(step if size == want else 0 for step, size, want in zip(steps, old, wanted, strict=True))


def overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether two elements may share memory: a stride does not step over what the smaller ones span."""
    extent = 1
    for step, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if step < extent:
                return True
            extent += (size - 1) * step
    return False
