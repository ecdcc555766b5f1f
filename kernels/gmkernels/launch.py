"""Launches of GPU kernels on CuPy arrays: CUDA C through NVRTC, Triton without PyTorch.

A kernel file calls `cuda` or `triton` with a grid and arguments; everything else is decided here: which binary runs
(one per family, dtype and width of indices, compiled at its first use and cached on disk), on which stream (CuPy's
current one), and whether the arguments may go there. A launch allocates nothing and waits for nothing, so a stream
that is being captured into a CUDA graph takes it.

Arithmetic is not fused (``-fmad=false``, ``enable_fp_fusion=False``): multiply-adds are where a kernel spells them, so
that random numbers have the same bits on all backends. ``GMKERNELS_FUSION=1`` in the environment lets compilers fuse.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gmkernels.arrays import is_array, on_gpu
from gmkernels.configurations import Choices
from gmkernels.registry import DeviceMemoryError, KernelError, LaunchError, Layout

__all__ = [
    "Choices",
    "Pointer",
    "Strided",
    "activate",
    "allocate",
    "cuda",
    "cuda_source",
    "held",
    "on_gpu",
    "resident",
    "triton",
    "triton_options",
    "triton_source",
    "wide",
]

FOLDER = Path(__file__).parent
FUSION = os.environ.get("GMKERNELS_FUSION", "") == "1"
"""Whether compilers may fuse multiplications with additions."""
LARGEST_INT = 2**31 - 1
LARGEST_SIZE = 2**31 - 2**20
"""Most elements of an array with indices of 32 bits: less than would fit, since a loop's last step goes further."""
USUAL_SHARED = 32 << 10
"""Bytes of dynamic shared memory that a block has without asking: there are 48 KiB, but a kernel's own arrays count."""

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
    """Whether indices into one of the arrays need 64 bits: whether it has, or its strides skip, about 2^31 elements.

    Parameters
    ----------
    arrays : of any library.
    """
    return any(_reach(a) > LARGEST_SIZE for a in arrays)


