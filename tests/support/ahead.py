"""Kernels compiled ahead of time, without a GPU, and what the machine code says about them.

    report = ahead.triton("gmkernels.sampling.triton:_sample", {"z": "*fp32", "n": "i32"}, {"BLOCK": 1024})
    report.registers, report.spills, report.path.instructions, report.hottest.wide_share
    ahead.cuda("sampling", "float32")                    # {name of kernel: report} of a .cu file

`Case` describes a call of an operation by shapes only. `launches(case, ...)` runs its launcher with `gmkernels.launch`
listening, so that what is compiled is what the launcher launches, and reports on each kernel it would launch:

    python -m tests.support.ahead sampling iwae          # the cases of these families, as a table; --json for programs

A process in which Triton interprets cannot compile: `compiled` asks for the reports in a process of its own. The cases
of a family are the list CASES of ``tests/gmkernels/ahead/<family>.py``; a generated test checks each of them.

SASS is read with the disassemblers that the triton wheel carries. Instructions are those of a path through the control
flow graph, each block once: of all paths the one that moves the most bytes of global memory, and of these the
shortest: so neither an early exit, nor the scalar path of arrays that are not aligned, nor the subroutine of
denormal numbers. `Report.loops` are the innermost loops; one iteration is a path from its head back to it.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import functools
import glob
import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy then knows the name bfloat16)
import numpy as np

from gmkernels import configurations, launch, registry

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90)
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Most bytes of shared memory of a block, by capability."""
EVERYWHERE = ("float32", "bfloat16")
"""Dtypes that are compiled for older devices, too: float16 differs from bfloat16 in conversions, and float64 from
float32 in what does not depend on the device."""
THREADS_OF_A_WARP = 32


class Work(NamedTuple):
    """What a thread does along a path: instructions, and accesses of global memory by their width in bits."""

    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]

    @property
    def bytes(self) -> int:
        return sum(width // 8 * n for accesses in (self.loads, self.stores) for width, n in accesses.items())

    @property
    def wide_share(self) -> float:
        """The share of these bytes that 128-bit accesses move."""
        wide = sum(16 * accesses.get(128, 0) for accesses in (self.loads, self.stores))
        return wide / self.bytes if self.bytes else 1.0


class Report(NamedTuple):
    """What the machine code of one kernel says.

    Parameters
    ----------
    name, capability : of the kernel; 80 or 90.
    registers : of a thread.
    spills : loads and stores of local memory (or its bytes, if its address goes elsewhere).
    shared : bytes of static shared memory; of all that a Triton kernel needs.
    path : from the entry to the exit, each loop once.
    tensor : how many instructions of tensor cores the code has, by their names.
    loops : the innermost loops, those that move the most bytes first, and of these the ones with wide accesses.
    """

    name: str
    capability: int
    registers: int
    spills: int
    shared: int
    path: Work
    tensor: dict[str, int]
    loops: tuple[Work, ...]

    @property
    def hottest(self) -> Work:
        """The innermost loop that moves most bytes of global memory; the whole path if none moves any."""
        return next((loop for loop in self.loops if loop.bytes), self.path)


# ---------------------------------------------------------------------------------------------------------
# SASS
# ---------------------------------------------------------------------------------------------------------

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+|\.text\.\S+):")
_SECTION = re.compile(r"\.section\s+\.text\.([^,]+),")
_TARGET = re.compile(r"(?:`\(|BRANCH_TARGETS |,)(\.L_x_\d+)")
_RESOURCES = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}


_EXIT = -1
_Edge = tuple[int, list[str]]
"""The number of the block that follows, or `_EXIT`, and the instructions of the block that runs into it."""


def _tool(name: str) -> str:
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None, "the disassemblers come with triton"
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name)


def _width(opcode: str) -> int:
    return next((_WIDTHS[part] for part in opcode.split(".")[1:] if part in _WIDTHS), 32)


