"""Triton's side of a launch: binaries loaded and launched through CuPy, without PyTorch and without a C compiler.

`Binary` is what kernels of ours are launched by. `TritonDriver` does the same for ``kernel[grid](...)``, so that Triton
code written elsewhere runs on arrays of CuPy: on CuPy's current device and stream, which a capture into a CUDA graph
needs. Triton's own driver takes these from PyTorch, or the default stream where there is none.

Written against Triton 3.6 to 3.9.
"""

from __future__ import annotations

import functools
import struct
import threading
from array import array as packed_array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy
from cupy.cuda import driver, runtime
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver

from gmkernels.registry import KernelError

USUAL_SHARED = 48 << 10
"""Bytes of shared memory that a block has without asking."""

_MAX_THREADS = 0  # CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK and others, by number
_LOCAL_BYTES = 3
_REGISTERS = 4
_MAX_DYNAMIC_SHARED = 8

_PACKED = {
    "i1": "b7x", "i8": "b7x", "i16": "h6x", "i32": "i4x", "i64": "q",
    "u1": "B7x", "u8": "B7x", "u16": "H6x", "u32": "I4x", "u64": "Q",
    "fp16": "e6x", "fp32": "f4x", "fp64": "d",
}  # fmt: skip
"""How a value lies in its eight bytes of a launch's parameters, in the language of the module `struct`."""
_MOST_PARAMETERS = 512


def _ensure_context() -> None:
    """Make the current device's context that of this thread: the driver's calls need it, the runtime's make it.

    The driver is not asked whether there is one: before any call of the runtime that is an error.
    """
    runtime.memGetInfo()


class _Parameters(threading.local):
    """Where this thread puts the parameters of a launch: eight bytes each, and their addresses. CUDA copies them."""

    def __init__(self) -> None:
        _ensure_context()  # once for each thread
        self.values = packed_array("Q", [0]) * _MOST_PARAMETERS
        start = self.values.buffer_info()[0]
        self._addresses = packed_array("Q", range(start, start + 8 * _MOST_PARAMETERS, 8))
        self.address = self._addresses.buffer_info()[0]


_parameters = _Parameters()


def packer(kinds: Sequence[str]) -> Callable[..., None]:
    """What writes values into the parameters of a launch: ``pack(memory, 0, *values, scratch, profile)``.

    Parameters
    ----------
    kinds : Triton's names of the types of the values. Each kernel has two more pointers, to memory for scratch and for
        a profile.

    Raises
    ------
    KernelError : a type that cannot be passed.
    """
    unknown = [kind for kind in kinds if kind[0] != "*" and kind not in _PACKED]
    if unknown or len(kinds) + 2 > _MOST_PARAMETERS:
        raise KernelError(f"Triton kernel: cannot pass {unknown[0] if unknown else len(kinds)} as a parameter")
    return struct.Struct("<" + "".join("Q" if kind[0] == "*" else _PACKED[kind] for kind in kinds) + "QQ").pack_into


def load(name: str, cubin: bytes, shared: int) -> tuple[int, int]:
    """Load a binary on the current device.

    Parameters
    ----------
    name : of the function in it.
    cubin : the binary.
    shared : bytes of dynamic shared memory of a block.

    Returns
    -------
    Handles of the module, which stays loaded, and of the function.
    """
    _ensure_context()
    module = driver.moduleLoadData(cubin)
    function = driver.moduleGetFunction(module, name)
    if shared > USUAL_SHARED:
        driver.funcSetAttribute(function, _MAX_DYNAMIC_SHARED, shared)
    return module, function


