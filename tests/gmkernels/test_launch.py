"""Launches: arguments, grids and streams; what is refused; calls of the registry on a GPU (here its stand-in)."""

import gc
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import cupy
import ml_dtypes
import numpy as np
import pytest
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

import gmkernels
from gmkernels import KernelError, KernelSpec, launch, registry
from gmkernels.cost import Cost, nominal_gpu
from gmkernels.optim.spec import SGD
from gmkernels.registry import DeviceMemoryError
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

emulated = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
ROOT = Path(__file__).parents[2]
CODE = Path(__file__).with_name("launched.cu")
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def process(*arguments, **environment):
    """What a process of its own prints: one in which Triton compiles."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")))
    env = {**os.environ, "PYTHONPATH": path, **environment}
    env.pop("TRITON_INTERPRET", None)
    found = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return found.stdout


# ---------------------------------------------------------------------------------------------------------------
# CUDA C
# ---------------------------------------------------------------------------------------------------------------


HEADERS = ("gmkernels/device.cuh", "gmkernels/family/parts.cuh", "elsewhere/own.cuh")


@pytest.mark.parametrize("changed", HEADERS)
def test_a_header_that_changes_makes_another_source(changed, tmp_path, monkeypatch):
    """CuPy keeps binaries by source and options, and looks at no header."""
    for path in HEADERS:
        header = tmp_path / path
        header.parent.mkdir(exist_ok=True)
        header.write_text("// once")
    code = tmp_path / "elsewhere" / "cuda.cu"
    code.write_text(CODE.read_text())
    monkeypatch.setattr(launch, "FOLDER", tmp_path / "gmkernels")

    def source():
        launch._headers.cache_clear()
        return launch.cuda_source(code, "float32")

    try:
        (before, options), again = source(), source()
        (tmp_path / changed).write_text("// twice")
        assert (before, options) == again != source() and options == source()[1]
    finally:
        launch._headers.cache_clear()


def passed(dtype="float32", n=5, grid=(3,), block=(32,), x=None, **options):
    seen = cupy.zeros(10, np.float64)
    x = cupy.full(4, 1.5, DTYPES.get(dtype, np.float32)) if x is None else x
    arguments = (seen, x, None, n, 0.1, np.uint8(200))
    launch.cuda(CODE, "passed", dtype, grid, block, arguments, defines=("EXTRA=7",), **options)
    return seen.get()


def test_what_a_cuda_kernel_is_passed():
    assert passed().tolist() == [4, 4, 4, 1.5, 1, 5, 0.1, 200, 7, 96]


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize("dtype, store, real", [("float64", 8, 8), ("float16", 2, 4), ("bfloat16", 2, 4)])
def test_types_of_storage_and_of_arithmetic(dtype, store, real):
    assert passed(dtype)[1:4].tolist() == [store, real, 1.5]


@pytest.mark.slow
def test_a_large_number_or_array_widens_all_indices(monkeypatch):
    assert passed(n=2**31 - 1)[[0, 5]].tolist() == [4, 2**31 - 1]
    assert passed(n=2**31)[[0, 5]].tolist() == [8, 2**31]
    monkeypatch.setattr(launch, "LARGEST_SIZE", 10)  # `seen` has ten elements
    assert passed()[0] == 4
    monkeypatch.setattr(launch, "LARGEST_SIZE", 9)
    assert passed()[0] == 8


@emulated
def test_blocks_that_wait_for_each_other_must_fit_on_the_device():
    """Of the stand-in: 4 multiprocessors of 2048 threads and 228 KiB of shared memory."""
    assert passed(grid=(32,), block=(256,), cooperative=True)[9] == 8192
    with pytest.raises(
        KernelError, match="passed: 33 blocks of 256 threads .* wait for each other, .* runs 32 at once"
    ):
        passed(grid=(33,), block=(256,), cooperative=True)
    with pytest.raises(KernelError, match="with 116736 bytes of shared memory .* runs 4 at once"):
        passed(grid=(5,), shared=114 << 10, cooperative=True)


def test_the_limit_of_shared_memory_rises_and_never_falls():
    """It is the kernel's: lowered, another thread's launch or one in a graph would have too little."""

    def limits():
        functions = [
            f for form, f in launch._cuda_kernels.items() if form[:3] == (CODE, "passed", "float32") and not form[-1]
        ]
        return {f.kernel.max_dynamic_shared_size_bytes for f in functions if f.most_shared}

    for shared in (80 << 10, 60 << 10, 70 << 10):
        passed(shared=shared)
        assert limits() == {80 << 10}
    passed(shared=90 << 10)
    assert limits() == {90 << 10}


@emulated
@pytest.mark.parametrize("grid", [(0,), (5, 0), (0, 0, 1)])
def test_a_grid_without_blocks_launches_nothing(grid):
    with cuda_stand_in.counting() as asked:
        assert not passed(grid=grid).any()
    assert "launch" not in asked


def test_a_launch_goes_to_the_current_stream():
    passed()  # compiles
    x, y = cupy.full(4, 1.5, np.float32), cupy.zeros(10, np.float64)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with cuda_stand_in.counting() as asked:
            launch.cuda(CODE, "passed", "float32", (1,), (1,), (y, x, None, 1, 0.0, np.uint8(0)), defines=("EXTRA=7",))
        graph = stream.end_capture()
    assert set(asked) <= {"launch"}, "a launch allocates nothing and copies nothing"
    assert not y.get().any(), "it ran while it was captured"
    graph.launch()
    assert y.get()[3] == 1.5
    x.fill(2.5)
    graph.launch()
    assert y.get()[3] == 2.5, "a replay reads memory"


def strided():
    return cupy.zeros((4, 6), np.float32)[:, ::2]


def elsewhere():
    with cupy.cuda.Device(1):
        return cupy.zeros(4, np.float32)


@emulated
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: np.zeros(4, np.float32), r"passed: argument 1 is in host memory; expected an array of CuPy"),
        (lambda: "text", r"passed: argument 1 is of type str"),
        (strided, r"passed: argument 1 has shape \(4, 3\) and strides \(24, 8\); .*cupy.ascontiguousarray"),
        (elsewhere, r"passed: argument 1 is on cuda:1, the launch is on cuda:0; .*cupy.cuda.Device\(0\)"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with cuda_stand_in.machine(devices=2), pytest.raises(KernelError, match=message):
        passed(x=make())
    with (
        cuda_stand_in.machine(devices=2),
        pytest.raises(KernelError, match=message.replace("passed: argument 1", "_axpy: argument 0")),
    ):
        axpy(make())


def test_strides_are_the_kernels_business_where_it_says_so():
    x = strided()
    x.fill(1.5)
    assert passed(x=launch.Strided(x))[3] == 1.5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": (1, 65536)}, r"passed: a grid of \(1, 65536\) blocks; CUDA takes up to \(2147483647, 65535, 65535\)"),
        ({"grid": (1, 1, 1, 1)}, "a grid of"),
        ({"grid": (-1,)}, "a grid of"),
        ({"block": (1025,)}, "a block of 1025 threads; CUDA takes 1 to 1024"),
        ({"block": (0,)}, "a block of 0 threads"),
        ({"dtype": "int32"}, "float32, float64, float16, bfloat16 versions, got int32"),
    ],
)
def test_launches_that_are_refused(changes, message):
    with pytest.raises(KernelError, match=message):
        passed(**changes)


# ---------------------------------------------------------------------------------------------------------------
# Triton
# ---------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n"])
def _axpy(x, y, bias, n, a, b: tl.float64, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    i = program * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n) * a + b
    if bias is not None:
        value += tl.load(bias + i, i < n)
    tl.store(y + i, value, i < n)


def axpy(x, bias=None, programs=2):
    y = cupy.zeros(100, np.float64)
    launch.triton(_axpy, (programs,), (x, y, bias, 100, 2.0, 0.25), {"BLOCK": 64})
    return y.get()


def test_what_a_triton_kernel_is_passed():
    x, bias = cupy.arange(100, dtype=np.float32), cupy.full(100, 3.0, np.float32)
    np.testing.assert_array_equal(axpy(x), x.get() * 2.0 + 0.25)
    np.testing.assert_array_equal(axpy(x, bias), x.get() * 2.0 + 3.25)
    assert not axpy(x, programs=0).any()


def test_pointers_of_a_kernel_from_elsewhere():
    x, y = cupy.arange(100, dtype=np.float32), cupy.zeros((200, 2), np.float32)[::2, 0]
    _axpy[(2,)](launch.Pointer(x), launch.Pointer(y), None, 50, 3.0, 0.0, BLOCK=64, WIDE=False)
    # The kernel knows no strides: elements 0 to 49 lie on the first 25 of every second row of two.
    np.testing.assert_array_equal(y.get()[:13], 3.0 * x.get()[0:50:4])


@pytest.mark.gpu
def test_more_elements_than_an_int_counts():
    n = 2**31 + 64
    x, y = cupy.ones(n, np.int8), cupy.zeros(n, np.int8)
    launch.triton(_axpy, (triton.cdiv(n, 4096),), (x, y, None, n, 2.0, 1.0), {"BLOCK": 4096})
    assert y[-1] == 3 and y[2**31 - 1] == 3 and int(y.sum(dtype=np.int64)) == 3 * n


@pytest.mark.slow  # calls every kernel, in a process of its own
def test_every_kernel_launches_as_it_must():
    """Grids, streams, arguments; nothing for outputs without elements; nothing that a capture would refuse."""
    report = json.loads(process("-m", "tests.support.recording"))
    assert not report["wrong"], "\n".join(report["wrong"][:20])
    registered = [
        f"{op}.{backend}.{dtype}"
        for op, spec in registry.specs().items()
        if spec is not doubled
        for backend in ("triton", "cuda")
        if (entry := registry.entries(spec).get(backend)) is not None
        for dtype in entry.dtypes
    ]
    assert [name for name in registered if not report["launched"].get(name)] == [], "never launched"


COMPILED = """
import struct, sys
from tests.support import recording
recorder = recording.install()
import cupy, numpy as np, triton
from gmkernels import launch
from tests.gmkernels.kernels_elsewhere import axpy, tuned
x, y = cupy.zeros(100, np.float32), cupy.zeros(100, np.float32)
odd = cupy.zeros(101, np.float32)[1:]
stream = cupy.cuda.Stream(non_blocking=True)
with stream:
    for n, a, from_ in ((100, 2.0, x), (16, 3.0, x), (2**31, 3.0, x), (100, 2.0, odd)):
        launch.triton(axpy, (2, 3), (from_, y, n, a, 0.1), {"BLOCK": 64}, warps=8)
    assert len(recorder.loaded) == 3, "compiled by alignment and width, not by value"
    launch.LARGEST_SIZE = 101  # an array of more elements
    launch.triton(axpy, (1,), (cupy.zeros(102, np.float32), y, 100, 2.0, 0.1), {"BLOCK": 64}, warps=8)
    assert len(recorder.loaded) == 3 and recorder.launches.pop().image is recorder.loaded[1], "the wide one"
    rows = launch.Strided(cupy.zeros(104, np.float32)[:102].reshape(2, 51)[:, :4])  # few elements, far apart
    launch.LARGEST_SIZE = 54
    launch.triton(axpy, (1,), (rows, y[:4], 4, 2.0, 0.1), {"BLOCK": 64}, warps=8)
    assert recorder.launches.pop().image is recorder.loaded[1], "55 elements from the first to the last"
    axpy[(5,)](launch.Pointer(x), launch.Pointer(y), 100, 2.0, 0.1, BLOCK=64, WIDE=False)
