"""The BLAS that makes matrix products: where its functions are, and control of its threads.

NumPy carries a fast BLAS, so products need no library of our own, except where OpenBLAS is slow (`dense.products`).
Intel's MKL is faster on thin products, and is taken where the package mkl is installed, but on AMD's processors with
512-bit vectors; ``GMKERNELS_BLAS=numpy`` keeps NumPy's. Once loaded, MKL shows its functions to the whole process: a
PyTorch that is imported later takes them for those of its own MKL, on one thread; one that was imported before keeps
its own. `find` looks up the `cblas_?gemm` (products) and `cblas_?trsm` (triangular systems) in float32 and float64; a
launcher passes the address and `wide` to a block kernel, which calls `gmkernels.gemm.gemm` or `gmkernels.gemm.trsm`.

The blocks of a product run on the pool of `gmkernels.pool`. A BLAS that started threads of its own inside
them would fight that pool for the cores, so a launcher wraps the launch in `with single_threaded():`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmkernels.registry import KernelError

# The enumerations of cblas.h.
ROW_MAJOR, NO_TRANS, TRANS = 101, 111, 112
UPPER, LOWER = 121, 122
NON_UNIT, UNIT = 131, 132
LEFT = 141


@dataclass(frozen=True)
class Blas:
    """Entry points of a BLAS library: addresses of its functions, and control of its threads."""

    name: str
    sgemm: int
    dgemm: int
    strsm: int
    dtrsm: int
    wide: bool
    """Whether its integers have 64 bits."""
    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], None]
    core: str = ""
    """The processor that its kernels were written for, by OpenBLAS's name."""

    def gemm_address(self, dtype: np.dtype) -> int:
        return self.sgemm if dtype.char == "f" else self.dgemm  # comparing dtypes with types is slow

    @property
    def is_narrow(self) -> bool:
        """Whether it multiplies in 256-bit vectors where the processor has 512-bit ones.

        An OpenBLAS that does not know a processor takes kernels for an older one: that of NumPy 2.4 those for Haswell,
        on an AMD EPYC of the fifth generation. So does MKL there.
        """
        return _is_narrow(self.core)

    def trsm_address(self, dtype: np.dtype) -> int:
        return self.strsm if dtype.char == "f" else self.dtrsm


_NARROW = ("Haswell", "Zen")
"""Processors with 256-bit vectors whose kernels OpenBLAS takes for those with 512-bit ones that it does not know."""


@functools.cache
def _is_narrow(core: str) -> bool:
    if core not in _NARROW:
        return False
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))


# name, functions, control (number of threads, to set it, processor), 64-bit integers
_OF_OPENBLAS = ("get_num_threads", "set_num_threads", "get_corename")
_INTERFACES = (
    ("OpenBLAS", "scipy_cblas_{}64_", "scipy_openblas_{}64_", _OF_OPENBLAS, True),
    ("OpenBLAS", "cblas_{}64_", "openblas_{}64_", _OF_OPENBLAS, True),
    ("OpenBLAS", "scipy_cblas_{}", "scipy_openblas_{}", _OF_OPENBLAS, False),
    ("OpenBLAS", "cblas_{}", "openblas_{}", _OF_OPENBLAS, False),
    ("MKL", "cblas_{}", "MKL_{}", ("Get_Max_Threads", "Set_Num_Threads", None), False),
)


def _libraries() -> Iterator[ctypes.PyDLL]:
    """NumPy's extension module, through which its own BLAS resolves, then every BLAS in the process.

    PyDLL, since the calls are shorter than a release of the interpreter's lock. A system whose loader does
    not search the libraries that a module depends on (Windows) needs the second way.
    """
    paths = [str(importlib.import_module("numpy._core._multiarray_umath").__file__)]
    try:
        import threadpoolctl

        paths += [i["filepath"] for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"]
    except ImportError:
        pass
    for path in paths:
        try:
            yield ctypes.PyDLL(path)
        except OSError:
            continue


def _functions(library: ctypes.PyDLL, pattern: str) -> tuple[int, int, int, int]:
    """Addresses of the four functions of a `Blas`. Raises AttributeError if the library lacks one."""

    def address(name: str) -> int:
        return ctypes.cast(getattr(library, pattern.format(name)), ctypes.c_void_p).value or 0

    return address("sgemm"), address("dgemm"), address("strsm"), address("dtrsm")


@functools.cache
def numpys() -> Blas | None:
    """The BLAS that NumPy has loaded, if it is one whose threads can be controlled."""
    for library in _libraries():
        for name, cblas, control, (get, set_, core_of), wide in _INTERFACES:
            try:
                addresses = _functions(library, cblas)
                get_num_threads = getattr(library, control.format(get))
                set_num_threads = getattr(library, control.format(set_))
                get_core = getattr(library, control.format(core_of)) if core_of else None
            except AttributeError:
                continue
            get_num_threads.restype, set_num_threads.restype = ctypes.c_int, None
            get_num_threads.argtypes, set_num_threads.argtypes = [], [ctypes.c_int]
            core = ""
            if get_core is not None:
                get_core.restype = ctypes.c_char_p
                core = get_core().decode()
            elif name == "MKL":
                core = _core_of_mkl()
            return Blas(f"NumPy's {name}", *addresses, wide, get_num_threads, set_num_threads, core)
    return None


def _core_of_mkl() -> str:
    """AMD's processors are a Haswell to MKL, whichever branch of its code is asked for."""
    import llvmlite.binding

    return "Haswell" if llvmlite.binding.get_host_cpu_name().startswith("znver") else ""


# Of mkl_service.h.
_SEQUENTIAL, _REPRODUCIBLE = 1, 2


def _path_of_mkl() -> str | None:
    """Where the package mkl has its library, or None."""
    from importlib import metadata  # a third of the import of gmcore

    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name.startswith(("libmkl_rt.", "mkl_rt."))), None)