class Binary:
    """A compiled Triton kernel, loaded on the current device.

    Parameters
    ----------
    source : a ``triton.compiler.ASTSource``.
    kinds : Triton's names of the types of the values that a launch passes.
    options : of the compiler.
    """

    def __init__(self, source: Any, kinds: Sequence[str], options: dict[str, Any]) -> None:
        from triton.compiler import compile

        compiled = compile(source, target=current_target(), options=options)
        metadata = compiled.metadata
        most = shared_memory(runtime.getDevice())
        if metadata.shared > most:
            raise KernelError(
                f"{metadata.name}: a block needs {metadata.shared} bytes of shared memory, there are {most}"
            )
        self._module, self._function = load(metadata.name, compiled.asm["cubin"], metadata.shared)
        self._threads = 32 * metadata.num_warps
        self._shared = metadata.shared
        self._pack = packer(kinds)
        self._source = source  # the kernel lives as long as its number stands for it

    def launch(self, grid: Sequence[int], stream: int, values: Sequence[Any]) -> None:
        """Enqueue the kernel.

        Parameters
        ----------
        grid : numbers of programs.
        stream : its handle.
        values : addresses and numbers.
        """
        parameters = _parameters
        self._pack(parameters.values, 0, *values, 0, 0)
        x, y, z = (*grid, 1, 1)[:3]
        driver.launchKernel(self._function, x, y, z, self._threads, 1, 1, self._shared, stream, parameters.address, 0)


def current_target() -> GPUTarget:
    """The current device as Triton's compiler names it."""
    return GPUTarget("cuda", int(cupy.cuda.Device().compute_capability), 32)