axpy[(0,)](launch.Pointer(x), launch.Pointer(y), 100, 2.0, 0.1, BLOCK=64, WIDE=False)
axpy[(5,)](launch.Pointer(x), launch.Pointer(y), 100, 2.0, 0.1, BLOCK=64, WIDE=False)
ours, theirs = recorder.launches[:4], recorder.launches[4:]
assert len(theirs) == 2
for l, (n, a) in zip(ours, ((100, 2.0), (16, 3.0), (2**31, 3.0), (100, 2.0))):
    assert l.grid == (2, 3, 1) and l.block == (256, 1, 1) and l.stream == stream.ptr
for l, s in zip(theirs, (stream.ptr, cupy.cuda.Stream.null.ptr)):
    assert l.grid == (5, 1, 1) and l.block == (128, 1, 1) and l.stream == s
for l, (n, a) in zip((*ours, *theirs), ((100, 2.0), (16, 3.0), (2**31, 3.0), (100, 2.0), (100, 2.0), (100, 2.0))):
    assert l.words[0] in (x.data.ptr, odd.data.ptr) and l.words[1] == y.data.ptr and l.words[2] == n
    assert struct.unpack("<f4x", struct.pack("<Q", l.words[3])) == (a,)
    assert struct.unpack("<d", struct.pack("<Q", l.words[4])) == (0.1,)
    assert l.words[5:7] == (0, 0), "no scratch memory"
