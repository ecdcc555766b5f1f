"""Every spec on every backend that runs here, in float32 and float64: generated from the specs' examples."""

import contextlib
import functools
import importlib
import itertools
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import gmkernels
from gmkernels import pool, registry

for _module in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
    if _module.ispkg:
        importlib.import_module(_module.name)

SPECS = registry.specs()
DTYPES = ("float32", "float64")
HERE = [b for b in registry.BACKENDS.values() if b.device in ("", "cpu") and b.missing() is None]
KERNELS = [
    pytest.param(spec, backend.name, dtype, id=f"{name}-{backend.name}-{dtype}")
    for name, spec in SPECS.items()
    for backend in HERE
    if backend.name in registry.entries(spec)
    for dtype in DTYPES
]


def each(function, arrays):
    """The arrays, some of which are tuples of arrays, with `function` applied to each of them."""
    return tuple(each(function, a) if isinstance(a, tuple) else function(a) for a in arrays)


def flat(arrays):
    return list(registry.flat(arrays))


@functools.cache
def examples(spec, dtype):
    """The examples of a kernel; every test sees the same arrays, so none may write them."""
    made = tuple(spec.examples(np.random.default_rng(7), np.dtype(dtype)))
    for a in itertools.chain.from_iterable(flat((*e.inputs, *e.updated)) for e in made):
        a.flags.writeable = False
    return made


def call(spec, example, backend, inputs=None):
    outputs = each(np.copy, example.updated) if spec.updates else None
    inputs = example.inputs if inputs is None else inputs
    return flat(registry.run(spec, inputs, example.attrs, outputs=outputs, backend=backend))


@functools.cache
def found(spec, backend, dtype):
    """Each example with copies of its inputs that the kernel was given, and what it made of them."""
    given = [(example, each(np.copy, example.inputs)) for example in examples(spec, dtype)]
    return [(example, inputs, call(spec, example, backend, inputs)) for example, inputs in given]


def oracle(spec, example):
    """The reference in float64; in the example's own dtype where the tolerance is bit for bit."""

    def widen(a):
        return a.astype(np.float64) if a.dtype.kind == "f" else a

    attrs = dict(example.attrs)
    if "dtype" in attrs:
        attrs["dtype"] = "float64"
    wide = registry.Example(each(widen, example.inputs), attrs, each(widen, example.updated))
    return call(spec, wide, "reference")


def assert_same_bits(actual, expected, what):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, what
        if a.dtype.kind == "f":
            nan = np.isnan(b)
            np.testing.assert_array_equal(np.isnan(a), nan, what)
            a, b = np.where(nan, 0, a), np.where(nan, 0, b)
        assert a.tobytes() == b.tobytes(), what


def assert_close(actual, expected, tolerance, what):
    rtol, atol = tolerance
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape, what
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=rtol, atol=atol, err_msg=what)


def packed(a):
    return np.copy(a, order="C")


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


@pytest.mark.parametrize("spec, backend, dtype", [k for k in KERNELS if k.values[1:] != ("reference", "float64")])
def test_agrees_with_the_float64_reference(spec, backend, dtype):
    tolerance = spec.tolerance[dtype]
    for example, _, actual in found(spec, backend, dtype):
        if tolerance == (0.0, 0.0):
            assert_same_bits(actual, call(spec, example, "reference"), describe(example))
        else:
            assert_close(actual, oracle(spec, example), tolerance, describe(example))


@pytest.mark.parametrize("spec, backend, dtype", KERNELS)
def test_outputs_are_as_inferred(spec, backend, dtype):
    for example, _, outputs in found(spec, backend, dtype):
        layout = flat(example.updated) if spec.updates else None
        expected = (
            [(a.shape, a.dtype) for a in layout]
            if layout is not None
            else [(tuple(shape), np.dtype(d)) for shape, d in spec.infer(*example.inputs, **example.attrs)]
        )
        assert [(a.shape, a.dtype) for a in outputs] == expected, describe(example)


@pytest.mark.parametrize("spec, backend, dtype", KERNELS)
def test_inputs_are_read_only(spec, backend, dtype):
    for example, inputs, _ in found(spec, backend, dtype):
        assert_same_bits(flat(inputs), flat(example.inputs), describe(example))


