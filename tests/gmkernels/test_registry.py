"""The choice between kernels, its explanation, and registration from outside the package."""

import numpy as np
import pytest

import gmkernels
from gmkernels import (
    Cost,
    Example,
    KernelDtypeError,
    KernelError,
    KernelSpec,
    explain,
    register,
    registry,
    run,
    select,
    unregister,
    use,
)
from gmkernels.pool import block_kernel


def infer(x, *, factor=1):
    if x.ndim != 1:
        raise KernelError(f"scaled: expected x of one axis, got {x.shape}")
    return [(x.shape, x.dtype)]


def scaled_reference(inputs, outputs, workspace, attrs):
    np.multiply(inputs[0], attrs.get("factor", 1), out=outputs[0], casting="unsafe")


@block_kernel
def scaled_block(block, x, y, factor):
    for i in range(x.size):
        y[i] = x[i] * factor


def scaled_cpu(inputs, outputs, workspace, attrs):
    scaled_block(1, inputs[0], outputs[0], attrs.get("factor", 1))


def make_spec(name="scaled", **changes):
    fields = dict(
        name=name, family="outside", inputs=("x",), outputs=("y",), infer=infer,
        cost=lambda x, factor=1: Cost(bytes=2 * x.nbytes),
        examples=lambda rng, dtype: [Example((rng.standard_normal(5).astype(dtype),), {"factor": 3})],
        formula="y = factor x", source="none", tolerance={"float32": (0, 0), "float64": (0, 0)},
    )  # fmt: skip
    return KernelSpec(**(fields | changes))


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.setattr("gmkernels.registry._environment", "")
    made = make_spec()
    register(made, "reference", scaled_reference, overhead=1e-6, efficiency=0.1)
    register(made, "cpu", scaled_cpu, overhead=1e-5, efficiency=0.8)
    yield made
    for backend in registry.entries(made):
        unregister(made, backend)


@pytest.mark.parametrize("x, kind", [([1.0], "list"), (1.0, "float"), (np.float64(1.0), "float64"), (None, "NoneType")])
def test_what_is_no_array_is_named(spec, x, kind):
    with pytest.raises(KernelError, match=f"^scaled: expected x to be an array of NumPy or CuPy, got {kind}$"):
        run(spec, (x,))


def test_another_order_of_bytes_is_named(spec):
    swapped = np.ones(3, np.dtype(np.float32).newbyteorder("S"))
    for arguments in ({"backend": "reference"}, {"backend": "cpu"}, {}):
        with pytest.raises(KernelError, match=f"^scaled: expected .* order of bytes, got one of '{swapped.dtype.str}'"):
            run(spec, (swapped,), **arguments)


SMALL = (np.ones(3, np.float32),)
LARGE = (np.ones(1 << 20, np.float32),)


def chosen(spec, inputs=SMALL, **arguments):
    return select(spec, inputs, {}, **arguments).backend


def test_order_of_preference(spec, monkeypatch):
    assert chosen(spec) == "reference"  # least overhead
    assert chosen(spec, LARGE) == "cpu"  # nearest the floor
    monkeypatch.setattr("gmkernels.registry._environment", "cpu")
    assert chosen(spec) == "cpu"
    with use("reference"):
        assert chosen(spec) == chosen(spec, LARGE) == "reference"
        assert chosen(spec, backend="cpu") == "cpu"
        with use("cpu"):
            assert chosen(spec) == "cpu"
    assert chosen(spec) == "cpu"
    monkeypatch.setattr("gmkernels.registry._environment", "")
    assert chosen(spec) == "reference"


def test_an_estimate_of_its_own_ranks_a_kernel(spec):
    unregister(spec, "cpu")
    register(spec, "cpu", scaled_cpu, estimate=lambda x, factor=1: 1e-9 if x.size < 8 else 1.0 + factor)
    assert chosen(spec) == "cpu"
    assert chosen(spec, LARGE) == "reference"
    assert explain(spec, *LARGE, factor=3).estimates["cpu"] == 4.0


