"""Every spec on every backend, in every dtype that its kernels take: generated from the specs' examples.

A case is a kernel and where its arrays lie. On the CPU run the kernels of NumPy and Numba, on a GPU those of Triton and
CUDA C, and the reference on arrays of CuPy, which is what an operation without a kernel of ours falls back to. Where
there is no GPU, Triton interprets, CUDA C is emulated and CuPy is its stand-in (`tests/support`), whose fresh memory is
poisoned: only small examples then, and all but the results in float32 is slow. Where there is one, ``-m gpu`` selects
its cases.
"""

import contextlib
import functools
import importlib
import itertools
import math
import pkgutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

import gmkernels
from gmkernels import arrays, pool, registry
from tests.support.cupy_stand_in import has_gpu

for _module in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
    if _module.ispkg:
        importlib.import_module(_module.name)

SPECS = registry.specs()
DTYPES = ("float32", "float64")
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
EMULATED = {"triton": ("float32", "float64", "float16"), "cuda": registry.FLOATS + registry.HALVES}
"""Dtypes on an emulated GPU. Triton's interpreter gets bfloat16 wrong."""
SMALL = 4096
"""Most elements of an example's inputs, and of its results, for an emulated GPU: it takes a microsecond for each
instruction of a thread."""
FEW = {"reference": 2, "triton": 5, "cuda": 10}
"""Most examples on an emulated GPU of what takes long: the reference, which has hundreds of operations of CuPy in each,
and kernels in other dtypes than float32."""

LONG = tuple((family, backend) for family in ("conv", "gibbs", "recurrent") for backend in ("triton", "cuda"))
"""Families and backends that take seconds on an emulated GPU in float32 too: they have small tests of their own."""


class Case(NamedTuple):
    """A kernel, the device of its arrays, and their dtype."""

    spec: registry.KernelSpec
    backend: str
    device: str
    dtype: str

    def name(self):
        return f"{self.spec.name}-{self.backend}-{self.device}-{self.dtype}"


def on_cpu(spec):
    """The case of a spec's kernel in Numba in float32."""
    return Case(spec, "cpu", "cpu", "float32")


def cases_of(spec, name):
    """The cases of a spec's kernel on a backend, with their marks."""
    entry, backend = registry.entries(spec)[name], registry.BACKENDS[name]
    if backend.missing() is not None:
        return
    if backend.device in ("", "cpu"):
        for dtype in DTYPES:
            yield Case(spec, name, "cpu", dtype), ()
    if backend.device in ("", "cuda"):
        for dtype in entry.dtypes:
            if has_gpu():
                yield Case(spec, name, "gpu", dtype), ()
            elif dtype in EMULATED.get(name, DTYPES):
                quick = dtype == "float32" and (spec.family, name) not in LONG
                yield Case(spec, name, "gpu", dtype), () if quick else (pytest.mark.slow,)


def cases(wanted=lambda case: True):
    """The cases that are wanted, as parameters of a test."""
    found = [both for spec in SPECS.values() for name in registry.entries(spec) for both in cases_of(spec, name)]
    return [pytest.param(case, id=case.name(), marks=marks) for case, marks in found if wanted(case)]


def is_real(case):
    """On an emulated GPU fresh memory is poisoned for every test, and runs follow one order of threads."""
    return case.device == "cpu" or has_gpu()


def has_layouts(case):
    """Other kernels on an emulated GPU have packed copies of what is not C-contiguous, whatever it was."""
    return is_real(case) or registry.entries(case.spec)[case.backend].strided and case.dtype == "float32"


def slow_if_emulated(parameters):
    """The cases with a mark for those on an emulated GPU."""
    return [p if is_real(p.values[0]) else p._replace(marks=(*p.marks, pytest.mark.slow)) for p in parameters]


def each(function, arrays):
    """The arrays, some of which are tuples of arrays, with `function` applied to each of them."""
    return tuple(each(function, a) if isinstance(a, tuple) else function(a) for a in arrays)


def flat(arrays):
    return list(registry.flat(arrays))


