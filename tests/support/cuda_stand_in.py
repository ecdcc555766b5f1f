"""A stand-in for `cupy.cuda` on a machine without a GPU: devices, memory, streams and graphs over host memory.

What is enqueued on a stream runs at once, unless the stream is being captured: then it is kept, and runs with each
launch of the graph, at the same addresses. Fresh memory is poisoned (floats are NaN, integers -1) and lies between
guard zones, which `check_guards` looks at. What CuPy or CUDA refuse is refused with their errors.

For tests: `counting` counts what was asked of the device; `machine` changes what the machine is (two devices, an old
one, little memory, no driver).
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

GUARD = 256  # bytes on each side of an allocation
ALIGNMENT = 512  # of every allocation, as CuPy's pool has it
# Signalling NaNs as float32 and float64: arithmetic on them changes their bits.
_GUARD_ZONE = np.full((GUARD + ALIGNMENT) // 8, 0x7FF5A5A57FA5A5A5, np.uint64).tobytes()
POISON = 0xFF


@dataclass(frozen=True)
class Machine:
    """What the emulated machine has.

    Parameters
    ----------
    devices : how many GPUs.
    capability : of each, ``"90"`` for 9.0.
    memory : bytes of each.
    error : a CUDA error number that every call into the driver gives, such as 35 (the driver is too old or absent).
    peers : whether a GPU can read another's memory.
    multiprocessors : of each.
    """

    devices: int = 1
    capability: str = "90"
    memory: int = 1 << 33
    error: int = 0
    peers: bool = False
    multiprocessors: int = 4


_machine = Machine()


@contextmanager
def machine(**changes: Any) -> Iterator[None]:
    """Change what the machine is inside the block; see `Machine`."""
    global _machine
    before, _machine = _machine, replace(_machine, **changes)
    try:
        yield
    finally:
        _machine = before
        _local.device = 0


# ---------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------

_ERRORS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream",
}


class CUDARuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`: an error of the CUDA runtime by number."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS[status])


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


class GuardError(AssertionError):
    """Something wrote outside its memory, or a graph uses memory that was given back."""


def _ask_driver() -> None:
    if _machine.error:
        raise CUDARuntimeError(_machine.error)
    if _machine.devices == 0:
        raise CUDARuntimeError(100)


# ---------------------------------------------------------------------------------------------------------------
# Work: counted, and run at once or kept by a capture
# ---------------------------------------------------------------------------------------------------------------

counts: Counter[str] = Counter()
"""What was asked of the device, by kind: "launch" (kernels of ours), "elementwise" (CuPy's own kernels), "library"
(cuBLAS and cuSOLVER), "to_device", "to_host", "synchronize", "allocation", "graph"."""


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """A counter of what is asked of the device inside the block, filled at its end."""
    before, found = Counter(counts), Counter[str]()
    try:
        yield found
    finally:
        found.update(counts - before)


def submit(kind: str, work: Callable[[], Any], touched: tuple[Block, ...] = ()) -> bool:
    """Enqueue work on the current stream: count it and run it, or keep it for the graph that is being captured.

    Parameters
    ----------
    kind : what it is counted as.
    work : does it.
    touched : the memory that it reads and writes.

    Returns
    -------
    Whether it ran.

    Raises
    ------
    NotImplementedError : a library call during capture, which CuPy refuses.
    CUDARuntimeError : work on the legacy stream while a stream that blocks it is being captured.
    GuardError : a kernel wrote outside its memory.
    """
    counts[kind] += 1
    if _capturing:
        capture = capturing()
        if kind == "library" and capture is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if capture is None and get_current_stream().ptr == 0 and any(not s.is_non_blocking for s in list(_capturing)):
            refuse(906)
        if capture is not None:
            capture.work.append((kind, work, touched))
            return False
    work()
    if kind == "launch":
        check_guards()
    return True


def capturing() -> Capture | None:
    """The capture of the current stream, if it has one."""
    return get_current_stream()._capture if _capturing else None


def refuse(status: int = 900) -> None:
    """Raise what CUDA raises for an operation that no capture may contain; the capture is lost."""
    for stream in list(_capturing):
        stream._capture.lost = True
    raise CUDARuntimeError(status)


def _wait(stream: Stream | None = None) -> None:
    """The host waits for a stream, the current one by default."""
    _ask_driver()
    if _capturing and (stream or get_current_stream())._capture is not None:
        refuse()
    counts["synchronize"] += 1


# ---------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------


class Block:
    """A piece of memory between guard zones. A pool lends it again and again: `lent` says how often so far.

    A pool gives whole multiples of `ALIGNMENT`; the guard zone begins after the bytes that were asked for, `used`.
    """

    __slots__ = ("raw", "start", "size", "used", "ptr", "device_id", "pool", "live", "lent", "__weakref__")

    def __init__(self, size: int, device_id: int, pool: MemoryPool) -> None:
        self.raw = np.empty(size + 2 * GUARD + ALIGNMENT, np.uint8)
        base = self.raw.ctypes.data
        self.start = GUARD + -(base + GUARD) % ALIGNMENT
        self.ptr, self.size = base + self.start, size
        self.device_id, self.pool, self.live, self.lent, self.used = device_id, pool, False, 0, -1

    def lend(self, used: int) -> None:
        """Poison the bytes that are asked for, and guard what is around them."""
        self.live, self.lent = True, self.lent + 1
        self.raw[self.start : self.start + used] = POISON
        if used != self.used:
            self.used = used
            for zone, guard in self._zones():
                zone[:] = np.frombuffer(guard, np.uint8)

    def _zones(self) -> Iterator[tuple[np.ndarray, bytes]]:
        yield self.raw[self.start - GUARD : self.start], _GUARD_ZONE[:GUARD]
        after = self.raw[self.start + self.used : self.start + self.size + GUARD]
        yield after, _GUARD_ZONE[: len(after)]

    def check(self) -> None:
        for (zone, guard), side in zip(self._zones(), ("before", "after"), strict=True):
            if zone.tobytes() != guard:
                wrong = np.flatnonzero(zone != np.frombuffer(guard, np.uint8))
                zone[:] = np.frombuffer(guard, np.uint8)
                distance = wrong[0] + 1 if side == "after" else GUARD - wrong[-1]
                raise GuardError(
                    f"something wrote {len(wrong)} bytes {side} an allocation of {self.used} bytes, "
                    f"the nearest of them {distance} bytes {side} it"
                )


_live: weakref.WeakSet[Block] = weakref.WeakSet()
_damage: list[GuardError] = []


def check_guards() -> None:
    """Look at the guard zones of all memory in use.

    Raises
    ------
    GuardError : something wrote there, now or before memory was given back.
    """
    if _damage:
        raise _damage.pop()
    for block in list(_live):
        block.check()


def block_of(address: int) -> Block | None:
    """The memory in use that an address lies in."""
    return next((block for block in _live if block.ptr <= address < block.ptr + block.size), None)


class BaseMemory:
    """As `cupy.cuda.BaseMemory`."""

    ptr: int
    size: int
    device_id: int

    @property
    def device(self) -> Device:
        return Device(self.device_id)


class PooledMemory(BaseMemory):
    """Memory lent by a pool, which it goes back to when nobody holds it."""

    def __init__(self, block: Block, size: int) -> None:
        self.block, self.ptr, self.size, self.device_id = block, block.ptr, size, block.device_id

    def __del__(self) -> None:
        self.block.pool._take_back(self.block)


class Memory(BaseMemory):
    """Memory of no bytes."""

    def __init__(self, size: int) -> None:
        assert size == 0
        self.ptr, self.size, self.device_id = 0, 0, _current_device()


class UnownedMemory(BaseMemory):
    """As `cupy.cuda.UnownedMemory`: somebody else's memory."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = _current_device() if device_id == -1 else device_id


def host(ptr: int, size: int) -> np.ndarray:
    """The bytes at an address."""
    block = block_of(ptr)
    if block is not None and ptr + size <= block.ptr + block.size:
        start = ptr - block.ptr + block.start
        return block.raw[start : start + size]
    return np.frombuffer((ctypes.c_uint8 * size).from_address(ptr), np.uint8) if size else np.empty(0, np.uint8)


def touched(*pointers: MemoryPointer) -> tuple[Block, ...]:
    """The blocks that pointers point into, which a capture wants to know."""
    if not _capturing:
        return ()
    return tuple(p.mem.block for p in pointers if isinstance(p.mem, PooledMemory))


def _address(memory: Any) -> int:
    return int(getattr(memory, "value", memory))  # ctypes.c_void_p, or an integer


class MemoryPointer:
    """As `cupy.cuda.MemoryPointer`."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset

    device = property(lambda self: self.mem.device)
    device_id = property(lambda self: self.mem.device_id)

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def host(self, size: int) -> np.ndarray:
        """The bytes that it points to."""
        assert self.ptr - self.mem.ptr + size <= self.mem.size, "a copy beyond the end of its memory"
        if isinstance(self.mem, PooledMemory):
            start = self.ptr - self.mem.ptr + self.mem.block.start
            return self.mem.block.raw[start : start + size]
        return host(self.ptr, size)

    def _copy(self, kind: str, target: np.ndarray, source: np.ndarray, pointers: tuple[MemoryPointer, ...]) -> None:
        submit(kind, lambda: target.__setitem__(..., source), touched(*pointers))

    def copy_from_device(self, src: MemoryPointer, size: int) -> None:
        if size:
            self._copy("elementwise", self.host(size), src.host(size), (self, src))

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        with stream or get_current_stream():
            self.copy_from_device(src, size)

    def copy_from_host(self, mem: Any, size: int) -> None:
        if size:
            if _capturing:
                refuse()
            self._copy("to_device", self.host(size), host(_address(mem), size), (self,))

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        with stream or get_current_stream():
            if size:
                _refuse_pageable(_address(mem))
                self._copy("to_device", self.host(size), host(_address(mem), size), (self,))

    def copy_to_host(self, mem: Any, size: int) -> None:
        if size:
            if _capturing:
                refuse()
            self._copy("to_host", host(_address(mem), size), self.host(size), (self,))

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        with stream or get_current_stream():
            if size:
                _refuse_pageable(_address(mem))
                self._copy("to_host", host(_address(mem), size), self.host(size), (self,))

    def copy_from(self, mem: Any, size: int) -> None:
        if isinstance(mem, MemoryPointer):
            self.copy_from_device(mem, size)
        else:
            self.copy_from_host(mem, size)

    def copy_from_async(self, mem: Any, size: int, stream: Any = None) -> None:
        if isinstance(mem, MemoryPointer):
            self.copy_from_device_async(mem, size, stream)
        else:
            self.copy_from_host_async(mem, size, stream)

    def memset(self, value: int, size: int) -> None:
        if size:
            target = self.host(size)
            submit("elementwise", lambda: target.fill(value), touched(self))

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        with stream or get_current_stream():
            self.memset(value, size)


def _refuse_pageable(address: int) -> None:
    """A graph would copy from wherever the host's pages are then; only page-locked memory stays."""
    if capturing() is not None and not any(p.ptr <= address < p.ptr + p.size for p in list(_pinned)):
        refuse()


class MemoryPool:
    """As `cupy.cuda.MemoryPool`; blocks are lent again whole, to requests of their size."""

    def __init__(self, allocator: Any = None) -> None:
        self._idle: dict[tuple[int, int], list[Block]] = {}
        self._used = Counter[int]()
        self._limits = Counter[int]()
        self._lock = threading.RLock()

    def malloc(self, size: int) -> MemoryPointer:
        _ask_driver()
        device = _current_device()
        if size == 0:
            return MemoryPointer(Memory(0), 0)
        room = -(-size // ALIGNMENT) * ALIGNMENT
        with self._lock:
            idle = self._idle.get((device, room))
            if idle:
                block = idle.pop()
                block.lend(size)
            else:
                self._make_room(device, room)
                block = Block(room, device, self)
                block.lend(size)
                _owned[device] += room
            self._used[device] += room
            _live.add(block)
        counts["allocation"] += 1
        return MemoryPointer(PooledMemory(block, size), 0)

    def _make_room(self, device: int, size: int) -> None:
        """A fresh piece of the device's memory: only a capture in relaxed mode may ask for one."""
        if _capturing and any(stream._capture.mode != STREAM_CAPTURE_RELAXED for stream in list(_capturing)):
            refuse()
        limit = self._limits[device]
        for attempt in (1, 2):
            total = self.total_bytes()
            if (not limit or total + size <= limit) and _owned[device] + size <= _machine.memory:
                return
            if attempt == 1:
                self.free_all_blocks()
        raise OutOfMemoryError(size, self.total_bytes(), limit)

    def _take_back(self, block: Block) -> None:
        with self._lock:
            try:
                block.check()
            except GuardError as error:
                _damage.append(error)
            block.live = False
            _live.discard(block)
            self._used[block.device_id] -= block.size
            self._idle.setdefault((block.device_id, block.size), []).append(block)

    def free_all_blocks(self, stream: Any = None) -> None:
        with self._lock:
            for (device, size), blocks in self._idle.items():
                _owned[device] -= size * len(blocks)
            self._idle.clear()

    free_all_free = free_all_blocks

    def n_free_blocks(self) -> int:
        return sum(len(b) for (d, _), b in self._idle.items() if d == _current_device())

    def used_bytes(self) -> int:
        return self._used[_current_device()]

    def free_bytes(self) -> int:
        return sum(size * len(b) for (d, size), b in self._idle.items() if d == _current_device())

    def total_bytes(self) -> int:
        return self.used_bytes() + self.free_bytes()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if fraction is not None:
            size = int(_machine.memory * fraction)
        self._limits[_current_device()] = size or 0

    def get_limit(self) -> int:
        return self._limits[_current_device()]


_owned = Counter[int]()
"""Bytes of each device that pools have."""
_default_pool = MemoryPool()
_allocators = threading.local()


def alloc(size: int) -> MemoryPointer:
    """As `cupy.cuda.alloc`."""
    return get_allocator()(size)


def get_allocator() -> Any:
    return getattr(_allocators, "current", None) or _global_allocator[0]


_global_allocator: list[Any] = [_default_pool.malloc]


def set_allocator(allocator: Any = None) -> None:
    _global_allocator[0] = allocator or _default_pool.malloc


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    before = getattr(_allocators, "current", None)
    _allocators.current = allocator
    try:
        yield
    finally:
        _allocators.current = before


class PinnedMemoryPool:
    """As `cupy.cuda.PinnedMemoryPool`, of which nothing needs to be known."""

    def free_all_blocks(self) -> None: ...

    def n_free_blocks(self) -> int:
        return 0


_default_pinned_pool = PinnedMemoryPool()
_pinned: weakref.WeakSet[Any] = weakref.WeakSet()


def alloc_pinned_memory(size: int) -> Any:
    """As `cupy.cuda.alloc_pinned_memory`: a page-locked host buffer."""
    _ask_driver()
    room = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
    memory = _pinned_type(room)()
    memory.ptr, memory.size = ctypes.addressof(memory), lambda: room
    pinned = _Pinned(memory.ptr, room)
    memory.mem = pinned
    _pinned.add(pinned)
    return memory


@functools.cache  # a class is a cycle: made for each buffer, it would be garbage that tests of memory find
def _pinned_type(room: int) -> Any:
    return type("PinnedMemoryPointer", (ctypes.c_uint8 * room,), {"__hash__": object.__hash__})


class _Pinned:
    def __init__(self, ptr: int, size: int) -> None:
        self.ptr, self.size = ptr, size


# ---------------------------------------------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------------------------------------------

_local = threading.local()


def _current_device() -> int:
    return getattr(_local, "device", 0)


class Device:
    """As `cupy.cuda.Device`."""

    def __init__(self, device: int | Device | None = None) -> None:
        _ask_driver()
        self.id = get_device_id() if device is None else int(device)
        self._outer: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._outer.append(_current_device())
        self.use()
        return self

    def __exit__(self, *exception: object) -> None:
        _local.device = self._outer.pop()

    def _known(self) -> None:
        _ask_driver()
        if not 0 <= self.id < _machine.devices:
            raise CUDARuntimeError(101)

    def use(self) -> None:
        self._known()
        _local.device = self.id

    def synchronize(self) -> None:
        if _capturing:
            refuse()
        _wait()

    @property
    def compute_capability(self) -> str:
        self._known()
        return _machine.capability

    @property
    def mem_info(self) -> tuple[int, int]:
        self._known()
        return _machine.memory - _owned[self.id], _machine.memory

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id:02X}:00.0"

    @property
    def attributes(self) -> dict[str, int]:
        self._known()
        major, minor = int(_machine.capability[:-1]), int(_machine.capability[-1])
        return {
            "ComputeCapabilityMajor": major,
            "ComputeCapabilityMinor": minor,
            "MultiProcessorCount": _machine.multiprocessors,
            "WarpSize": 32,
            "MaxThreadsPerBlock": 1024,
            "MaxBlockDimX": 1024,
            "MaxGridDimX": 2**31 - 1,
            "MaxGridDimY": 65535,
            "MaxGridDimZ": 65535,
            "MaxSharedMemoryPerBlock": 48 << 10,
            "MaxSharedMemoryPerBlockOptin": 227 << 10,
            "MaxSharedMemoryPerMultiprocessor": 228 << 10,
            "MaxRegistersPerBlock": 65536,
            "MaxRegistersPerMultiprocessor": 65536,
            "MaxThreadsPerMultiProcessor": 2048,
            "L2CacheSize": 50 << 20,
            "CooperativeLaunch": 1,
            "ClockRate": 1_980_000,
            "MemoryClockRate": 3_201_000,
            "GlobalMemoryBusWidth": 6144,
        }


def get_device_id() -> int:
    _ask_driver()
    return _current_device()


def is_available() -> bool:
    return not _machine.error and _machine.devices > 0


# ---------------------------------------------------------------------------------------------------------------
# Streams, events and graphs
# ---------------------------------------------------------------------------------------------------------------

STREAM_CAPTURE_GLOBAL, STREAM_CAPTURE_THREAD_LOCAL, STREAM_CAPTURE_RELAXED = 0, 1, 2


@dataclass
class Capture:
    """What was enqueued on a stream since its capture began."""

    mode: int
    work: list[tuple[str, Callable[[], Any], tuple[Block, ...]]] = field(default_factory=list)
    lost: bool = False


_handles = itertools.count(0x5000)
_capturing: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """As `cupy.cuda.Stream`."""

    null: Stream
    ptds: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0) -> None:
        if not (null or ptds):
            _ask_driver()
        self.ptr = 0 if null else 2 if ptds else next(_handles)
        self.device_id = -1 if null or ptds else _current_device()
        self.is_non_blocking, self.priority = non_blocking, priority
        self._capture: Capture | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (device {self.device_id})>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def _on_this_device(self) -> int:
        device = _current_device()
        if self.device_id not in (-1, device):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({device})"
            )
        return device

    def __enter__(self) -> Stream:
        _streams().setdefault(self._on_this_device(), []).append(self)
        _entered().append(_current_device())
        return self

    def __exit__(self, *exception: object) -> None:
        _streams()[_entered().pop()].pop()

    def use(self) -> Stream:
        _streams()[self._on_this_device()] = [self]
        return self

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait(self)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None: ...

    def launch_host_func(self, callback: Callable[[Any], None], arg: Any) -> None:
        with self:
            submit("host_function", lambda: callback(arg))

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._capture is not None:
            refuse()
        self._capture = Capture(STREAM_CAPTURE_RELAXED if mode is None else mode)
        _capturing.add(self)

    def end_capture(self) -> Graph:
        capture, self._capture = self._capture, None
        _capturing.discard(self)
        if capture is None:
            raise CUDARuntimeError(400)
        if capture.lost:
            raise CUDARuntimeError(901)
        return Graph._of(capture)

    def is_capturing(self) -> bool:
        return self._capture is not None


