"""Block kernels, and the one thread pool that runs every CPU kernel, matrix products included.

A CPU kernel is written like a GPU kernel: a function of a block index and of arrays,

    @block_kernel
    def scale(block, x, factor, y, per_block):
        for i in range(block * per_block, min((block + 1) * per_block, x.size)):
            y[i] = factor[0] * x[i]

    scale(blocks, x, factor, y, per_block)

Arrays arrive one-dimensional and C-contiguous, Python ints as ints; scalars that may change from call to call
are read from arrays. Numba compiles the function at its first use with given dtypes into a C function of
(block index, argument record), so serial and parallel runs execute the same machine code and agree bit for
bit, whatever the number of threads. How a call is cut into blocks depends on shapes only; a call of one block
runs on the calling thread.

Why one pool: a BLAS pool and a Numba pool that alternate spin against each other for the cores and make a
training step ten times slower. Products therefore call single-threaded BLAS from blocks (see `blas`).

The loop flushes denormals to zero (a denormal operand costs a hundred times more) and restores the caller's
floating-point state. Two Python threads may launch at once: one gets the pool, the other runs its blocks
serially. A child forked after the pool was started runs serially too, since no layer survives a fork. A fork waits
until no other thread compiles.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import functools
import hashlib
import inspect
import os
import platform
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import caching, cgutils
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic, register_jitable
from numba.np import arrayobj

from gmkernels import linking, waiting
from gmkernels.blas import single_threaded

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees
_CFunc: Any = CFunc

# ---------------------------------------------------------------------------------------------------------
# Compilation cache
# ---------------------------------------------------------------------------------------------------------
# Numba invalidates a cached function when its own file changes, but not when a function it calls does; and
# it fails where neither the installation nor the user's cache is writable. So: one folder per state of the
# whole package, in the user's cache, else a temporary folder.


@functools.cache
def cache_folder() -> Path:
    """Folder of compiled kernels: ``$GMKERNELS_CACHE``, else under the user's cache, else temporary."""
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("GMKERNELS_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "gmcore", "kernels")
    try:
        folder = base.expanduser() / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # the latter where the user has no home
        return Path(tempfile.mkdtemp(prefix="gmkernels-"))


class _Locator(caching._CacheLocator):
    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file  # Numba names it when it cannot cache a function

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return ""  # the folder's name is the stamp

    def get_disambiguator(self) -> None:
        return None

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func, py_file)


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _Cache(caching.Cache):
    _impl_class: Any = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba's own begins with a refresh of the context, which imports all that it can compile and costs each process
        # 0.6 s. What is compiled needs of it the functions of Numba's runtime.
        self._began = time.thread_time()
        rtsys.initialize(target_context)
        try:
            found = self._load_overload(sig, target_context)
        except Exception as error:  # what unpickling raises where a file has been cut off or overwritten
            told = f"kernels are compiled anew whose files in {cache_folder()} are broken: {error!r}"
            warnings.warn(told, stacklevel=2)
            with contextlib.suppress(OSError):
                self.flush()
            return None
        if found is not None:
            waiting.note_loaded(cache_folder(), time.thread_time() - self._began)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # what was not found has been compiled
        except OSError as error:  # such as a full disk
            warnings.warn(f"compiled kernels are not kept in {cache_folder()}: {error}", stacklevel=2)
        waiting.note_compiled(cache_folder(), self._py_func.__qualname__, time.thread_time() - self._began)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        # Numba's own key hashes the pickled closure, which differs between processes when it holds a dispatcher.
        return (sig, codegen.magic_tuple(), self._py_func.__qualname__)


def _cached_jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        dispatcher._cache = _Cache(dispatcher.py_func)
        return dispatcher

    return decorate


# ---------------------------------------------------------------------------------------------------------
# Floating-point state
# ---------------------------------------------------------------------------------------------------------

