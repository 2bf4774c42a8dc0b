"""Devices, streams, events, memory, modules and BLAS, each a thin object over hip-python."""

from hipattn.runtime.blas import Blas
from hipattn.runtime.buffer import DeviceBuffer
from hipattn.runtime.device import Device
from hipattn.runtime.event import Event
from hipattn.runtime.graph import Graph
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig, Module
from hipattn.runtime.stream import Stream

__all__ = [
    "Arguments",
    "Blas",
    "Device",
    "DeviceBuffer",
    "Event",
    "Graph",
    "Kernel",
    "LaunchConfig",
    "Module",
    "Stream",
]
