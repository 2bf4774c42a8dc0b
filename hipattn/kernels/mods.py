"""Scores and masks by an expression of the user's, compiled into the kernel."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hipattn.compiler.specialise import SCALARS
from hipattn.errors import ArgumentError
from hipattn.layout import broadcast
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOATS, INT32, DeviceTensor, in_place

__all__ = ["MaskMod", "ScoreMod"]

MAX_VALUES = 8  # tensors, and numbers, of one expression: an argument block has room for two expressions

_TYPES = {**SCALARS, "int32": "int"}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)

_ARGUMENTS = ("score", "b", "h", "q", "k", "p")
_CPP = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class
co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype
default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline
int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template
this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t
while xor xor_eq
"""
_KEYWORDS = frozenset(_CPP.split())

Value = DeviceTensor | npt.NDArray[Any] | float | int


class _Mod:
    """An expression, and the values that it names.

    Attributes
    ----------
    expression : str
    python : callable or None
    tensors : tuple
        The tensors, in the order in which they were named; each a `DeviceTensor` in what `on` returns.
    floats, ints : tuple
        The numbers.
    key : tuple
        What the compiled kernel depends on: the expression, and the values' names and types.
    """

    argument: ClassVar[str]  # what messages and the compiler call it
    result: ClassVar[str]
    parameters: ClassVar[str]
    python_result: ClassVar[str]
    python_kinds: ClassVar[str]  # of NumPy's dtypes; bfloat16's is V

    def __init__(self, expression: str, /, *, python: Callable[..., Any] | None = None, **values: Any) -> None:
        self.expression = _checked(self.argument, expression)
        if python is not None and not callable(python):
            raise ArgumentError(f"python is {type(python).__name__}; it takes a function")
        self.python = python
        self._values: dict[str, Value] = {
            name: _value(_named(self.argument, name), value) for name, value in values.items()
        }
        given = self._values.values()
        self.tensors: tuple[Any, ...] = tuple(value for value in given if not isinstance(value, int | float))
        self.floats = tuple(value for value in given if isinstance(value, float))
        self.ints = tuple(value for value in given if isinstance(value, int))
        kinds = ((name, _kind(value)) for name, value in self._values.items())
        self.key: tuple[Any, ...] = (self.argument, self.expression, *kinds)
        for what, count in (("tensors", len(self.tensors)), ("numbers", len(self.floats) + len(self.ints))):
            if count > MAX_VALUES:
                raise ArgumentError(f"{self.argument} has {count} {what}; it takes at most {MAX_VALUES}")
        self._on_host = any(isinstance(tensor, np.ndarray) for tensor in self.tensors)
        self._uploaded: dict[int, Self] = {}  # by device
        self.block_masks: dict[Any, DeviceTensor] = {}  # what a launch keeps here for the next one

    def on(self, stream: Stream) -> Self:
        """Return the same with every tensor on the stream's device. Arrays of the host are uploaded once per device.

        Raises
        ------
        ArgumentError
            A tensor is on another device.
        """
        device = stream.device
        if not self._on_host:
            for name, value in self._values.items():
                if isinstance(value, DeviceTensor) and value.device is not device:
                    raise ArgumentError(
                        f"{self.argument}'s {name} is on device {value.device.index}; the stream is on {device.index}"
                    )
            return self
        if device.index not in self._uploaded:
            values = {
                name: DeviceTensor.from_numpy(value, stream=device.default_stream)
                if isinstance(value, np.ndarray)
                else value
                for name, value in self._values.items()
            }
            self._uploaded[device.index] = type(self)(self.expression, python=self.python, **values).on(stream)
        return self._uploaded[device.index]

    def uses(self, name: str) -> bool:
        """Return whether the expression names this."""
        return re.search(rf"\b{name}\b", self.expression) is not None

    def render(self, name: str, first_tensor: int, first_scalar: int, *, params: str = "FlashFwdParams") -> str:
        """Return the device function that evaluates the expression.

        Parameters
        ----------
        name
            What it is called.
        first_tensor
            Where the tensors begin in ``p.user_tensors``.
        first_scalar
            Where the numbers begin in ``p.user_floats`` and in ``p.user_ints``.
        params
            The kernel's argument struct.
        """
        return _rendered(self.key, self.result, self.parameters, name, first_tensor, first_scalar, params)

    def fill(self, arguments: Any, first_tensor: int, first_scalar: int) -> None:
        """Write the values to a kernel's argument block, where `render` reads them. Each tensor is on the device.

        Parameters
        ----------
        arguments
            A struct with the arrays ``user_tensors``, ``user_floats`` and ``user_ints``.
        first_tensor, first_scalar
            As in `render`.
        """
        for at, tensor in enumerate(self.tensors, first_tensor):
            arguments.user_tensors[at] = tensor.pointer
        for at, value in enumerate(self.floats, first_scalar):
            arguments.user_floats[at] = value
        for at, number in enumerate(self.ints, first_scalar):
            arguments.user_ints[at] = number

    def on_host(self) -> Callable[..., Any]:
        """Return the Python function for NumPy arrays, with the values given to it by name.

        Raises
        ------
        ArgumentError
            There is none.
        """
        python = self.python
        if python is None:
            raise ArgumentError(
                f"{self.argument} has no Python function, which NumPy needs in place of {self.expression!r}; "
                f"give it one: {type(self).__name__}(..., python=function)"
            )
        values = {
            name: value if isinstance(value, int | float) else _flat(value) for name, value in self._values.items()
        }
        return lambda *arguments: self._returned(python(*arguments, **values), *arguments[-2:])

    def _returned(self, result: Any, q: Any, k: Any) -> npt.NDArray[Any]:
        """Return what a Python function returned for these positions, as an array of all of them."""
        array, wanted = np.asarray(result), np.broadcast_shapes(np.shape(q), np.shape(k))
        fits = broadcast(array.shape, array.shape, wanted) is not None
        if not fits or array.dtype.kind not in self.python_kinds:
            raise ArgumentError(
                f"{self.argument}'s Python function returns {array.dtype} {array.shape}; it takes {self.python_result} "
                f"that broadcast to {wanted}"
            )
        return np.broadcast_to(array, wanted)

    def __repr__(self) -> str:
        values = "".join(
            f", {name}={value if isinstance(value, int | float) else f'<{_kind(value)} {value.shape}>'}"
            for name, value in self._values.items()
        )
        return f"{type(self).__name__}({self.expression!r}{values})"