tuned[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](launch.Pointer(x), 100)
from gmkernels.triton_driver import TritonDriver
driver = triton.runtime.driver.active
assert type(driver) is TritonDriver and driver.get_current_target().arch == 90
assert driver.get_device_capability(0) == (9, 0) and driver.map_python_to_cpp_type("i64") == "int64_t"
assert "torch" in sys.modules or len(sys.argv) == 1
"""


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("torch", [False, True])
def test_triton_compiles_and_launches_without_pytorch(torch):
    if torch:
        pytest.importorskip("torch")
    process("-c", ("import torch\n" if torch else "") + COMPILED, *(["torch"] if torch else []))


# ---------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------


def test_resident_copies_an_array_of_the_host():
    copied = launch.resident(np.arange(3, dtype=np.uint64))
    assert launch.on_gpu(copied) and copied.dtype == np.uint64 and copied.get().tolist() == [0, 1, 2]


@given(st.lists(st.integers(0, 3), max_size=3), st.booleans())
def test_wide_arrays_have_more_elements_than_an_int_counts(shape, is_large):
    arrays = [np.broadcast_to(np.float32(0), shape)]
    if is_large:
        arrays.append(np.broadcast_to(np.float32(0), (2, 2**30)))
    assert launch.wide(*arrays) == is_large
    assert not launch.wide(np.broadcast_to(np.float32(0), (2**31 - 2**20,)))


@given(st.permutations([0, 1]), st.booleans())
def test_strides_that_skip_much_need_wide_indices(axes, is_large):
    """A product reads a part of a large array where it lies: what counts is how far its elements are apart."""
    skipped = 2**31 - 2**20 if is_large else 2**31 - 2**20 - 6
    part = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2, 3), (4 * skipped, -8)).transpose(axes)
    assert launch.wide(part) == is_large


@pytest.fixture
def pool():
    """Of CuPy's memory: what is used, and `limit`, which leaves 1.5 MiB beside what the test has made before."""
    pool = cupy.get_default_memory_pool()
    gc.collect()
    pool.free_all_blocks()

    def limit():  # not a method of the pool, which takes no attributes
        pool.set_limit(pool.used_bytes() + (3 << 19))

    yield types.SimpleNamespace(limit=limit, used_bytes=pool.used_bytes)
    pool.set_limit(0)


