"""The README's examples, which run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
WHOLE = [example for example in EXAMPLES if "import numpy" in example]  # others show a line, or fetch a model


@pytest.mark.parametrize("example", WHOLE, ids=lambda example: re.findall(r"\w+", example.splitlines()[1])[-1])
def test_an_example_runs(example: str) -> None:
    exec(compile(example, str(README), "exec"), {})


def test_there_are_examples() -> None:
    assert len(WHOLE) == 3
