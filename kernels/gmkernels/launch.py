"""Launches of GPU kernels on CuPy arrays: CUDA C through NVRTC, Triton without PyTorch.

A kernel file calls `cuda` or `triton` with a grid and arguments; everything else is decided here: which binary runs
(one per family, dtype and width of indices, compiled at its first use and cached on disk), on which stream (CuPy's
current one), and whether the arguments may go there. A launch allocates nothing and waits for nothing, so a stream
that is being captured into a CUDA graph takes it.

Arithmetic is not fused (``-fmad=false``, ``enable_fp_fusion=False``): multiply-adds are where a kernel spells them, so
that random numbers have the same bits on all backends. ``GMKERNELS_FUSION=1`` in the environment lets compilers fuse.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import struct
import threading
from array import array as packed_array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.registry import DeviceMemoryError, KernelError, Layout

__all__ = ["Choices", "Strided", "cuda", "on_gpu", "resident", "triton", "wide"]

FOLDER = Path(__file__).parent
FUSION = os.environ.get("GMKERNELS_FUSION", "") == "1"
"""Whether compilers may fuse multiplications with additions."""
LARGEST_INT = 2**31 - 1
LARGEST_GRID = (2**31 - 1, 65535, 65535)
LARGEST_BLOCK = 1024
USUAL_SHARED = 48 << 10
"""Bytes of shared memory that a block has without asking."""

_TYPES = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("float", "half_t"),
    "bfloat16": ("float", "bfloat16_t"),
}
"""dtype -> (REAL, STORE): the types that CUDA C computes with and stores."""

_lock = threading.RLock()
"""Held while something is compiled."""


class Strided(NamedTuple):
    """An argument that need not be C-contiguous: the kernel knows its strides.

    Parameters
    ----------
    array : whose first element the kernel gets the address of.
    """

    array: Any


def wide(*arrays: Any) -> bool:
    """Whether indices into one of the arrays need 64 bits: whether it has more than 2^31 - 1 elements.

    Parameters
    ----------
    arrays : of any library.
    """
    return any(a.size > LARGEST_INT for a in arrays)


_residence: dict[int, Callable[[np.ndarray], Any]] = {}
"""By thread: what `resident` does in place of a copy."""


def resident(array: np.ndarray) -> Any:
    """A copy of a small array of the host in the memory of the current device, made in the order of its stream.

    Parameters
    ----------
    array : a key of the random stream, or a number that varies between calls.

    Returns
    -------
    CuPy array of the same shape and dtype. Inside `residing` it is what that gives.
    """
    if _residence and (by := _residence.get(threading.get_ident())) is not None:
        return by(array)
    import cupy

    return cupy.asarray(array)


@contextmanager
def residing(by: Callable[[np.ndarray], Any]) -> Iterator[None]:
    """Let `by` answer the calls of `resident` in this thread: a capture keeps the arrays and refreshes them.

    Parameters
    ----------
    by : takes an array of the host, gives one on the current device.
    """
    thread = threading.get_ident()
    outer = _residence.get(thread)
    _residence[thread] = by
    try:
        yield
    finally:
        if outer is None:
            del _residence[thread]
        else:
            _residence[thread] = outer


@contextmanager
def current(device: int) -> Iterator[None]:
    """Make a device the current one of this thread, inside the block.

    Parameters
    ----------
    device : its number.
    """
    from cupy.cuda import runtime

    outer = runtime.getDevice()
    if outer == device:
        yield
        return
    runtime.setDevice(device)
    try:
        yield
    finally:
        runtime.setDevice(outer)


def allocate(op: str, layout: Layout) -> list[Any]:
    """Uninitialised arrays on the current device.

    Parameters
    ----------
    op : whose they are, for the error.
    layout : their shapes and dtypes.

    Raises
    ------
    DeviceMemoryError : no room; nothing of it stays allocated.
    """
    import cupy

    made: list[Any] = []
    try:
        for shape, dtype in layout:
            made.append(cupy.empty(shape, dtype))
        return made
    except cupy.cuda.memory.OutOfMemoryError:
        made.clear()
    # Outside of the handler, so that the error holds no frame that holds an array.
    asked = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout)
    raise DeviceMemoryError(f"{op}: {describe_memory(asked)}")


def describe_memory(asked: int) -> str:
    """That there is no room on the current device: what was asked for, what is free, and what can be done.

    Parameters
    ----------
    asked : bytes.
    """
    import cupy

    device = cupy.cuda.runtime.getDevice()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    limit = f", and CuPy's pool is limited to {_bytes(pool.get_limit())}" if pool.get_limit() else ""
    return (
        f"no room on cuda:{device} for {_bytes(asked)}: {_bytes(free + pool.free_bytes())} of {_bytes(total)} are "
        f"free{limit}; free arrays that are not needed, or work in smaller batches"
    )


def _bytes(n: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024 or unit == "bytes" and n < 10000:
            break
        n /= 1024  # type: ignore[assignment]
    else:
        unit = "GiB"
    return f"{n} bytes" if unit == "bytes" else f"{n:.1f} {unit}"


# ---------------------------------------------------------------------------------------------------------
# Argument checks
# ---------------------------------------------------------------------------------------------------------


def _checked(name: str, position: int, argument: Any, device: int) -> Any:
    """The array of an argument, on the current device and C-contiguous unless it is `Strided`."""
    strided = type(argument) is Strided
    a = argument.array if strided else argument
    if not on_gpu(a) or not hasattr(a, "data"):
        where = "in host memory" if isinstance(a, np.ndarray) else f"of type {type(a).__name__}"
        raise KernelError(f"{name}: argument {position} is {where}; expected an array of CuPy or a number")
    if a.device.id != device:
        raise KernelError(
            f"{name}: argument {position} is on cuda:{a.device.id}, the launch is on cuda:{device}; "
            f"move it there: with cupy.cuda.Device({device}): cupy.asarray(x)"
        )
    if not strided and not a.flags.c_contiguous:
        raise KernelError(
            f"{name}: argument {position} has shape {a.shape} and strides {a.strides}; expected a C-contiguous array "
            f"(cupy.ascontiguousarray makes one)"
        )
    return a


def _check_grid(name: str, grid: Sequence[int], threads: int) -> None:
    if len(grid) > 3 or any(not 0 <= n <= most for n, most in zip(grid, LARGEST_GRID, strict=False)):
        raise KernelError(f"{name}: a grid of {tuple(grid)} blocks; CUDA takes up to {LARGEST_GRID}")
    if not 0 < threads <= LARGEST_BLOCK:
        raise KernelError(f"{name}: a block of {threads} threads; CUDA takes 1 to {LARGEST_BLOCK}")


def _needs_wide(arguments: Sequence[Any]) -> bool:
    """Whether an array has too many elements for 32-bit indices, or a number too many bits."""
    for a in arguments:
        kind = type(a)
        if kind is int or kind is bool:
            if not -LARGEST_INT <= a <= LARGEST_INT:
                return True
        elif kind is Strided:
            if a.array.size > LARGEST_INT:
                return True
        elif kind is not float and a is not None and a.size > LARGEST_INT:
            return True
    return False


# ---------------------------------------------------------------------------------------------------------
# CUDA C
# ---------------------------------------------------------------------------------------------------------

_cuda_kernels: dict[tuple[Any, ...], Any] = {}
_cuda_modules: dict[tuple[Any, ...], Any] = {}


@functools.cache
def _headers() -> str:
    """A digest of the headers that kernels include: CuPy's cache on disk looks at the source alone."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.cuh")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cuda_source(
    family: str | Path, dtype: Any, *, wide: bool = False, defines: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """The source of a family's CUDA C kernels and the options that NVRTC compiles it with.

    Parameters
    ----------
    family : folder in `gmkernels` that has a ``cuda.cu``, or the path of such a file elsewhere.
    dtype : of the arrays: float32, float64, float16 or bfloat16.
    wide : whether ``INDEX`` has 64 bits.
    defines : more ``NAME=VALUE``.

    Returns
    -------
    The text, and options: ``-DREAL`` (type to compute with), ``-DSTORE`` (type in memory), ``-DINDEX`` and others.
    """
    path = family if isinstance(family, Path) else FOLDER / family / "cuda.cu"
    real, store = _TYPES[_name(dtype)]
    index = "long long" if wide else "int"
    options = (
        "-std=c++17",
        f"-fmad={'true' if FUSION else 'false'}",
        f"-I{FOLDER}",
        f"-I{path.parent}",
        f"-DREAL={real}",
        f"-DSTORE={store}",
        f"-DINDEX={index}",
        *(f"-D{define}" for define in defines),
    )
    return f"// headers {_headers()}\n" + path.read_text(), options