_MACHINE = platform.machine().lower()
_FLUSH_BITS = {"x86_64": 0x8040, "amd64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(_MACHINE, 0)
"""Flush-to-zero and denormals-are-zero in MXCSR; FZ in FPCR; nothing on machines we do not know."""


def _read_state(builder: Any) -> Any:
    if _MACHINE in ("x86_64", "amd64"):
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        pointer = builder.bitcast(slot, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr"), [pointer])
        return builder.zext(builder.load(slot), ir.IntType(64))
    if _FLUSH_BITS:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])
    return ir.Constant(ir.IntType(64), 0)


def _write_state(builder: Any, state: Any) -> None:
    if _MACHINE in ("x86_64", "amd64"):
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        builder.store(builder.trunc(state, ir.IntType(32)), slot)
        pointer = builder.bitcast(slot, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr"), [pointer])
    elif _FLUSH_BITS:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr"), [state])


def _with_bits(change: Callable[[Any, Any], Any]) -> Any:
    """What compiles to a change of the state of this thread and gives the state as it was."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        state = _read_state(builder)
        _write_state(builder, change(builder, state))
        return state

    return generate


@_intrinsic
def _flush_denormals(typing_context: Any) -> Any:
    """Set flush-to-zero on this thread; returns the state to restore."""
    return types.int64(), _with_bits(lambda builder, state: builder.or_(state, state.type(_FLUSH_BITS)))


@_intrinsic
def keep_denormals(typing_context: Any) -> Any:
    """Clear flush-to-zero on this thread, for a block kernel that does as NumPy does; returns the state to restore."""
    return types.int64(), _with_bits(lambda builder, state: builder.and_(state, state.type(~_FLUSH_BITS)))


@_intrinsic
def restore_state(typing_context: Any, state: Any) -> Any:
    """Set the floating-point state of this thread to what one of the others returned."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _write_state(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# ---------------------------------------------------------------------------------------------------------
# Inside kernels: helpers, scratch arrays, long loops
# ---------------------------------------------------------------------------------------------------------


_CALLED_FROM_KERNELS: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of code that nothing but compiled code calls: wrappers for others would be an eighth of the compile time."""

jitable = register_jitable(**_CALLED_FROM_KERNELS, _nrt=False)
"""Decorator of a function that block kernels call. It allocates nothing, so its arrays need no counting."""

reduction = register_jitable(**_CALLED_FROM_KERNELS, _nrt=False, fastmath={"reassoc"})
"""A `jitable` with sums in several lanes; how many depends on the machine's vectors, not on the threads."""


@_intrinsic(prefer_literal=True)
def scratch(typing_context: Any, count: Any, dtype: Any) -> Any:
    """An uninitialised array of `count`, a constant, on the stack.

    Unlike `np.empty` it is not counted: atomic increments at every slice and call cost a tenth of a kernel.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    array_type = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        size, item = count.literal_value, context.get_data_type(dtype.dtype)
        itemsize = ir.Constant(ir.IntType(64), context.get_abi_sizeof(item))
        with builder.goto_entry_block():  # Numba's `alloca_once` would fill it with zeros, element by element
            block = builder.alloca(ir.ArrayType(item, size))
        block.align = 64
        made = arrayobj.make_array(array_type)(context, builder)
        data = builder.bitcast(block, item.as_pointer())
        arrayobj.populate_array(made, data, [ir.Constant(ir.IntType(64), size)], [itemsize], itemsize, None)
        return made._getvalue()

    return array_type(count, dtype), generate


@_intrinsic
def part(typing_context: Any, a: Any, start: Any, count: Any) -> Any:
    """``a[start : start + count]`` for bounds that are known to be inside, which compiles to a fifth of the code."""
    integer = types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = arrayobj.make_array(a)(context, builder, args[0])
        itemsize = ir.Constant(ir.IntType(64), context.get_abi_sizeof(context.get_data_type(a.dtype)))
        made = arrayobj.make_array(a)(context, builder)
        data = builder.gep(whole.data, [args[1]])
        arrayobj.populate_array(made, data, [args[2]], [itemsize], itemsize, None)
        return made._getvalue()

    return a(a, integer, integer), generate


@_intrinsic
def long_loop(typing_context: Any) -> Any:
    """First statement of a helper that is one loop over a tile: compile it by itself, for the widest vectors.

    LLVM prefers 256-bit vectors on machines with 512-bit ones, which is right for rows of any length, and costs
    a long loop of elementary functions a quarter of its speed.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        attributes = builder.function.attributes
        attributes.add("noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # llvmlite knows no attributes of this form by name
        return context.get_dummy_value()

    return types.void(), generate


# ---------------------------------------------------------------------------------------------------------
# Launching
# ---------------------------------------------------------------------------------------------------------


@_intrinsic
def _call_block(typing_context: Any, function: Any, block: Any, record: Any) -> Any:
    """Call the C function at address `function` with (block, record)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], args[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@_cached_jit()
def _run_serial(function, blocks, record):
    state = _flush_denormals()
    for block in range(blocks):
        _call_block(function, block, record)
    restore_state(state)


@_cached_jit(parallel=True)
def _run_parallel(function, blocks, record):
    for block in numba.prange(blocks):
        state = _flush_denormals()
        _call_block(function, block, record)
        restore_state(state)


# A table of tasks has a row for each block of each launch: function, block, record, and the number of tasks that must
# have ended before. Threads take the rows in order, so whoever waits, waits for tasks that others are at; and where one
# thread comes late, or there is only one, the first does them all.


@_intrinsic
def _add_to(typing_context: Any, counters: Any, index: Any) -> Any:
    """The counter at an index, before one is added to it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = arrayobj.make_array(counters)(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters, types.int64), generate


@_intrinsic
def _look_at(typing_context: Any, counters: Any, index: Any) -> Any:
    """The counter at an index; what was written before it was added to has been written."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = arrayobj.make_array(counters)(context, builder, args[0]).data
        if _MACHINE in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(counters, types.int64), generate


@_intrinsic
def _call_plain(typing_context: Any, function: Any) -> Any:
    """Call the C function without arguments at address `function`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


try:
    _YIELD = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
except (AttributeError, OSError, TypeError):  # Windows
    _YIELD = 0
_PATIENCE = 500
"""Looks at a counter, some 20 us, before a thread that waits lets others have its core."""
_TAKEN, _ENDED = 0, 8  # places of the two counters, a cache line apart


@_cached_jit()
def _work(tasks, counters, let_others):
    state = _flush_denormals()
    while True:
        task = _add_to(counters, _TAKEN)
        if task >= tasks.shape[0]:
            break
        looks = 0
        while _look_at(counters, _ENDED) < tasks[task, 3]:
            looks += 1
            if looks > _PATIENCE and let_others != 0:
                _call_plain(let_others)
        _call_block(tasks[task, 0], tasks[task, 1], tasks[task, 2])
        _add_to(counters, _ENDED)
    restore_state(state)


@_cached_jit()
def _run_tasks_serial(threads, tasks, counters, let_others):
    counters[:] = 0
    _work(tasks, counters, let_others)


@_cached_jit(parallel=True)
def _run_tasks(threads, tasks, counters, let_others):
    counters[:] = 0
    for _ in numba.prange(threads):
        _work(tasks, counters, let_others)


def _default_threads() -> int:
    available = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    given = os.environ.get("OMP_NUM_THREADS", "")
    requested = given.split(",")[0].strip()  # a list has a number for each level of nested teams
    if requested.isdecimal() and int(requested) > 0:
        return min(int(requested), available)
    if given:
        warnings.warn(f"OMP_NUM_THREADS={given!r} is no number of threads; kernels use {available}", stacklevel=2)
    return available


_threads = _default_threads()
_in_use = threading.Lock()
_forked = False


def _before_fork() -> None:
    """Wait for other threads that compile: in the child, nobody would finish what they hold half done and locked."""
    global_compiler_lock.acquire()


def _after_fork() -> None:
    global _in_use, _forked
    global_compiler_lock.release()
    _in_use = threading.Lock()  # the parent's may be held by a thread that does not exist here
    layer = sys.modules.get("numba.np.ufunc.parallel")
    _forked = _forked or bool(getattr(layer, "_is_initialized", False))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=global_compiler_lock.release, after_in_child=_after_fork)


def get_num_threads() -> int:
    """Number of threads that kernels may use."""
    return 1 if _forked else _threads


def set_num_threads(threads: int) -> None:
    """Let kernels use at most `threads` threads (1 to ``NUMBA_NUM_THREADS``). Results do not depend on it.

    Until then that many may run, or as many as ``OMP_NUM_THREADS`` says, if those are fewer.
    """
    global _threads
    available = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if not isinstance(threads, (int, np.integer)) or not 1 <= threads <= available:
        raise ValueError(f"threads must be 1 to {available} (NUMBA_NUM_THREADS), got {threads!r}")
    _threads = int(threads)


def launch(function: int, blocks: int, record: int) -> None:
    """Call the C function at address `function` for every block in 0..blocks-1 with the argument record."""
    if blocks > 1:
        _in_pool(_run_parallel, _run_serial, function, blocks, record)
    else:
        _run_serial(function, blocks, record)


def _in_pool(parallel: Callable[..., None], serial: Callable[..., None], *arguments: Any) -> None:
    """Call `parallel` if there are threads to run it, and nobody uses them; else `serial`, which does the same."""
    threads = _threads  # another thread may change it meanwhile
    if threads > 1 and not _forked and _in_use.acquire(blocking=False):
        before = numba.get_num_threads()
        try:
            if threads < before:
                numba.set_num_threads(threads)
            parallel(*arguments)
        finally:
            if threads < before:
                numba.set_num_threads(before)
            _in_use.release()
    else:
        serial(*arguments)


_pointer_at = ctypes.c_int64.from_address
_HEADER = object.__basicsize__


def address(a: np.ndarray) -> int:
    """Address of the first element of an array."""
    # NumPy's PyArrayObject holds it after the header of all objects; the array interface takes five times as long.
    return _pointer_at(id(a) + _HEADER).value


def addresses(arrays: Sequence[np.ndarray]) -> list[int]:
    """`address` of each; a call of Python takes as long as what it does."""
    return [_pointer_at(id(a) + _HEADER).value for a in arrays]


@_intrinsic
def _argument(typing_context: Any, record: Any, slot: Any, dtype: Any) -> Any:
    """Argument number `slot` of a record, as a one-dimensional array of `dtype`.

    Slots 2i and 2i + 1 of the record hold the pointer and the length.
    """
    array_type = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base, index = args[0], args[1]
        pointer = builder.load(builder.gep(base, [index]))
        length = builder.load(builder.gep(base, [builder.add(index, index.type(1))]))
        item = context.get_abi_sizeof(context.get_data_type(dtype.dtype))
        itemsize = ir.Constant(ir.IntType(64), item)
        made = arrayobj.make_array(array_type)(context, builder)
        data = builder.inttoptr(pointer, context.get_data_type(dtype.dtype).as_pointer())
        arrayobj.populate_array(made, data, [length], [itemsize], itemsize, None)
        return made._getvalue()

    return array_type(types.CPointer(types.int64), types.int64, dtype), generate


class Launch(NamedTuple):
    """A call of a block kernel."""

    kernel: BlockKernel
    blocks: int
    arguments: tuple[Any, ...]
    """Arrays and integers; among these, and in arrays of int64 that are no input of the kernel, may be addresses."""
    alone: bool
    """Whether it calls BLAS, whose own threads have to rest."""


_watchers: dict[int, Callable[[Launch], AbstractContextManager[None]]] = {}
"""By thread, what its launches run in."""


@contextmanager
def watched(by: Callable[[Launch], AbstractContextManager[None]]) -> Iterator[None]:
    """Run the launches that this thread makes inside the block in the context that ``by(launch)`` gives."""
    thread = threading.get_ident()
    _watchers[thread] = by
    try:
        yield
    finally:
        del _watchers[thread]


_rehearsals: dict[int, list[Launch]] = {}
"""By thread, where its launches are noted."""


@contextmanager
def rehearsal() -> Iterator[list[Launch]]:
    """Note the launches that this thread makes inside the block, and run none of them."""
    thread = threading.get_ident()
    launches: list[Launch] = []
    _rehearsals[thread] = launches
    try:
        yield launches
    finally:
        del _rehearsals[thread]


def is_watched() -> bool:
    """Whether somebody looks at the launches of this thread."""
    thread = threading.get_ident()
    return thread in _watchers or thread in _rehearsals


class BlockKernel:
    """A function of (block, *arguments), compiled per combination of argument dtypes at its first use."""

    everyone: weakref.WeakSet[BlockKernel] = weakref.WeakSet()
    """All there are, for those who compile them in another way for a time."""

    def __init__(self, function: Callable[..., None]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._compiled: dict[tuple[str, ...], tuple[int, Any]] = {}
        BlockKernel.everyone.add(self)

    def __call__(self, blocks: int, *arguments: Any) -> None:
        """Run blocks 0..blocks-1. `arguments` are C-contiguous NumPy arrays and ints."""
        if blocks:
            if _rehearsals and (launches := _rehearsals.get(threading.get_ident())) is not None:
                launches.append(Launch(self, blocks, arguments, single_threaded.is_entered()))
                return
            kinds, record = self.record(arguments)
            function = self.address(kinds)
            if _watchers and (watcher := _watchers.get(threading.get_ident())) is not None:
                with watcher(Launch(self, blocks, arguments, single_threaded.is_entered())):
                    launch(function, blocks, record.buffer_info()[0])
            else:
                launch(function, blocks, record.buffer_info()[0])

    def address(self, kinds: tuple[str, ...]) -> int:
        """Address of the C function for these dtypes, compiled if it is not yet."""
        return (self._compiled.get(kinds) or self._compile(kinds))[0]

    @staticmethod
    def record(arguments: tuple[Any, ...]) -> tuple[tuple[str, ...], array.array[int]]:
        """The dtype of each argument ("" of an int), and the argument record: (pointer, length) of each array,
        (value, 0) of each int."""
        kinds: list[str] = []
        values: list[int] = []
        for a in arguments:
            if isinstance(a, np.ndarray):
                kinds.append(a.dtype.char)
                values += (address(a), a.size)
            else:
                kinds.append("")
                values += (a, 0)
        return tuple(kinds), array.array("q", values)

    def _compile(self, kinds: tuple[str, ...]) -> tuple[int, Any]:
        with global_compiler_lock:  # Numba compiles under it, and a fork waits for it
            if kinds not in self._compiled:
                compiled = _entry_point(self._function, kinds)
                self._compiled[kinds] = (compiled.address, compiled)
            return self._compiled[kinds]


class Launches:
    """Launches as one call without arguments.

    Parameters
    ----------
    stages : launches that come one stage after the other; those of a stage may run at once.
    """

    def __init__(self, stages: Sequence[Sequence[Launch]]) -> None:
        self._kept: list[tuple[array.array[int], tuple[Any, ...]]] = []
        rows: list[tuple[int, int, int, int]] = []
        for stage in stages:
            before = len(rows)
            for launch in stage:
                kinds, record = launch.kernel.record(launch.arguments)
                self._kept.append((record, launch.arguments))
                task = launch.kernel.address(kinds), record.buffer_info()[0]
                rows += [(task[0], block, task[1], before) for block in range(launch.blocks)]
        self._tasks = np.array(rows, np.int64).reshape(-1, 4)
        self._counters = np.zeros(16, np.int64)
        self._alone = any(launch.alone for stage in stages for launch in stage)
        self._in_pool = any(launch.blocks > 1 for stage in stages for launch in stage)

    @property
    def records(self) -> list[array.array[int]]:
        """The argument records, as of `BlockKernel.record`; what is written there, the next call reads."""
        return [record for record, _ in self._kept]

    def __call__(self) -> None:
        arguments = _threads, self._tasks, self._counters, _YIELD
        with single_threaded() if self._alone else nullcontext():
            if self._in_pool:
                _in_pool(_run_tasks, _run_tasks_serial, *arguments)
            else:
                _run_tasks_serial(*arguments)


class _EntryPoint(_CFunc):
    """A C function that is compiled as `linking` says, or loaded."""

    def _compile_uncached(self) -> Any:
        with linking.whole():
            compiled = super()._compile_uncached()
            compiled.library.close()
            return compiled


def c_function(function: Callable[..., None], signature: Any, cached: bool = True) -> Any:
    """A function compiled as a C function of a Numba signature; the cache knows it by its qualified name."""
    compiled: Any = _EntryPoint(
        function, (signature.args, signature.return_type), {}, {"error_model": "numpy", "nogil": True}
    )
    if cached:
        compiled._cache = _Cache(function)
    with global_compiler_lock:
        compiled.compile()
    return compiled


def _entry_point(function: Callable[..., None], kinds: tuple[str, ...]) -> Any:
    """Compile ``void f(int64 block, int64 *record)`` that unpacks the record and calls `function`."""
    body = numba.njit(nogil=True, **_CALLED_FROM_KERNELS)(function)
    names = [f"a{i}" for i in range(len(kinds))]
    unpack = [f"argument(record, {2 * i}, dtype{i})" if kind else f"record[{2 * i}]" for i, kind in enumerate(kinds)]
    source = "\n".join(
        ["def entry(block, record):"]
        + [f"    {name} = {value}" for name, value in zip(names, unpack, strict=True)]
        + [f"    body(block, {', '.join(names)})"]
    )
    scope: dict[str, Any] = {"__name__": function.__module__, "body": body, "argument": _argument}
    scope |= {f"dtype{i}": numba.from_dtype(np.dtype(kind)) for i, kind in enumerate(kinds) if kind}
    exec(source, scope)
    entry = scope["entry"]
    # The name is the cache's key: module, function, what it is made of, dtypes.
    made_of = hashlib.sha256(_fingerprint(function).encode()).hexdigest()[:8]
    entry.__qualname__ = "_".join([function.__module__, function.__qualname__, made_of, *(k or "i" for k in kinds)])
    # A process that loads a compiled function imports its module.
    return c_function(
        entry, types.void(types.int64, types.CPointer(types.int64)), cached=function.__module__ in sys.modules
    )


def _fingerprint(function: Any, seen: tuple[Any, ...] = ()) -> str:
    """What compiled code of a function depends on, as text: bytecode, constants, and the globals and free
    variables it uses, through the functions among them.

    The cache's folder covers this package; kernels defined elsewhere, or made by a factory, need it.
    """
    function = getattr(function, "py_func", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function) if isinstance(function, (int, float, str, bytes, tuple, np.generic, np.dtype)) else ""
    if function in seen:
        return ""
    variables = inspect.getclosurevars(function)
    used = sorted({**variables.globals, **variables.nonlocals}.items())
    constants = [c for c in code.co_consts if not hasattr(c, "co_code")]  # a code object prints its address
    inner = [_fingerprint(value, (*seen, function)) for _, value in used]
    # All names, not only those of `used`: math.sin and math.cos differ in an attribute's name alone.
    return repr((code.co_code, constants, code.co_names, [name for name, _ in used], inner))


def block_kernel(function: Callable[..., None]) -> BlockKernel:
    """Decorator that makes a `BlockKernel` of a function (see the module's docstring)."""
    return BlockKernel(function)