def poison(shape, dtype):
    """An array of NaN, or of an integer that nobody expects."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else dtype.type(77), dtype)


@pytest.mark.parametrize("spec, backend, dtype", KERNELS)
def test_buffers_are_written_whole_and_not_read(spec, backend, dtype):
    entry = registry.entries(spec)[backend]
    kernel = entry.kernel()
    for example, _, expected in found(spec, backend, dtype):
        inputs = each(packed, example.inputs)
        workspace = tuple(poison(*w) for w in spec.workspace(*inputs, **example.attrs))
        if spec.updates:
            outputs = each(np.copy, example.updated)
        else:
            outputs = tuple(poison(*o) for o in spec.infer(*inputs, **example.attrs))
        kernel(inputs, outputs, workspace, example.attrs)
        if entry.strided:  # it may add packed inputs in another order
            expected = call(spec, example, backend, inputs)
        assert_same_bits(flat(outputs), expected, describe(example))


def every_other(a):
    """`a` as every second element, along its last axis, of an array twice as long."""
    if a.ndim == 0:
        return a
    wide = poison((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def fortran(a):
    return np.copy(a, order="F")


def reversed_view(a):
    return a if a.ndim == 0 else a[::-1].copy()[::-1]


@pytest.mark.parametrize("spec, backend, dtype", KERNELS)
def test_layout_does_not_matter(spec, backend, dtype):
    in_place = registry.entries(spec)[backend].strided
    for example, _, expected in found(spec, backend, dtype):
        inputs = each(packed, example.inputs)
        for layout in (every_other, fortran, reversed_view):
            laid_out = each(layout, inputs)
            if all(a.flags.c_contiguous for a in flat(laid_out)):
                continue  # packed, as the test of the buffers has them
            actual = call(spec, example, backend, laid_out)
            if in_place:  # it may add in another order
                assert_close(actual, expected, spec.tolerance[dtype], describe(example))
            else:
                assert_same_bits(actual, expected, describe(example))


@pytest.mark.parametrize("spec, backend, dtype", [kernel for kernel in KERNELS if "reference" not in kernel.values])
def test_threads_and_runs_do_not_matter(spec, backend, dtype):
    threads = pool.get_num_threads()
    for example, _, expected in found(spec, backend, dtype):
        assert_same_bits(call(spec, example, backend), expected, describe(example))
        try:
            pool.set_num_threads(1)
            assert_same_bits(call(spec, example, backend), expected, describe(example))
        finally:
            pool.set_num_threads(threads)


LAUNCHED = (
    "sum", "sum_to", "activation_backward", "linear_bernoulli_log_prob", "leaky_relu", "leaky_relu_backward",
    "batch_norm", "batch_norm_backward", "conv2d", "conv2d_backward_input", "conv2d_backward_weight",
)  # fmt: skip


@pytest.mark.parametrize("spec", [pytest.param(SPECS[name], id=name) for name in LAUNCHED])
def test_what_is_launched_makes_the_whole_result(spec):
    """From whatever is in outputs and workspace when it is launched again, as a captured step does without Python."""
    kernel, launches = registry.entries(spec)["cpu"].kernel(), []

    @contextlib.contextmanager
    def noted(launch):
        launches.append(launch)
        yield

    for example, _, expected in found(spec, "cpu", "float32"):
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


REPLAYED = [pytest.param(spec, id=n) for n, spec in SPECS.items() if registry.entries(spec)["cpu"].replays]


@pytest.mark.parametrize("spec", REPLAYED)
def test_repeated_launches_do_not_depend_on_numbers(spec):
    """A call of a form that was seen, on the same numbers in another order, is a call of the kernel."""
    kernel, rng = registry.entries(spec)["cpu"].kernel(), np.random.default_rng(1)

    def shuffled(a):
        return a.reshape(-1)[rng.permutation(a.size)].reshape(a.shape) if a.dtype == np.float32 else packed(a)

    for example in examples(spec, "float32"):
        call(spec, example, "cpu", each(packed, example.inputs))
        inputs = each(shuffled, example.inputs)
        outputs = each(np.copy, example.updated)
        if not spec.updates:
            outputs = tuple(poison(*o) for o in spec.infer(*inputs, **example.attrs))
        workspace = tuple(poison(*w) for w in spec.workspace(*inputs, **example.attrs))
        kernel(inputs, outputs, workspace, example.attrs)
        assert_same_bits(call(spec, example, "cpu", inputs), flat(outputs), describe(example))


def test_import_needs_no_compiler():
    script = "import sys, gmkernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
