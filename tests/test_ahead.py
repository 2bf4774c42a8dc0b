from __future__ import annotations

from pathlib import Path

import pytest

import hipattn
from hipattn import ArgumentError, PlatformError, kernels
from hipattn.compiler.target import ARCHS
from hipattn.kernels import block_mask, scale
from hipattn.runtime import bindings

pytestmark = pytest.mark.rocm


def test_the_cache_is_filled(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIPATTN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HIPATTN_PLATFORM", bindings.platform().name)
    wanted = [scale.specialise("float16", 8), scale.specialise("float32", 4)]
    with bindings.record() as calls:
        first = hipattn.compile(arch, wanted)
    assert list(first) == ["scale_inplace_float16_block256_vector8", "scale_inplace_float32_block256_vector4"]
    assert [name for name, _ in calls].count("hiprtcCompileProgram") == 2
    with bindings.record() as calls:
        assert hipattn.compile(arch, wanted) == first
    assert not calls


@pytest.mark.parametrize("arch", ARCHS)
def test_every_family_has_defaults(arch: str) -> None:
    names = [specialisation.name for specialisation in kernels.defaults(arch)]
    assert len(set(names)) == len(names)
    without = [family for family in kernels.FAMILIES if not any(True for _ in family.defaults(arch))]
    assert without == [block_mask]  # each of its kernels has a user's expression


def test_every_kernel_module_is_a_family() -> None:
    folder = Path(kernels.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "def specialise(" in path.read_text()}
    assert {family.__name__.rpartition(".")[2] for family in kernels.FAMILIES} == modules


def test_the_simulator_s_code_is_not_compiled_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    if not bindings.platform().simulated:
        pytest.skip("there is a GPU or ROCm")
    monkeypatch.delenv("HIPATTN_PLATFORM", raising=False)
    with bindings.record() as calls, pytest.raises(PlatformError, match=r"no use to a gfx942; HIPATTN_PLATFORM=amd"):
        hipattn.compile("gfx942")
    assert not calls


def test_an_unknown_arch_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"arch is 'gfx1'; accepted: .*gfx1151"):
        hipattn.compile("gfx1")