def dtype_of(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@functools.cache
def examples(spec, dtype):
    """The examples of a kernel; every test sees the same arrays, so none may write them."""
    with np.errstate(over="ignore" if dtype in EPSILON else "warn", invalid="ignore" if dtype in EPSILON else "warn"):
        made = tuple(spec.examples(np.random.default_rng(7), dtype_of(dtype)))
    for a in itertools.chain.from_iterable(flat((*e.inputs, *e.updated)) for e in made):
        a.flags.writeable = False
    return made


def examples_of(case):
    made = examples(case.spec, case.dtype)
    if case.device == "cpu" or has_gpu():
        return made
    small = [e for e in made if sum(a.size for a in flat((*e.inputs, *e.updated))) <= SMALL]
    if not case.spec.updates:
        small = [e for e in small if sum(math.prod(s) for s, _ in case.spec.infer(*e.inputs, **e.attrs)) <= SMALL]
    if case.backend == "reference" or case.dtype != "float32":
        return small[:: max(1, -(-len(small) // FEW[case.backend]))]
    return small


def to_device(case):
    """Takes an array of the host to where a case has its arrays."""
    if case.device == "cpu":
        return np.copy
    import cupy

    return cupy.array


def to_host(outputs):
    return [a.get() if arrays.on_gpu(a) else a for a in flat(outputs)]


def call(case, example, inputs=None):
    """What the kernel of a case makes of an example, or of other inputs on its device; on the host."""
    inputs = each(to_device(case), example.inputs) if inputs is None else inputs
    outputs = each(to_device(case), example.updated) if case.spec.updates else None
    return to_host(registry.run(case.spec, inputs, example.attrs, outputs=outputs, backend=case.backend))


@functools.cache
def found(case):
    """Each example with the inputs that the kernel was given, and what it made of them."""
    given = [(example, each(to_device(case), example.inputs)) for example in examples_of(case)]
    return [(example, inputs, call(case, example, inputs)) for example, inputs in given]


def is_float(a):
    return registry.is_float(a.dtype.name)


def oracle(spec, example, dtype):
    """The reference on the host, with floating arrays of one dtype and others in another."""

    def converted(a):
        return a.astype(dtype) if is_float(a) else a

    attrs = dict(example.attrs)
    if "dtype" in attrs:
        attrs["dtype"] = dtype
    wide = registry.Example(each(converted, example.inputs), attrs, each(converted, example.updated))
    return call(Case(spec, "reference", "cpu", dtype), wide)


def assert_same_bits(actual, expected, what):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, what
        if is_float(a):
            nan = np.isnan(b)
            np.testing.assert_array_equal(np.isnan(a), nan, what)
            a, b = np.where(nan, 0, a), np.where(nan, 0, b)
        assert a.tobytes() == b.tobytes(), what


def assert_close(actual, expected, tolerance, what):
    rtol, atol = tolerance
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape, what
        if a.dtype.name in EPSILON:  # one rounding to it, on each side; a result may be infinite in it
            rtol, atol = rtol + EPSILON[a.dtype.name], atol + float(np.finfo(np.float16).smallest_subnormal)
            with np.errstate(over="ignore"):
                b = b.astype(a.dtype)
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol, err_msg=what)


def packed(a):
    return a.copy(order="C")


def describe(example):
    shapes = [a.shape for a in flat(example.inputs)]
    return f"inputs {shapes[:6]}, attrs {example.attrs}"


@pytest.mark.parametrize("spec", [pytest.param(s, id=n) for n, s in SPECS.items()])
def test_spec_is_complete(spec):
    assert spec.formula and spec.source
    assert {"reference", "cpu"} <= set(registry.entries(spec))
    assert set(spec.tolerance) >= set(DTYPES)
    for dtype in DTYPES:
        sizes = {a.size for e in examples(spec, dtype) for a in flat((*e.inputs, *e.updated))}
        sizes |= {int(np.prod(shape)) for e in examples(spec, dtype) if not spec.updates
                  for shape, _ in spec.infer(*e.inputs, **e.attrs)}  # fmt: skip
        assert 0 in sizes, "no example of size 0"
        assert any(size % 2 and size > 1 for size in sizes), "no example of odd size"


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name)
        for name, spec in SPECS.items()
        if {"triton", "cuda"} & set(registry.entries(spec))
        and spec.family != "recurrent"  # each of whose ways is compiled by itself, in `test_recurrent_*`
    ],
)
def test_gpu_kernels_are_compiled_ahead_of_time_in_every_dtype(spec):
    cases = importlib.import_module(f"tests.gmkernels.ahead.{spec.family}").CASES
    registered = {d for name in ("triton", "cuda") if name in registry.entries(spec)
                  for d in registry.entries(spec)[name].dtypes}  # fmt: skip
    assert registered <= {dtype for case in cases if case.op == spec.name for dtype in case.dtypes}


def tolerance_of(case):
    """Half types are for storage only: kernels compute in float32. A spec may say what errors its storage passes on."""
    return case.spec.tolerance.get(case.dtype) or case.spec.tolerance["float32"]


