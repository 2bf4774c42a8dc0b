"""Arithmetic of shapes and strides, in elements."""

from __future__ import annotations

__all__ = ["overlaps", "row_major", "span"]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous array of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements lie between the first and the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether two elements may share memory: a stride does not step over what the smaller ones span."""
    extent = 1
    for step, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if step < extent:
                return True
            extent += (size - 1) * step
    return False