class ExternalStream(Stream):
    """As `cupy.cuda.ExternalStream`."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(null=True)
        self.ptr, self.device_id = ptr, device_id


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


def _streams() -> dict[int, list[Stream]]:
    if not hasattr(_local, "streams"):
        _local.streams, _local.entered = {}, []
    return _local.streams


def _entered() -> list[int]:
    return _local.entered


def get_current_stream(device_id: int = -1) -> Stream:
    stack = _streams().get(_current_device() if device_id == -1 else device_id)
    return stack[-1] if stack else Stream.null


class Event:
    """As `cupy.cuda.Event`."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        _ask_driver()
        self.ptr = next(_handles)
        self.time: float | None = None

    @property
    def done(self) -> bool:
        return True

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        _wait()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    if start_event.time is None or end_event.time is None:
        raise CUDARuntimeError(400)
    return (end_event.time - start_event.time) * 1e3


class Graph:
    """As `cupy.cuda.Graph`: what was captured, at the addresses that it had.

    It holds no memory, as a CUDA graph does not. A launch fails with `GuardError` where memory has gone to somebody
    else, or to the default pool, which lends it to anybody; idle memory of a pool of the graph's own is as it was.
    """

    _work: list[tuple[str, Callable[[], Any], tuple[Block, ...]]]
    _lent: dict[Block, int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    @classmethod
    def _of(cls, capture: Capture) -> Graph:
        graph = cls.__new__(cls)
        graph._work = capture.work
        graph._lent = {block: block.lent for _, _, blocks in capture.work for block in blocks}
        return graph

    def launch(self, stream: Stream | None = None) -> None:
        for block, lent in self._lent.items():
            if block.lent != lent or not (block.live or block.pool is not _default_pool):
                raise GuardError(f"a graph uses {block.size} bytes that were given back since it was captured")
        with stream or get_current_stream():
            if capturing() is not None:
                refuse()
            counts["graph"] += 1
            for _, work, _ in self._work:
                work()
            check_guards()

    def upload(self, stream: Stream | None = None) -> None: ...


# ---------------------------------------------------------------------------------------------------------------
# The modules
# ---------------------------------------------------------------------------------------------------------------


def _runtime() -> types.ModuleType:
    module = types.ModuleType("cupy.cuda.runtime")

    def get_device_count() -> int:
        _ask_driver()
        return _machine.devices

    def get_device_properties(device: int) -> dict[str, Any]:
        attributes = Device(device).attributes
        return {
            "name": b"emulated device",
            "major": attributes["ComputeCapabilityMajor"],
            "minor": attributes["ComputeCapabilityMinor"],
            "multiProcessorCount": attributes["MultiProcessorCount"],
            "totalGlobalMem": _machine.memory,
            "warpSize": 32,
            "maxThreadsPerBlock": 1024,
            "maxThreadsPerMultiProcessor": 2048,
            "regsPerBlock": 65536,
            "regsPerMultiprocessor": 65536,
            "sharedMemPerBlock": 48 << 10,
            "sharedMemPerBlockOptin": 227 << 10,
            "sharedMemPerMultiprocessor": 228 << 10,
            "l2CacheSize": 50 << 20,
            "clockRate": attributes["ClockRate"],
            "memoryClockRate": attributes["MemoryClockRate"],
            "memoryBusWidth": attributes["GlobalMemoryBusWidth"],
        }

    def version() -> int:
        if _machine.error and _machine.error != 35:
            raise CUDARuntimeError(_machine.error)
        return 0 if _machine.error else 13000  # no driver: 0, as cudaDriverGetVersion says

    def stream_is_capturing(ptr: int) -> bool:
        return any(stream.ptr == ptr for stream in list(_capturing))

    module.CUDARuntimeError = CUDARuntimeError
    module.getDeviceCount = get_device_count
    module.getDevice = get_device_id
    module.setDevice = lambda device: Device(device).use()
    module.getDeviceProperties = get_device_properties
    module.deviceSynchronize = lambda: Device().synchronize()
    module.streamSynchronize = lambda ptr: _wait()
    module.streamIsCapturing = stream_is_capturing
    module.driverGetVersion = version
    module.runtimeGetVersion = lambda: 13000
    module.memGetInfo = lambda: Device().mem_info
    module.memoryTypeUnregistered, module.memoryTypeHost, module.memoryTypeDevice, module.memoryTypeManaged = range(4)
    # What it is in truth: Triton's interpreter asks whether it can read an array.
    module.pointerGetAttributes = lambda ptr: types.SimpleNamespace(type=module.memoryTypeUnregistered)
    module.is_hip = False
    module.streamCaptureModeGlobal = STREAM_CAPTURE_GLOBAL
    module.streamCaptureModeThreadLocal = STREAM_CAPTURE_THREAD_LOCAL
    module.streamCaptureModeRelaxed = STREAM_CAPTURE_RELAXED
    return module


def modules() -> dict[str, types.ModuleType]:
    """The modules of `cupy.cuda`, by name."""
    cuda = types.ModuleType("cupy.cuda")
    cuda.__path__ = []  # a package
    public = (
        Device, Stream, ExternalStream, Event, Graph, MemoryPool, MemoryPointer, BaseMemory, Memory, UnownedMemory,
        PinnedMemoryPool, alloc, get_allocator, set_allocator, using_allocator, alloc_pinned_memory, get_device_id,
        is_available, get_current_stream, get_elapsed_time,
    )  # fmt: skip
    for thing in public:
        setattr(cuda, thing.__name__, thing)
    cuda.runtime = _runtime()
    cuda.get_local_runtime_version = lambda: 13000
    cuda.memory = types.ModuleType("cupy.cuda.memory")
    for thing in (OutOfMemoryError, MemoryPool, MemoryPointer, BaseMemory, Memory, UnownedMemory):
        setattr(cuda.memory, thing.__name__, thing)
    cuda.device = types.ModuleType("cupy.cuda.device")
    cuda.device.Device, cuda.device.get_device_id = Device, get_device_id
    cuda.stream = types.ModuleType("cupy.cuda.stream")
    cuda.stream.Stream, cuda.stream.get_current_stream = Stream, get_current_stream
    cuda.driver = types.ModuleType("cupy.cuda.driver")
    cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor = lambda function, threads, shared: min(
        2048 // threads, (228 << 10) // (shared + 1024)
    )
    parts = {f"cupy.cuda.{name}": getattr(cuda, name) for name in ("runtime", "memory", "device", "stream", "driver")}
    return {"cupy.cuda": cuda, **parts}
