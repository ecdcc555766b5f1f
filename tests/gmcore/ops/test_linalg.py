"""Linear algebra: identities that define each factorisation, bad matrices, equal eigenvalues, stacks."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, ops
from gmcore.errors import ArgumentError, DtypeError, ShapeError


def matrices(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def definite(*shape: int, seed: int = 0) -> np.ndarray:
    a = matrices(*shape, seed=seed)
    return a @ np.swapaxes(a, -1, -2) + shape[-1] * np.eye(shape[-1])


def transposed(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


SHAPES = [(1, 1), (5, 5), (2, 3, 4, 4), (30, 30), (0, 3, 3), (0, 0)]


# -- identities: 1e-12 is 100 times the rounding of these well-conditioned matrices ----------------------------
@pytest.mark.parametrize("shape", SHAPES)
def test_cholesky(shape: tuple[int, ...]) -> None:
    a = definite(*shape)
    factor = ops.cholesky(a).numpy()
    np.testing.assert_allclose(factor @ transposed(factor), a, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(factor, np.tril(factor))
    assert (np.diagonal(factor, 0, -2, -1) > 0).all()


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5, 3), (3, 5)])
def test_qr(shape: tuple[int, ...]) -> None:
    a = matrices(*shape)
    q, r = (t.numpy() for t in ops.qr(a))
    k = min(shape[-2:])
    assert q.shape == (*shape[:-1], k) and r.shape == (*shape[:-2], k, shape[-1])
    np.testing.assert_allclose(q @ r, a, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(transposed(q) @ q, np.broadcast_to(np.eye(k), (*shape[:-2], k, k)), atol=1e-12)
    np.testing.assert_allclose(r, np.triu(r), atol=1e-12)
    assert (np.diagonal(r, 0, -2, -1) >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_eigh(shape: tuple[int, ...]) -> None:
    a = matrices(*shape)
    a = a + transposed(a)
    w, v = (t.numpy() for t in ops.eigh(a))
    np.testing.assert_allclose(a @ v, v * w[..., None, :], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(transposed(v) @ v, np.broadcast_to(np.eye(shape[-1]), a.shape), atol=1e-12)
    assert (np.diff(w, axis=-1) >= 0).all()
    if a.size:
        assert (np.take_along_axis(v, np.abs(v).argmax(-2, keepdims=True), -2) > 0).all()


@pytest.mark.parametrize("shape", [*SHAPES, (2, 5, 3), (3, 5)])
def test_svd(shape: tuple[int, ...]) -> None:
    a = matrices(*shape)
    u, s, vh = (t.numpy() for t in ops.svd(a))
    k = min(shape[-2:])
    assert u.shape == (*shape[:-1], k) and vh.shape == (*shape[:-2], k, shape[-1])
    np.testing.assert_allclose((u * s[..., None, :]) @ vh, a, rtol=1e-12, atol=1e-12)
    for columns in (u, transposed(vh)):
        identity = np.broadcast_to(np.eye(k), (*shape[:-2], k, k))
        np.testing.assert_allclose(transposed(columns) @ columns, identity, atol=1e-12)
    assert (np.diff(s, axis=-1) <= 0).all() and (s >= 0).all()
    np.testing.assert_array_equal(ops.svd(a, compute_uv=False).numpy(), s)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_and_determinant(shape: tuple[int, ...]) -> None:
    a = definite(*shape)
    np.testing.assert_allclose(ops.inv(a).numpy() @ a, np.broadcast_to(np.eye(shape[-1]), shape), atol=1e-12)
    factor = ops.cholesky(a).numpy()
    sign, logabsdet = (t.numpy() for t in ops.slogdet(a))
    np.testing.assert_array_equal(sign, np.ones(shape[:-2]))
    expected = 2 * np.log(np.diagonal(factor, 0, -2, -1)).sum(-1)
    np.testing.assert_allclose(logabsdet, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ops.det(a).numpy(), np.exp(expected), rtol=1e-11)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
def test_solve_triangular(upper: bool, left: bool, unitriangular: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-0.3, 0.3, (2, 4, 4)) + 2 * np.eye(4), matrices(2, 4, 4)
    t = np.triu(a) if upper else np.tril(a)
    if unitriangular:
        t[..., np.arange(4), np.arange(4)] = 1
    x = ops.solve_triangular(a, b, upper=upper, left=left, unitriangular=unitriangular).numpy()
    np.testing.assert_allclose(t @ x if left else x @ t, b, rtol=1e-12, atol=1e-12)


SOLVERS: dict[str, Callable[[Any, Any], Tensor]] = {
    "solve": ops.solve,
    "solve_triangular": lambda a, b: ops.solve_triangular(a, b, upper=False),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_one_matrix_against_a_stack_is_one_system(name: str, is_its_formula: Any, calls_of: Any) -> None:
    a, b = np.tril(matrices(3, 3)) * 0.3 + 2 * np.eye(3), matrices(2, 2, 3, 2)
    is_its_formula(lambda b: SOLVERS[name](a.astype(b.dtype), b), lambda b: np.linalg.inv(a) @ b, [b])
    calls = calls_of(name)
    x, y = gmcore.tensor(a, requires_grad=True), gmcore.tensor(b, requires_grad=True)
    gmcore.grad(ops.sum(SOLVERS[name](x, y)), (x, y))
    assert calls and all(shapes == [(3, 3), (3, 8)] for shapes in calls)


def test_solve_of_vectors_and_stacks_is_numpys(agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    for a, b in (((3, 3), (3,)), ((2, 3, 3), (3,)), ((2, 1, 3, 3), (4, 3, 2)), ((3, 3), (4, 3, 2))):
        arrays = [matrices(*a) + 3 * np.eye(3), matrices(*b)]
        np.testing.assert_allclose(ops.solve(*arrays).numpy(), np.linalg.solve(*arrays), rtol=1e-12, atol=1e-12)
        agrees_with_torch(ops.solve, torch.linalg.solve, arrays)


def test_log_density_of_a_normal_from_its_factor(agrees_with_torch: Any) -> None:
    """A program through several of them: -1/2 (|L^-1 (x - m)|^2 + log det), with its first two derivatives."""
    torch = pytest.importorskip("torch")

    def ours(covariance: Tensor, x: Tensor) -> Tensor:
        factor = ops.cholesky(covariance)
        z = ops.solve_triangular(factor, ops.reshape(x, (3, 1)), upper=False)
        return -0.5 * (ops.sum(z * z) + 3 * np.log(2 * np.pi)) - ops.sum(ops.log(ops.diagonal(factor)))

    def theirs(covariance: Any, x: Any) -> Any:
        covariance = (covariance + covariance.mT) / 2
        return torch.distributions.MultivariateNormal(torch.zeros(3, dtype=x.dtype), covariance).log_prob(x)

    agrees_with_torch(ours, theirs, [definite(3, 3), matrices(3)])


# -- symmetric arguments ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cholesky", "eigh"])
def test_only_the_symmetric_part_counts(name: str) -> None:
    a, skew = definite(3, 3), np.triu(matrices(3, 3), 1)
    x = gmcore.tensor(a + skew - skew.T, requires_grad=True)
    out, expected = getattr(ops, name)(x), getattr(ops, name)(a)
    outputs = out if isinstance(out, tuple) else (out,)
    for y, e in zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(y.detach().numpy(), e.numpy(), rtol=1e-12, atol=1e-12)
    g = gmcore.grad([ops.sum(y * y * y) for y in outputs], x).numpy()
    np.testing.assert_array_equal(g, g.T)


# -- bad matrices ----------------------------------------------------------------------------------------------
SINGULAR = np.ones((2, 2))
FAULTS: dict[str, tuple[Callable[[Any], Any], np.ndarray, str]] = {
    "cholesky": (ops.cholesky, np.diag([1.0, -1.0]), "is not positive definite"),
    "inv": (ops.inv, SINGULAR, "is singular"),
    "solve": (lambda a: ops.solve(a, np.ones((2, 1), a.dtype)), SINGULAR, "is singular"),
    "solve_triangular": (lambda a: ops.solve_triangular(a, np.ones((2, 1), a.dtype), upper=False),
                         np.array([[1.0, 0.0], [3.0, 0.0]]), r"is singular: element \(1, 1\) of its diagonal is zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bad_matrix_is_named_with_its_place(name: str, dtype: str) -> None:
    function, bad, text = FAULTS[name]
    with pytest.raises(ArgumentError, match=rf"{name}: the matrix {dtype}\[2, 2\] {text}") as caught:
        function(bad.astype(dtype))
    assert __file__ in str(caught.value)
    stack = np.broadcast_to(np.eye(2), (2, 3, 2, 2)).astype(dtype)
    stack[1, 2] = bad
    stack[0, 1] = np.nan  # no fault: NaN is carried along
    with pytest.raises(ArgumentError, match=rf"{name}: matrix \(1, 2\) of {dtype}\[2, 3, 2, 2\] {text}"):
        function(stack)


def test_a_singular_matrix_has_a_determinant_and_no_derivative_of_it() -> None:
    a = gmcore.tensor(SINGULAR, requires_grad=True)
    assert ops.det(a).item() == 0
    sign, logabsdet = ops.slogdet(a)
    assert (sign.item(), logabsdet.item()) == (0, -np.inf)
    for y in (ops.det(a), logabsdet):
        with pytest.raises(ArgumentError, match="inv: the matrix .* is singular"):
            gmcore.grad(y, a)


@pytest.mark.parametrize("name", ["cholesky", "inv", "det", "slogdet", "eigh"])
@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones(3), np.ones(())])
def test_matrices_must_be_square(name: str, bad: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=f"{name}: expected square matrices"):
        getattr(ops, name)(bad)


@pytest.mark.parametrize("name", ["cholesky", "inv", "det", "slogdet", "eigh", "svd", "qr"])
def test_matrices_must_be_floating(name: str) -> None:
    with pytest.raises(DtypeError, match=f"{name}: expected floating numbers, got int64"):
        getattr(ops, name)(np.eye(2, dtype=np.int64))


def test_svd_refuses_full_matrices() -> None:
    with pytest.raises(ArgumentError, match="full_matrices=True is not supported"):
        ops.svd(np.ones((3, 2)), full_matrices=True)


@pytest.mark.parametrize("name", ["cholesky", "inv", "det", "slogdet", "eigh", "svd", "qr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_gives_nan_and_leaves_the_others_alone(name: str, value: float) -> None:
    a = definite(3, 2, 2).astype(np.float32)
    expected = getattr(ops, name)(a)
    a[1, 0, 1] = value
    found = getattr(ops, name)(a)
    for y, e in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, expected)), strict=True):
        assert y.dtype == np.float32
        assert np.isnan(y.numpy()[1]).all()
        np.testing.assert_array_equal(y.numpy()[[0, 2]], e.numpy()[[0, 2]])


# -- equal eigenvalues -----------------------------------------------------------------------------------------
def test_equal_eigenvalues() -> None:
    """The gradient through the values is right; that through the vectors is not finite."""
    a = gmcore.tensor(np.eye(3), requires_grad=True)
    w, v = ops.eigh(a)
    np.testing.assert_allclose(gmcore.grad(ops.sum(w * w), a).numpy(), 2 * np.eye(3), atol=1e-14)
    w, v = ops.eigh(a)
    with np.errstate(all="ignore"):
        assert not np.isfinite(gmcore.grad(ops.sum(v * np.arange(9.0).reshape(3, 3)), a).numpy()).all()
    u, s, vh = ops.svd(a)
    np.testing.assert_allclose(gmcore.grad(ops.sum(s), a).numpy(), np.eye(3), atol=1e-14)
    u, s, vh = ops.svd(a)
    with np.errstate(all="ignore"):
        assert not np.isfinite(gmcore.grad(ops.sum(u * np.arange(9.0).reshape(3, 3)), a).numpy()).all()


def test_a_function_of_the_values_alone_at_distinct_ones_has_all_derivatives() -> None:
    a = np.diag([1.0, 2.0, 4.0]) + 0.1 * np.ones((3, 3))
    assert gmcore.gradcheck(lambda a: ops.sum(ops.log(ops.eigh(a)[0])), [a], order=3)
    assert gmcore.gradcheck(lambda a: ops.slogdet(a)[1], [a], order=3)


# -- threads ---------------------------------------------------------------------------------------------------
def test_threads_give_the_same_bits() -> None:
    a = definite(4, 40, 40)
    expected = [t.numpy() for t in ops.eigh(a)] + [ops.cholesky(a).numpy(), ops.inv(a).numpy()]
    found: list[list[np.ndarray]] = []

    def work() -> None:
        found.append([t.numpy() for t in ops.eigh(a)] + [ops.cholesky(a).numpy(), ops.inv(a).numpy()])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for results in found:
        for y, e in zip(results, expected, strict=True):
            assert y.tobytes() == e.tobytes()
