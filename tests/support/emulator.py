"""CUDA C without a GPU: a `.cu` file compiled by g++ and run thread by thread, with every access to memory watched.

`RawModule` has the interface of `cupy.RawModule`: ``RawModule(code=..., options=...).get_function(name)(grid, block,
arguments, shared_mem=...)``. The source sees the host half of `gmkernels/device.cuh`. Each thread of a block is a fiber
with its own stack, which gives way at ``__syncthreads``, at what a warp does together (shuffles, votes, ``mma``) and at
`grid_sync`; blocks run one after the other, or in turn if the launch is cooperative.

It raises `EmulationError`, which names kernel, block and thread, on

- a load or store outside the arrays given to the kernel (those that an argument of pointers leads to, be it an array or
  a struct, included) or outside its shared memory, and on one that is not aligned to its size;
- two accesses to one element, at least one of them a store, of two threads with no barrier between: a missing
  ``__syncthreads`` or ``__syncwarp`` in shared and in global memory, and blocks that rely on each other;
- a shuffle, vote or ``mma`` by a lane that its mask leaves out, or for which a lane in the mask does not come, because
  it has exited or waits elsewhere;
- ``__syncthreads`` or `grid_sync` to which not all threads come, or not to the same one;
- a copy of `copy_async` that is used before the thread that made it has waited for it;
- arguments whose size or kind is not the parameter's, launches beyond the limits of a device, stacks beyond 64 KiB.

Shared memory is full of NaN when a block starts.

What this shows is that the threads compute what they should, in an order that CUDA allows, and share memory as they
may. What it cannot show: speed, registers and spills, what NVRTC makes of the source (of the two halves of `device.cuh`
the other runs), the last bits of ``expf`` and its kin (the C library's are used) and of sums on tensor cores (here one
fused multiply-add after another). Threads give way at barriers only: a kernel that waits for another block in a loop of
its own does not end.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import cuda_stand_in

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = ("g++", "-std=c++17", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-w")
WATCHED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")
FUSED = ("-O1", "-ffp-contract=fast", "-march=native", "-fexpensive-optimizations")
"""Where multiplications and additions may be fused, and the processor can. Elsewhere -Og: to
run kernels takes less time than to compile them."""
SHARED_WITHOUT_ASKING = 48 << 10
SHARED_AT_MOST = 227 << 10


class EmulationError(RuntimeError):
    """What a GPU would have done wrong, perhaps without a word."""


# ---------------------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------------------

_DESCRIBE = """
#define UNWATCHED __attribute__((no_sanitize("thread")))
namespace emulated {
template <class T> struct Code { static constexpr const char* value = "?"; };
#define CODE(type, code) template <> struct Code<type> { static constexpr const char* value = code; };
CODE(bool, "b1") CODE(char, "i1") CODE(signed char, "i1") CODE(unsigned char, "u1") CODE(short, "i2")
CODE(unsigned short, "u2") CODE(int, "i4") CODE(unsigned, "u4") CODE(long, "i8") CODE(unsigned long, "u8")
CODE(long long, "i8") CODE(unsigned long long, "u8") CODE(float, "f4") CODE(double, "f8")
CODE(half_t, "float16") CODE(bfloat16_t, "bfloat16")
template <class T> struct Code<const T> : Code<T> {};
struct Parameter { const char* code; unsigned long size; int is_pointer; };
template <class T> struct Describe { static constexpr Parameter value = {Code<T>::value, sizeof(T), 0}; };
template <class T> struct Describe<T*> { static constexpr Parameter value = {Code<T>::value, sizeof(T*), 1}; };
template <auto kernel> struct Kernel;
template <class... P, void (*kernel)(P...)> struct Kernel<kernel> {
    static constexpr Parameter parameters[] = {Describe<P>::value..., {nullptr, 0, 0}};
    template <int... I> UNWATCHED static void unpack(void** a, Indices<I...>) { kernel(*static_cast<P*>(a[I])...); }
    UNWATCHED static void call(void** a) { unpack(a, typename Count<sizeof...(P)>::type()); }
};
}
"""
_INDICES = """
namespace emulated {
template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Indices<I...> type; };
}
"""
_ENTRY = """
extern "C" void (*const emulated_call_{name})(void**) = emulated::Kernel<&{name}>::call;
extern "C" const emulated::Parameter* const emulated_parameters_{name} = emulated::Kernel<&{name}>::parameters;
"""


class _Parameter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_char_p), ("size", ctypes.c_ulong), ("is_pointer", ctypes.c_int)]


def _run(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EmulationError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def _cache() -> Path:
    folder = os.environ.get("GMKERNELS_CACHE") or Path(tempfile.gettempdir(), f"gmkernels-{os.getuid()}")
    path = Path(folder, "emulated")
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _compiler_version() -> str:
    return _run([COMPILER[0], "--version"])


def _built(text: str, suffix: str, command: Sequence[str]) -> Path:
    """The file that `command` makes of the text: of an earlier time if the same was asked for."""
    key = hashlib.sha256("\0".join((_compiler_version(), *command, text)).encode()).hexdigest()[:24]
    path = _cache() / f"{key}{suffix}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, path.name)
            _run([*command, "-x", "c++", "-", "-o", str(made)] if suffix == ".o" else [*command, "-o", str(made)], text)
            os.replace(made, path)
    return path


def _options_for_host(options: Sequence[str]) -> Iterator[str]:
    """Those options of NVRTC that the host compiler needs too."""
    for option in options:
        for long, short in (("--define-macro=", "-D"), ("--include-path=", "-I")):
            option = option.replace(long, short)
        if option.startswith(("-D", "-I")):
            yield option


def _library(code: str, options: Sequence[str]) -> tuple[ctypes.PyDLL, list[str]]:
    """The compiled source, linked with the emulator, and the names of its kernels."""
    preprocessed = _run([*COMPILER, "-E", "-x", "c++", *_options_for_host(options), "-"], code)
    names = re.findall(r"\bGMKERNELS_KERNEL\s+void\s+(\w+)\s*\(", preprocessed)
    if not names:
        raise EmulationError('the source has no kernel: extern "C" __global__ void name(...)')
    text = preprocessed + _INDICES + _DESCRIBE + "".join(_ENTRY.format(name=name) for name in names)
    emulator = _built(SOURCE.read_text(), ".o", [*COMPILER, "-O2", "-c"])
    fused = FUSED if "-fmad=true" in options else ("-Og",)
    kernels = _built(text, ".o", [*COMPILER, *fused, *WATCHED, "-DGMKERNELS_KERNEL=", "-c"])
    library = _built(
        f"{emulator} {kernels}", ".so", [*COMPILER, "-shared", "-Wl,-Bsymbolic", str(kernels), str(emulator)]
    )
    return ctypes.PyDLL(str(library)), names  # one launch at a time: it holds the interpreter's lock


# ---------------------------------------------------------------------------------------------------------------------
# CuPy's interface
# ---------------------------------------------------------------------------------------------------------------------


class RawModule:
    """Stands in for `cupy.RawModule`.

    Parameters
    ----------
    code, path : the source, or a file of it.
    options : NVRTC's; macros, include folders and ``-fmad=true`` are passed on, the others have no meaning here.
    enable_cooperative_groups : whether launches are cooperative, so that `grid_sync` may be used.
    backend, name_expressions, translate_cucomplex, jitify : accepted at their defaults.
    """

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: bool = False,
    ):
        if backend != "nvrtc" or translate_cucomplex or name_expressions or jitify:
            raise NotImplementedError("emulated modules are compiled as by NVRTC, without template instances")
        self.code = Path(path).read_text() if path is not None else code
        self.options = tuple(options)
        self.enable_cooperative_groups = enable_cooperative_groups
        self._functions: dict[str, Function] = {}

    @functools.cached_property
    def _compiled(self) -> tuple[ctypes.PyDLL, list[str]]:
        return _library(self.code, self.options)

    def compile(self, log_stream: Any = None) -> None:
        """Compile now, not at the first `get_function`."""
        _ = self._compiled

    def get_function(self, name: str) -> Function:
        """The kernel of that name; raises `EmulationError` if there is none."""
        library, names = self._compiled
        if name not in names:
            raise EmulationError(f"no kernel is called {name}; there are {', '.join(names)}")
        return self._functions.setdefault(name, Function(library, name, self.enable_cooperative_groups))


class _Extent(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("unit", ctypes.c_uint64),
                ("name", ctypes.c_char_p)]  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("cooperative", ctypes.c_uint64),
        ("extents", ctypes.POINTER(_Extent)),
        ("extent_count", ctypes.c_uint64),
    ]


class Function:
    """A kernel: stands in for `cupy.RawKernel`. Call it as ``function(grid, block, arguments, shared_mem=0)``."""

    def __init__(self, library: ctypes.PyDLL, name: str, cooperative: bool):
        self.name = name
        self.cooperative = cooperative
        self.max_dynamic_shared_size_bytes = SHARED_WITHOUT_ASKING
        self.max_threads_per_block = 1024
        self._run = library.emulator_launch
        self._run.restype = ctypes.c_char_p
        self._call = ctypes.c_void_p.in_dll(library, f"emulated_call_{name}")
        parameters = ctypes.POINTER(_Parameter).in_dll(library, f"emulated_parameters_{name}")
        self._parameters = []
        while parameters[len(self._parameters)].code is not None:
            p = parameters[len(self._parameters)]
            self._parameters.append((p.code.decode(), p.size, bool(p.is_pointer)))

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        grid, block = ((*map(int, dims), 1, 1)[:3] for dims in (grid, block))
        self._check_limits(grid, block, shared_mem)
        if len(args) != len(self._parameters):
            self._refuse(f"takes {len(self._parameters)} arguments, got {len(args)}")
        values = [self._value(i, *parameter, x) for i, (parameter, x) in enumerate(zip(self._parameters, args))]
        storage = [ctypes.create_string_buffer(value, max(len(value), 1)) for value in values]
        addresses = (ctypes.c_void_p * len(storage))(*(ctypes.addressof(s) for s in storage))
        extents = _extents(args)
        launch = _Launch(
            self.name.encode(), self._call, addresses, grid, block, shared_mem, self.cooperative,
            (_Extent * len(extents))(*extents), len(extents),
        )  # fmt: skip
        message = self._run(ctypes.byref(launch))
        if message is not None:
            raise EmulationError(message.decode())

    def _refuse(self, what: str) -> None:
        raise EmulationError(f"kernel {self.name}: {what}")

    def _check_limits(self, grid: Sequence[int], block: Sequence[int], shared: int) -> None:
        if not all(1 <= n <= most for n, most in zip(grid, (2**31 - 1, 65535, 65535))):
            self._refuse(f"no device has a grid {grid}")
        if not all(1 <= n <= most for n, most in zip(block, (1024, 1024, 64))) or np.prod(block) > 1024:
            self._refuse(f"no device has a block {block}")
        if not 0 <= shared <= min(self.max_dynamic_shared_size_bytes, SHARED_AT_MOST):
            self._refuse(
                f"{shared} bytes of dynamic shared memory, where {self.max_dynamic_shared_size_bytes} are allowed "
                f"(max_dynamic_shared_size_bytes; a device has at most {SHARED_AT_MOST})"
            )

    def _value(self, i: int, code: str, size: int, is_pointer: bool, x: Any) -> bytes:
        """The bytes of an argument by CuPy's rules, if they are what the parameter is."""
        if x is None:
            passed, value = "a null pointer", np.uint64(0)
        elif hasattr(x, "data") and hasattr(x.data, "ptr"):
            passed, value = f"an array of {x.dtype}", np.uint64(x.data.ptr)
            if is_pointer and code not in ("?", x.dtype.name, f"{x.dtype.kind}{x.dtype.itemsize}"):
                self._refuse(f"argument {i} is {passed}, the kernel declares a pointer to {code}")
        elif hasattr(x, "ptr"):
            passed, value = "a pointer", np.uint64(x.ptr)
        elif isinstance(x, np.generic) or isinstance(x, np.ndarray) and x.size == 1:
            passed, value = f"numpy.{x.dtype}", x
        elif isinstance(x, (bool, int, float)):
            passed, value = f"a Python {type(x).__name__}", np.array(x)[()]
        else:
            raise TypeError(f"kernel {self.name}: argument {i} of unsupported type {type(x)}")
        is_address = passed.startswith(("a null", "an array", "a pointer"))
        kinds = {"i": "iu", "u": "iu", "f": "f", "b": "b"}
        if is_pointer:
            fits = is_address or value.dtype.kind in "iu" and value.dtype.itemsize == 8
        else:
            fits = not is_address and value.dtype.itemsize == size and value.dtype.kind in kinds.get(code[0], "V")
        if not fits:
            declared = f"a pointer to {code}" if is_pointer else f"{code} of {size} bytes"
            self._refuse(f"argument {i} is {passed}, the kernel declares {declared}")
        return value.tobytes()