def test_no_room_leaks_nothing_and_the_caller_goes_on(pool):
    x = cupy.zeros((1 << 16, 4), np.float32)
    pool.limit()
    before = pool.used_bytes()
    with pytest.raises(DeviceMemoryError) as caught:
        registry.run(doubled, (x,))
    assert isinstance(caught.value, MemoryError) and isinstance(caught.value, KernelError)
    assert "doubled (backend 'cuda'): no room on cuda:0 for 2.0 MiB: 1.5 MiB of " in str(caught.value)
    assert "pool is limited to" in str(caught.value) and "smaller batches" in str(caught.value)
    assert pool.used_bytes() == before, "the error holds the output that there was room for"
    half = x[: 1 << 14]
    assert registry.run(doubled, (half,))[1].shape == half.shape


def test_no_room_leaks_nothing_while_the_error_lives(pool):
    pool.limit()
    before = pool.used_bytes()
    with pytest.raises(DeviceMemoryError, match="outputs: no room on cuda:0 for 2.0 MiB") as caught:
        launch.allocate("outputs", [((1 << 18,), np.dtype(np.float32))] * 2)
    assert caught.value.__context__ is None and pool.used_bytes() == before


def test_no_room_for_what_a_kernel_of_cupy_makes_on_its_way(pool, monkeypatch):
    x = cupy.zeros((1 << 14, 4), np.float32)

    def greedy(inputs, outputs, workspace, attrs):
        outputs[0][...] = cupy.zeros(1 << 20, np.float32)[0]

    registry.unregister(doubled, "reference")
    registry.register(doubled, "reference", greedy)
    pool.limit()
    before = pool.used_bytes()
    with pytest.raises(DeviceMemoryError, match=r"doubled \(backend 'reference'\): no room on cuda:0 \(CuPy: Out of "):
        registry.run(doubled, (x,), backend="reference")
    assert pool.used_bytes() == before


