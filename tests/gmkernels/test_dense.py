"""Dense layers against formulas in float64 and against PyTorch."""

import ctypes
import itertools
import math
from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import KernelError, blas, pool, run
from gmkernels.dense import activation_backward, cpu, linear, matmul, panel, products, spec, tiles

BACKENDS = ("reference", "cpu")
ACTIVATIONS = spec.ACTIVATIONS
SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 127, 129)


def exact(activation, pre):
    return {
        "identity": lambda x: x,
        "tanh": np.tanh,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "relu": lambda x: np.maximum(x, 0),
        "softplus": lambda x: np.logaddexp(0, x),
    }[activation](pre)


def product_bound(a, b):
    """4 sqrt(k) u |a||b|, the random walk of the roundings of a product with room (Higham & Mary 2019)."""
    u = np.finfo(a.dtype).eps / 2
    return 4 * math.sqrt(max(1, a.shape[1])) * u * (np.abs(a) @ np.abs(b)) + 1e-300


# ---------------------------------------------------------------------------------------------------------
# matmul
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    m=st.sampled_from(SIZES), k=st.sampled_from(SIZES), n=st.sampled_from(SIZES),
    dtype=st.sampled_from(["float32", "float64"]), order_a=st.sampled_from("CFS"), order_b=st.sampled_from("CFS"),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_matmul_of_any_shape_and_layout(backend, m, k, n, dtype, order_a, order_b, seed):
    rng = np.random.default_rng(seed)

    def matrix(rows, columns, order):
        a = rng.standard_normal((rows, columns)).astype(dtype)
        return np.repeat(a, 2, axis=1)[:, ::2] if order == "S" else np.asarray(a, order=order)

    a, b = matrix(m, k, order_a), matrix(k, n, order_b)
    c = np.full((m, n), np.nan, dtype)
    run(spec.MATMUL, (a, b), outputs=(c,), backend=backend)
    wide = a.astype(np.float64), b.astype(np.float64)
    assert np.all(np.abs(c - wide[0] @ wide[1]) <= product_bound(a, b))


