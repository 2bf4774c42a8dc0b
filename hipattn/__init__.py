"""Attention for AMD GPUs from Python, compiled at run time.

``hipattn.attention(q, k, v, causal=True)`` is the front door; `HipAttentionKernels` offers its stages one by one,
`KVCache` and `PagedKVCache` keep keys and values between calls, `ExecutionPlan` runs whole layers and `models`
pretrained models, and `Device`, `Stream`, `DeviceTensor` manage the GPU underneath.
"""

from importlib.metadata import version

from hipattn import models
from hipattn.ahead import compile  # noqa: A004
from hipattn.attn.decode import attention_decode
from hipattn.attn.functional import attention, free_scratch
from hipattn.attn.kv_cache import KVCache
from hipattn.attn.paged_cache import PagedKVCache
from hipattn.attn.staged import HipAttentionKernels
from hipattn.attn.varlen import attention_varlen
from hipattn.compat import flash_attn_func, flash_attn_varlen_func, scaled_dot_product_attention
from hipattn.errors import (
    ArgumentError,
    CacheFullError,
    ClosedError,
    CodeObjectError,
    CompileError,
    ConfigError,
    HipattnError,
    HipError,
    OutOfPagesError,
    PlatformError,
)
from hipattn.kernels.mods import MaskMod, ScoreMod
from hipattn.layers import LayerSpec, LayerWeights, Rope
from hipattn.paged_plan import PagedPlan
from hipattn.plan import ExecutionPlan
from hipattn.runtime import Blas, Device, DeviceBuffer, Event, Graph, Kernel, LaunchConfig, Module, Stream
from hipattn.tensor import DeviceTensor

__version__ = version("hipattn")

__all__ = [
    "ArgumentError",
    "Blas",
    "CacheFullError",
    "ClosedError",
    "CodeObjectError",
    "CompileError",
    "ConfigError",
    "Device",
    "DeviceBuffer",
    "DeviceTensor",
    "Event",
    "ExecutionPlan",
    "Graph",
    "HipAttentionKernels",
    "HipError",
    "HipattnError",
    "KVCache",
    "Kernel",
    "LaunchConfig",
    "LayerSpec",
    "LayerWeights",
    "MaskMod",
    "Module",
    "OutOfPagesError",
    "PagedKVCache",
    "PagedPlan",
    "PlatformError",
    "Rope",
    "ScoreMod",
    "Stream",
    "attention",
    "attention_decode",
    "attention_varlen",
    "compile",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "free_scratch",
    "models",
    "scaled_dot_product_attention",
]