class ScoreMod(_Mod):
    """A change of each score by an expression: ``ScoreMod("score + bias[h] * (k - q)", bias=tensor)``.

    Parameters
    ----------
    expression
        HIP (C++) that yields the new score: ``-INFINITY`` hides the key. It may use ``score`` (float: the scaled score,
        after softcap, ALiBi and bias), ``b``, ``h``, ``q``, ``k`` (int: batch entry or packed sequence, query head,
        query and key, both counted from the start of their sequence), HIP's functions (``tanhf``), and the values.
    python
        A function of the same meaning for NumPy, which method "reference" and the fallback to the CPU need:
        ``python(score, b, h, q, k, **values)`` with ``score`` [seq_q, seq_k], ``q`` [seq_q, 1], ``k`` [1, seq_k] and
        tensors as flat arrays. It returns what broadcasts to [seq_q, seq_k].
    **values
        Name → tensor or number, at most 8 of each. Tensors are contiguous, of float32, float16, bfloat16 or int32, and
        indexed flat: ``bias[h * 128 + q % 128]``, where an index is an int unless the expression makes it a
        ``long long``. An array of the host is copied now; one on the device is used in place. A Python float or int is
        a float or int in the expression, and so are those of a list; another number does not compile the kernel again.

    Raises
    ------
    ArgumentError
        The expression or a value is not accepted.
    """

    argument = "score_mod"
    result = "float"
    parameters = "float score, int b, int h, int q, int k"
    python_result, python_kinds = "numbers", "fiuV"


class MaskMod(_Mod):
    """What each query sees by an expression: ``MaskMod("q / 64 == k / 64")``.

    Parameters
    ----------
    expression
        HIP (C++) that yields true where query ``q`` sees key ``k``. It may use what an expression of `ScoreMod` may,
        without ``score``.
    python
        A function of the same meaning for NumPy: ``python(b, h, q, k, **values)``, as in `ScoreMod`, which returns
        bools.
    **values
        As in `ScoreMod`.

    Raises
    ------
    ArgumentError
        The expression or a value is not accepted.
    """

    argument = "mask_mod"
    result = "bool"
    parameters = "int b, int h, int q, int k"
    python_result, python_kinds = "bools", "b"


