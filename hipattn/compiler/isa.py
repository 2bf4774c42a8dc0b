"""What the machine code of a kernel says of its speed: registers, occupancy, and what its hottest loop does.

The counts are exact; how often a loop runs, and which of its branches are taken, machine code does not say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from hipattn.compiler import llvm
from hipattn.compiler.code_object import KernelMetadata, kernels
from hipattn.compiler.descriptor import allocated_vgprs
from hipattn.compiler.occupancy import waves_per_simd
from hipattn.errors import CodeObjectError

__all__ = ["KINDS", "Analysis", "Instruction", "analyse", "hottest_loop", "parse", "reachable"]

_KINDS = {
    "matrix": "v_(mfma|smfmac|wmma|swmmac)",
    "transcendental": "v_(s_)?(exp|log|rcp|rsq|sqrt|sin|cos)_",
    "valu": "v_",
    "lds": "ds_",
    "memory": "(global|flat|buffer|scratch|image)_",
    "wait": "s_(wait|nop|sleep|delay_alu|clause|barrier|setprio|set_inst_prefetch)",
    "branch": "s_(c?branch|setpc|swappc|endpgm)",
    "scalar": "s_",
}
KINDS = tuple(_KINDS)
"""The kinds of instructions. An opcode is of the first whose pattern fits."""


@dataclass(frozen=True)
class Instruction:
    """A line of machine code; `label` is its own name, if a branch goes to it."""

    opcode: str
    operands: str = ""
    label: str = ""

    @cached_property
    def kind(self) -> str:
        """What executes it: one of `KINDS`, or "other"."""
        return next((kind for kind, pattern in _KINDS.items() if re.match(pattern, self.opcode)), "other")

    def __str__(self) -> str:
        return f"{self.opcode} {self.operands}".rstrip()


@dataclass(frozen=True)
class Analysis:
    """What a kernel needs on an arch, and what it does most.

    Attributes
    ----------
    kernel : KernelMetadata
        Registers, LDS, scratch, spills.
    arch : str
    occupancy : float
        Waves that a SIMD holds at once.
    in_loop : bool
        Whether `counts` and `cycles` are of the hottest loop; else there is none, and they are of the whole kernel.
    counts : mapping of str to int
        Instructions of each of `KINDS`.
    cycles : float or None
        Of one pass of one wave, as `llvm.cycles` reckons.
    """

    kernel: KernelMetadata
    arch: str
    occupancy: float
    in_loop: bool
    counts: Mapping[str, int]
    cycles: float | None


def analyse(image: bytes, arch: str) -> list[Analysis]:
    """Analyse every kernel of a code object.

    Raises
    ------
    CodeObjectError
        `image` is no code object, or one of a simulated GPU, which holds no AMD instructions.
    PlatformError
        There is no llvm-objdump, or it does not know `arch`.
    """
    found = kernels(image)
    if not found:
        raise CodeObjectError("the code object is a simulated GPU's: it holds no AMD instructions")
    code = parse(llvm.disassemble(image, arch))
    return [_analyse(kernel, arch, image, code[name]) for name, kernel in found.items()]


def parse(disassembly: str) -> dict[str, list[Instruction]]:
    """Return function name → instructions, from what ``llvm-objdump --disassemble --symbolize-operands`` writes."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    label = ""
    for line in disassembly.splitlines():
        if head := re.match(r"[0-9a-f]+ <(?:(L\d+)|(.+))>:", line):
            label = head[1] or ""
            current = current if label else functions.setdefault(head[2], [])
        elif code := re.match(r"\s+([a-z]\w+)\s*(.*?)\s*(//|$)", line):
            current.append(Instruction(code[1], code[2], label))
            label = ""
    return functions


def hottest_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Return the innermost loop with the most matrix instructions, or if none has any, with the most of all kinds.

    Returns
    -------
    instructions : list
        Those of all blocks of the loop, by address. Empty if there is no loop.
    """
    blocks, successors = _control_flow(instructions)
    bodies = {loop: [x for block in sorted(loop) for x in blocks[block]] for loop in _loops(successors)}
    matrix = {loop: sum(x.kind == "matrix" for x in body) for loop, body in bodies.items()}
    loops = [loop for loop in bodies if matrix[loop]] or list(bodies)
    innermost = [loop for loop in loops if not any(other < loop for other in loops)]
    hottest = max(innermost, key=lambda loop: (matrix[loop], len(bodies[loop])), default=None)
    return bodies[hottest] if hottest else []


def reachable(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Return the instructions without what only fills the space after a function's end."""
    blocks, successors = _control_flow(instructions)
    return [x for block in sorted(_reach(successors, 0)) for x in blocks[block]]


def _analyse(kernel: KernelMetadata, arch: str, image: bytes, code: Sequence[Instruction]) -> Analysis:
    vgprs = allocated_vgprs(image, kernel.name, arch)
    occupancy = waves_per_simd(arch, threads=kernel.max_threads, vgprs=vgprs, sgprs=kernel.sgprs, lds=kernel.lds)
    loop = hottest_loop(code)
    body = loop or reachable(code)
    counts = Counter(x.kind for x in body)
    # To llvm-mca a branch or a wait means nothing: it knows neither what is taken nor how long memory takes.
    steady = [str(x) for x in body if x.kind not in ("branch", "wait")]
    return Analysis(
        kernel, arch, occupancy, bool(loop), {kind: counts[kind] for kind in KINDS}, llvm.cycles(steady, arch)
    )


_Blocks = list[Sequence[Instruction]]
_Edges = list[list[int]]

_LEAVES = ("s_branch", "s_endpgm", "s_setpc_b64")  # what follows it by address does not follow it in time


def _control_flow(instructions: Sequence[Instruction]) -> tuple[_Blocks, _Edges]:
    """Return the basic blocks by address, and for each the numbers of those that can follow it."""
    last = len(instructions) - 1
    starts = {0, *(i for i, x in enumerate(instructions) if x.label)}
    starts |= {i + 1 for i, x in enumerate(instructions[:last]) if x.kind == "branch"}
    blocks: _Blocks = [instructions[a:b] for a, b in pairwise([*sorted(starts), last + 1])]
    labels = {block[0].label: number for number, block in enumerate(blocks) if block[0].label}
    successors: _Edges = []
    for number, block in enumerate(blocks):
        end = block[-1]
        following = [labels[end.operands]] if end.operands in labels else []
        if end.opcode not in _LEAVES and number + 1 < len(blocks):
            following.append(number + 1)
        successors.append(following)
    return blocks, successors


def _loops(successors: _Edges) -> list[frozenset[int]]:
    """Return the natural loops: a head, and what leads back to it without leaving its dominion."""
    predecessors: _Edges = [[] for _ in successors]
    for block in (reachable := _reach(successors, 0)):
        for following in successors[block]:
            predecessors[following].append(block)
    loops = []
    for head in reachable:
        elsewhere = _reach(successors, 0, without=head)
        latches = [block for block in predecessors[head] if block not in elsewhere]
        if latches:
            loops.append(frozenset({head}.union(*(_reach(predecessors, latch, without=head) for latch in latches))))
    return loops


def _reach(edges: _Edges, start: int, without: int | None = None) -> set[int]:
    """Return the blocks that edges lead to from `start`, itself included, never through `without`."""
    found: set[int] = set()
    stack = [start]
    while stack:
        block = stack.pop()
        if block != without and block not in found:
            found.add(block)
            stack += edges[block]
    return found
