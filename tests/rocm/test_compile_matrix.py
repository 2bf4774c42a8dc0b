"""Every kernel, through AMD's compiler, for every GPU that hipattn names: it compiles, fits and is what we launch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hipattn import HipattnError, MaskMod, ScoreMod, kernels
from hipattn.compiler.code_object import check
from hipattn.compiler.loader import build
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.compiler.target import CHECKED_ARCHS, wave_size
from hipattn.kernels import (
    activation,
    add,
    block_mask,
    causal_mask,
    confine,
    convert,
    embedding,
    flash_decode,
    flash_fwd,
    kv_append,
    norm,
    page_copy,
    paged_append,
    rope,
    rope_append,
    sample,
    scale,
    softmax,
)
from hipattn.kernels.flash_options import Features
from hipattn.kernels.flash_tiles import choose, choose_decode
from hipattn.kernels.rows import widest

pytestmark = pytest.mark.rocm

# gfx1200 and gfx1201 differ in their number only: what is not chosen by the chip's name is compiled for one of them.
CASES = [
    (arch, family)
    for arch, family in product(CHECKED_ARCHS, kernels.FAMILIES)
    if arch != "gfx1200" or family in (flash_fwd, flash_decode)
]


def problems(arch: str, specialisations: Sequence[Specialisation], *, spills: bool = False) -> list[str]:
    """Return what is wrong with the kernels' code objects; registers that spill, too, unless `spills`."""
    found = []
    for specialisation in specialisations:
        try:
            metadata = check(build(specialisation, arch).image, specialisation, arch)
        except HipattnError as error:
            found.append(str(error))
            continue
        if metadata is None or (metadata.spills and not spills):
            found.append(f"{specialisation.name}: {metadata}")
    return found


@pytest.mark.parametrize(
    ("arch", "family"), CASES, ids=[f"{arch}-{family.__name__.rpartition('.')[2]}" for arch, family in CASES]
)
def test_defaults(arch: str, family: ModuleType) -> None:
    assert problems(arch, list(family.defaults(arch))) == []


@pytest.mark.parametrize("arch", CHECKED_ARCHS)
def test_norm_holds_the_longest_rows(arch: str) -> None:
    """With an address and a mask kept for each element that a thread holds, no GPU has the registers."""
    constants = softmax.choose(softmax.MAX_BLOCK * softmax.MAX_HELD, 1, wave_size(arch))
    options = {"bias": True, "residual": True, "sum_out": True}
    held = [norm.specialise("float32", "bfloat16", "float16", constants, kind=kind, **options) for kind in norm.KINDS]
    assert problems(arch, held) == []


@pytest.mark.parametrize("arch", CHECKED_ARCHS)
def test_decoding_holds_the_largest_heads(arch: str) -> None:
    tiles = choose_decode(arch, "float16", 256, 256, 4)
    assert tiles is not None
    options = {"vector": 8, "split": True, "lengths": True}
    held = [
        flash_decode.specialise(tiles, "float16", 256, 256, 4, Features(), page_size=page_size, **options)
        for page_size in (None, 16)
    ]
    assert problems(arch, held) == []


# ---- the rest: rows at any alignment, all dtypes, options set ----

dtypes = st.sampled_from(list(SCALARS))


@st.composite
def vectors(draw: st.DrawFn, *names: str) -> int:
    return draw(st.sampled_from([n for n in (1, 2, 4, 8) if n <= widest(*names)]))


