"""A recording driver: what `gmkernels.launch` asks of CUDA's driver, kept instead of done.

It stands in for `cupy.cuda.driver`, beside the stand-in for the rest of CuPy, in a process in which Triton compiles
(it cannot both compile and interpret). Every launch is kept with its grid, stream and parameters.
"""

from __future__ import annotations

import ctypes
import sys
import types
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A launch as the driver was asked for it.

    Parameters
    ----------
    function : name of the kernel.
    grid, block : numbers of blocks and of threads.
    shared : bytes of dynamic shared memory of a block.
    stream : its handle.
    parameters : addresses of the parameters' values; `words` reads them.
    words : the first 64 parameters, eight bytes each.
    cooperative : whether all blocks run at once.
    """

    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    words: tuple[int, ...]
    cooperative: bool = False


class Recorder(types.ModuleType):
    """Takes the place of `cupy.cuda.driver`."""

    def __init__(self) -> None:
        super().__init__("cupy.cuda.driver")
        self.launches: list[Launch] = []
        self.loaded: list[bytes] = []
        self.attributes: dict[tuple[str, int], int] = {}
        self._names: list[str] = []

    def install(self) -> Recorder:
        """Be `cupy.cuda.driver`."""
        import cupy

        cupy.cuda.driver = self
        sys.modules["cupy.cuda.driver"] = self
        return self

    def ctxGetCurrent(self) -> int:
        return 0  # as in a thread that the runtime has not been called from

    def moduleLoadData(self, image: bytes) -> int:
        self.loaded.append(image)
        return len(self.loaded)

    def moduleUnload(self, module: int) -> None:
        self.loaded[module - 1] = b""

    def moduleGetFunction(self, module: int, name: str) -> int:
        assert self.loaded[module - 1], "a function of a module that is not loaded"
        self._names.append(name)
        return len(self._names)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.attributes[self._names[function - 1], attribute] = value

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        return {0: 1024, 3: 0, 4: 32}[attribute]

    def launchKernel(self, function: int, *sizes_and_rest: int) -> None:
        *sizes, shared, stream, parameters, extra = sizes_and_rest
        assert extra == 0
        self._keep(function, sizes, shared, stream, parameters, False)

    def launchCooperativeKernel(self, function: int, *sizes_and_rest: int) -> None:
        *sizes, shared, stream, parameters = sizes_and_rest
        self._keep(function, sizes, shared, stream, parameters, True)

    def _keep(
        self, function: int, sizes: list[int], shared: int, stream: int, parameters: int, cooperative: bool
    ) -> None:
        addresses = (ctypes.c_uint64 * 64).from_address(parameters)
        words = tuple(ctypes.c_uint64.from_address(a).value for a in addresses)
        name = self._names[function - 1]
        self.launches.append(Launch(name, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, words, cooperative))  # type: ignore[arg-type]


def install() -> Any:
    """The stand-in for CuPy with a recording driver, in a process in which Triton compiles."""
    import os

    from tests.support import cupy_stand_in

    cupy_stand_in.install()
    del os.environ["TRITON_INTERPRET"]
    return Recorder().install()