@pytest.mark.parametrize("shape", [(100, 784, 500), (784, 100, 200), (1000, 50, 3), (3, 1000, 700), (257, 255, 253)])
@pytest.mark.parametrize("trans", ["", "a", "b", "ab"])
def test_tiled_matmul(shape, trans):
    m, k, n = shape
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k), dtype="f"), rng.standard_normal((k, n), dtype="f")
    if "a" in trans:
        a = np.asfortranarray(a)
    if "b" in trans:
        b = np.asfortranarray(b)
    c = np.full((m, n), np.nan, "f")
    run(spec.MATMUL, (a, b), outputs=(c,), backend="cpu")
    assert np.all(np.abs(c - a.astype(float) @ b.astype(float)) <= product_bound(a, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_matmul_propagates_nan_and_inf_and_nothing_else(backend):
    a, b = np.ones((40, 300)), np.ones((300, 50))
    a[3, 4], b[5, 6] = np.nan, np.inf
    c = matmul(a, b, backend=backend)
    expected = np.full((40, 50), 300.0)
    expected[:, 6], expected[3] = np.inf, np.nan
    np.testing.assert_array_equal(c, expected)


# None, and rows around one and several tiles of them; depths around one and two pieces; columns around panels.
OURS = [
    (0, 40, 33), (1, 3, 2), (6, 512, 33), (10, 1025, 127), (32, 49, 48), (33, 64, 65), (101, 127, 97), (145, 259, 40),
]  # fmt: skip


@pytest.mark.parametrize("transposed", [*itertools.product((False, True), repeat=2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", OURS)
@pytest.mark.parametrize("crowded", [False, True], ids=["", "rows of a transposed operand pages apart"])
def test_our_own_products_are_exact_and_stay_inside_the_result(shape, dtype, transposed, crowded):
    m, k, n = shape
    rng = np.random.default_rng(k)
    # Sums of at most 1025 numbers up to 64, in quarters, are exact in float32. Rows lie apart.
    stored = [
        rng.integers(-8, 9, (size[::-1] if is_transposed else size)).astype(dtype)
        for size, is_transposed in zip(((m, k), (k, n)), transposed, strict=True)
    ]
    aparts = -stored[0].shape[1] % (4096 // stored[0].itemsize) if crowded else 3, 5
    a, b = (np.pad(x, ((0, 0), (0, apart))) for x, apart in zip(stored, aparts, strict=True))
    margin, ldc = 64, n + 2
    real, size, pointer = np.ctypeslib.as_ctypes_type(dtype), ctypes.c_int64, ctypes.c_void_p
    function = ctypes.CFUNCTYPE(
        None, *[ctypes.c_int] * 3, *[size] * 3, real, pointer, size, pointer, size, real, pointer, size
    )(products.address(np.dtype(dtype)))
    product = np.matmul(*(x.T if is_transposed else x for x, is_transposed in zip(stored, transposed, strict=True)))
    orders = [blas.TRANS if is_transposed else blas.NO_TRANS for is_transposed in transposed]
    for alpha, beta in ((1, 0), (-0.25, 0), (1, 1), (0.25, 1)):
        buffer = np.full(m * ldc + 2 * margin, np.nan, dtype)
        c = buffer[margin:-margin].reshape(m, ldc)
        if beta:
            c[:, :n] = 3
        function(
            blas.ROW_MAJOR, *orders, m, n, k, alpha, a.ctypes.data, a.shape[1], b.ctypes.data, b.shape[1], beta,
            c.ctypes.data, ldc,
        )  # fmt: skip
        np.testing.assert_array_equal(c[:, :n], alpha * product + 3 * beta)
        assert np.isnan(buffer[:margin]).all() and np.isnan(buffer[-margin:]).all() and np.isnan(c[:, n:]).all()


FEW = [(6, 512, 400), (7, 513, 300), (10, 1025, 127), (32, 49, 48), (33, 64, 65), (101, 127, 97), (256, 48, 64)]
OPENBLAS = blas.Blas("NumPy's OpenBLAS", 1, 2, 3, 4, True, int, print, "SkylakeX")


@pytest.mark.skipif(not panel.WIDE, reason="without 512-bit vectors BLAS makes all products")
@pytest.mark.parametrize("shape", FEW)
def test_products_that_are_our_own(shape):
    m, k, n = shape
    single, few = np.dtype("f"), (blas.NO_TRANS, blas.TRANS)
    assert products.are_ours(OPENBLAS, single, *few, m, k, n)
    assert products.choose(OPENBLAS, single, *few, m, k, n) == (products.address(single), 1)
    others = [(np.dtype("d"), *few, m, k, n), (single, *few[::-1], m, k, n), (single, *few, 50 * m, k, n)]
    narrow, mkl = replace(OPENBLAS, core="Haswell"), replace(OPENBLAS, name="MKL", core="")
    for other in others:
        assert not products.are_ours(OPENBLAS, *other) and not products.are_ours(mkl, *other)
        assert products.choose(OPENBLAS, *other) == (1 if other[0] == single else 2, 1)
        assert products.are_ours(narrow, *other) == (other[3] >= 8)
    assert products.are_ours(narrow, single, *few, 100, 16, 64)
    assert not products.are_ours(narrow, single, *few, 100, 15, 64)
    assert not products.are_ours(narrow, single, *few, 100, 64, 15)


def test_products_of_few_rows_propagate_nan_and_inf_and_nothing_else():
    a, b = np.ones((40, 600), "f"), np.ones((600, 50), "f", order="F")
    a[3, 4], b[5, 6] = np.nan, np.inf
    expected = np.full((40, 50), 600.0)
    expected[:, 6], expected[3] = np.inf, np.nan
    np.testing.assert_array_equal(matmul(a, b, backend="cpu"), expected)


def test_tiles_cover_a_product_once():
    shapes = [(1, 1, 1), (100, 784, 500), (16, 1024, 256), (5, 10**6, 3), (2048, 2048, 2048), (7, 9, 10**6)]
    for m, k, n in shapes:
        row_tiles, column_tiles = tiles.tiles(m, k, n)
        assert 1 <= row_tiles * column_tiles <= tiles.MAX_TILES
        for size, number in ((m, row_tiles), (n, column_tiles)):
            edges = [cpu.edge.py_func(i, number, size) for i in range(number + 1)]
            assert edges[0] == 0 and edges[-1] == size and all(x < y for x, y in zip(edges, edges[1:], strict=False))


def test_refusals_name_the_operation_and_the_arrays():
    a = np.ones((3, 4))
    with pytest.raises(KernelError, match=r"matmul.*\[3, 4\].*\[3, 4\]"):
        matmul(a, a)
    with pytest.raises(KernelError, match="matmul.*one floating dtype.*float32.*float64"):
        matmul(a.astype("f"), a.T)
    with pytest.raises(KernelError, match="matmul.*float"):
        matmul(a.astype(int), a.T.astype(int))
    with pytest.raises(KernelError, match="linear.*weight"):
        linear(a, np.ones((5, 3)), np.ones(5))
    with pytest.raises(KernelError, match="linear.*bias"):
        linear(a, np.ones((5, 4)), np.ones(4))
    with pytest.raises(KernelError, match="linear: unknown activation 'swish'"):
        linear(a, np.ones((5, 4)), np.ones(5), activation="swish")
    with pytest.raises(KernelError, match="activation_backward"):
        activation_backward(a, a.T, activation="tanh")


# ---------------------------------------------------------------------------------------------------------
# linear and its gradient
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("leading", [(), (1,), (0,), (3, 43), (257,)])
def test_linear_of_any_leading_axes(backend, activation, leading):
    rng = np.random.default_rng(1)
    for k, n in ((7, 5), (0, 3), (3, 0), (131, 127)):
        x, weight, bias = rng.standard_normal((*leading, k)), rng.standard_normal((n, k)), rng.standard_normal(n)
        for b in (bias, None):
            y = linear(x, weight, b, activation=activation, backend=backend)
            expected = exact(activation, x @ weight.T + (0 if b is None else b))
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_forward_and_backward_equal_pytorch(backend, activation, dtype):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(2)
    x, weight, bias, g = (rng.standard_normal(s).astype(dtype) for s in ((3, 41, 97), (131, 97), (131,), (3, 41, 131)))
    weight /= np.sqrt(97).astype(dtype)
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
    functions = {
        "identity": lambda t: t, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu,
        "softplus": functional.softplus,
    }  # fmt: skip
    ty = functions[activation](functional.linear(tx, tw, tb))
    ty.backward(torch.tensor(g))
    y = linear(x, weight, bias, activation=activation, backend=backend)
    d_pre, d_bias = activation_backward(g, y, activation=activation, backend=backend)
    flat = d_pre.reshape(-1, 131)
    d_x = matmul(flat, weight, backend=backend).reshape(x.shape)
    d_weight = matmul(flat.T, x.reshape(-1, 97), backend=backend)
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for ours, theirs in ((y, ty), (d_x, tx.grad), (d_weight, tw.grad), (d_bias, tb.grad)):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1,), (1023, 1), (129, 3, 7), (2, 1025), (3, 2049), (35000, 2)])
def test_column_sums_of_any_shape(backend, shape):
    rng = np.random.default_rng(3)
    g, y = rng.standard_normal(shape).astype("f"), np.tanh(rng.standard_normal(shape)).astype("f")
    d_pre, d_bias = activation_backward(g, y, activation="tanh", backend=backend)
    np.testing.assert_allclose(d_pre, g * (1 - y * y), rtol=1e-6, atol=1e-7)
    total = d_pre.reshape(-1, shape[-1]).sum(axis=0, dtype=np.float64) if g.size else np.zeros(shape[-1])
    np.testing.assert_allclose(d_bias, total, rtol=1e-6)  # sums are in float64: one rounding


@pytest.mark.parametrize("backend", BACKENDS)
def test_activations_at_infinity_and_nan(backend):
    x = np.array([[-np.inf], [np.inf], [np.nan], [-800.0], [800.0], [0.0]])
    limits = {
        "identity": (-np.inf, np.inf, np.nan, -800, 800, 0), "tanh": (-1, 1, np.nan, -1, 1, 0),
        "sigmoid": (0, 1, np.nan, 0, 1, 0.5), "relu": (0, np.inf, np.nan, 0, 800, 0),
        "softplus": (0, np.inf, np.nan, 0, 800, math.log(2)),
    }  # fmt: skip
    for activation, expected in limits.items():
        y = linear(x, np.ones((1, 1)), np.zeros(1), activation=activation, backend=backend)
        np.testing.assert_allclose(y[:, 0], expected, rtol=1e-15, atol=1e-300)


# ---------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core")
    rng = np.random.default_rng(4)
    x, weight, bias = (rng.standard_normal(s, dtype="f") for s in ((300, 257), (411, 257), (411,)))

    def everything():
        y = linear(x, weight, bias, activation="sigmoid", backend="cpu")
        d_pre, d_bias = activation_backward(y, y, activation="sigmoid", backend="cpu")
        d_x, d_weight = matmul(d_pre, weight, backend="cpu"), matmul(d_pre.T, x, backend="cpu")
        return [y, d_pre, d_bias, d_x, d_weight]

    before = pool.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            pool.set_num_threads(threads)
            results.append(everything())
    finally:
        pool.set_num_threads(before)
    for one, *others in zip(*results, strict=True):
        assert all(one.tobytes() == other.tobytes() for other in others)