def _reach(a: Any) -> int:
    """The elements of an array, or those from its first to its last in memory if they are more."""
    if a.flags.c_contiguous:
        return a.size
    span = sum((n - 1) * abs(stride) for n, stride in zip(a.shape, a.strides, strict=True))
    return max(a.size, span // a.itemsize + 1)


def resident(array: np.ndarray) -> Any:
    """A copy of a small array of the host in the memory of the current device, made in the order of its stream.

    Parameters
    ----------
    array : a key of the random stream, or a number that varies between calls.

    Returns
    -------
    CuPy array of the same shape and dtype.
    """
    import cupy

    return cupy.asarray(array)


def allocate(op: str, layout: Layout) -> list[Any]:
    """Uninitialised arrays on the current device.

    Parameters
    ----------
    op : whose they are, for the error, with the backend that computes it.
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
    raise DeviceMemoryError(f"{op}: {describe_memory(f'for {_bytes(asked)}')}")


def describe_memory(asked: str | Exception) -> str:
    """That there is no room on the current device: what was asked for, what is free, and what can be done.

    Parameters
    ----------
    asked : ``"for 3.0 GiB"``, or the error of CuPy that says it.
    """
    import cupy

    device = cupy.cuda.runtime.getDevice()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    free += pool.free_bytes()
    limit = ""
    if most := pool.get_limit():
        free = min(free, max(0, most - pool.used_bytes()))
        limit = f", and CuPy's pool is limited to {_bytes(most)}"
    asked = asked if isinstance(asked, str) else f"(CuPy: {str(asked).rstrip('.')})"
    return (
        f"no room on cuda:{device} {asked}: {_bytes(free)} of {_bytes(total)} are free{limit}; free arrays that are "
        "not needed, or work in smaller batches"
    )


def _bytes(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024 or unit == "bytes" and n < 10000:
            break
        n /= 1024
    else:
        unit = "GiB"
    return f"{n} bytes" if unit == "bytes" else f"{n:.1f} {unit}"


# ---------------------------------------------------------------------------------------------------------
# Argument checks
# ---------------------------------------------------------------------------------------------------------


def _check_grid(name: str, grid: Sequence[int], threads: int) -> None:
    x, y, z = (*grid, 1, 1, 1)[:3]
    if not (len(grid) <= 3 and 0 <= x <= LARGEST_INT and 0 <= y <= 65535 and 0 <= z <= 65535):
        raise KernelError(f"{name}: a grid of {tuple(grid)} blocks; CUDA takes up to (2147483647, 65535, 65535)")
    if not 0 < threads <= 1024:
        raise KernelError(f"{name}: a block of {threads} threads; CUDA takes 1 to 1024")


def _refuse(name: str, position: int, argument: Any, device: int) -> NoReturn:
    """Say what is wrong with an argument of a launch."""
    a = argument.array if type(argument) is Strided else argument
    if not is_array(a) or not on_gpu(a):
        where = "in host memory" if isinstance(a, np.ndarray) else f"of type {type(a).__name__}"
        raise KernelError(f"{name}: argument {position} is {where}; expected an array of CuPy or a number")
    if a.data.device_id != device:
        raise KernelError(
            f"{name}: argument {position} is on cuda:{a.data.device_id}, the launch is on cuda:{device}; expected one "
            f"device: with cupy.cuda.Device({device}): cupy.asarray(x)"
        )
    raise KernelError(
        f"{name}: argument {position} has shape {a.shape} and strides {a.strides}; expected a C-contiguous array: "
        "cupy.ascontiguousarray(x)"
    )


def _address(name: str, position: int, argument: Any, device: int) -> tuple[Any, int]:
    """The array of an argument and where it lies; raises unless a kernel on the current device may have it."""
    strided = type(argument) is Strided
    a = argument.array if strided else argument
    try:
        data = a.data
        fits = data.device_id == device and (strided or a.flags.c_contiguous)
    except AttributeError:  # no array, or one of NumPy
        fits = False
    if not fits:
        _refuse(name, position, argument, device)
    return a, data.ptr


# ---------------------------------------------------------------------------------------------------------
# CUDA C
# ---------------------------------------------------------------------------------------------------------


class _Function(NamedTuple):
    """A compiled kernel, and by device the most dynamic shared memory that its blocks may have."""

    kernel: Any
    most_shared: dict[int, int]

    def allow_shared(self, size: int, device: int) -> None:
        """Let blocks have so many bytes. The limit is the kernel's, not a launch's, so it is never lowered: another
        thread may be about to launch, and a graph keeps launches."""
        if size > self.most_shared.get(device, 0):
            with _lock:
                if size > self.most_shared.get(device, 0):
                    self.kernel.max_dynamic_shared_size_bytes = size
                    self.most_shared[device] = size


_cuda_kernels: dict[tuple[Any, ...], _Function] = {}
_cuda_modules: dict[tuple[Any, ...], Any] = {}


@functools.cache
def _headers(folder: Path) -> str:
    """A digest of the headers that a kernel in a folder may include: CuPy's cache on disk looks at the source alone."""
    digest = hashlib.sha256()
    for path in sorted({*FOLDER.rglob("*.cuh"), *folder.glob("*.cuh")}):
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
        "-ftz=true",  # denormals are flushed, as in the kernels of the CPU; CuPy adds it anyway
        f"-I{FOLDER}",
        f"-I{path.parent}",
        f"-DREAL={real}",
        f"-DSTORE={store}",
        f"-DINDEX={index}",
        *(f"-D{define}" for define in defines),
    )
    return f"// headers {_headers(path.parent)}\n" + path.read_text(), options


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
        double, and a NumPy scalar what it is: a struct, if its dtype has fields.
    shared : bytes of dynamic shared memory of a block.
    defines : ``"NAME=VALUE"``, given to the compiler: one module for each set of them.
    cooperative : whether all blocks must run at once, for a barrier of the grid.

    Raises
    ------
    KernelError : an array elsewhere or not contiguous, or a grid that does not fit.
    LaunchError : blocks that wait for each other, and more of them than the device runs at once.
    """
    import cupy

    threads = math.prod(block)
    _check_grid(name, grid, threads)
    if 0 in grid:
        return
    device = cupy.cuda.runtime.getDevice()
    is_wide = False
    values: list[Any] = []
    for position, a in enumerate(arguments):
        if isinstance(a, int):
            is_wide = is_wide or not -LARGEST_INT <= a <= LARGEST_INT
            values.append(a)
        elif a is None:
            values.append(np.uint64(0))
        elif type(a) is float:
            values.append(np.float64(a))
        elif type(a) is np.void:
            values.append(np.array(a))  # the form in which CuPy passes a struct by value
        elif isinstance(a, np.generic):
            values.append(a)
        else:
            a, _ = _address(name, position, a, device)
            is_wide = is_wide or a.size > LARGEST_SIZE
            values.append(a)
    index = np.int64 if is_wide else np.int32
    passed = tuple([index(a) if isinstance(a, int) else a for a in values])
    form = (family, name, dtype, is_wide, defines, cooperative)
    function = _cuda_kernels.get(form)
    if function is None:
        kernel = _cuda_kernel(family, name, _name(dtype), is_wide, defines, cooperative)
        function = _cuda_kernels[form] = _Function(kernel, {})
    kernel = function.kernel
    if shared > USUAL_SHARED:
        function.allow_shared(shared, device)
    if cooperative:
        _check_cooperative(name, kernel, math.prod(grid), threads, shared, device)
    kernel(tuple(grid), tuple(block), passed, shared_mem=shared)


@functools.cache
def _multiprocessors(device: int) -> tuple[int, int]:
    """How many there are, and how many bytes of shared memory each has."""
    import cupy

    has = cupy.cuda.Device(device).attributes
    return has["MultiProcessorCount"], has["MaxSharedMemoryPerMultiprocessor"]


def held(blocks: int, shared: int) -> int:
    """The blocks of a cooperative launch that the current device holds at once.

    Parameters
    ----------
    blocks : on a multiprocessor, by threads and registers: what the kernel has in ``__launch_bounds__``.
    shared : bytes of shared memory of a block.
    """
    import cupy

    count, room = _multiprocessors(cupy.cuda.runtime.getDevice())
    return count * min(blocks, room // (shared + 1024))  # the system takes a KiB of each block


def _check_cooperative(name: str, kernel: Any, blocks: int, threads: int, shared: int, device: int) -> None:
    """Raise unless all blocks of a grid run at once: CuPy would launch fewer of them, with a warning."""
    import cupy

    each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, threads, shared)
    most = each * _multiprocessors(device)[0]
    if blocks > most:
        raise LaunchError(
            f"{name}: {blocks} blocks of {threads} threads with {shared} bytes of shared memory wait for each other, "
            f"and cuda:{device} runs {most} at once; ask for backend='triton', whose blocks do not wait"
        )


# ---------------------------------------------------------------------------------------------------------
# Triton
# ---------------------------------------------------------------------------------------------------------

_POINTERS = {
    "float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16", "bool": "*i1",
    "int8": "*i8", "int16": "*i16", "int32": "*i32", "int64": "*i64",
    "uint8": "*u8", "uint16": "*u16", "uint32": "*u32", "uint64": "*u64",
}  # fmt: skip
_binaries: dict[tuple[Any, ...], Any] = {}
_multiples: dict[int, frozenset[int]] = {}
"""By the number of a kernel: which of its arguments it is compiled for as multiples of 16, if they are."""


def _look_at(kernel: Any) -> frozenset[int]:
    variable = [p for p in kernel.params if not p.is_constexpr]
    _multiples[id(kernel)] = frozenset(i for i, p in enumerate(variable) if not p.do_not_specialize)
    return _multiples[id(kernel)]


@functools.cache
def activate() -> None:
    """Let Triton launch on CuPy's current device and stream from now on, in the whole process.

    Kernels of ours do not need it. The first `Pointer` calls it; after that ``triton.runtime.driver.reset_active()``
    gives Triton its own driver back, and ``set_active(gmkernels.triton_driver.TritonDriver())`` takes it again.
    """
    from triton.runtime import driver

    from gmkernels.triton_driver import TritonDriver

    driver.set_active(TritonDriver())


class Pointer:
    """An array of CuPy as an argument of a Triton kernel written elsewhere.

    ``kernel[grid](Pointer(x), Pointer(y), n, BLOCK=1024)`` launches on CuPy's current device and stream. Where
    Triton interprets (``TRITON_INTERPRET=1``), it is what its interpreter wants instead of a tensor.

    Parameters
    ----------
    array : on the current device. Its strides are the kernel's business.

    Raises
    ------
    KernelError : an array elsewhere, or device memory where Triton interprets.
    """

    def __init__(self, array: Any) -> None:
        import cupy
        from triton import knobs

        _, self._address = _address("Pointer", 0, Strided(array), cupy.cuda.runtime.getDevice())
        self.array = array
        self.dtype = array.dtype
        if not knobs.runtime.interpret:
            activate()
        elif cupy.cuda.runtime.pointerGetAttributes(self._address).type == cupy.cuda.runtime.memoryTypeDevice:
            raise KernelError("Triton's interpreter cannot read device memory: unset TRITON_INTERPRET")

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self._address

    # What the interpreter does with a tensor's storage, to have a copy in host memory: this is the copy.

    def untyped_storage(self) -> Pointer:
        return self

    def cpu(self) -> Pointer:
        return self

    def new_empty(self, *shape: Any, **options: Any) -> Pointer:
        return copy.copy(self)

    def set_(self, storage: Pointer, *layout: Any) -> None:
        self._address = storage._address

    def copy_(self, other: Pointer) -> None:
        """Nothing: it is the same memory."""

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)


class _Patches:
    """What Triton's interpreter has changed in the language, once for a kernel and the functions that it calls.

    The interpreter itself changes it anew at each call of a function, which takes most of its time, and for good.
    """

    def __init__(self, patch: Callable[[Any], Any], modules: tuple[Any, ...]) -> None:
        self._patch = patch
        self._modules = modules
        self._done: dict[tuple[Any, ...], Any] = {}

    def __call__(self, function: Any) -> _Patches:
        seen = list(map(id, function.__globals__.values()))
        used = tuple([module for module in self._modules if id(module) in seen])
        if used not in self._done:
            self._done[used] = self._patch(function)
        return self

    def restore(self) -> None:
        while self._done:
            self._done.popitem()[1].restore()


@functools.cache
def _mend_interpreter() -> None:
    """Let loops of an interpreted kernel go between its numbers, functions be called quickly, multiply-adds round once.

    The interpreter of Triton 3.6 makes an `int` of an array of one number for a loop, which NumPy 2.4 refuses, and
    rounds the product of `tl.fma`. In float64 the product of two float32 numbers is exact; multiply-adds of float64
    keep their two roundings.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data * y.data.astype(np.float64) + z.data
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = fma

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = mended
    interpreter._patch_lang = _Patches(interpreter._patch_lang, (tl, tl.core))


