"""Tensors of indices and masks do not slip into kernels that compute with floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hipattn import ArgumentError, DeviceTensor, HipAttentionKernels, KVCache, Stream
from hipattn.kernels import causal_mask, confine, convert, kv_append, scale, softmax
from hipattn.runtime import bindings

Launch = Callable[[DeviceTensor, DeviceTensor, Stream], object]

LAUNCHES: dict[str, tuple[str, Launch]] = {
    "scale": ("x's dtype", lambda x, _, s: scale.launch(x, 2.0, stream=s)),
    "causal_mask": ("scores's dtype", lambda x, _, s: causal_mask.launch(x, stream=s)),
    "softmax": ("scores's dtype", lambda x, _, s: softmax.launch(x, stream=s)),
    "softmax out": ("out's dtype", lambda x, f, s: softmax.launch(f, x, stream=s)),
    "convert": ("x's dtype", lambda x, f, s: convert.launch(x, f, stream=s)),
    "convert out": ("out's dtype", lambda x, f, s: convert.launch(f, x, stream=s)),
    "confine": ("v's dtype", lambda x, f, s: confine.launch(f, x, f, stream=s)),
    "kv_append": ("k's dtype", lambda x, _, s: kv_append.launch(x, x, x, x, 0, stream=s)),
    "qk_t": ("q's dtype", lambda x, f, s: HipAttentionKernels(s.device).compute_qk_t(x, x, f, stream=s)),
    "k": ("k", lambda x, f, s: HipAttentionKernels(s.device).compute_qk_t(f, x, f, stream=s)),
    "weighted v": (
        "weights's dtype",
        lambda x, _, s: HipAttentionKernels(s.device).compute_attention_weighted_v(x, x, x, stream=s),
    ),
    "attention": ("q's dtype", lambda x, _, s: HipAttentionKernels(s.device).compute_attention(x, x, x, stream=s)),
    "cache": ("dtype", lambda x, _, s: KVCache(1, 1, 1, 1, 1, dtype=x.dtype, stream=s)),
}


@pytest.mark.parametrize("case", LAUNCHES)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_are_refused_by_name(stream: Stream, dtype: type, case: str) -> None:
    argument, launch = LAUNCHES[case]
    x, floats = (DeviceTensor.from_numpy(np.zeros((1, 2, 4, 4), kind), stream=stream) for kind in (dtype, np.float32))
    with bindings.record() as calls, pytest.raises(ArgumentError, match=f"^{argument} is {np.dtype(dtype).name}; "):
        launch(x, floats, stream)
    assert not [name for name, _ in calls if "Launch" in name or "Malloc" in name]
