"""What only AMD's own compiler can show, with the real hip-python over the real libhiprtc; no GPU is needed."""

from __future__ import annotations

import pytest

from hipattn.runtime import bindings


@pytest.fixture(scope="session", autouse=True)
def _amd_compiler() -> None:
    if bindings.platform().name != "amd":
        pytest.skip("needs ROCm's libhiprtc, which is not here or not chosen: .ci/rocm-root pytest -m rocm brings it")
