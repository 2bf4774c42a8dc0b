"""``hipattn info``: what hipattn runs on here, and why."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from hipattn import config
from hipattn.cli.output import Commands, size
from hipattn.compiler.cache import DiskCache
from hipattn.compiler.program import hiprtc_version
from hipattn.errors import PlatformError
from hipattn.runtime import Device, bindings

__all__ = ["Situation", "add_to", "look", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "info",
        help="platform, devices, versions, cache",
        description="Say what hipattn runs on here, and why. The exit status is 1 if nothing can run.",
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    set_here = variables()  # before the cpu platform sets some for its libraries
    situation = look()
    facts = {
        "versions": versions(situation),
        "platform": situation.platform,
        "reason": situation.reason,
        "advice": situation.advice,
        "devices": [describe(device) for device in situation.devices],
        "cache": cache(),
        "variables": set_here,
    }
    print(json.dumps(facts, indent=2) if arguments.json else _text(facts))
    return 0 if situation.devices else 1


@dataclass(frozen=True)
class Situation:
    """What there is to run on, and why that: `platform` is None if none can be used, `advice` names what to set."""

    platform: str | None
    reason: str
    advice: str = ""
    devices: list[Device] = field(default_factory=list)


_WITHOUT_GPU = {
    "amd": "HIPATTN_PLATFORM=amd compiles for one (with ROCm; ROCM_PATH names where it is)",
    "cpu": "HIPATTN_PLATFORM=cpu simulates one (with pip install 'hipattn[cpu]')",
}


def _advice() -> str:
    """Name what else can be set."""
    chosen = config.get("HIPATTN_PLATFORM")
    return "without a GPU, " + " and ".join(text for name, text in _WITHOUT_GPU.items() if name != chosen)


def look() -> Situation:
    """Choose the platform as any use of hipattn does, and find its devices."""
    try:
        with _without_warnings():  # the reason is printed anyway
            platform = bindings.platform()
    except PlatformError as error:
        return Situation(None, str(error), _advice())
    devices = [Device(index) for index in range(Device.count())]
    by_default = platform.simulated and config.get("HIPATTN_PLATFORM") == "auto"
    return Situation(platform.name, platform.reason, _advice() if by_default or not devices else "", devices)


def versions(situation: Situation) -> dict[str, str | None]:
    """Return the versions of hipattn and of what it stands on."""
    hiprtc = hiprtc_version() if situation.platform else None
    return {"hipattn": version("hipattn"), "hip-python": version("hip-python"), "hiprtc": hiprtc}


def describe(device: Device) -> dict[str, Any]:
    """Return what kernels are made to fit."""
    return {
        "index": device.index,
        "name": device.name,
        "arch": device.arch,
        "simulated": device.simulated,
        "wave_size": device.wave_size,
        "lds_bytes": device.lds_bytes,
        "compute_units": device.compute_units,
        "total_memory": device.total_memory,
    }


def cache() -> dict[str, Any]:
    """Return where compiled kernels are, how many, and their size in bytes."""
    files = DiskCache().files()
    return {"folder": str(DiskCache().folder), "kernels": len(files), "bytes": sum(f.stat().st_size for f in files)}


def variables() -> dict[str, str]:
    """Return the HIPATTN_* variables that are set."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith("HIPATTN_")}


def _text(facts: dict[str, Any]) -> str:
    none = "none" if facts["platform"] is None else "none: there is no AMD GPU; kernels can be compiled, not run"
    kept = facts["cache"]
    lines = [
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)),
        ("platform", f"{facts['platform'] or 'none'}: {facts['reason']}"),
        ("", facts["advice"]),
        *(("device", text) for text in [_device(device) for device in facts["devices"]] or [none]),
        ("cache", f"{kept['folder']}: {kept['kernels']} kernels, {size(kept['bytes'])}"),
        *(("variable", f"{name}={value}{_unknown(name)}") for name, value in facts["variables"].items()),
    ]
    return "\n".join(f"{name:10}{text}" for name, text in lines if text)


def _device(facts: dict[str, Any]) -> str:
    return (
        f"{facts['index']}: {facts['name']}, {facts['arch']}, waves of {facts['wave_size']}, "
        f"{size(facts['lds_bytes'])} LDS, {facts['compute_units']} compute units, {size(facts['total_memory'])} memory"
    )


def _unknown(name: str) -> str:
    return "" if name in config.VARIABLES else " (hipattn has no such variable)"


@contextmanager
def _without_warnings() -> Iterator[None]:
    log = logging.getLogger("hipattn")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