@functools.cache
def shared_memory(device: int) -> int:
    """Most bytes of shared memory that a block of a device can have."""
    return int(cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


# ---------------------------------------------------------------------------------------------------------
# The driver, for kernel[grid](...)
# ---------------------------------------------------------------------------------------------------------


def _values(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The types and values that an argument passes: those of its parts for a tuple, none for a constant."""
    if isinstance(kind, tuple):
        for part, each in zip(kind, value, strict=True):
            yield from _values(part, each)
    elif kind != "constexpr":
        yield kind, value


def _kinds(kind: Any) -> Iterator[str]:
    if isinstance(kind, tuple):
        for part in kind:
            yield from _kinds(part)
    elif kind != "constexpr":
        yield kind


def _address(value: Any) -> int:
    if value is None:
        return 0
    return value if isinstance(value, int) else value.data_ptr()


class Launcher:
    """What Triton calls for each launch of a kernel of one signature.

    Parameters
    ----------
    source : what the kernel was compiled from; it has the signature.
    metadata : of the compiled kernel.

    Raises
    ------
    KernelError : a kernel of clusters, or one that takes descriptors of tensors made by the host.
    """

    def __init__(self, source: Any, metadata: Any) -> None:
        name = metadata.name
        if getattr(metadata, "num_ctas", 1) != 1:
            raise KernelError(f"{name}: kernels of clusters (num_ctas > 1) are not launched here; use num_ctas=1")
        self._signature = tuple(source.signature.values())
        self._kinds = [kind for part in self._signature for kind in _kinds(part)]
        if any(kind.startswith("tensordesc") for kind in self._kinds):
            raise KernelError(
                f"{name}: descriptors made by the host are not passed here; use tl.make_tensor_descriptor"
            )
        if metadata.profile_scratch_size:
            raise KernelError(f"{name}: compiled for Triton's profiler, which is not served here")
        self._pack = packer(self._kinds)
        self._scratch = metadata.global_scratch_size, metadata.global_scratch_align
        self._launch = driver.launchCooperativeKernel if metadata.launch_cooperative_grid else driver.launchKernel
        self._extra = () if metadata.launch_cooperative_grid else (0,)

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: int, packed: Any, metadata: Any, enter: Any, leave: Any,
        *arguments: Any,
    ) -> None:  # fmt: skip
        if enter is not None:
            enter(metadata)
        if x * y * z:
            passed = [each for pair in zip(self._signature, arguments, strict=True) for each in _values(*pair)]
            values = [_address(value) if kind[0] == "*" else value for kind, value in passed]
            warps, _, shared = packed
            parameters = _parameters
            self._pack(parameters.values, 0, *values, self._scratch_memory(x * y * z, stream), 0)
            self._launch(function, x, y, z, 32 * warps, 1, 1, shared, stream, parameters.address, *self._extra)
        if leave is not None:
            leave(metadata)

    def _scratch_memory(self, programs: int, stream: int) -> int:
        """Address of the memory that the kernel asks for, from what `triton.set_allocator` was given."""
        from triton.runtime._allocation import _allocator

        size, alignment = self._scratch
        return _allocator.get()(programs * size, alignment, stream).data_ptr() if size else 0


class _Utilities:
    """What Triton asks of a driver's `utils`."""

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:  # module, function, registers, spills, most threads
        module, function = load(name, binary, shared)
        registers, local, threads = (
            driver.funcGetAttribute(what, function) for what in (_REGISTERS, _LOCAL_BYTES, _MAX_THREADS)
        )
        return module, function, registers, local // 4, threads

    def unload_module(self, module: int) -> None:
        driver.moduleUnload(module)

    def get_device_properties(self, device: int) -> dict[str, int]:
        found = cupy.cuda.Device(device).attributes
        return {
            "max_shared_mem": found["MaxSharedMemoryPerBlockOptin"],
            "max_num_regs": found["MaxRegistersPerBlock"],
            "multiprocessor_count": found["MultiProcessorCount"],
            "warpSize": found["WarpSize"],
            "sm_clock_rate": found.get("ClockRate", 0),
            "mem_clock_rate": found.get("MemoryClockRate", 0),
            "mem_bus_width": found["GlobalMemoryBusWidth"],
        }


class _Event:
    """An event as PyTorch has it, for Triton's timing."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._event = cupy.cuda.Event(disable_timing=not enable_timing)

    def record(self) -> None:
        self._event.record()

    def elapsed_time(self, end: _Event) -> float:
        return cupy.cuda.get_elapsed_time(self._event, end._event)


class _DeviceInterface:
    """The part of ``torch.cuda`` that Triton's timing asks for."""

    Event = _Event

    @staticmethod
    def synchronize() -> None:
        cupy.cuda.Device().synchronize()

    @staticmethod
    def current_device() -> int:
        return runtime.getDevice()


class TritonDriver(GPUDriver):
    """Runs Triton on CuPy's current device and stream.

    ``triton.runtime.driver.set_active(TritonDriver())`` puts it in place; `gmkernels.launch.activate` does that.
    """

    def __init__(self) -> None:  # not that of the class above, which imports PyTorch
        self.utils = _Utilities()
        self.launcher_cls = Launcher

    @staticmethod
    def is_active() -> bool:
        return bool(cupy.cuda.is_available())

    def get_current_device(self) -> int:
        return runtime.getDevice()

    def set_current_device(self, device: int) -> None:
        runtime.setDevice(device)

    def get_current_stream(self, device: int) -> int:
        return cupy.cuda.get_current_stream(device).ptr

    def get_device_capability(self, device: int) -> tuple[int, int]:
        major, minor = divmod(int(cupy.cuda.Device(device).compute_capability), 10)
        return major, minor

    def get_current_target(self) -> GPUTarget:
        return current_target()

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return ty_to_cpp(ty)

    def get_active_torch_device(self) -> Any:
        raise KernelError("Triton runs on CuPy here: there is no PyTorch device (triton.runtime.driver.reset_active)")

    def get_device_interface(self) -> type[_DeviceInterface]:
        return _DeviceInterface

    def get_benchmarker(self) -> Any:
        from triton.testing import do_bench

        return do_bench

    def get_empty_cache_for_benchmark(self) -> Any:
        return cupy.empty(1 << 28, "int8")  # more than the L2 cache holds

    def clear_cache(self, cache: Any) -> None:
        cache.fill(0)


__all__ = ["Binary", "Launcher", "TritonDriver", "current_target", "load", "packer", "shared_memory"]