def stored(a, case):
    """A result of the dtype that kernels compute in, as they store it."""
    return a.astype(dtype_of(case.dtype)) if case.dtype in EPSILON and is_float(a) else a


def layout_of(case, example):
    """Shapes and dtypes of the outputs."""
    if case.spec.updates:
        return [(a.shape, a.dtype) for a in flat(example.updated)]
    layout = case.spec.infer(*example.inputs, **example.attrs)
    return [(tuple(shape), np.dtype(dtype)) for shape, dtype in layout]


@pytest.mark.parametrize("case", cases())
def test_result(case):
    """It is that of the float64 reference, of the layout that was inferred, and the inputs are as they were."""
    for example, inputs, outputs in found(case):  # one test for the three: a result is not computed thrice
        what = describe(example)
        if tolerance_of(case) == (0.0, 0.0):
            computed = "float32" if case.dtype in EPSILON else case.dtype
            expected = oracle(case.spec, example, computed)
            assert_same_bits(outputs, [stored(a, case) for a in expected], what)
        else:
            assert_close(outputs, oracle(case.spec, example, "float64"), tolerance_of(case), what)
        assert [(a.shape, a.dtype) for a in outputs] == layout_of(case, example), what
        assert_same_bits(to_host(inputs), flat(example.inputs), what)


def poison(shape, dtype, library=np):
    """An array of NaN, or of an integer that nobody expects."""
    dtype = np.dtype(dtype)
    return library.full(shape, np.nan if registry.is_float(dtype.name) else dtype.type(77), dtype)


@pytest.mark.parametrize("case", cases(is_real))
def test_buffers_are_written_whole_and_not_read(case):
    entry = registry.entries(case.spec)[case.backend]
    kernel = entry.kernel()
    for example, _, expected in found(case):
        inputs = each(to_device(case), each(packed, example.inputs))
        library = arrays.namespace(*flat(inputs))
        workspace = tuple(poison(*w, library) for w in case.spec.workspace(*inputs, **example.attrs))
        if case.spec.updates:
            outputs = each(to_device(case), example.updated)
        else:
            outputs = tuple(poison(*o, library) for o in case.spec.infer(*inputs, **example.attrs))
        kernel(inputs, outputs, workspace, example.attrs)
        if entry.strided:  # it may add packed inputs in another order
            expected = call(case, example, inputs)
        assert_same_bits(to_host(outputs), expected, describe(example))


def every_other(a):
    """`a` as every second element, along its last axis, of an array twice as long."""
    if a.ndim == 0:
        return a
    wide = poison((*a.shape[:-1], 2 * a.shape[-1]), a.dtype, arrays.namespace(a))
    wide[..., ::2] = a
    return wide[..., ::2]


def fortran(a):
    return a.copy(order="F")


def reversed_view(a):
    return a if a.ndim == 0 else a[::-1].copy()[::-1]


@pytest.mark.parametrize("case", slow_if_emulated(cases(has_layouts)))
def test_layout_does_not_matter(case):
    in_place = registry.entries(case.spec)[case.backend].strided
    for example, _, expected in found(case):
        inputs = each(to_device(case), each(packed, example.inputs))
        for layout in (every_other, fortran, reversed_view):
            laid_out = each(layout, inputs)
            if all(a.flags.c_contiguous for a in flat(laid_out)):
                continue  # packed, as the test of the buffers has them
            actual = call(case, example, laid_out)
            if in_place:  # it may add in another order
                assert_close(actual, expected, tolerance_of(case), describe(example))
            else:
                assert_same_bits(actual, expected, describe(example))


@pytest.mark.parametrize("case", cases(lambda c: c.backend != "reference" and is_real(c)))
def test_threads_and_runs_do_not_matter(case):
    for example, _, expected in found(case):
        assert_same_bits(call(case, example), expected, describe(example))
    if case.device == "gpu":
        return
    threads = pool.get_num_threads()
    try:
        pool.set_num_threads(1)
        for example, _, expected in found(case):
            assert_same_bits(call(case, example), expected, describe(example))
    finally:
        pool.set_num_threads(threads)


CAPTURED_IN_CUPY = (
    "leaky_relu", "leaky_relu_backward", "activation_backward", "gather_rows", "iwae_bound",
    "iwae_bound_backward", "bernoulli_log_prob", "bernoulli_log_prob_backward", "batch_norm", "batch_norm_backward",
    "max_pool2d", "plane_gather", "plane_scatter", "avg_pool2d", "avg_pool2d_backward", "sum", "sum_to",
    "softmax_cross_entropy", "softmax_cross_entropy_backward",
)  # fmt: skip
"""What a CUDA graph may hold as operations of CuPy: no products of cuBLAS, and nothing that the host looks at."""