def _bounds(array: Any) -> tuple[int, int]:
    """Addresses of the first byte of an array and of what follows its last."""
    begin = end = array.data.ptr
    for n, stride in zip(array.shape, array.strides):
        begin, end = begin + min(0, (n - 1) * stride), end + max(0, (n - 1) * stride)
    return begin, end + array.dtype.itemsize


def _extents(args: Sequence[Any]) -> list[_Extent]:
    """The memory that a kernel with these arguments may touch."""
    found: list[tuple[int, int, int, str]] = []

    def whole_allocation(address: int, name: str) -> None:
        block = cuda_stand_in.block_of(address)
        if block is not None:
            found.append((block.ptr, block.ptr + block.used, 1, name))

    for i, x in enumerate(args):
        if hasattr(x, "data") and hasattr(x.data, "ptr"):
            if x.size == 0:
                continue
            found.append((*_bounds(x), x.dtype.itemsize, f"argument {i}"))
            if x.dtype == np.uint64:  # addresses, maybe
                begin, end = _bounds(x)
                for address in np.ctypeslib.as_array((ctypes.c_uint64 * ((end - begin) // 8)).from_address(begin)):
                    whole_allocation(int(address), f"what argument {i} points to")
        elif isinstance(x, np.ndarray) and x.dtype.names:  # a struct, with addresses among its numbers of 64 bits
            for field in (x[name] for name in x.dtype.names if x.dtype[name].base == np.uint64):
                for address in field.flat:
                    whole_allocation(int(address), f"what argument {i} points to")
        elif hasattr(x, "ptr") or type(x) is int:
            whole_allocation(getattr(x, "ptr", x), f"what argument {i} points to")
    merged: list[tuple[int, int, int, str]] = []
    for begin, end, unit, name in sorted(found):
        if merged and begin < merged[-1][1]:
            last = merged.pop()
            begin, end, unit, name = last[0], max(end, last[1]), min(unit, last[2]), last[3]
        merged.append((begin, end, unit, name))
    return [_Extent(begin, end, unit, name.encode()) for begin, end, unit, name in merged]
