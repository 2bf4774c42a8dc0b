"""Every public name says what it is."""

from __future__ import annotations

import inspect

import pytest

import hipattn


def public() -> dict[str, object]:
    """Return what hipattn offers, and what its classes do, by name."""
    found: dict[str, object] = {}
    for name in hipattn.__all__:
        thing = found[name] = getattr(hipattn, name)
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            routine = isinstance(value, classmethod | staticmethod | property) or inspect.isfunction(value)
            if routine and not member.startswith("_"):
                found[f"{name}.{member}"] = value
    return found


@pytest.mark.parametrize("name", public())
def test_has_a_docstring(name: str) -> None:
    text = (public()[name].__doc__ or "").strip()
    assert text, f"hipattn.{name} has no docstring"
    first = text.splitlines()[0]
    assert first[-1] in ".:", f"hipattn.{name}'s docstring does not begin with a sentence: {first}"