def _executed(block: Sequence[tuple[str, str, str]], taken: bool) -> list[str]:
    """The opcodes of a block with a conditional branch at its end, if the branch is taken, or if it is not.

    Instructions with the predicate of the branch are executed if it is taken, and those with its opposite if not.
    """
    predicate = block[-1][0]
    opposite = predicate.replace("@!", "@") if "!" in predicate else predicate.replace("@", "@!")
    left_out = opposite if taken else predicate
    register = predicate.lstrip("@!")
    opcodes: list[str] = []
    set_before = False
    for own, opcode, operands in reversed(block):
        if set_before or own != left_out or opcode == block[-1][1]:
            opcodes.insert(0, opcode)
        set_before = set_before or register in [o.strip() for o in operands.split(",")[:2]]
    return opcodes


def _branches(opcode: str, operands: str) -> bool:
    """Whether the instruction goes elsewhere in its kernel; a call of no subroutine but a label does not come back."""
    name = opcode.partition(".")[0]
    return name in ("BRA", "BRX", "JMP") or (name == "CALL" and bool(_TARGET.search(operands)))


def _graph(lines: list[str]) -> list[list[_Edge]]:
    """The control flow graph of a kernel: the edges that leave each block. What its subroutines do is left out."""
    blocks: list[list[tuple[str, str, str]]] = [[]]
    starts: dict[str, int] = {}
    for line in lines:
        if label := _LABEL.match(line):
            blocks.append([])
            starts[label[1]] = len(blocks) - 1
        elif found := _INSTRUCTION.search(line):
            predicate, opcode, operands = found.groups()
            blocks[-1].append(((predicate or "").strip(), opcode, operands))
            if _branches(opcode, operands) or opcode.partition(".")[0] in ("EXIT", "RET"):
                blocks.append([])
    graph = []
    for i, block in enumerate(blocks):
        predicate, opcode, operands = block[-1] if block else ("", "", "")
        name = opcode.partition(".")[0]
        branches, leaves = _branches(opcode, operands), name in ("EXIT", "RET")
        own = predicate or next(iter(re.findall(r"^!?U?P\d", operands)), "") if branches or leaves else ""
        conditional = own != "" and "PT" not in own
        edges: list[_Edge] = []
        taken = _executed(block, True) if conditional and predicate else [code for _, code, _ in block]
        if branches and not (len(block) == 1 and operands.endswith(f"({_name(starts, i)})")):  # the end of a kernel
            edges += [(starts[label], taken) for label in _TARGET.findall(operands)]
        if leaves:
            edges.append((_EXIT, taken))
        if i + 1 < len(blocks) and (conditional or not (branches or leaves)):
            edges.append((i + 1, _executed(block, False) if conditional and predicate else taken))
        graph.append(edges)
    return graph


def _name(starts: Mapping[str, int], block: int) -> str | None:
    return next((label for label, start in starts.items() if start == block), None)


def _back_edges(graph: Sequence[list[_Edge]]) -> set[tuple[int, int]]:
    """Edges (from, head of the loop), by depth-first search from the entry."""
    edges, done = set(), {0: False}
    stack = [(0, iter(graph[0]))]
    while stack:
        at, rest = stack[-1]
        for n, _ in rest:
            if n == _EXIT:
                continue
            if n not in done:
                done[n] = False
                stack.append((n, iter(graph[n])))
                break
            if not done[n]:
                edges.add((at, n))
        else:
            done[at] = True
            stack.pop()
    return edges


def _work(opcodes: Sequence[str]) -> Work:
    loads: dict[int, int] = {}
    stores: dict[int, int] = {}
    for opcode in opcodes:
        name = opcode.partition(".")[0]
        accesses = {"LDG": loads, "LDGSTS": loads, "LD": loads, "STG": stores, "ST": stores}.get(name)
        if accesses is not None:
            accesses[_width(opcode)] = accesses.get(_width(opcode), 0) + 1
    return Work(len(opcodes), loads, stores)


def _best_path(
    graph: Sequence[list[_Edge]], start: int, inside: set[int], back: set[tuple[int, int]], to: int
) -> Work | None:
    """Of the paths from `start` to the exit, or by a back edge to a head, the one that moves the most bytes.

    Of several, the shortest. The path enters no block that is not `inside`.
    """
    best: dict[int, tuple[int, int, list[str]] | None] = {}
    stack = [start]
    while stack:
        at = stack[-1]
        inner = [(n, codes) for n, codes in graph[at] if n in inside and (at, n) not in back]
        if todo := [n for n, _ in inner if n not in best]:
            stack.extend(todo)
            continue
        stack.pop()
        ways = [(best[n], codes) for n, codes in inner]
        ways += [((0, 0, []), codes) for n, codes in graph[at] if n == to and (n == _EXIT or (at, n) in back)]
        choices = [(rest, codes, _work(codes)) for rest, codes in ways if rest is not None]
        best[at] = max(
            ((rest[0] + own.bytes, rest[1] - own.instructions, codes + rest[2]) for rest, codes, own in choices),
            key=lambda choice: choice[:2],
            default=None,
        )
    found = best[start]
    return None if found is None else _work(found[2])