def _name(dtype: Any) -> str:
    name = dtype if type(dtype) is str else dtype.name
    if name not in _TYPES:
        raise KernelError(f"kernels of CUDA C have {', '.join(_TYPES)} versions, got {name}")
    return name


def _cuda_kernel(
    family: str | Path, name: str, dtype: str, is_wide: bool, defines: tuple[str, ...], cooperative: bool
) -> Any:
    import cupy

    with _lock:
        form = (family, dtype, is_wide, defines, cooperative)
        if form not in _cuda_modules:
            source, options = cuda_source(family, dtype, wide=is_wide, defines=defines)
            _cuda_modules[form] = cupy.RawModule(
                code=source, options=options, backend="nvrtc", enable_cooperative_groups=cooperative
            )
        return _cuda_modules[form].get_function(name)


def cuda(
    family: str | Path,
    name: str,
    dtype: Any,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Any],
    *,
    shared: int = 0,
    defines: tuple[str, ...] = (),
    cooperative: bool = False,
) -> None:
    """Launch a kernel of a family's ``cuda.cu`` on the current device and stream.

    Parameters
    ----------
    family : folder in `gmkernels` that has a ``cuda.cu``, or the path of such a file elsewhere.
    name : of the kernel, which is ``extern "C" __global__``.
    dtype : of the arrays, for ``REAL`` and ``STORE``.
    grid, block : numbers of blocks and of threads in a block, along up to 3 axes. A grid without blocks launches
        nothing.
    arguments : in the kernel's order. An array becomes a pointer, None a null pointer, an int an ``INDEX``, a float a
        double, and a NumPy scalar what it is.
    shared : bytes of dynamic shared memory of a block.
    defines : ``"NAME=VALUE"``, given to the compiler: one module for each set of them.
    cooperative : whether all blocks must run at once, for a barrier of the grid.

    Raises
    ------
    KernelError : an array elsewhere or not contiguous, or a grid that does not fit.
    """
    import cupy

    blocks, threads = math.prod(grid), math.prod(block)
    _check_grid(name, grid, threads)
    if blocks == 0:
        return
    is_wide = _needs_wide(arguments)
    device = cupy.cuda.runtime.getDevice()
    index = np.int64 if is_wide else np.int32
    values: list[Any] = []
    for position, a in enumerate(arguments):
        if isinstance(a, int):
            values.append(index(a))
        elif type(a) is float:
            values.append(np.float64(a))
        elif a is None:
            values.append(np.uint64(0))
        elif isinstance(a, np.generic):
            values.append(a)
        else:
            values.append(_checked(name, position, a, device))
    form = (family, name, dtype, is_wide, defines, cooperative)
    kernel = _cuda_kernels.get(form)
    if kernel is None:
        kernel = _cuda_kernels[form] = _cuda_kernel(family, name, _name(dtype), is_wide, defines, cooperative)
    if shared > USUAL_SHARED:
        kernel.max_dynamic_shared_size_bytes = shared
    kernel(tuple(grid), tuple(block), tuple(values), shared_mem=shared)