def is_captured(case):
    return (
        case.device == "gpu"
        and (case.backend != "reference" or case.spec.name in CAPTURED_IN_CUPY)
        and (has_gpu() or case.dtype == "float32")
    )


@pytest.mark.parametrize("case", slow_if_emulated(cases(is_captured)))
def test_a_graph_repeats_it(case):
    """From what is in its memory when the graph is launched, in new outputs; the capture itself runs nothing."""
    import cupy

    kernel = registry.entries(case.spec)[case.backend].kernel()
    example = next(e for e in examples_of(case) if all(a.size for a in flat(e.inputs)))
    inputs = each(to_device(case), example.inputs)
    workspace = tuple(poison(*w, cupy) for w in case.spec.workspace(*inputs, **example.attrs))

    def fresh():
        if case.spec.updates:
            return each(cupy.array, example.updated)
        return tuple(poison(*o, cupy) for o in case.spec.infer(*inputs, **example.attrs))

    expected, outputs, before = fresh(), fresh(), to_host(fresh())
    stream, memory = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(memory.malloc):
        kernel(inputs, expected, workspace, example.attrs)  # compiles, too
        kernel(inputs, outputs, workspace, example.attrs)
        for a, b in zip(flat(outputs), flat(fresh()), strict=True):
            a[...] = b
        stream.begin_capture()
        kernel(inputs, outputs, workspace, example.attrs)
        graph = stream.end_capture()
    assert_same_bits(to_host(outputs), before, "a capture ran something")
    graph.launch(stream)
    stream.synchronize()
    assert_same_bits(to_host(outputs), to_host(expected), describe(example))


LAUNCHED = (
    "sum", "sum_to", "activation_backward", "linear_bernoulli_log_prob",
    "linear_bernoulli_residual", "leaky_relu", "leaky_relu_backward",
    "batch_norm", "batch_norm_backward", "conv2d", "conv2d_backward_input", "conv2d_backward_weight",
)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(on_cpu(SPECS[name]), id=name) for name in LAUNCHED])
def test_what_is_launched_makes_the_whole_result(case):
    """From whatever is in outputs and workspace when it is launched again, as a captured step does without Python."""
    spec, kernel, launches = case.spec, registry.entries(case.spec)["cpu"].kernel(), []

    @contextlib.contextmanager
    def noted(launch):
        launches.append(launch)
        yield

    for example, _, expected in found(case):
        outputs = tuple(poison(*o) for o in spec.infer(*example.inputs, **example.attrs))
        workspace = tuple(poison(*w) for w in spec.workspace(*example.inputs, **example.attrs))
        launches.clear()
        with pool.watched(noted):
            kernel(example.inputs, outputs, workspace, example.attrs)
        if not launches:
            assert not all(a.size for a in (*example.inputs, *outputs)), describe(example)
            continue
        for a in (*outputs, *workspace):
            a[...] = poison(a.shape, a.dtype)
        pool.Launches([[launch] for launch in launches])()
        assert_same_bits(outputs, expected, describe(example))


REPLAYED = [pytest.param(on_cpu(spec), id=n) for n, spec in SPECS.items() if registry.entries(spec)["cpu"].replays]


@pytest.mark.parametrize("case", REPLAYED)
def test_repeated_launches_do_not_depend_on_numbers(case):
    """A call of a form that was seen, on the same numbers in another order, is a call of the kernel."""
    spec, kernel, rng = case.spec, registry.entries(case.spec)["cpu"].kernel(), np.random.default_rng(1)

    def shuffled(a):
        return a.reshape(-1)[rng.permutation(a.size)].reshape(a.shape) if a.dtype == np.float32 else packed(a)

    for example in examples(spec, "float32"):
        call(case, example, each(packed, example.inputs))
        inputs = each(shuffled, example.inputs)
        outputs = each(np.copy, example.updated)
        if not spec.updates:
            outputs = tuple(poison(*o) for o in spec.infer(*inputs, **example.attrs))
        workspace = tuple(poison(*w) for w in spec.workspace(*inputs, **example.attrs))
        kernel(inputs, outputs, workspace, example.attrs)
        assert_same_bits(call(case, example, inputs), flat(outputs), describe(example))


def test_import_needs_no_compiler():
    script = "import sys, gmkernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