def _interpret(kernel: Any, grid: Sequence[int], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Run a Triton kernel in Triton's interpreter, on arrays in memory that the host can read."""
    import cupy
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    is_wide = _has_wide(arguments)
    dtype, kind = (np.int64, tl.int64) if is_wide else (np.int32, tl.int32)
    device = cupy.cuda.runtime.getDevice()
    given = dict(constants)
    if "WIDE" in kernel.arg_names:
        given.setdefault("WIDE", is_wide)
    variable = [name for name in kernel.arg_names if name not in given]
    values: list[Any] = []
    for position, (name, a) in enumerate(zip(variable, arguments, strict=True)):
        if a is None:
            values.append(a)
        elif type(a) is float:
            double = "float64" in str(kernel.fn.__annotations__.get(name))
            real, real_kind = (np.float64, tl.float64) if double else (np.float32, tl.float32)
            values.append(tl.tensor(TensorHandle(np.array([a], real), real_kind), real_kind))
        elif isinstance(a, int):  # of the type that compiled code has, not the one that the value asks for
            values.append(tl.tensor(TensorHandle(np.array([a], dtype), kind), kind))
        else:
            values.append(Pointer(_address(kernel.__name__, position, a, device)[0]))
    _mend_interpreter()
    with np.errstate(all="ignore"):  # as on a device
        kernel[tuple(grid)](**dict(zip(variable, values, strict=False)), **given)


def _has_wide(arguments: Sequence[Any]) -> bool:
    """Whether an array has too many elements for 32-bit indices, or a number too many bits."""
    numbers = [a for a in arguments if isinstance(a, int)]
    arrays = [a.array if type(a) is Strided else a for a in arguments if is_array(a) or type(a) is Strided]
    return wide(*arrays) or any(not -LARGEST_INT <= a <= LARGEST_INT for a in numbers)


def triton(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    constants: Mapping[str, Any] = {},
    *,
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
) -> None:
    """Launch a Triton kernel on the current device and stream.

    Parameters
    ----------
    kernel : a function of ``triton.jit``.
    grid : numbers of programs along up to 3 axes. A grid without programs launches nothing.
    arguments : those that are not ``tl.constexpr``, in the kernel's order: arrays, ints (int64 where an array has or
        spans about 2^31 elements or more or a number more than 31 bits, otherwise int32), floats (float32 unless
        annotated as ``tl.float64``), or None. An int outside ``do_not_specialize`` is compiled for whether it is a
        multiple of 16.
    constants : values of the ``tl.constexpr`` parameters by name. One called ``WIDE`` that is not among them says
        whether ints have 64 bits.
    warps, stages : of a program: threads / 32, and depth of pipelined loops.
    registers : most of a thread. If None, the assembler chooses how many programs a multiprocessor is to hold, and may
        spill some numbers for one more.

    Raises
    ------
    KernelError : an array elsewhere or not contiguous, a dtype that Triton lacks, or a grid that does not fit.
    """
    name = kernel.__name__
    _check_grid(name, grid, 32 * warps)
    if 0 in grid:
        return
    if type(kernel).__name__ == "InterpretedFunction":
        _interpret(kernel, grid, arguments, constants)
        return
    import cupy

    device = cupy.cuda.runtime.getDevice()
    is_wide = False
    number = id(kernel)
    multiples = _multiples.get(number) or _look_at(kernel)
    form: list[Any] = [number, device, warps, stages, registers, *constants.items()]
    values: list[Any] = []
    for position, a in enumerate(arguments):
        if isinstance(a, int):
            is_wide = is_wide or not -LARGEST_INT <= a <= LARGEST_INT
            form.append(a % 16 == 0 and position in multiples)
            values.append(a)
        elif a is None:
            form.append(None)
        elif type(a) is float:
            form.append(float)
            values.append(a)
        else:
            array, address = _address(name, position, a, device)
            is_wide = is_wide or array.size > LARGEST_SIZE or (array is not a and wide(array))
            form += (array.dtype, address % 16 == 0)
            values.append(address)
    key = (is_wide, *form)
    binary = _binaries.get(key)
    if binary is None:
        binary = _compiled(key, kernel, arguments, constants, is_wide, warps, stages, registers)
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


def triton_options(warps: int, stages: int, registers: int | None = None) -> dict[str, Any]:
    """Triton's options of a compilation.

    Parameters
    ----------
    warps, stages, registers : as in `triton`.
    """
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": FUSION}
    return options if registers is None else options | {"maxnreg": registers}


def _compiled(
    key: tuple[Any, ...],
    kernel: Any,
    arguments: Sequence[Any],
    constants: Mapping[str, Any],
    is_wide: bool,
    warps: int,
    stages: int,
    registers: int | None,
) -> Any:
    from gmkernels.triton_driver import Binary

    with _lock:
        if key not in _binaries:
            source, kinds = triton_source(kernel, arguments, constants, is_wide)
            _binaries[key] = Binary(source, kinds, triton_options(warps, stages, registers))
        return _binaries[key]