# ---------------------------------------------------------------------------------------------------------
# Triton
# ---------------------------------------------------------------------------------------------------------

_POINTERS = {
    "float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16", "bool": "*i1",
    "int8": "*i8", "int16": "*i16", "int32": "*i32", "int64": "*i64",
    "uint8": "*u8", "uint16": "*u16", "uint32": "*u32", "uint64": "*u64",
}  # fmt: skip


class Interpreted:
    """An array as Triton's interpreter wants it: with the methods of a tensor whose memory the host can read.

    Parameters
    ----------
    address : of the first element.
    dtype : NumPy's.
    """

    def __init__(self, address: int, dtype: Any) -> None:
        self._address = address
        self.dtype = dtype

    def data_ptr(self) -> int:
        return self._address

    def untyped_storage(self) -> Interpreted:
        return self

    def cpu(self) -> Interpreted:
        return self

    def copy_(self, other: Interpreted) -> None:
        """Nothing: it is the same memory."""

    def new_empty(self, *shape: Any, **options: Any) -> Interpreted:
        return Interpreted(0, self.dtype)

    def set_(self, storage: Interpreted, offset: Any, size: Any, stride: Any) -> None:
        self._address = storage._address

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return ()

    def stride(self) -> tuple[int, ...]:
        return ()