def test_reference_loses_a_tie():
    spec = make_spec("tied")
    register(spec, "cpu", scaled_cpu)
    register(spec, "reference", scaled_reference)
    assert chosen(spec) == "cpu", "the reference is the last resort"
    unregister(spec, "cpu")
    assert chosen(spec) == "reference"
    unregister(spec, "reference")


def test_a_preferred_kernel_that_refuses_leaves_the_call_to_others(spec):
    unregister(spec, "cpu")
    register(spec, "cpu", scaled_cpu, dtypes=("float64",))
    with use("cpu"):
        assert chosen(spec) == "reference"
        assert chosen(spec, (np.ones(3),)) == "cpu"
    with pytest.raises(KernelError, match=r"scaled.*'cpu'.*no float32 version.*float64"):
        chosen(spec, backend="cpu")


def test_refusal_by_predicate_gives_its_reason(spec):
    unregister(spec, "cpu")
    accepts = lambda s: "is for long arrays" if s.size_class < 8 else None  # noqa: E731
    register(spec, "cpu", scaled_cpu, overhead=0, accepts=accepts)
    assert chosen(spec) == "reference"
    assert chosen(spec, LARGE) == "cpu"
    with pytest.raises(KernelError, match="is for long arrays"):
        run(spec, SMALL, backend="cpu")
    assert "is for long arrays" in str(explain(spec, *SMALL))


def test_no_kernel_takes_the_call(spec):
    unregister(spec, "cpu")
    unregister(spec, "reference")
    register(spec, "reference", scaled_reference, dtypes=("float64",))
    with pytest.raises(KernelError, match="no kernel takes this call.*reference: has no float32"):
        run(spec, SMALL)


def test_explain(spec):
    report = explain("scaled", *LARGE)
    assert report.chosen == "cpu" and report.why == "cheapest by the cost model"
    assert report.estimates["cpu"] < report.estimates["reference"]
    text = str(report)
    assert "scaled(x) on cpu, float32" in text
    assert any(line.startswith("-> cpu") for line in text.splitlines())
    assert "cuda       refuses" in text and "no kernel is registered" in text
    with use("reference"):
        assert explain(spec, *LARGE).why == "preferred by with gmkernels.use(...)"
    assert explain(spec, *LARGE, backend="reference").why == "asked for by argument"
    with pytest.raises(KernelError, match="expected x of one axis"):
        explain(spec, np.ones((2, 2)))


def test_external_kernel_runs_and_unregisters(spec):
    x = np.arange(7, dtype=np.float32)
    for backend in ("reference", "cpu"):
        (y,) = run(spec, (x,), {"factor": 3}, backend=backend)
        np.testing.assert_array_equal(y, 3 * x)
        assert y.dtype == np.float32
    assert gmkernels.specs()["scaled"] is spec
    unregister(spec, "cpu")
    assert set(registry.entries("scaled")) == {"reference"}
    unregister(spec, "reference")
    assert "scaled" not in gmkernels.specs()
    with pytest.raises(KernelError, match="unknown kernel 'scaled'"):
        explain("scaled", *SMALL)
    register(spec, "reference", scaled_reference)  # the fixture removes it


def test_target_is_imported_at_the_first_call():
    spec = make_spec("lazy")
    register(spec, "reference", "no.such.module:function")
    try:
        with pytest.raises(ModuleNotFoundError):
            run(spec, SMALL)
    finally:
        unregister(spec, "reference")


def test_registration_errors(spec):
    with pytest.raises(KernelError, match=r"on cpu already"):
        register(spec, "cpu", scaled_cpu)
    with pytest.raises(KernelError, match="called 'scaled' already"):
        register(make_spec(), "triton", scaled_cpu)
    with pytest.raises(KernelError, match="unknown backend 'fpga'; expected one of reference, cpu"):
        register(spec, "fpga", scaled_cpu)


def test_removing_what_is_not_registered(spec):
    with pytest.raises(KernelError, match="scaled has no kernel on 'triton' to unregister; it has .* reference, cpu"):
        unregister(spec, "triton")
    with pytest.raises(KernelError, match="other has no kernel on 'cpu' to unregister; .* no backend"):
        unregister(make_spec("other"), "cpu")


