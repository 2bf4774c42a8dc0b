"""Devices and streams for all tests, and the check that no test leaves device memory behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import settings

# Read when hipattn is imported and first used.
os.environ.setdefault("HIPATTN_FALLBACK", "error")
os.environ.setdefault("HIPATTN_CPU_ARCH", "gfx942,gfx1100")  # a wave64 and a wave32 one
os.environ.setdefault("HIPATTN_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "hipattn"))

from hipattn import Device, Stream, free_scratch
from hipattn.attn import execute, options
from hipattn.kernels import flash_decode, flash_fwd
from hipattn.runtime import bindings, buffer

settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

DEVICES = [Device(index) for index in range(Device.count())]
# Compiling needs no device.
ARCHS = [device.arch for device in DEVICES] or {"nvidia": ["sm_80", "sm_90"]}.get(
    bindings.platform().name, ["gfx942", "gfx1100"]
)


@pytest.fixture(scope="session", params=DEVICES, ids=[device.arch for device in DEVICES])
def device(request: pytest.FixtureRequest) -> Device:
    """Each device of this machine in turn."""
    return request.param


@pytest.fixture(scope="session", params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    """Each architecture of this machine's devices in turn, or two where there is no device."""
    return request.param


@pytest.fixture
def stream(device: Device) -> Iterator[Stream]:
    """Return a new stream on the device."""
    with Stream(device) as stream:
        yield stream


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "grid" not in config.option.markexpr:
        grid = [item for item in items if item.get_closest_marker("grid")]
        items[:] = [item for item in items if not item.get_closest_marker("grid")]
        config.hook.pytest_deselected(items=grid)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True  # its traceback holds on to what it had
    return report


@pytest.fixture(autouse=True)
def _no_memory_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before, _ = buffer.live()
    yield
    if request.node.stash.get(FAILED, False):
        return
    free_scratch()
    if buffer.live()[0] > before:
        gc.collect()
    left, nbytes = buffer.live()
    assert left <= before, f"the test left {left - before} buffers, {nbytes} bytes in all, on the device"


@pytest.fixture
def fail() -> Callable[[str], AbstractContextManager[None]]:
    """Return the context in which simulated HIP calls fail: ``with fail("hipMalloc:2"): ...``."""
    if not bindings.platform().simulated:
        pytest.skip("only the simulator can be made to fail")
    from hipattn.platforms.cpu import control

    return control.failing


@pytest.fixture
def _fresh_plans() -> Iterator[None]:
    """Forget how calls of the fused kernels were planned, before a test and after it."""
    plans = flash_fwd.prepare, execute._prepared, flash_decode._plan, options.plan, options.plan_decode
    for plan in plans:
        plan.cache_clear()
    yield
    for plan in plans:
        plan.cache_clear()