@functools.cache
def _mend_interpreter() -> None:
    """Let a loop of an interpreted kernel begin and end at numbers of the kernel.

    The interpreter of Triton 3.6 makes an `int` of an array of one number for it, which NumPy 2.4 refuses.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = mended


def _interpret(kernel: Any, grid: Sequence[int], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Run a Triton kernel in Triton's interpreter, on arrays in memory that the host can read."""
    import cupy

    is_wide = _needs_wide(arguments)
    device = cupy.cuda.runtime.getDevice()
    values: list[Any] = []
    for position, a in enumerate(arguments):
        if a is None or type(a) is float:
            values.append(a)
        elif isinstance(a, int):
            values.append(_interpreted_int(a, is_wide))
        else:
            a = _checked(kernel.__name__, position, a, device)
            values.append(Interpreted(a.data.ptr, a.dtype))
    given = dict(constants)
    if "WIDE" in kernel.arg_names:
        given.setdefault("WIDE", is_wide)
    variable = [name for name in kernel.arg_names if name not in given]
    if len(values) > len(variable):
        raise KernelError(f"{kernel.__name__}: {len(values)} arguments for {', '.join(variable)}")
    _mend_interpreter()
    with np.errstate(all="ignore"):  # as on a device
        kernel[tuple(grid)](**dict(zip(variable, values, strict=False)), **given)