@st.composite
def one_dtype(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype = draw(dtypes)
    return family.specialise(dtype, draw(vectors(dtype)))


@st.composite
def dtype_alone(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    return family.specialise(draw(dtypes))


@st.composite
def conversions(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    names = draw(dtypes), draw(dtypes)
    return family.specialise(*names, draw(vectors(*names)))


@st.composite
def softmaxes(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    names = draw(dtypes), draw(dtypes)
    columns = 2 ** draw(st.integers(0, 16)) + draw(st.integers(0, 1))
    constants = family.choose_long(columns, draw(vectors(*names)), arch)
    return family.specialise(*names, constants, causal=draw(st.booleans()), lse=draw(st.booleans()))


@st.composite
def norms(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    names = draw(dtypes), draw(dtypes), draw(dtypes)
    columns = 2 ** draw(st.integers(0, 16)) + draw(st.integers(0, 1))
    constants = softmax.choose(columns, draw(vectors(*names)), wave_size(arch))
    residual = draw(st.booleans())
    options = {"bias": draw(st.booleans()), "residual": residual, "sum_out": residual and draw(st.booleans())}
    return family.specialise(*names, constants, kind=draw(st.sampled_from(family.KINDS)), **options)


@st.composite
def page_copies(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    return family.specialise(2 ** draw(st.integers(0, 4)))


@st.composite
def paged_appends(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype = draw(dtypes)
    options = {name: draw(st.booleans()) for name in ("packed", "fp8", "fnuz")}
    return family.specialise(dtype, draw(vectors(dtype)), **options)


@st.composite
def ropes(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype = draw(dtypes)
    options = {} if family is rope else {name: draw(st.booleans()) for name in ("fp8", "fnuz")}
    return family.specialise(dtype, draw(vectors(dtype)), style=draw(st.sampled_from(rope.STYLES)), **options)


@st.composite
def activations(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype, bias_dtype = draw(dtypes), draw(st.none() | dtypes)
    names = (dtype,) if bias_dtype is None else (dtype, bias_dtype)
    options = {"kind": draw(st.sampled_from(family.KINDS)), "gated": draw(st.booleans()), "bias_dtype": bias_dtype}
    return family.specialise(dtype, draw(vectors(*names)), **options)


@st.composite
def additions(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    names = draw(dtypes), draw(dtypes), draw(dtypes)
    return family.specialise(*names, draw(vectors(*names)))


@st.composite
def embeddings(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    names = draw(dtypes), draw(dtypes)
    return family.specialise(*names, draw(vectors(*names)), added=draw(st.integers(0, family.MAX_ADDED)))


@st.composite
def samples(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype = draw(dtypes)
    return family.specialise(dtype, draw(vectors(dtype)), long=draw(st.booleans()), draw=draw(st.booleans()))


@st.composite
def block_masks(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    expression = draw(st.sampled_from(["k <= q", "q / size == k / size", "starts[b] <= k && k < ends[h] * factor"]))
    ends = np.zeros(4, draw(st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32])))
    mask = MaskMod(expression, size=64, starts=np.zeros(4, np.int32), ends=ends, factor=0.5)
    text = mask.render("user_mask_mod", 0, 0, params="BlockMaskParams")
    return family.specialise(text, *draw(st.sampled_from([(128, 64), (64, 32), (32, 16)])))


SCORE_MOD = ScoreMod("score * gain[h] + slope * (k - q)", gain=np.zeros(4, np.float32), slope=0.5)
MASK_MOD = MaskMod("q / size == k / size || first[b] <= k", size=64, first=np.zeros(4, np.int32))


@st.composite
def some_features(draw: st.DrawFn, dtype: str, params: str, varlen: bool) -> Features:
    flags = ("left", "right", "scaled", "softcap", "alibi", "sinks", "mask", "lse")
    return Features(
        **{flag: draw(st.booleans()) for flag in flags},
        bias=draw(st.sampled_from(["", "float32", dtype])),
        score_mod=draw(st.sampled_from(["", SCORE_MOD.render("user_score_mod", 0, 0, params=params)])),
        mask_mod=draw(st.sampled_from(["", MASK_MOD.render("user_mask_mod", 8, 8, params=params)])),
        varlen=varlen,
    )


@st.composite
def decodes(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype, group, queries = draw(dtypes), draw(st.sampled_from([1, 4, 7, 16])), draw(st.sampled_from([1, 5, 64]))
    dims = draw(st.sampled_from([(16, 16), (40, 24), (64, 64), (96, 96), (128, 128), (192, 128), (256, 256)]))
    float8 = draw(st.booleans())
    tiles = choose_decode(arch, dtype, *dims, group * queries, float8)
    assume(tiles is not None)
    features = draw(some_features(dtype, "FlashDecodeParams", False))
    page_size = draw(st.sampled_from([None, 1, 7, 16, 256]))
    return family.specialise(
        tiles,
        dtype,
        *dims,
        group,
        features,
        vector=draw(vectors(dtype)),
        split=draw(st.booleans()),
        lengths=draw(st.booleans()),
        page_size=page_size,
        float8=float8,
        wide=page_size is None and arch != "gfx90a" and draw(st.booleans()),
    )


@st.composite
def flashes(draw: st.DrawFn, family: ModuleType, arch: str) -> Specialisation:
    dtype = draw(dtypes)
    dims = draw(
        st.sampled_from([(16, 16), (40, 24), (64, 64), (80, 80), (96, 128), (128, 128), (192, 128), (256, 256)])
    )
    tiles = choose(arch, dtype, *dims)
    assume(tiles is not None)
    features = draw(some_features(dtype, "FlashFwdParams", draw(st.booleans())))
    return family.specialise(
        tiles, dtype, *dims, features, vector=draw(vectors(dtype)), wide=arch != "gfx90a" and draw(st.booleans())
    )


STRATEGIES = {
    activation: activations,
    add: additions,
    block_mask: block_masks,
    causal_mask: dtype_alone,
    confine: dtype_alone,
    convert: conversions,
    embedding: embeddings,
    flash_decode: decodes,
    flash_fwd: flashes,
    kv_append: one_dtype,
    norm: norms,
    page_copy: page_copies,
    paged_append: paged_appends,
    rope: ropes,
    rope_append: ropes,
    sample: samples,
    scale: one_dtype,
    softmax: softmaxes,
}


def test_every_family_is_sampled() -> None:
    assert set(STRATEGIES) == set(kernels.FAMILIES)


@settings(max_examples=12, derandomize=True)  # the same each time: a compiler that aborts takes the run with it
@given(st.data())
@pytest.mark.parametrize("arch", CHECKED_ARCHS)
def test_a_sample_of_the_rest(arch: str, data: st.DataObject) -> None:
    family = data.draw(
        st.sampled_from([*kernels.FAMILIES, softmax, *[flash_decode] * 2, *[flash_fwd] * 4])
    )  # those with many variants
    # With every option on, at the largest sizes, the fused kernels may be slow: a warning says so.
    assert (
        problems(arch, [data.draw(STRATEGIES[family](family, arch))], spills=family in (flash_fwd, flash_decode)) == []
    )
