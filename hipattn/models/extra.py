"""Name the extra to install when one of its libraries is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hipattn.errors import ModelError

__all__ = ["models_extra"]


@contextmanager
def models_extra() -> Iterator[None]:
    """Guard the import of an optional library.

    Raises
    ------
    ModelError
        The library that is imported inside is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed: pip install 'hipattn[models]'") from error