def _interpreted_int(value: int, is_wide: bool) -> Any:
    """A scalar tensor of the type that compiled code would have."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    dtype, kind = (np.int64, tl.int64) if is_wide else (np.int32, tl.int32)
    return tl.tensor(TensorHandle(np.array([value], dtype), kind), kind)


def _is_interpreted(kernel: Any) -> bool:
    return type(kernel).__name__ == "InterpretedFunction"


def triton(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    constants: Mapping[str, Any] = {},  # noqa: B006 (read only)
    *,
    warps: int = 4,
    stages: int = 3,
) -> None:
    """Launch a Triton kernel on the current device and stream.

    Parameters
    ----------
    kernel : a function of ``triton.jit``.
    grid : numbers of programs along up to 3 axes. A grid without programs launches nothing.
    arguments : those that are not ``tl.constexpr``, in the kernel's order: arrays, ints (int64 where an array has more
        than 2^31 - 1 elements or a number more than 31 bits, otherwise int32), floats (float32 unless annotated as
        ``tl.float64``), or None. An int outside ``do_not_specialize`` is compiled for whether it is a multiple of 16.
    constants : values of the ``tl.constexpr`` parameters by name. One called ``WIDE`` that is not among them says
        whether ints have 64 bits.
    warps, stages : of a program: threads / 32, and depth of pipelined loops.

    Raises
    ------
    KernelError : an array elsewhere or not contiguous, a dtype that Triton lacks, or a grid that does not fit.
    """
    _check_grid(kernel.__name__, grid, 32 * warps)
    if math.prod(grid) == 0:
        return
    if _is_interpreted(kernel):
        _interpret(kernel, grid, arguments, constants)
        return
    import cupy

    device = cupy.cuda.runtime.getDevice()
    is_wide = _needs_wide(arguments)
    form: list[Any] = [id(kernel), device, warps, stages, is_wide, *constants.items()]
    values: list[Any] = []
    for position, a in enumerate(arguments):
        kind = type(a)
        if kind is int or kind is bool:
            form.append(a % 16 == 0)
            values.append(a)
        elif kind is float or a is None:
            form.append(kind)
            if a is not None:
                values.append(a)
        else:
            a = _checked(kernel.__name__, position, a, device)
            address = a.data.ptr
            form += (a.dtype, address % 16 == 0)
            values.append(address)
    key = tuple(form)
    binary = _triton_binaries.get(key)
    if binary is None:
        with _lock:
            binary = _triton_binaries[key] = _TritonBinary(kernel, arguments, constants, is_wide, warps, stages)
    binary.launch(grid, cupy.cuda.get_current_stream().ptr, values)


def triton_source(
    kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any], is_wide: bool
) -> tuple[Any, list[str]]:
    """What Triton compiles for a call, and the types of the values that a launch passes.

    Parameters
    ----------
    kernel, arguments, constants : as in `triton`; of the arrays only dtype and address are looked at.
    is_wide : whether ints have 64 bits.

    Returns
    -------
    ``triton.compiler.ASTSource``, and Triton's names of the types of the arguments that are passed.

    Raises
    ------
    KernelError : too few arguments or too many, or a dtype that Triton lacks.
    """
    from triton.compiler import ASTSource

    name = kernel.__name__
    fixed = dict(constants)
    if any(p.name == "WIDE" and p.is_constexpr for p in kernel.params):
        fixed.setdefault("WIDE", is_wide)
    fixed.update({p.name: p.default for p in kernel.params if p.is_constexpr and p.has_default and p.name not in fixed})
    variable = [p for p in kernel.params if not p.is_constexpr]
    absent = [p.name for p in kernel.params if p.is_constexpr and p.name not in fixed]
    unknown = [c for c in constants if not any(p.name == c and p.is_constexpr for p in kernel.params)]
    if len(variable) != len(arguments) or absent or unknown:
        raise KernelError(
            f"{name}: expected arguments {', '.join(p.name for p in variable)}, got {len(arguments)}; constants "
            f"missing: {', '.join(absent) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    signature: dict[str, str] = {p.name: "constexpr" for p in kernel.params}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    kinds = []
    for p, a in zip(variable, arguments, strict=True):
        if a is None:
            fixed[p.name] = None
            continue
        aligned = False
        if isinstance(a, int):
            kind = p.annotation_type or ("i64" if is_wide else "i32")
            aligned = a % 16 == 0
        elif type(a) is float:
            kind = p.annotation_type or "fp32"
        else:
            a = a.array if type(a) is Strided else a
            dtype = a.dtype.name
            if dtype not in _POINTERS:
                raise KernelError(f"{name}: argument {p.name} is {dtype}; Triton has {', '.join(_POINTERS)}")
            kind = _POINTERS[dtype]
            aligned = a.data.ptr % 16 == 0
        if aligned and not p.do_not_specialize:
            attributes[(p.num,)] = [["tt.divisibility", 16]]
        signature[p.name] = kind
        kinds.append(kind)
    constexprs = {(kernel.arg_names.index(key),): value for key, value in fixed.items()}
    return ASTSource(kernel, signature, constexprs, attributes), kinds


_PACKED = {
    "i1": "b7x", "i8": "b7x", "i16": "h6x", "i32": "i4x", "i64": "q",
    "u1": "B7x", "u8": "B7x", "u16": "H6x", "u32": "I4x", "u64": "Q",
    "fp16": "e6x", "fp32": "f4x", "fp64": "d",
}  # fmt: skip
"""How a value lies in its eight bytes of a launch's parameters, as the module `struct` says it."""

