"""Checks of arguments: each returns the value, or raises an error that says the name, what it got and what it takes."""

from __future__ import annotations

import math
import operator
from typing import Any, TypeVar

import numpy as np

from hipattn.errors import ArgumentError

__all__ = ["boolean", "instance", "integer", "number"]

T = TypeVar("T")


def integer(name: str, value: Any, least: int = 0) -> int:
    """Return an integer (Python's or NumPy's) of at least `least`.

    Raises
    ------
    ArgumentError
        It is something else.
    """
    if type(value) is int and value >= least:
        return value  # in nearly all calls
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ArgumentError(f"{name} is {value!r}; it takes an integer of {least} or more")
    return number


def number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises
    ------
    ArgumentError
        It is something else.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
    raise ArgumentError(f"{name} is {value!r}; it takes a finite number")


def boolean(name: str, value: Any) -> bool:
    """Return a bool (Python's or NumPy's).

    Raises
    ------
    ArgumentError
        It is something else.
    """
    if type(value) is bool:
        return value
    if not isinstance(value, np.bool_):
        raise ArgumentError(f"{name} is {value!r}; it takes True or False")
    return bool(value)


def instance(name: str, value: Any, kind: type[T], hint: str = "") -> T:
    """Return an object of a class.

    Raises
    ------
    ArgumentError
        It is of another; the message adds `hint`.
    """
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} is {_what(value)}; it takes a {kind.__name__}{hint}")
    return value


def _what(value: Any) -> str:
    return "None" if value is None else type(value).__name__
