"""The fused kernel through attention(), into a guarded output, against float64.

The devices are those of `HIPATTN_CPU_ARCH` on the cpu platform, otherwise this machine's: see tests/conftest.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import DeviceTensor, Stream
from hipattn.attn import reference
from hipattn.attn.functional import fallback
from hipattn.kernels import flash_fwd
from tests.helpers.features import of_reference
from tests.helpers.framed import Framed
from tests.helpers.inputs import Array, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import attention_bound

__all__ = ["Expected", "check_flash", "flash", "skip_unless_served"]


def skip_unless_served(stream: Stream, dtype: Any, head_dim: int, value_dim: int | None = None) -> None:
    """Skip what does not fit the chip."""
    refused = flash_fwd.supports(stream.device, np.dtype(dtype), head_dim, value_dim or head_dim)
    if refused:
        pytest.skip(refused)


def flash(
    stream: Stream, q: Any, k: Any, v: Any, *, layout: str = "bshd", return_lse: bool = True, **options: Any
) -> tuple[Array, Array | None]:
    """Compute attention with the fused kernel, the operands on the device, into a guarded output full of NaN."""
    tensors = [x if isinstance(x, DeviceTensor) else upload(stream, x)[0] for x in (q, k, v)]
    operands = {
        name: upload(stream, value)[0] if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    out = Framed(stream, (*tensors[0].shape[:3], tensors[2].shape[3]), tensors[0].dtype)
    given = {"layout": layout, "method": "flash", "out": out.tensor, "return_lse": return_lse, "stream": stream}
    before = fallback.counts.total()
    result = hipattn.attention(*tensors, **operands, **given)
    assert fallback.counts.total() == before
    lse = result[1].numpy() if return_lse else None
    return out.numpy(), lse


@dataclass(frozen=True)
class Expected:
    """What float64 gives, and how far the output may be from it."""

    out: Array
    lse: Array
    bound: float

    @classmethod
    def of(cls, q: Array, k: Array, v: Array, **options: Any) -> Expected:
        """Compute it; options are those of `hipattn.attention`."""
        plain = of_reference(options)
        out, lse = reference.attention(q, k, v, return_lse=True, **plain)
        return cls(out, lse, attention_bound(q, k, v, expected=out, **plain))


def check_flash(
    stream: Stream,
    q: Array,
    k: Array,
    v: Array,
    *,
    expected: Expected | None = None,
    return_lse: bool = True,
    **options: Any,
) -> None:
    """Compare the fused kernel's output and LSE with float64, by default within the project's tolerance."""
    skip_unless_served(stream, q.dtype, q.shape[3], v.shape[3])
    out, lse = flash(stream, q, k, v, return_lse=return_lse, **options)
    expected = expected or Expected.of(q, k, v, **options)
    where = f" on {stream.device.arch}"
    assert_close(out, expected.out, atol=expected.bound, name=f"out{where}")
    if lse is not None:
        assert_close(lse, expected.lse, atol=1e-5, rtol=1e-5, name=f"lse{where}")