@lru_cache(maxsize=256)
def _rendered(
    key: tuple[Any, ...], result: str, parameters: str, name: str, first_tensor: int, first_scalar: int, params: str
) -> str:
    argument, expression, *values = key
    at = {"tensors": first_tensor, "floats": first_scalar, "ints": first_scalar}
    lines = []
    for value, kind in values:
        where = {"float": "floats", "int": "ints"}.get(kind, "tensors")
        source = f"p.user_{where}[{at[where]}]"
        at[where] += 1
        if where == "tensors":
            lines.append(f"    const {_TYPES[kind]}* {value} = static_cast<const {_TYPES[kind]}*>({source});\n")
        else:
            lines.append(f"    const {kind} {value} = {source};\n")
    return (
        "#ifndef INFINITY\n#define INFINITY __builtin_bit_cast(float, 0x7f800000)\n#endif\n"  # no header is there
        f"__device__ inline {result} {name}({parameters}, const {params}& p) {{\n{''.join(lines)}"
        f'    return (\n#line 1 "{argument}"\n{expression}\n    );\n}}\n'
    )


def _checked(argument: str, expression: Any) -> str:
    """Refuse what could end the function around the expression: the compiler's message would not be about it."""
    if not isinstance(expression, str) or not expression.strip():
        raise ArgumentError(f"{argument} is {expression!r}; it takes an expression of HIP as text")
    for token in ("#", ";", "{", "}", "//", "/*", '"', "'", "\\"):
        if token in expression:
            raise ArgumentError(f"{argument} is {expression!r}; an expression has no {token}")
    depth = 0
    for character in expression:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
    if depth:
        raise ArgumentError(f"{argument} is {expression!r}; its parentheses do not match")
    if _chains(expression):
        raise ArgumentError(f"{argument} is {expression!r}; 'a < b < c' means (a < b) < c here: write a < b && b < c")
    return expression


def _chains(expression: str) -> bool:
    """Return whether two comparisons follow each other with nothing between them that takes a truth value."""
    text = re.sub(r"<<|>>|->|\w+\s*<\s*[A-Za-z_][\w\s:*]*>\s*(?=\()", " ", expression)  # shifts, casts
    comparisons = [0]
    for token in re.findall(r"[<>]=?|&&|\|\||[!=]=|[?:,()]|\band\b|\bor\b", text):
        if token == "(":
            comparisons.append(0)
        elif token == ")":
            comparisons.pop()
        elif token[0] in "<>":
            comparisons[-1] += 1
            if comparisons[-1] > 1:
                return True
        else:
            comparisons[-1] = 0
    return False


def _named(argument: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in _KEYWORDS:
        raise ArgumentError(f"{argument} has a value named {name!r}; a name is an identifier of C++, and no keyword")
    if name in _ARGUMENTS:
        raise ArgumentError(f"{argument} has a value named {name!r}; {', '.join(_ARGUMENTS)} have a meaning already")
    return f"{argument}'s {name}"


def _value(what: str, value: Any) -> Value:
    if isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{what} is {value!r}; it takes a tensor, a float or an int")
    if isinstance(value, int | np.integer):
        if not -(2**31) <= value < 2**31:
            raise ArgumentError(f"{what} is {value!r}; an int has 32 bits")
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number) or (math.isfinite(number) and abs(number) > _LARGEST_FLOAT):
            raise ArgumentError(f"{what} is {value!r}; it takes a number that float32 can hold")
        return number
    if isinstance(value, list | tuple):
        value = _integers(what, value)
    found = in_place(value, stream=None, argument=what, accepted=(*FLOATS, INT32))
    if isinstance(found, np.ndarray):
        return np.array(found, order="C")
    if not found.is_contiguous:
        raise ArgumentError(f"{what} has shape {found.shape} and strides {found.strides}; it takes a contiguous tensor")
    return found


def _integers(what: str, value: Any) -> Any:
    """Return integers as an array of int32; anything else as it is."""
    try:
        array = np.asarray(value)
    except ValueError:
        return value
    if array.dtype.kind not in "iu":
        return value
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise ArgumentError(f"{what} has numbers from {array.min()} to {array.max()}; an int has 32 bits")
    return array.astype(INT32)


def _kind(value: Value) -> str:
    """Return float or int for a number, its dtype for a tensor."""
    return type(value).__name__ if isinstance(value, int | float) else value.dtype.name


def _flat(value: DeviceTensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (value.numpy() if isinstance(value, DeviceTensor) else value).reshape(-1)