def test_a_wrong_dtype_is_told_from_a_wrong_shape():
    """Both are what `infer` raises; which it is shows with the dtypes of the spec's examples."""

    def infer(x, key):
        if x.dtype.kind != "f" or x.ndim != 1 or key.dtype != np.uint64:
            raise KernelError("pair: expected one axis of floating numbers, and a key")
        return [(x.shape, x.dtype)]

    def examples(rng, dtype):
        yield Example((np.ones(5, dtype), np.zeros(3, np.uint64)), {})

    spec = make_spec("pair", infer=infer, inputs=("x", "key"), examples=examples)
    register(spec, "reference", scaled_reference)
    x, key = np.ones(3), np.zeros(3, np.uint64)
    try:
        run(spec, (x, key))
        for inputs in ((x.astype(int), key), (x, key.astype(float)), (x.astype(np.longdouble), key)):
            with pytest.raises(KernelDtypeError):
                run(spec, inputs)
            assert issubclass(KernelDtypeError, TypeError)
        for inputs in ((x[None], key), (x[None].astype(int), key)):
            with pytest.raises(KernelError) as caught:
                run(spec, inputs)
            assert not isinstance(caught.value, TypeError)
    finally:
        unregister(spec, "reference")


def test_unknown_backend(spec, monkeypatch):
    with pytest.raises(KernelError, match="fpga"):
        run(spec, SMALL, backend="fpga")
    with pytest.raises(KernelError, match="unknown backend 'fpga'"), use("fpga"):
        pass
    monkeypatch.setattr("gmkernels.registry._environment", "fpga")
    with pytest.raises(KernelError, match="GMKERNELS_BACKEND='fpga'"):
        run(spec, SMALL)


def test_given_outputs_are_used(spec):
    y = np.full(3, np.nan, np.float32)
    (result,) = run(spec, SMALL, {"factor": 2}, outputs=(y,))
    assert result is y and np.all(y == 2)


@pytest.mark.parametrize(
    "output",
    [np.empty(4, np.float32), np.empty(3), np.empty(6, np.float32)[::2], np.broadcast_to(np.float32(0), 3)],
    ids=["shape", "dtype", "strided", "read-only"],
)
def test_wrong_outputs(spec, output):
    with pytest.raises(KernelError, match=r"scaled: output y must be a writable C-contiguous float32 array"):
        run(spec, SMALL, outputs=(output,))


def test_wrong_number_of_outputs(spec):
    with pytest.raises(KernelError, match=r"has 1 outputs \(y\), got 2"):
        run(spec, SMALL, outputs=(np.empty(3, np.float32),) * 2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("given, message", [
    (((), {}), r"scaled: expected y = factor x; got : infer\(\) missing .* 'x'"),
    (((np.ones(3),) * 2, {}), r"scaled: expected y = factor x; got float64\[3\], float64\[3\]: infer\(\) takes 1"),
    (((np.ones(3),), {"power": 2}), r"scaled: .* got float64\[3\], power=2: infer\(\) got an unexpected .* 'power'"),
    (((np.ones(3),), {"factor": [1]}), "scaled: expected attributes with a hash, tuples in place of lists; unhashable"),
])  # fmt: skip
def test_calls_that_no_spec_expects(spec, given, message, backend):
    inputs, attrs = given
    with pytest.raises(KernelError, match=message):
        run(spec, inputs, attrs, backend=backend)


@pytest.mark.parametrize("output", [None, [1.0, 2.0, 3.0]])
def test_outputs_that_are_no_arrays_are_named(spec, output):
    named = "expected y to be an array of NumPy or CuPy, got (NoneType|list)"
    with pytest.raises(KernelError, match=f"scaled: {named}"):
        run(spec, (np.ones(3),), outputs=[output])
    updating = make_spec("updating", updates=True)
    register(updating, "reference", scaled_reference)
    try:
        with pytest.raises(KernelError, match=f"updating: {named}"):
            run(updating, (np.ones(3),), outputs=[output])
    finally:
        unregister(updating, "reference")


def test_an_update_needs_its_outputs():
    spec = make_spec("updating", updates=True)
    register(spec, "reference", scaled_reference)
    try:
        with pytest.raises(KernelError, match="updates y in place: give outputs="):
            run(spec, SMALL)
    finally:
        unregister(spec, "reference")
