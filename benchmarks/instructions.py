"""How many instructions the compiled code of a kernel's call executes: a figure that no load of the machine changes.

It takes no counter of the processor, which a virtual machine may not have, and nothing to install: the assembly of
the block kernels and of our products, as LLVM gives it for this machine, gets lines at the head of each basic block
that add the block's length to a number in memory; assembled again, it runs in place of the original. Counted is what
our own code executes, on one thread: not BLAS, not the C library, not Python.

The assembly differs from one processor to the next and with the versions of Numba and LLVM, and the library of products
decides which of them are ours, so a count belongs to a `target()`.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core.registry import cpu_target

from gmkernels import blas, pool, registry
from gmkernels.dense import products

Call = Callable[[], object]


def target() -> str:
    """What a count belongs to: the processor that code is generated for, the compiler, and the library of products."""
    _, processor, features = _codegen().magic_tuple()
    vectors = next((name for name in ("avx512f", "avx2", "neon") if f"+{name}" in features.split(",")), "scalar")
    compiler = f"Numba {numba.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"
    library = f"NumPy {np.__version__}, {blas.describe().partition(' (')[0]}"
    return f"{platform.machine()} {processor} {vectors}, {compiler}, {library}"


def unavailable() -> str | None:
    """Why instructions cannot be counted here, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"instructions are counted on x86-64 only, this is {platform.machine()}"
    return None


def _codegen() -> Any:
    return cpu_target.target_context.codegen()


# Leaves the flags, the registers and the 128 bytes below the stack pointer, which a leaf function may use, alone.
_ADD = """\
\tleaq -128(%rsp), %rsp
\tpushq %rax
\tpushq %rcx
\tmovabsq ${counter}, %rcx
\tmovq (%rcx), %rax
\tleaq {length}(%rax), %rax
\tmovq %rax, (%rcx)
\tpopq %rcx
\tpopq %rax
\tleaq 128(%rsp), %rsp"""

_SECTION = re.compile(r'\.(?:text|section\s+[^,]+(?:,"(?P<flags>\w*)")?)')
_LABEL = re.compile(r'(?:"[^"]*"|[\w.$@]+):$')
_JUMP = re.compile(r"j\w+\s")


def with_counter(assembly: str, counter: int) -> str:
    """x86-64 assembly (AT&T) that also adds the instructions it executes to the int64 at address `counter`."""
    lines: list[str] = []
    head: int | None = None  # where the addition of the current basic block goes, and the instructions in it so far
    length = 0

    def end_block() -> None:
        nonlocal head
        if head is not None and length:
            lines[head] = _ADD.format(counter=counter, length=length)
        head = None

    executable = True
    for line in assembly.splitlines():
        code = line.strip()
        section = _SECTION.match(code)
        if section:
            end_block()
            executable = code.startswith(".text") or "x" in (section["flags"] or "")
        label = executable and _LABEL.match(code)
        instruction = executable and not label and code and code[0] not in ".#"
        if label:
            end_block()
        if instruction and head is None:
            head, length = len(lines), 0
            lines.append("")
        length += bool(instruction)
        lines.append(line)
        if instruction and _JUMP.match(code):
            end_block()
    end_block()
    return "\n".join(lines)


def assemble(assembly: str) -> llvm.ExecutionEngine:
    """Machine code of the assembly, in an engine that gives the addresses of its functions."""
    triple, processor, features = _codegen().magic_tuple()
    quoted = assembly.replace("\\", "\\5C").replace('"', "\\22").replace("\t", "\\09")
    lines = "\n".join(f'module asm "{line}"' for line in quoted.splitlines())
    machine = llvm.Target.from_triple(triple).create_target_machine(processor, features, jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(f'target triple = "{triple}"\n{lines}'), machine)
    engine.finalize_object()
    return engine


def _counted(compiled: Any, counter: int) -> Any:
    """The C function `compiled` with the counter in it: an object with an `address` too."""
    # A copy: what generates code changes the module.
    module = llvm.parse_bitcode(compiled._library._get_module_for_linking().as_bitcode())
    engine = assemble(with_counter(_codegen()._tm.emit_assembly(module), counter))
    address = engine.get_function_address(compiled._wrapper_name)
    if not address:
        raise RuntimeError(f"{compiled._wrapper_name}: assembled, but not found")
    return SimpleNamespace(address=address, keep=(engine, compiled))


@contextlib.contextmanager
def counting() -> Iterator[Callable[[Call], int]]:
    """Inside the block, the function it gives counts the instructions that a call executes in block kernels."""
    for initialize in (llvm.initialize_native_target, llvm.initialize_native_asmprinter):
        initialize()
    llvm.initialize_native_asmparser()
    counter = np.zeros(1, np.int64)
    compile_block, compile_product, threads = pool._entry_point, products._compiled, pool.get_num_threads()

    def count(call: Call) -> int:
        call()  # compiles
        counter[0] = 0
        call()
        return int(counter[0])

    originals = {kernel: kernel._compiled for kernel in pool.BlockKernel.everyone}
    for kernel in originals:
        kernel._compiled = {}
    registry._plans.clear()  # which know the addresses of what they have launched
    pool._entry_point = lambda *arguments: _counted(compile_block(*arguments), counter.ctypes.data)
    products._compiled = functools.cache(lambda dtype: _counted(compile_product(dtype), counter.ctypes.data))
    pool.set_num_threads(1)  # threads would add to one number
    try:
        yield count
    finally:
        pool._entry_point, products._compiled = compile_block, compile_product
        pool.set_num_threads(threads)
        for kernel in pool.BlockKernel.everyone:  # more than before: modules are imported at their first call
            kernel._compiled = originals.get(kernel, {})
        registry._plans.clear()
