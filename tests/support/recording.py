"""A recording driver: what `gmkernels.launch` asks of CUDA's driver, kept instead of done.

It stands in for `cupy.cuda.driver` and `cupy.RawModule`, beside the stand-in for the rest of CuPy, in a process of its
own in which Triton does not interpret. Every launch is kept with its grid, stream and parameters.

``python -m tests.support.recording`` calls every Triton and CUDA C kernel on the examples of its operation, with a
compiler that does nothing, and prints what is wrong with the launches.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import pkgutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tests.support import cuda_stand_in, cupy_stand_in


@dataclass(frozen=True)
class Launch:
    """A launch as the driver was asked for it.

    Parameters
    ----------
    function : name of the kernel.
    grid, block : numbers of blocks and of threads.
    shared, most_shared : bytes of dynamic shared memory of a block, and how many it may have.
    stream : its handle.
    words : the first parameters, eight bytes each.
    image : the binary that the kernel is of.
    cooperative : whether all blocks run at once.
    """

    function: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    most_shared: int
    stream: int
    words: tuple[int, ...]
    image: bytes
    cooperative: bool = False


class Recorder(types.ModuleType):
    """Takes the place of `cupy.cuda.driver`."""

    def __init__(self) -> None:
        super().__init__("cupy.cuda.driver")
        self.launches: list[Launch] = []
        self.loaded: list[bytes] = []
        self._functions: list[tuple[str, int]] = []
        self._most_shared: dict[int, int] = {}

    def moduleLoadData(self, image: bytes) -> int:
        self.loaded.append(image)
        return len(self.loaded)

    def moduleUnload(self, module: int) -> None:
        self.loaded[module - 1] = b""

    def moduleGetFunction(self, module: int, name: str) -> int:
        assert self.loaded[module - 1], "a function of a module that is not loaded"
        self._functions.append((name, module))
        return len(self._functions)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        assert attribute == 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._most_shared[function] = value

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        return {0: 1024, 3: 0, 4: 32}[attribute]

    def occupancyMaxActiveBlocksPerMultiprocessor(self, function: int, threads: int, shared: int) -> int:
        return min(2048 // threads, (228 << 10) // (shared + 1024))

    def launchKernel(self, function: int, *rest: int) -> None:
        assert rest[-1] == 0  # no parameters in another form
        self._keep(function, rest[:-1], False)

    def launchCooperativeKernel(self, function: int, *rest: int) -> None:
        self._keep(function, rest, True)

    def _keep(self, function: int, rest: tuple[int, ...], cooperative: bool) -> None:
        *sizes, shared, stream, parameters = rest
        addresses = (ctypes.c_uint64 * 32).from_address(parameters)
        words = tuple(ctypes.c_uint64.from_address(a).value for a in addresses)
        name, module = self._functions[function - 1]
        image = self.loaded[module - 1]
        most = self._most_shared.get(function, USUAL_SHARED)
        kept = Launch(name, tuple(sizes[:3]), tuple(sizes[3:]), shared, most, stream, words, image, cooperative)
        self.launches.append(kept)


def install() -> Recorder:
    """The stand-in for CuPy with a recording driver, in a process in which Triton compiles."""
    cupy_stand_in.install()
    del os.environ["TRITON_INTERPRET"]
    import cupy

    recorder = Recorder()
    cupy.cuda.driver = recorder
    sys.modules["cupy.cuda.driver"] = recorder
    return recorder


# ---------------------------------------------------------------------------------------------------------------
# What every launch must keep to
# ---------------------------------------------------------------------------------------------------------------

USUAL_SHARED, MOST_SHARED = 48 << 10, 227 << 10
"""Bytes of shared memory that a block has without asking, and that it can have."""
SHARED = 64 << 10
"""What every kernel of Triton needs: more than there is without asking. What compiled ones need, `ahead` says."""


def compile_nothing(source: Any, target: Any, options: dict[str, Any]) -> Any:
    """In place of `triton.compiler.compile`: a binary that holds the signature."""
    assert target.arch == 90 and options["enable_fp_fusion"] is False
    signature = [kind for kind in source.signature.values() if kind != "constexpr"]
    names = {source.fn.arg_names[place[0]] for place in source.constants}
    assert names == {name for name, kind in source.signature.items() if kind == "constexpr"}, "a constant has no value"
    metadata = types.SimpleNamespace(name=source.fn.__name__, shared=SHARED, num_warps=options["num_warps"])
    return types.SimpleNamespace(metadata=metadata, asm={"cubin": json.dumps(signature).encode()})


class Call(NamedTuple):
    """A launch of a CUDA C kernel; `most_shared` is how much shared memory its blocks may have."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    values: tuple[Any, ...]
    shared: int
    most_shared: int
    stream: int


class Module:
    """In place of `cupy.RawModule`: keeps the launches of its kernels. Family tests check their types."""

    def __init__(self, **given: Any) -> None: ...

    def get_function(self, name: str) -> Any:
        import cupy

        def kernel(grid: Any, block: Any, values: Any, *, shared_mem: int = 0) -> None:
            most = kernel.max_dynamic_shared_size_bytes  # type: ignore[attr-defined]
            call = Call(name, grid, block, values, shared_mem, most, cupy.cuda.get_current_stream().ptr)
            cuda_stand_in.submit("launch", lambda: _calls.append(call))

        kernel.kernel = types.SimpleNamespace(ptr=0)  # type: ignore[attr-defined]
        kernel.max_dynamic_shared_size_bytes = USUAL_SHARED  # type: ignore[attr-defined]
        return kernel


