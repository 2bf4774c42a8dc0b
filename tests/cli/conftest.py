"""The tiny model."""

from tests.models.conftest import make_gguf

__all__ = ["make_gguf"]
