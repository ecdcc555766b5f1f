"""The stand-in for CuPy: NumPy's values, CuPy's names, layouts and refusals, and a device that notices misuse."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support import cuda_stand_in, cupy_stand_in

THEIRS = """
import inspect, json, cupy
def parameters(function):
    if isinstance(function, cupy.ufunc): return "ufunc"
    try: return [str(p).split("=")[0].split(":")[0] for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError): return None
members = lambda kind: [n for n in dir(kind) if not n.startswith("_")]
json.dump({
    "cupy": {n: parameters(getattr(cupy, n)) for n in dir(cupy)},
    "linalg": {n: parameters(getattr(cupy.linalg, n)) for n in dir(cupy.linalg)},
    "cuda": dir(cupy.cuda), "runtime": dir(cupy.cuda.runtime),
    "classes": {c.__name__: dir(c) for c in (cupy.ndarray, cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.Graph,
        cupy.cuda.Device, cupy.cuda.MemoryPool, cupy.cuda.MemoryPointer)},
}, __import__("sys").stdout)
"""


@pytest.fixture(scope="module")
def theirs():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", THEIRS], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"CuPy itself is not installed: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout)


def test_all_that_it_has_cupy_has(theirs):
    ours = cupy_stand_in.modules()
    public = {name for name in vars(ours["cupy"]) if not name.startswith("_")}
    assert public <= theirs["cupy"].keys()
    assert {name for name in vars(ours["cupy.linalg"]) if not name.startswith("_")} <= theirs["linalg"].keys()
    assert {name for name in vars(ours["cupy.cuda"]) if not name.startswith("_")} <= set(theirs["cuda"])
    assert {name for name in vars(ours["cupy.cuda.runtime"]) if not name.startswith("_")} <= set(theirs["runtime"])
    for kind in (cupy_stand_in.ndarray, *(getattr(cuda_stand_in, n) for n in theirs["classes"] if n != "ndarray")):
        assert {n for n in dir(kind) if not n.startswith("_")} <= set(theirs["classes"][kind.__name__]) | {"host"}


def test_arguments_are_those_of_cupy(theirs):
    for text, home in (
        *((text, "cupy") for text in cupy_stand_in.FUNCTIONS.values()),
        (cupy_stand_in.LINALG, "linalg"),
    ):
        for name, parameters in cupy_stand_in._parse(text):
            expected = theirs[home][name]
            if expected == "ufunc" or name == "matmul":
                continue
            assert [p for p in parameters if p not in expected] == [], f"{name}{tuple(expected)}"
            positional = [p for p in expected if p in parameters]
            assert parameters == positional, f"{name}: in another order than {expected}"
    for name in cupy_stand_in.UFUNCS:
        assert theirs["cupy"][name] == "ufunc"


@pytest.fixture(scope="module")
def cupy():
    if cupy_stand_in.has_gpu():
        pytest.skip("CuPy is CuPy here")
    import cupy

    return cupy


@pytest.fixture
def stream(cupy):
    return cupy.cuda.Stream(non_blocking=True)


def test_mixing_with_numpy_is_refused(cupy):
    a, b = cupy.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    for mix in (
        lambda: a + b,
        lambda: b + a,
        lambda: np.add(a, b),
        lambda: np.where(a > 0, a, b),
        lambda: a.__iadd__(b),
    ):
        with pytest.raises(TypeError, match="Unsupported type <class 'numpy.ndarray'>"):
            mix()
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(a)
    with pytest.raises(ValueError, match="non-scalar"):
        a[...] = b
    with pytest.raises(TypeError, match="NotImplemented"):
        np.add.at(a, (0, 1), 1.0)
    with pytest.raises(TypeError, match="initial"):
        np.max(a, initial=0)
    with pytest.raises(TypeError):
        hash(a)
    assert not hasattr(a.flags, "writeable")


SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


@settings(max_examples=40)
@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), SHAPES, elements=st.integers(-8, 8)), st.data())
def test_values_are_those_of_numpy(cupy, a, data):
    axis = data.draw(st.integers(0, a.ndim - 1))
    b = cupy.array(a)
    function = data.draw(st.sampled_from((
        np.exp, np.tanh, np.square, np.isnan, lambda x: np.logaddexp(0, x), lambda x: np.where(x > 0, x, 0.5),
        lambda x: np.sum(x, axis), lambda x: x.sum(axis, dtype=np.float64, keepdims=True), lambda x: np.max(x, axis),
        lambda x: x.mean(axis), lambda x: np.argmax(x, axis), lambda x: np.cumsum(x, axis), lambda x: np.sort(x, axis),
        lambda x: np.concatenate([x, x], axis), lambda x: np.stack([x, -x], axis), lambda x: np.expand_dims(x, axis),
        lambda x: x.T, lambda x: np.flip(x, axis), lambda x: x[::-1], lambda x: x[..., 0], lambda x: x[x > 0],
        lambda x: x[..., None] * np.float32(3), lambda x: 1 / (1 + abs(x)), lambda x: x.clip(-1, 1),
        lambda x: x.astype(np.float16), lambda x: np.take_along_axis(x, np.argsort(x, axis), axis),
        lambda x: np.multiply.outer(x, x), lambda x: np.broadcast_to(x, (2, *x.shape)), lambda x: x.reshape(-1)[1:],
    )))  # fmt: skip
    with np.errstate(all="ignore"):
        expected = function(a)
    actual = function(b)
    assert type(actual) is type(b), "reductions give arrays, too"
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert actual.get().tobytes() == np.ascontiguousarray(expected).tobytes()


def test_views_share_memory_and_results_are_contiguous(cupy):
    a = cupy.zeros((3, 4), np.float32)
    view = a.T[1:, ::2]
    view += 1
    assert view.base is a and a.sum().item() == view.size == 6
    assert view.data.ptr == a.data.ptr + 4 and not view.flags.c_contiguous and not view.flags.owndata
    assert (view + 1).flags.c_contiguous and a.T.copy().flags.c_contiguous
    assert a.T.copy(order="K").strides == a.T.strides == (4, 16)
    broadcast = cupy.broadcast_to(a[0], (2, 4))
    broadcast[0] = 7  # NumPy's would be read-only
    assert a[0].get().tolist() == [7, 7, 7, 7]


def test_indices_out_of_bounds_wrap(cupy):
    a = cupy.arange(5)
    assert a[cupy.array([1, 7, -1])].get().tolist() == [1, 2, 4]
    with pytest.raises(IndexError):
        a[7]
    assert a[np.array([0, 2])].get().tolist() == [0, 2]  # copied to the device
    total = cupy.zeros(3)
    cupy.add.at(total, cupy.array([0, 0, 2]), cupy.ones(3))
    assert total.get().tolist() == [2, 0, 1]


def test_half_types(cupy):
    a = cupy.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert a.dtype == ml_dtypes.bfloat16 and (a * 2).dtype == a.dtype
    assert a.astype(np.float32).get().tolist() == [1, 2]
    assert (cupy.ones(2, np.float16) * 2.0).dtype == np.float16
    with pytest.raises(TypeError, match="Wrong type"):
        np.divmod(a, 2)
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cupy.array(["a"])


def test_fresh_memory_is_poisoned_and_guarded(cupy):
    a = cupy.empty(3, np.float32)
    assert np.isnan(a.get()).all() and a.data.ptr % 512 == 0
    beyond = np.ndarray(4, np.float32, cuda_stand_in.block_of(a.data.ptr).raw, a.data.mem.block.start)
    beyond[3] = 1
    with pytest.raises(AssertionError, match="4 bytes after an allocation of 12 bytes"):
        cuda_stand_in.check_guards()
    beyond[3] = 1
    del a  # what was damaged before it was given back is found, too
    with pytest.raises(AssertionError, match="after an allocation"):
        cuda_stand_in.check_guards()
    cuda_stand_in.check_guards()


def test_memory_runs_out(cupy):
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=4096)
    with cupy.cuda.using_allocator(pool.malloc):
        a = cupy.empty(512)
        assert pool.used_bytes() == 4096
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"allocating 512 bytes \(allocated so far: 4,096"):
            cupy.empty(1)
        del a
        assert (pool.used_bytes(), pool.free_bytes()) == (0, 4096)
        cupy.empty(1)  # the idle block makes room
    with cuda_stand_in.machine(memory=0), pytest.raises(MemoryError):
        cupy.cuda.MemoryPool().malloc(1)


def test_a_graph_replays_at_the_same_addresses(cupy, stream):
    x, y = cupy.ones(4, np.float32), cupy.zeros(4, np.float32)
    with stream:
        stream.begin_capture()
        between = x * 2
        np.add(between, 1, out=y)
        y[0] = 9
        graph = stream.end_capture()
    assert y.get().tolist() == [0, 0, 0, 0], "nothing runs while it is captured"
    x += 1
    graph.launch()
    assert y.get().tolist() == [9, 5, 5, 5]
    del between
    with pytest.raises(AssertionError, match="given back"):
        graph.launch()


def test_idle_memory_of_a_pool_of_its_own_serves_a_graph(cupy, stream):
    pool, x = cupy.cuda.MemoryPool(), cupy.ones(4, np.float32)
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        x += x * 2
        graph = stream.end_capture()
    graph.launch()
    assert x.get().tolist() == [3, 3, 3, 3]
    with cupy.cuda.using_allocator(pool.malloc):
        taken = cupy.empty(4, np.float32)
    with pytest.raises(AssertionError, match="given back"):
        graph.launch()
    del taken


@pytest.mark.parametrize(
    "operation",
    [
        lambda cupy, x: x.get(),
        lambda cupy, x: float(x[0]),
        lambda cupy, x: x.set(np.ones(4, np.float32)),
        lambda cupy, x: cupy.asarray(np.ones(4)),
        lambda cupy, x: x[x > 0],
        lambda cupy, x: cupy.cuda.Device().synchronize(),
        lambda cupy, x: cupy.cuda.get_current_stream().synchronize(),
    ],
)
def test_a_capture_refuses_to_wait_and_is_lost(cupy, stream, operation):
    x = cupy.ones(4, np.float32)
    with stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            operation(cupy, x)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="due to a previous error during capture"):
            stream.end_capture()


def test_a_capture_refuses_products_of_cublas(cupy, stream):
    x = cupy.ones((2, 2), np.float32)
    with stream:
        stream.begin_capture()
        for product in (lambda: x @ x, lambda: np.dot(x, x), lambda: np.einsum("ij,jk->ik", x, x)):
            with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
                product()
        stream.end_capture()


def test_captures_on_default_streams_are_refused(cupy):
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream.null.begin_capture()
    blocking = cupy.cuda.Stream()
    blocking.begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="legacy stream"):
        cupy.ones(3)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        blocking.end_capture()


def test_page_locked_memory_may_be_captured(cupy, stream):
    memory = cupy.cuda.alloc_pinned_memory(16)
    host, x = np.frombuffer(memory, np.float32, 4), cupy.zeros(4, np.float32)
    with stream:
        stream.begin_capture()
        x.data.copy_from_host_async(memory.ptr, 16)
        graph = stream.end_capture()
    host[:] = 5
    graph.launch()
    assert x.get().tolist() == [5, 5, 5, 5]


def test_two_devices(cupy):
    with cuda_stand_in.machine(devices=2):
        assert cupy.cuda.runtime.getDeviceCount() == 2
        with cupy.cuda.Device(1):
            a = cupy.ones(3)
        assert a.device.id == 1 and cupy.cuda.Device().id == 0
        with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
            a + 1
        assert cupy.asarray(a).device.id == 0
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
            cupy.cuda.Device(2).use()


@pytest.mark.parametrize("error, text", [(35, "driver version is insufficient"), (100, "no CUDA-capable device")])
def test_without_a_driver(cupy, error, text):
    with cuda_stand_in.machine(error=error):
        assert not cupy.is_available()
        for call in (lambda: cupy.zeros(3), cupy.cuda.Device, cupy.cuda.runtime.getDeviceCount):
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=text):
                call()
    assert cupy.is_available()


def test_what_is_asked_of_the_device_is_counted(cupy):
    with cuda_stand_in.counting() as counts:
        a = cupy.asarray(np.ones((2, 2)))
        (a @ a + 1).get()
        np.exp(a, out=a)
        a.T.reshape(2, 2)
    assert counts == {
        "to_device": 1, "library": 1, "elementwise": 2, "to_host": 1, "synchronize": 1, "allocation": 3,
    }  # fmt: skip


def test_dlpack_says_that_the_memory_is_on_a_gpu(cupy):
    a = cupy.arange(3)
    assert a.__dlpack_device__() == (2, 0)
    assert cupy.from_dlpack(a).data.ptr == a.data.ptr
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(a)
    with pytest.raises(ValueError, match="valid stream"):
        a.__dlpack__(stream=0)