_calls: list[Call] = []


def _wrong_form(launch: Any, name: str, most_shared: int, stream: int) -> Iterator[str]:
    """What is wrong with the form of a launch, whatever its kernel is written in."""
    grid, block = launch.grid, launch.block
    limits = (2**31 - 1, 65535, 65535)
    if not all(0 < n <= most for n, most in zip(grid, limits, strict=False)):
        yield f"{name}: grid {grid}"
    threads = int(np.prod(block))
    if not 0 < threads <= 1024:
        yield f"{name}: block {block}"
    if not 0 <= launch.shared <= min(most_shared, MOST_SHARED):
        yield f"{name}: {launch.shared} bytes of shared memory, may have {most_shared}"
    if launch.stream != stream:
        yield f"{name}: on stream {launch.stream}, not on the current one"


def _wrong_triton(launch: Launch, stream: int) -> Iterator[str]:
    """What is wrong with a launch of a Triton kernel."""
    yield from _wrong_form(launch, launch.function, launch.most_shared, stream)
    if launch.shared != SHARED:
        yield f"{launch.function}: {launch.shared} bytes of shared memory, needs {SHARED}"
    kinds = json.loads(launch.image)
    if launch.words[len(kinds) : len(kinds) + 2] != (0, 0):
        yield f"{launch.function}: memory for scratch"
    for position, (kind, word) in enumerate(zip(kinds, launch.words, strict=False)):
        if kind.startswith("*"):
            if word and cuda_stand_in.block_of(word) is None:
                yield f"{launch.function}: argument {position} is no address of memory in use"
        elif kind == "i32" and word >> 32 not in (0, 0xFFFFFFFF):
            yield f"{launch.function}: argument {position} has more than 32 bits"


def _wrong_cuda(call: Call, device: int, stream: int) -> Iterator[str]:
    yield from _wrong_form(call, call.name, call.most_shared, stream)
    for position, value in enumerate(call.values):
        if not isinstance(value, (np.generic, np.ndarray)) and value.device.id != device:
            yield f"{call.name}: argument {position} is on another device"


def _on_device(arrays: Any, made_in: Any, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """The arrays on the device, those that were made in one dtype in another."""
    import cupy

    def put(a: np.ndarray) -> Any:
        with np.errstate(over="ignore"):
            return cupy.asarray(np.array(a.astype(dtype) if a.dtype == made_in else a, order="C"))

    return tuple(_on_device(a, made_in, dtype) if type(a) is tuple else put(a) for a in arrays)


def check(recorder: Recorder) -> tuple[dict[str, int], list[str]]:
    """Call every kernel on the examples of its operation.

    Returns
    -------
    The number of launches by kernel, and what is wrong with them.
    """
    import cupy
    import ml_dtypes
    import triton.compiler

    import gmkernels
    from gmkernels import registry

    triton.compiler.compile = compile_nothing
    cupy.RawModule = Module
    for module in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
        if module.ispkg:
            importlib.import_module(module.name)
    counts: dict[str, int] = {}
    wrong: list[str] = []
    stream = cupy.cuda.Stream(non_blocking=True)
    for (op, spec), backend in itertools.product(registry.specs().items(), ("triton", "cuda")):
        entry = registry.entries(spec).get(backend)
        for name in entry.dtypes if entry is not None else ():
            dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
            made_in = np.float32 if name in registry.HALVES else dtype
            examples = list(spec.examples(np.random.default_rng(7), made_in))
            for example in examples if name == "float32" else examples[-3:]:
                inputs = _on_device(example.inputs, made_in, dtype)
                attrs = example.attrs | ({"dtype": name} if "dtype" in example.attrs else {})
                layout = None if spec.updates else spec.infer(*inputs, **attrs)
                outputs = (
                    _on_device(example.updated, made_in, dtype) if layout is None else [cupy.empty(*o) for o in layout]
                )
                workspace = [cupy.empty(*w) for w in spec.workspace(*inputs, **attrs)]
                what = f"{op} on {backend} in {name}, {[a.shape for a in registry.flat(inputs)]}, {attrs}"
                del recorder.launches[:], _calls[:]
                signature = registry.signature(spec, inputs, attrs)
                if entry.refusal(signature) is not None:
                    continue
                try:
                    with stream, cuda_stand_in.counting() as asked:
                        entry.kernel()(inputs, outputs, workspace, attrs)
                except Exception as error:
                    wrong.append(f"{what}: {error!r}")
                    continue
                found = [w for launch in recorder.launches for w in _wrong_triton(launch, stream.ptr)]
                found += [w for call in _calls for w in _wrong_cuda(call, 0, stream.ptr)]
                # A stream that is being captured takes launches, and copies on the device.
                found += [f"asks for {kind}" for kind in asked if kind not in ("launch", "elementwise")]
                launched = len(recorder.launches) + len(_calls)
                if launched and not any(a.size for a in registry.flat(outputs)):
                    found.append("launches something for outputs without elements")
                wrong += [f"{what}: {w}" for w in found]
                counts[f"{op}.{backend}.{name}"] = counts.get(f"{op}.{backend}.{name}", 0) + launched
    return counts, wrong


if __name__ == "__main__":
    launched, failures = check(install())
    print(json.dumps({"launched": launched, "wrong": failures}))