@functools.cache
def mkl() -> Blas | str:
    """The MKL of the package mkl, which runs on the thread that calls it; or why there is none."""
    path = _path_of_mkl()
    if path is None:
        return "the package mkl is not installed"
    try:
        library = ctypes.PyDLL(path)
        addresses = _functions(library, "cblas_{}_64")
        library.MKL_Set_Threading_Layer(_SEQUENTIAL)
        # Without it the bits of a product depend on where in memory its operands lie.
        library.MKL_CBWR_Set(_REPRODUCIBLE)
    except (OSError, AttributeError) as error:
        return f"the package mkl does not work: {error}"
    return Blas("MKL", *addresses, True, lambda: 1, lambda threads: None, _core_of_mkl())


@functools.cache
def _choice() -> tuple[Blas | None, str]:
    """The BLAS of the products, and why it is this one."""
    wanted = os.environ.get("GMKERNELS_BLAS", "")
    if wanted not in ("", "numpy", "mkl"):
        raise KernelError(f"GMKERNELS_BLAS={wanted!r}; expected numpy or mkl")
    if wanted == "numpy":
        return numpys(), "GMKERNELS_BLAS=numpy"
    if (own := numpys()) is not None and own.name == "NumPy's MKL":
        return own, "no other is faster"  # and one process has one MKL, with one way to run its threads
    if not wanted and own is not None and _path_of_mkl() is not None and _is_narrow(core := _core_of_mkl()):
        return own, f"MKL is installed, but slower here: it takes this processor for a {core}"  # so it is not loaded
    other = mkl()
    if isinstance(other, Blas):
        return other, "GMKERNELS_BLAS=mkl" if wanted else "installed, and faster on thin products"
    if wanted:
        raise KernelError(f"GMKERNELS_BLAS=mkl, but {other}")
    return own, other


@functools.cache
def find() -> Blas | None:
    """The BLAS of the products: MKL where it is installed, else NumPy's; None where neither can be called."""
    return _choice()[0]


def describe() -> str:
    """Which BLAS makes the products, and why, in words."""
    library, why = _choice()
    if library is None:
        return f"products by NumPy ({why})"
    ours = ""
    if library.is_narrow:
        ours = f"; all but the smallest by our own in 512-bit vectors, since its kernels are for {library.core}"
    return f"products by {library.name} ({why}){ours}"


def note(*inputs: Any, **attrs: Any) -> str:
    """`describe`, as `registry.register` takes it: whatever the call."""
    return describe()


def available() -> str | None:
    """None, or the reason why products cannot run in the pool."""
    if find() is None:
        return "needs NumPy built with OpenBLAS or MKL: found no cblas_sgemm with control of its threads"
    return None


# ---------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------


class _Threads:
    """Who has BLAS run on one thread."""

    __slots__ = ("lock", "inside", "before")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        """Number of open contexts."""
        self.before = 1
        """Number of threads before the first of them."""


_threads = _Threads()


class single_threaded:
    """Context in which BLAS runs on the calling thread only; the number of threads is restored at its end.

    It does nothing where no BLAS was found whose threads can be controlled. Contexts nest and overlap between
    Python threads: the first to enter saves the number, the last restores.
    """

    @staticmethod
    def is_entered() -> bool:
        """Whether some context is open."""
        return _threads.inside > 0

    def __enter__(self) -> None:
        with _threads.lock:
            if _threads.inside == 0:
                blas = find()
                _threads.before = 1 if blas is None else blas.get_num_threads()
                if blas is not None and _threads.before > 1:
                    blas.set_num_threads(1)
            _threads.inside += 1

    def __exit__(self, *exception: object) -> None:
        with _threads.lock:
            _threads.inside -= 1
            if _threads.inside == 0 and _threads.before > 1:
                blas = find()
                assert blas is not None
                blas.set_num_threads(_threads.before)


_ANY_THREADS = nullcontext()
_ONE_THREAD = 9216  # 4 * 2304, below which OpenBLAS's matrix-vector products take one thread; for others it is more


def for_product(m: int, k: int, n: int) -> AbstractContextManager[None]:
    """`single_threaded` for a product (m, k) by (k, n), unless it is so small that BLAS takes one thread anyway."""
    return _ANY_THREADS if m * k * n < _ONE_THREAD else single_threaded()


def _after_fork() -> None:
    """In a child, the other threads that were inside are gone: only the forking thread could leave."""
    _threads.lock = threading.Lock()
    if _threads.inside:
        _threads.inside = 0
        blas = find()
        if blas is not None and _threads.before > 1:
            blas.set_num_threads(_threads.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---------------------------------------------------------------------------------------------------------
# Layout
# ---------------------------------------------------------------------------------------------------------


def layout(a: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A matrix as BLAS reads it: (array, NO_TRANS or TRANS, leading dimension).

    Rows or columns must lie contiguously and apart; a matrix that has neither is packed (a copy).
    """
    (rows, columns), item = a.shape, a.itemsize
    row_stride, column_stride = a.strides
    if (column_stride == item or columns <= 1) and (
        rows <= 1 or (row_stride >= columns * item and row_stride % item == 0 and row_stride)
    ):
        return a, NO_TRANS, row_stride // item if rows > 1 else max(1, columns)
    if (row_stride == item or rows <= 1) and (
        columns <= 1 or (column_stride >= rows * item and column_stride % item == 0 and column_stride)
    ):
        return a, TRANS, column_stride // item if columns > 1 else max(1, rows)
    return np.ascontiguousarray(a), NO_TRANS, max(1, columns)