# ---------------------------------------------------------------------------------------------------------------
# Calls on a GPU
# ---------------------------------------------------------------------------------------------------------------


def doubled_kernel(inputs, outputs, workspace, attrs):
    assert all(map(launch.on_gpu, (*inputs, *outputs, *workspace)))
    device = inputs[0].device
    assert cupy.cuda.Device() == device and all(a.device == device for a in (*outputs, *workspace))
    for out in outputs:
        np.multiply(inputs[0], 2, out=out)
        if len(inputs) > 1:
            out += inputs[1]


def doubled_reference(inputs, outputs, workspace, attrs):
    for out in outputs:
        np.multiply(inputs[0], 2, out=out, casting="unsafe")


doubled = KernelSpec(
    name="doubled", family="outside", inputs=("x", "shift"), outputs=("y", "z"),
    infer=lambda x, shift=None: [(x.shape, x.dtype)] * 2,
    cost=lambda x, shift=None: Cost(bytes=3 * x.nbytes),
    examples=lambda rng, dtype: [registry.Example((rng.standard_normal(5).astype(dtype),), {})],
    workspace=lambda x, shift=None: [((3,), np.dtype(np.float32))],
    formula="y = z = 2 x + shift", source="none", tolerance={"float32": (0, 0), "float64": (0, 0)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr("gmkernels.registry._environment", "")
    registry.register(doubled, "reference", doubled_reference, overhead=0.0, efficiency=1.0)
    registry.register(doubled, "cuda", doubled_kernel, dtypes=(*registry.FLOATS, "float16"), overhead=1.0)
    yield
    for backend in registry.entries(doubled):
        registry.unregister(doubled, backend)


@emulated
def test_results_and_workspace_lie_where_the_inputs_do():
    x = cupy.arange(5, dtype=np.float32)
    y, _ = registry.run(doubled, (x,))
    assert isinstance(y, cupy.ndarray) and y.get().tolist() == [0, 2, 4, 6, 8]
    with cuda_stand_in.machine(devices=2):
        with cupy.cuda.Device(1):
            x = cupy.arange(5, dtype=np.float32)
        y, _ = registry.run(doubled, (x,))
        assert y.device.id == 1 and cupy.cuda.Device().id == 0
    outputs = (cupy.zeros(5, np.float32), cupy.zeros(5, np.float32))
    assert registry.run(doubled, (cupy.arange(5, dtype=np.float32),), outputs=outputs)[0] is outputs[0]
    y, _ = registry.run(doubled, (cupy.arange(10, dtype=np.float32)[::2],))
    assert y.get().tolist() == [0, 4, 8, 12, 16], "packed on the device"


@emulated
def test_small_arrays_of_the_host_come_along():
    x = cupy.ones(5, np.float32)
    y, _ = registry.run(doubled, (x, np.float32([3])))
    assert y.get().tolist() == [5] * 5
    with cuda_stand_in.counting() as asked:
        registry.run(doubled, (x, np.float32([3])))
    assert asked["to_device"] == 1 and not asked["to_host"]
    registry.run(doubled, (x, np.zeros(1024, np.float32)), backend="reference")
    with pytest.raises(KernelError, match=r"doubled: shift is in host memory and x on cuda:0; .*cupy.asarray\(shift\)"):
        registry.run(doubled, (x, np.zeros(1025, np.float32)))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_what_is_updated_lies_on_the_device_however_small(backend):
    grads, there = cupy.ones(3, np.float32), cupy.ones(3, np.float32)
    inputs, buffers = ((grads, grads), np.zeros(7)), (there, there)
    with pytest.raises(KernelError, match=r"sgd: params is in host memory and grads on cuda:0; expected one device"):
        registry.run(SGD, inputs, outputs=((there, np.ones(3, np.float32)), buffers), backend=backend)


@emulated
def test_arrays_on_two_devices_are_refused():
    with cuda_stand_in.machine(devices=2):
        x = cupy.ones(5, np.float32)
        with cupy.cuda.Device(1):
            other = cupy.ones(5, np.float32)
        with pytest.raises(KernelError, match=r"doubled: x is on cuda:0 and shift on cuda:1; expected one device"):
            registry.run(doubled, (x, other))
        with pytest.raises(KernelError, match="output y must be in cuda:0, as the inputs are; it is in cuda:1"):
            registry.run(doubled, (x,), outputs=(other, x))
        with pytest.raises(KernelError, match="output y must be in cuda:0, as the inputs are; it is in host memory"):
            registry.run(doubled, (x,), outputs=(np.ones(5, np.float32), x))
        with pytest.raises(KernelError, match="output y must be in host memory, as the inputs are; it is in cuda:1"):
            registry.run(doubled, (x.get(),), outputs=(other, x))


@pytest.mark.parametrize("backend", [None, "cuda", "triton"])
@pytest.mark.parametrize("op", ["matmul", "sum"])
def test_fields_of_records_are_refused(op, backend):
    x = cupy.ndarray((2, 3), np.float32, cupy.zeros(64, np.uint8).data, (15, 5))
    inputs, attrs = ((x, x.T), {}) if op == "matmul" else ((x,), {"axis": (0,), "keepdims": False})
    with pytest.raises(KernelError, match=rf"{op}: [ax] is float32\[2, 3\] with strides \(15, 5\); .* its 4 bytes"):
        registry.run(registry.specs()[op], inputs, attrs, backend=backend)
    one = cupy.ndarray((1, 3), np.float32, cupy.zeros(64, np.uint8).data, (15, 4))
    registry.run(registry.specs()["sum"], (one,), {"axis": (0,), "keepdims": False})


def test_kernels_of_ours_come_before_the_reference():
    x = cupy.ones(5, np.float32)
    report = gmkernels.explain("doubled", x)
    assert report.chosen == "cuda", "though the reference is estimated to be faster"
    assert report.estimates["reference"] < report.estimates["cuda"]
    assert f"on cuda, compute capability {int(cupy.cuda.Device().compute_capability) / 10:.1f}, float32" in str(report)
    assert report.floor == nominal_gpu(0).floor(Cost(bytes=3 * x.nbytes))
    assert gmkernels.explain("doubled", x.get()).chosen == "reference"
    y, _ = registry.run(doubled, (x,), backend="reference")
    assert isinstance(y, cupy.ndarray) and y.get().tolist() == [2] * 5


def test_dtypes_that_a_kernel_lacks():
    for dtype, chosen in (("float16", "cuda"), ("bfloat16", None)):
        x = cupy.ones(5, DTYPES[dtype])
        if chosen:
            assert registry.select(doubled, (x,), {}).backend == chosen
        else:
            with pytest.raises(gmkernels.KernelDtypeError, match="doubled: no kernel takes this call .*no bfloat16"):
                registry.run(doubled, (x,))
        with pytest.raises(KernelError, match=f"'reference' has no {dtype} version"):
            registry.run(doubled, (x,), backend="reference")
    with pytest.raises(KernelError, match="doubled: backend 'cuda' runs on cuda, the arrays are on cpu"):
        registry.run(doubled, (np.ones(5, np.float32),), backend="cuda")


@emulated
def test_an_old_gpu_is_served_by_cupy():
    with cuda_stand_in.machine(capability="75"):
        x = cupy.ones(5, np.float32)
        with pytest.raises(KernelError, match="'cuda' needs compute capability 8.0 or newer, this GPU has 7.5: .*CuPy"):
            registry.run(doubled, (x,), backend="cuda")
        assert registry.select(doubled, (x,), {}).backend == "reference"
