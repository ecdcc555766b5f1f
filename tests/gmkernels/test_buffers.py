"""Arrays lent from buffers: whose memory they are, and when it is used again."""

import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from gmkernels import buffers

FLOAT = np.dtype("float32")
SHAPE = (300, 784)
SIZE = 300 * 784 * 4


@pytest.fixture(autouse=True)
def nothing_idle():
    buffers.release()
    yield
    buffers.release()


@pytest.mark.parametrize("shape", [SHAPE, (buffers.SMALLEST,), (3, 5, 7001), (buffers.SMALLEST // 4 + 1,)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_large_array_is_an_ordinary_aligned_one(shape, dtype):
    a = buffers.empty(shape, np.dtype(dtype))
    assert type(a) is np.ndarray and a.shape == shape and a.dtype == dtype
    assert a.flags.c_contiguous and a.flags.writeable and a.ctypes.data % buffers.ALIGNMENT == 0
    a[...] = 3
    assert np.all(a == 3)
    assert a.reshape(-1).base is a  # views name the array, as of NumPy's own


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (buffers.SMALLEST // 4 - 1,)])
def test_a_small_array_is_numpys(shape):
    a = buffers.empty(shape, FLOAT)
    assert a.shape == shape and a.base is None


def test_memory_is_used_again_once_the_last_view_is_gone_and_not_before():
    a = buffers.empty(SHAPE, FLOAT)
    where = a.ctypes.data
    row, transposed = a[3], a.T
    del a
    assert buffers.empty(SHAPE, FLOAT).ctypes.data != where
    del row
    assert buffers.empty(SHAPE, FLOAT).ctypes.data != where
    del transposed
    held = [buffers.empty(SHAPE, FLOAT) for _ in range(2)]
    assert where in [b.ctypes.data for b in held]
    assert held[0].ctypes.data != held[1].ctypes.data


def test_an_array_that_lives_to_the_end_of_the_process_dies_silently():
    """Modules are taken apart then, in any order: NumPy's is one of the last."""
    script = "import numpy as np; from gmkernels import buffers; np.kept = buffers.empty((300, 784), np.dtype('f4'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr


def test_a_view_of_the_base_gives_nothing_back():
    a = buffers.empty(SHAPE, FLOAT)
    part = a.base[8:]
    del part
    assert buffers._idle_bytes == 0


def test_sizes_share_a_buffer_that_wastes_an_eighth_at_most():
    for size in (buffers.SMALLEST, buffers.SMALLEST + 4, 1_000_000, 3_136_000, 2**24 - 4):
        a = buffers.empty((size // 4,), FLOAT)
        assert size <= a.base.size <= size * 1.125


def test_idle_memory_is_limited(monkeypatch):
    monkeypatch.setattr(buffers, "MOST_IDLE", 3 * SIZE)
    arrays = [buffers.empty(SHAPE, FLOAT) for _ in range(8)]
    del arrays
    assert SIZE <= buffers._idle_bytes <= 3 * SIZE
    assert buffers._idle_bytes == sum(size * len(idle) for size, idle in buffers._idle.items())
    buffers.release()
    assert not buffers._idle and buffers._idle_bytes == 0


def test_tracemalloc_counts_what_is_in_use():
    del_me = buffers.empty(SHAPE, FLOAT)
    del del_me  # an idle buffer, which would not count
    tracemalloc.start()
    try:
        a = buffers.empty(SHAPE, FLOAT)
        assert SIZE <= tracemalloc.get_traced_memory()[0] < 1.1 * SIZE
        del a
        assert tracemalloc.get_traced_memory()[0] < 0.1 * SIZE
    finally:
        tracemalloc.stop()


def test_threads_never_share_a_buffer():
    failures = []

    def work(number):
        for _ in range(300):
            a, b = buffers.empty(SHAPE, FLOAT), buffers.empty((buffers.SMALLEST,), FLOAT)
            a[0], b[:9] = number, number
            if not (np.all(a[0] == number) and np.all(b[:9] == number)):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert buffers._idle_bytes == sum(size * len(idle) for size, idle in buffers._idle.items())


def test_an_array_that_dies_while_the_lock_is_held_does_not_wait():
    a = buffers.empty(SHAPE, FLOAT)
    with buffers._lock:
        del a
        b = buffers.empty(SHAPE, FLOAT)
    assert b.shape == SHAPE and buffers._idle_bytes == 0