def _analysed(lines: list[str]) -> tuple[Work, tuple[Work, ...]]:
    """The path through a kernel, and its innermost loops."""
    graph = _graph(lines)
    back = _back_edges(graph)
    before: dict[int, list[int]] = {}
    for i, edges in enumerate(graph):
        for n, _ in edges:
            before.setdefault(n, []).append(i)
    bodies: dict[int, set[int]] = {}
    for end, head in back:
        body = bodies.setdefault(head, {head})
        todo = [end]
        while todo:
            if (at := todo.pop()) not in body:
                body.add(at)
                todo.extend(before.get(at, []))
    path = _best_path(graph, 0, set(range(len(graph))), back, _EXIT)
    assert path is not None, "no way from the entry to an exit"
    loops = []
    for head, body in bodies.items():
        if not any(other in body for other in bodies if other != head):
            loop = _best_path(graph, head, body, back, head)
            assert loop is not None
            loops.append(loop)
    return path, tuple(sorted(loops, key=lambda loop: (-loop.bytes, -loop.wide_share, -loop.instructions)))


@functools.cache
def read(cubin: bytes, capability: int) -> dict[str, Report]:
    """The reports of the kernels in machine code, by name.

    Parameters
    ----------
    cubin : an ELF file as ptxas and NVRTC make it.
    capability : what it was compiled for.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        assembly = subprocess.run([_tool("nvdisasm"), "-c", file], check=True, capture_output=True, text=True).stdout
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file], check=True, capture_output=True, text=True
        ).stdout
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        if section := _SECTION.search(line):
            lines = sections.setdefault(section[1], [])
        lines.append(line)
    reports = {}
    for name, registers, stack, shared, local in _RESOURCES.findall(usage):
        path, loops = _analysed(sections[name])
        spills = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in sections[name])
        tensor = collections.Counter(re.findall(r"\b[HD]G?MMA\.[A-Z0-9_.x]+", "\n".join(sections[name])))
        # R1 is the stack's address. Some versions of ptxas make room on the stack that nothing uses.
        operands = [found[3] for found in map(_INSTRUCTION.search, sections[name]) if found]
        if any(re.search(r"\bR1\b", given) and not given.startswith("R1,") for given in operands):
            spills = spills or int(stack) + int(local)
        reserved = 1024 if capability >= 90 and int(shared) else 0  # by the system, where a block has any
        reports[name] = Report(name, capability, int(registers), spills, int(shared) - reserved, path, tensor, loops)
    return reports


# ---------------------------------------------------------------------------------------------------------
# Triton
# ---------------------------------------------------------------------------------------------------------


def _resolved(kernel: Any) -> Any:
    if isinstance(kernel, str):
        module, _, name = kernel.partition(":")
        return getattr(importlib.import_module(module), name)
    return kernel


def triton(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    capability: int = 90,
    warps: int = 4,
    stages: int = 3,
) -> Report:
    """Compile a Triton kernel with the options of `gmkernels.launch`, in a process that does not interpret.

    Parameters
    ----------
    kernel : a function with `triton.jit`, or ``"module:function"``.
    signature : type by argument: ``"*fp32"``, ``"*bf16"``, ``"*u64"``, ``"i32"``, ``"fp32"`` ...; constants are added.
        Pointers are taken to be aligned to 16 bytes, as CuPy's allocations are; numbers are not.
    constants : the arguments that are `constexpr`.
    capability, warps, stages : of the compilation.
    """
    function = _resolved(kernel)
    order = list(function.arg_names)
    full = {name: "constexpr" if name in constants else signature[name] for name in order}
    aligned = {(order.index(n),): [["tt.divisibility", 16]] for n, t in full.items() if t.startswith("*")}
    source = _resolved("triton.compiler:ASTSource")(function, full, dict(constants), aligned)
    return _triton_report(source, capability, warps, stages)


def _triton_report(source: Any, capability: int, warps: int, stages: int, registers: int | None = None) -> Report:
    target = _resolved("triton.backends.compiler:GPUTarget")("cuda", capability, THREADS_OF_A_WARP)
    options = launch.triton_options(warps, stages, registers)
    compiled = _resolved("triton:compile")(source, target=target, options=options)
    (report,) = read(compiled.asm["cubin"], capability).values()
    return report._replace(shared=compiled.metadata.shared)


# ---------------------------------------------------------------------------------------------------------
# CUDA C
# ---------------------------------------------------------------------------------------------------------


def nvrtc() -> Any:
    """NVRTC of the wheel, or of the system; needs no driver."""
    places = importlib.util.find_spec("nvidia")
    found = [
        file
        for place in (places.submodule_search_locations or [] if places else [])
        for file in sorted(glob.glob(f"{place}/**/libnvrtc.so.*", recursive=True))
        if ".alt." not in file
    ]
    return ctypes.CDLL(found[-1] if found else "libnvrtc.so")


def compile_cuda(code: str, options: Sequence[str], capability: int) -> bytes:
    """CUDA C -> machine code, by NVRTC.

    Parameters
    ----------
    code, options : as `cupy.RawModule` takes them.
    capability : to compile for.

    Raises
    ------
    ValueError : the log of the compiler.
    """
    library, program = nvrtc(), ctypes.c_void_p()
    flags = [*options, f"-arch=sm_{capability}"]
    array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(flags), array)

    def fetched(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    try:
        if failed:
            raise ValueError(fetched("ProgramLog").decode())
        return fetched("CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def cuda(
    family: str, dtype: str = "float32", *, capability: int = 90, defines: Sequence[str] = (), wide: bool = False
) -> dict[str, Report]:
    """Compile ``gmkernels/<family>/cuda.cu`` with the options of `gmkernels.launch`.

    Parameters
    ----------
    family : the folder.
    dtype : of storage.
    capability : to compile for.
    defines : as `launch.cuda` takes them.
    wide : for arrays of more than 2^31 - 1 elements.

    Returns
    -------
    dict: name of the kernel -> report.
    """
    code, options = launch.cuda_source(family, dtype, wide=wide, defines=defines)
    return read(compile_cuda(code, options, capability), capability)


# ---------------------------------------------------------------------------------------------------------
# What a launcher launches
# ---------------------------------------------------------------------------------------------------------

KEY = np.zeros(3, np.uint64)
"""A key, as an input of a `Case`."""


class Case(NamedTuple):
    """A call of an operation by its shapes, and what its kernels must keep to.

    Parameters
    ----------
    op : name of the spec.
    inputs : shapes of floating inputs, in order; an array (or a tuple of shapes) where the spec wants one.
    attrs : by name. Give sizes at which the kernel is measured: only shapes are used, no memory.
    budget : most instructions per element on the hottest path, in float32, by backend or one number for all; None: any.
    wide : least share of the bytes on the hottest path that 128-bit accesses move, in float32; likewise.
    elements : of the call; by default what `spec.size` says, or the elements of the largest array.
    updated : tuples of shapes of the outputs, for a spec that updates them.
    dtypes : to compile it in.
    """

    op: str
    inputs: tuple[Any, ...]
    attrs: dict[str, Any]
    budget: float | dict[str, float] | None = None
    wide: float | dict[str, float] = 0.0
    elements: int | None = None
    updated: tuple[Any, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")


class Launch(NamedTuple):
    """A kernel that a call launches: how many threads in all, and what its code says."""

    threads: int
    report: Report

    def instructions(self, cost_bytes: float, elements: int) -> float:
        """Instructions per element.

        Without loops: of all threads. In a loop: of one iteration, for the elements whose share of the bytes of the
        call it moves.
        """
        hottest = self.report.hottest
        if hottest is self.report.path:
            return hottest.instructions * self.threads / elements
        return hottest.instructions / hottest.bytes * cost_bytes / elements


class Virtual:
    """An array on a GPU as far as launchers look at it: it has a shape and a dtype, and no memory.

    Parameters
    ----------
    shape, dtype, strides : of the array; C-contiguous by default.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> None:
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.ndim, self.size, self.itemsize = len(self.shape), math.prod(self.shape), self.dtype.itemsize
        self.nbytes = self.size * self.itemsize
        packed = tuple(self.itemsize * math.prod(self.shape[i + 1 :]) for i in range(self.ndim))
        self.strides = packed if strides is None else strides
        self.flags = types.SimpleNamespace(c_contiguous=self.strides == packed)
        self.data = types.SimpleNamespace(ptr=0)
        self.device = types.SimpleNamespace(id=0, compute_capability="90")

    @property
    def T(self) -> Virtual:
        return Virtual(self.shape[::-1], self.dtype, self.strides[::-1])

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any) -> Virtual:
        given = shape[0] if isinstance(shape[0], tuple) else shape
        known = math.prod(n for n in given if n >= 0)
        return Virtual(tuple(self.size // known if n < 0 else n for n in given), self.dtype)

    def view(self, dtype: Any) -> Virtual:
        """Of one dimension."""
        return Virtual((self.nbytes // np.dtype(dtype).itemsize,), dtype)

    def __getitem__(self, part: slice) -> Virtual:
        return Virtual((part.stop, *self.shape[1:]), self.dtype)

    def fill(self, value: Any) -> None:
        """Nothing: there is no memory."""


def _virtual(what: Any, dtype: Any) -> Any:
    if isinstance(what, np.ndarray):
        return Virtual(what.shape, what.dtype)
    if what and isinstance(what[0], (tuple, np.ndarray)):
        return tuple(_virtual(part, dtype) for part in what)
    return Virtual(what, dtype)


def launches(case: Case, backend: str, dtype: str, capability: int = 90) -> list[Launch]:
    """The kernels that the launcher of a case launches, compiled: in the configurations that ship.

    Parameters
    ----------
    case : the call.
    backend : ``"triton"`` or ``"cuda"``.
    dtype, capability : of the compilation.
    """
    spec = registry.specs()[case.op]
    inputs = tuple(_virtual(i, dtype) for i in case.inputs)
    given: list[tuple[Callable[..., Launch], Any, Any]] = []
    replaced = {
        "triton": lambda *arguments, **options: given.append((_triton_launch, arguments, options)),
        "cuda": lambda *arguments, **options: given.append((_cuda_launch, arguments, options)),
        "resident": lambda a: a,
        "held": lambda blocks, shared: 132 * blocks,  # on an H200
    }
    before = {name: getattr(launch, name) for name in replaced}
    at = configurations.Choices.at
    try:
        vars(launch).update(replaced)
        shipped = configurations.measured().get(str(capability), {})
        configurations.Choices.at = (  # type: ignore[method-assign]
            lambda self, size: self.candidates[shipped[self.name][self.class_of(size)] if self.name in shipped else 0]
        )
        outputs = [Virtual(shape, d) for shape, d in spec.infer(*inputs, **case.attrs)]
        outputs = [_virtual(shape, dtype) for shape in case.updated] or outputs
        workspace = [Virtual(shape, d) for shape, d in spec.workspace(*inputs, **case.attrs)]
        registry.entries(spec)[backend].kernel()(inputs, outputs, workspace, case.attrs)
    finally:
        vars(launch).update(before)
        configurations.Choices.at = at  # type: ignore[method-assign]
    return [compiled_as(capability, *arguments, **options) for compiled_as, arguments, options in given]


def _has_wide(arguments: Sequence[Any]) -> bool:
    given = [a.array if isinstance(a, launch.Strided) else a for a in arguments]
    return launch.wide(*(a for a in given if isinstance(a, Virtual)))


def _triton_launch(
    capability: int, kernel: Any, grid: Any, arguments: Any, constants: Any = None,
    *, warps: int = 4, stages: int = 3, registers: int | None = None,
) -> Launch:  # fmt: skip
    source, _ = launch.triton_source(kernel, arguments, constants or {}, _has_wide(arguments))
    report = _triton_report(source, capability, warps, stages, registers)
    return Launch(math.prod(grid) * warps * THREADS_OF_A_WARP, report)


@functools.cache
def _cuda_reports(family: str, dtype: str, capability: int, defines: tuple[str, ...], wide: bool) -> dict[str, Report]:
    return cuda(family, dtype, capability=capability, defines=defines, wide=wide)


def _cuda_launch(
    capability: int, family: str, name: str, dtype: Any, grid: Any, block: Any, arguments: Any,
    *, shared: int = 0, defines: tuple[str, ...] = (), **options: Any,
) -> Launch:  # fmt: skip
    report = _cuda_reports(family, np.dtype(dtype).name, capability, defines, _has_wide(arguments))[name]
    return Launch(math.prod(grid) * math.prod(block), report._replace(shared=report.shared + shared))


# ---------------------------------------------------------------------------------------------------------
# All cases of a family
# ---------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A kernel of a case, with its share of the case's limits.

    Parameters
    ----------
    op, backend, dtype, capability, kernel : what was compiled.
    registers, spills : of its report.
    shared : bytes of shared memory of a block.
    per_element : instructions per element on the hottest path; see `Launch.instructions`.
    wide_share : of the bytes on that path.
    budget, wide : the limits; None and 0 where there are none: for a dtype other than float32, or a kernel of the call
        that is not the one that moves the most bytes.
    """

    op: str
    backend: str
    dtype: str
    capability: int
    kernel: str
    registers: int
    spills: int
    shared: int
    per_element: float
    wide_share: float
    budget: float | None
    wide: float


def results(family: str, backends: Sequence[str], capabilities: Sequence[int]) -> Iterator[Result]:
    """Compile the cases of a family, here; see `compiled`. For the older devices, `EVERYWHERE` only."""
    importlib.import_module(f"gmkernels.{family}")
    for case in importlib.import_module(f"tests.gmkernels.ahead.{family}").CASES:
        spec = registry.specs()[case.op]
        for backend in backends:
            if backend not in registry.entries(spec):
                continue
            for dtype in case.dtypes:
                inputs = tuple(_virtual(i, dtype) for i in case.inputs)
                cost = spec.cost(*inputs, **case.attrs)
                largest = max(a.size for a in registry.flat(inputs))
                elements = case.elements or (spec.size(*inputs, **case.attrs) if spec.size else largest)
                for capability in capabilities if dtype in EVERYWHERE else capabilities[-1:]:
                    made = launches(case, backend, dtype, capability)
                    main = max(made, key=lambda one: one.threads * one.report.path.bytes)
                    for one in made:
                        bound = one is main and dtype == "float32"
                        budget = case.budget.get(backend) if isinstance(case.budget, dict) else case.budget
                        share = case.wide.get(backend, 0.0) if isinstance(case.wide, dict) else case.wide
                        yield Result(
                            case.op, backend, dtype, capability, one.report.name, one.report.registers,
                            one.report.spills, one.report.shared, one.instructions(cost.bytes, elements),
                            one.report.hottest.wide_share, budget if bound else None, share if bound else 0.0,
                        )  # fmt: skip


def compiled(
    *families: str, backends: Sequence[str] = ("triton", "cuda"), capabilities: Sequence[int] = CAPABILITIES
) -> list[Result]:
    """The results of all cases of these families, made in a process of its own, in which Triton compiles.

    Parameters
    ----------
    families : names of folders.
    backends, capabilities : to compile for.
    """
    chosen = ["--backend", *backends, "--capability", *map(str, capabilities)]
    return [Result(*row) for row in printed_by("-m", "tests.support.ahead", "--json", *families, *chosen)]


def printed_by(*arguments: str) -> Any:
    """What a Python with these arguments prints as JSON: a process in which Triton compiles, and does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.ahead", description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="+")
    parser.add_argument("--backend", nargs="+", default=["triton", "cuda"])
    parser.add_argument("--capability", nargs="+", type=int, default=[90])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [row for family in given.families for row in results(family, given.backend, given.capability)]
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'op':24} {'kernel':24} {'':15} {'sm':>3} {'regs':>4} {'spill':>5} {'shared':>6} {'instr':>6} {'128':>4}")
    for r in rows:
        print(f"{r.op:24} {r.kernel:24} {r.backend:6} {r.dtype:8} {r.capability:3} {r.registers:4} {r.spills:5} "
              f"{r.shared:6} {r.per_element:6.1f} {r.wide_share:4.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