_triton_binaries: dict[tuple[Any, ...], _TritonBinary] = {}


class _Parameters(threading.local):
    """Where this thread puts the parameters of a launch: eight bytes each, and their addresses. CUDA copies them."""

    def __init__(self) -> None:
        self.values = packed_array("Q", [0]) * 256
        start = self.values.buffer_info()[0]
        self._addresses = packed_array("Q", range(start, start + 8 * 256, 8))
        self.address = self._addresses.buffer_info()[0]


_parameters = _Parameters()


class _TritonBinary:
    """A compiled Triton kernel, loaded on the current device."""

    def __init__(
        self,
        kernel: Any,
        arguments: Sequence[Any],
        constants: Mapping[str, Any],
        is_wide: bool,
        warps: int,
        stages: int,
    ) -> None:
        import cupy
        from triton.backends.compiler import GPUTarget
        from triton.compiler import compile

        capability = int(cupy.cuda.Device().compute_capability)
        source, kinds = triton_source(kernel, arguments, constants, is_wide)
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": FUSION}
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        self._kernel = kernel  # lives as long as its number stands for it
        self._function = _load(compiled.metadata.name, compiled.asm["cubin"], compiled.metadata.shared)
        self._threads = 32 * warps
        self._shared = compiled.metadata.shared
        # Two more, of scratch memory that these kernels do not use.
        self._pack = struct.Struct("<" + "".join("Q" if k[0] == "*" else _PACKED[k] for k in kinds) + "QQ").pack_into

    def launch(self, grid: Sequence[int], stream: int, values: Sequence[Any]) -> None:
        from cupy.cuda import driver

        x, y, z = (*grid, 1, 1)[:3]
        self._pack(_parameters.values, 0, *values, 0, 0)
        driver.launchKernel(self._function, x, y, z, self._threads, 1, 1, self._shared, stream, _parameters.address, 0)


def _load(name: str, cubin: bytes, shared: int) -> int:
    """The handle of a function of a binary, which stays loaded."""
    from cupy.cuda import driver

    function = driver.moduleGetFunction(driver.moduleLoadData(cubin), name)
    if shared > USUAL_SHARED:
        driver.funcSetAttribute(function, 8, shared)  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    return function


# ---------------------------------------------------------------------------------------------------------
# Launch configurations
# ---------------------------------------------------------------------------------------------------------


@functools.cache
def _configurations() -> dict[str, dict[str, list[int]]]:
    path = FOLDER / "configurations.json"
    return json.loads(path.read_text()) if path.exists() else {}


@functools.cache
def _capability(device: int) -> str:
    import cupy

    return str(cupy.cuda.Device(device).compute_capability)


class Choices:
    """Launch configurations of a kernel: which of a few candidates runs on this GPU for a call of this size.

    Parameters
    ----------
    name : ``"operation.backend"``, as in ``"gaussian_sample.triton"``.
    candidates : names and values that the launcher reads, such as ``{"block": 1024, "warps": 4}``; the first is right
        wherever nothing was measured.
    classes : sizes in ascending order at which a new class begins.

    Notes
    -----
    What was measured is in ``configurations.json``: compute capability -> name -> the number of the candidate in each
    class. ``gmcore kernels --tune`` measures and writes it.
    """

    every: dict[str, Choices] = {}
    """All that there are, by name."""

    def __init__(self, name: str, candidates: Sequence[Mapping[str, int]], classes: Sequence[int] = ()) -> None:
        self.name = name
        self.candidates = tuple(candidates)
        self.classes = tuple(classes)
        Choices.every[name] = self

    def at(self, size: int) -> Mapping[str, int]:
        """The configuration for calls of a size on the current device.

        Parameters
        ----------
        size : in the unit of the classes.
        """
        import cupy

        measured = _configurations().get(_capability(cupy.cuda.runtime.getDevice()), {}).get(self.name)
        if measured is None:
            return self.candidates[0]
        return self.candidates[measured[sum(size >= start for start in self.classes)]]
