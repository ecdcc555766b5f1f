"""Linear systems and factorisations of matrices, or of stacks of them along the leading axes.

The rules of differentiation are Giles's (An extended collection of matrix derivative results for forward and
reverse mode algorithmic differentiation, Oxford report NA-08/01, 2008), written in tensors: any order follows. In
them, g of a matrix has the matrix's shape, and A^T exchanges the last two axes only.

- Matrices that must be symmetric (`cholesky`, `eigh`) are replaced by (a + a^T) / 2, so every element of `a` has a
  gradient, and that gradient is symmetric.
- A factorisation is unique up to signs, which are fixed here: the function is then differentiable wherever its
  singular or eigenvalues differ. Equal ones leave the vectors undetermined: the gradient through the vectors
  divides by zero, infinite or NaN, as PyTorch's; the gradient through the values alone is right, its derivative
  infinite or NaN again.
- A matrix with a NaN or an infinity gives NaN throughout, without an error. A finite matrix that has no such
  factorisation, or a singular one, is an error with its place in the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError, shown
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.arrange import concatenate
from gmcore.ops.diagonal import diag_embed, diagonal
from gmcore.ops.elementwise import as_floating, real, where
from gmcore.ops.product import matmul, swap
from gmcore.ops.shape import expand_dims, reshape, transpose
from gmcore.tensor import Tensor, as_tensor
from gmkernels.arrays import as_array, namespace
from gmkernels.blas import single_threaded
from gmkernels.linalg.spec import SOLVE_TRIANGULAR


# -- checks, and the calls of LAPACK ----------------------------------------------------------------------------
def _matrix(name: str, a: Any, square: bool = True) -> Tensor:
    """`a` as a floating tensor of matrices."""
    a = as_tensor(a)
    if a.ndim < 2 or (square and a.shape[-1] != a.shape[-2]):
        expected = "square matrices (..., n, n)" if square else "matrices (..., m, n)"
        raise ShapeError(f"{name}: expected {expected}, got shape {a.shape} (called at {user_line()})")
    return as_floating(a, name)


def _fault(name: str, at: tuple[int, ...], a: Any, what: str) -> ArgumentError:
    which = f"matrix {at} of {shown(a)}" if at else f"the matrix {shown(a)}"
    return ArgumentError(f"{name}: {which} {what} (called at {user_line()})")


def _lapack(name: str, function: Callable[[Any], Any], a: Any, fault: str) -> Any:
    """function(a), one of NumPy's, on matrices of which those that are not finite give NaN.

    On one thread: a second pool would fight that of the kernels for the cores, and the last bits would depend on
    its size. An error names the first matrix that fails.
    """
    finite = np.isfinite(a).all((-2, -1))
    every = bool(finite.all())
    given = a if every else np.where(finite[..., None, None], a, namespace(a).eye(*a.shape[-2:], dtype=a.dtype))
    with single_threaded():
        try:
            found = function(given)
        except np.linalg.LinAlgError:
            for at in np.ndindex(given.shape[:-2]):
                try:
                    function(given[at])
                except np.linalg.LinAlgError:
                    raise _fault(name, at, a, fault) from None
            raise
    parts = [as_array(y) for y in (found if isinstance(found, tuple) else (found,))]
    if not every:
        nan = a.dtype.type(np.nan)
        parts = [np.where(finite.reshape(finite.shape + (1,) * (y.ndim - finite.ndim)), y, nan) for y in parts]
    return tuple(parts) if isinstance(found, tuple) else parts[0]


def _triangle(x: Tensor, *, upper: bool = False, strict: bool = False) -> Tensor:
    """The triangle of each matrix with zeros elsewhere, without the diagonal if `strict`."""
    n = x.shape[-1]
    mask = np.tri(n, n, -int(strict), dtype=bool)
    return where(x.beside(mask.T if upper else mask), x, 0.0)


def _symmetric(x: Tensor) -> Tensor:
    return 0.5 * (x + swap(x))


def _columns(x: Tensor, scale: Tensor) -> Tensor:
    """x diag(scale): each column by its number."""
    return x * expand_dims(scale, -2)


# -- systems --------------------------------------------------------------------------------------------------------
def _well(rng: np.random.Generator, *batch: int, n: int = 3) -> np.ndarray:
    """Matrices far from singular, with eigenvalues and singular values apart.

    In a stack, so that a test which makes the first axis constant does not make them singular.
    """
    return rng.uniform(-0.4, 0.4, (*batch, n, n)) + np.diag(np.arange(1.0, n + 1.0))


def _one_matrix_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a in (_well(rng, 1), _well(rng, 2, 2, n=2), _well(rng, n=1), _well(rng, n=0), _well(rng, 0, n=2)):
        yield (a,), {}


def _system_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((1,), (3, 2)), ((1,), (3,)), ((2,), (2, 3, 1)), ((2, 1), (4, 3, 2)), ((1,), (3, 0))):
        yield (_well(rng, *a), real(rng, b)), {}


def _triangular_examples(rng: np.random.Generator) -> Iterator[Example]:
    for i, ((a, b), _) in enumerate(_system_examples(rng)):
        if b.ndim > 1:
            yield (a, b), {"upper": i % 2 == 1, "unitriangular": i % 3 == 2}
    yield (_well(rng, 2), real(rng, (2, 4, 3))), {"upper": True, "left": False}


def _solve_forward(a: Any, b: Any) -> Any:
    with single_threaded():
        try:
            return np.linalg.solve(a, b)
        except np.linalg.LinAlgError:
            _lapack("solve", np.linalg.inv, a, "is singular; expected an invertible one")
            raise


_inv: Op = Op(
    "inv",
    "a",
    forward=lambda a: _lapack("inv", np.linalg.inv, a, "is singular; expected an invertible one"),
    vjp=[lambda g, out: -matmul(swap(out), matmul(g, swap(out)))],
    formula="A^-1",
    source="Giles 2008, section 2.2.3",
    examples=_one_matrix_examples,
)
_solve: Op = Op(
    "solve",
    "a b",
    forward=_solve_forward,
    vjp=[
        lambda g, a, out: -matmul(_solve(swap(a), g), swap(out)),
        lambda g, a: _solve(swap(a), g),
    ],
    formula="x with A x = b",
    source="Giles 2008, section 2.3.1",
    broadcast=True,
    examples=_system_examples,
)

_triangular_kernel = kernel(SOLVE_TRIANGULAR)


def _solve_triangular_forward(a: Any, b: Any, upper: bool, unitriangular: bool) -> Any:
    dtype, batch = np.result_type(a, b), np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if not unitriangular and (zeros := np.argwhere(np.diagonal(a, 0, -2, -1) == 0)).size:
        *at, i = zeros[0].tolist()
        raise _fault("solve_triangular", tuple(at), a, f"is singular: element ({i}, {i}) of its diagonal is zero")
    a = np.broadcast_to(a.astype(dtype, copy=False), (*batch, *a.shape[-2:]))
    b = np.broadcast_to(b.astype(dtype, copy=False), (*batch, *b.shape[-2:]))
    return _triangular_kernel(a, b, upper=upper, unitriangular=unitriangular)


def _solve_triangular_rule(
    g: Tensor, a: Tensor, out: Tensor, upper: bool, unitriangular: bool, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    d_b = _solve_triangular(swap(a), g, upper=not upper, unitriangular=unitriangular)
    d_a = _triangle(-matmul(d_b, swap(out)), upper=upper, strict=unitriangular) if needs[0] else None
    return [d_a, d_b]


_solve_triangular: Op = Op(
    "solve_triangular",
    "a b",
    forward=_solve_triangular_forward,
    vjp=_solve_triangular_rule,
    formula="x with T x = b, T the lower or upper triangle of A",
    source="Giles 2008, section 2.3.1",
    broadcast=True,
    examples=_triangular_examples,
)


def _right_hand_side(name: str, a: Tensor, b: Any, left: bool = True) -> Tensor:
    """`b` as a tensor whose matrices can be the other side of a @ x = b (x @ a = b unless `left`)."""
    b = as_tensor(b)
    try:
        fits = b.ndim > 1 and a.shape[-1] == b.shape[-2 if left else -1]
        np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{name}: a of shape {a.shape} and b of shape {b.shape} do not fit; expected (..., n, n) and "
            f"{'(..., n, k)' if left else '(..., k, n)'} (called at {user_line()})"
        )
    return b


def _by_columns(solver: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """solver(a, b); where one matrix stands against a stack, as one system with all columns of the stack."""
    if a.ndim > 2 or b.ndim == 2:
        return solver(a, b)
    last = b.ndim - 2
    wide = transpose(b, (last, *range(last), b.ndim - 1))
    x = solver(a, reshape(wide, (b.shape[last], b.size // b.shape[last] if b.size else 0)))
    return transpose(reshape(x, wide.shape), (*range(1, last + 1), 0, b.ndim - 1))


def inv(a: Any) -> Tensor:
    """Inverse matrices. To solve a system, `solve` is faster and more accurate.

    Parameters
    ----------
    a : (..., n, n), floating.

    Returns
    -------
    (..., n, n)

    Raises
    ------
    ArgumentError : a singular matrix.  ShapeError : not square.  DtypeError : not floating.
    """
    return _inv(_matrix("inv", a))


def solve(a: Any, b: Any) -> Tensor:
    """The solution x of ``a @ x = b``.

    Parameters
    ----------
    a : (..., n, n), floating.
    b : (n,), or (..., n, k); the leading axes broadcast.

    Returns
    -------
    As b, with the leading axes of both.

    Raises
    ------
    ArgumentError : a singular matrix.  ShapeError : shapes that do not fit.  DtypeError : not floating.
    """
    a, b = _matrix("solve", a), as_tensor(b)
    if b.shape == a.shape[-1:]:
        x = _solve(a, reshape(b, (b.size, 1)))
        return reshape(x, x.shape[:-1])
    return _by_columns(_solve, a, _right_hand_side("solve", a, b))


def solve_triangular(a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """The solution x of ``a @ x = b`` for a triangular `a`: PyTorch's ``torch.linalg.solve_triangular``.

    For the transposed system, transpose `a` and turn `upper` round; neither copies.

    Parameters
    ----------
    a : (..., n, n), floating; only its lower (`upper`: upper) triangle is read.
    b : (..., n, k); the leading axes broadcast. One `a` with a stack of b is one system of many columns.
    left : whether `a` stands at the left of x; if not, solve ``x @ a = b`` with b (..., k, n).
    unitriangular : take the diagonal of `a` for ones, without reading it.
    upper : whether `a` is upper triangular.

    Returns
    -------
    As b, with the leading axes of both.

    Raises
    ------
    ArgumentError : a zero on the diagonal.  ShapeError : shapes that do not fit.  DtypeError : not floating.
    """
    a = _matrix("solve_triangular", a)
    b = _right_hand_side("solve_triangular", a, b, left)
    if not left:
        return swap(solve_triangular(swap(a), swap(b), upper=not upper, unitriangular=unitriangular))
    attrs = {"upper": bool(upper), "unitriangular": bool(unitriangular)}
    return _by_columns(lambda a, b: _solve_triangular(a, b, **attrs), a, b)


_inv.public, _solve.public, _solve_triangular.public = inv, solve, solve_triangular

# -- determinants ---------------------------------------------------------------------------------------------------
_det = Op(
    "det",
    "a",
    forward=lambda a: _lapack("det", np.linalg.det, a, ""),
    vjp=[lambda g, a, out: expand_dims(expand_dims(g * out, -1), -1) * swap(_inv(a))],
    formula="det A",
    source="Giles 2008, section 2.2.4",
    examples=_one_matrix_examples,
)
_slogdet = Op(
    "slogdet",
    "a",
    "sign logabsdet",
    forward=lambda a: tuple(_lapack("slogdet", lambda a: tuple(np.linalg.slogdet(a)), a, "")),
    # The sign is constant wherever it has a derivative.
    vjp=lambda g_sign, g_logabsdet, a: [expand_dims(expand_dims(g_logabsdet, -1), -1) * swap(_inv(a))],
    formula="sign = sign det A, logabsdet = log |det A|",
    source="Giles 2008, section 2.2.4",
    examples=_one_matrix_examples,
)


def det(a: Any) -> Tensor:
    """Determinants of matrices.

    Parameters
    ----------
    a : (..., n, n), floating.

    Returns
    -------
    (...), in the dtype of `a`; 1 for n = 0. The derivative at a singular matrix is an error of `inv`.

    Raises
    ------
    ShapeError : not square.  DtypeError : not floating.
    """
    return _det(_matrix("det", a))


def slogdet(a: Any) -> tuple[Tensor, Tensor]:
    """Sign and logarithm of the absolute value of the determinants, which do not overflow.

    Parameters
    ----------
    a : (..., n, n), floating.

    Returns
    -------
    sign, logabsdet : (...); 0 and minus infinity for a singular matrix, whose derivative is an error of `inv`.

    Raises
    ------
    ShapeError : not square.  DtypeError : not floating.
    """
    return _slogdet(_matrix("slogdet", a))


_det.public, _slogdet.public = det, slogdet

# -- Cholesky -------------------------------------------------------------------------------------------------------


def _cholesky_forward(a: Any) -> Any:
    half = a.dtype.type(0.5)
    with np.errstate(invalid="ignore"):  # inf - inf
        symmetric = half * (a + np.swapaxes(a, -1, -2))
    fault = "is not positive definite; expected a symmetric one that is"
    return _lapack("cholesky", np.linalg.cholesky, symmetric, fault)


def _cholesky_rule(g: Tensor, out: Tensor) -> Tensor:
    # A' = L^-T Phi(L^T L') L^-1 in its symmetric part; Phi keeps the lower triangle and halves the diagonal.
    p = _triangle(matmul(swap(out), g))
    phi = p - 0.5 * diag_embed(diagonal(p, axis1=-2, axis2=-1))
    left = _solve_triangular(swap(out), phi, upper=True, unitriangular=False)
    return _symmetric(swap(_solve_triangular(swap(out), swap(left), upper=True, unitriangular=False)))


def _definite_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (a,), _ in _one_matrix_examples(rng):
        yield (a @ np.swapaxes(a, -1, -2) + 0.1 * a,), {}  # not symmetric either: its symmetric part counts


_cholesky = Op(
    "cholesky",
    "a",
    forward=_cholesky_forward,
    vjp=[_cholesky_rule],
    formula="the lower triangular L with a positive diagonal and L L^T = (A + A^T) / 2",
    source="Murray, Differentiation of the Cholesky decomposition (2016), equation 10; Giles 2008",
    examples=_definite_examples,
)


def cholesky(a: Any) -> Tensor:
    """Cholesky factors: the lower triangular l with ``l @ l.T = a``.

    Parameters
    ----------
    a : (..., n, n), floating, symmetric positive definite; its symmetric part is used.

    Returns
    -------
    (..., n, n)

    Raises
    ------
    ArgumentError : a matrix that is not positive definite.  ShapeError : not square.  DtypeError : not floating.
    """
    return _cholesky(_matrix("cholesky", a))


_cholesky.public = cholesky


# -- QR, eigenvalues, singular values ---------------------------------------------------------------------------------
def _signs(columns: Any) -> Any:
    """Of each column, the sign of its largest element (the first of equal ones)."""
    if columns.shape[-2] == 0:
        return namespace(columns).ones((*columns.shape[:-2], 1, columns.shape[-1]), columns.dtype)
    top = np.take_along_axis(columns, np.abs(columns).argmax(-2, keepdims=True), -2)
    return np.where(top < 0, columns.dtype.type(-1), columns.dtype.type(1))


def _qr_forward(a: Any) -> Any:
    q, r = _lapack("qr", lambda a: tuple(np.linalg.qr(a)), a, "")
    sign = np.where(np.diagonal(r, 0, -2, -1) < 0, a.dtype.type(-1), a.dtype.type(1))
    return q * sign[..., None, :], r * sign[..., :, None]


def _qr_rule(g_q: Tensor | None, g_r: Tensor | None, q: Tensor, r: Tensor) -> list[Tensor]:
    # A' = (Q' + Q copyltu(R R'^T - Q'^T Q)) R^-T, where copyltu makes the lower triangle symmetric.
    m = matmul(r, swap(g_r)) if g_r is not None else None
    if g_q is not None:
        through = matmul(swap(g_q), q)
        m = -through if m is None else m - through
    assert m is not None
    lower = _triangle(m, strict=True)
    inside = matmul(q, lower + swap(lower) + diag_embed(diagonal(m, axis1=-2, axis2=-1)))
    if g_q is not None:
        inside = g_q + inside
    return [swap(_solve_triangular(r, swap(inside), upper=True, unitriangular=False))]


def _qr_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a in (_well(rng, 1), _well(rng, 2)[..., :2], _well(rng, 1)[:, :2], _well(rng, n=1), _well(rng, 0, n=2)):
        yield (a,), {}


_qr = Op(
    "qr",
    "a",
    "q r",
    forward=_qr_forward,
    vjp=_qr_rule,
    partial=True,
    formula="A = Q R; the columns of Q orthonormal, R upper triangular with a diagonal that is not negative",
    source="Walter & Lehmann, Algorithmic differentiation of linear algebra functions (2010); Liao, Liu, Wang & "
    "Xiang, Differentiable programming tensor networks (2019), equation 6",
    examples=_qr_examples,
)


def qr(a: Any) -> tuple[Tensor, Tensor]:
    """QR factorisation ("reduced"): a = q r.

    Parameters
    ----------
    a : (..., m, n), floating; k = min(m, n).

    Returns
    -------
    q : (..., m, k), with orthonormal columns;  r : (..., k, n), upper triangular, its diagonal not negative (NumPy
    leaves the signs open).

    Raises
    ------
    ShapeError : not matrices.  DtypeError : not floating. The derivative needs the first k columns of `a` linearly
    independent, and is an error of `solve_triangular` where the diagonal of r has a zero.
    """
    a = _matrix("qr", a, square=False)
    m, n = a.shape[-2:]
    if n <= m:
        return _qr(a)
    q, r = _qr(a[..., :m])
    return q, concatenate([r, matmul(swap(q), a[..., m:])], axis=-1)


_qr.public = qr


def _reciprocal_differences(x: Tensor) -> Tensor:
    """1 / (x_j - x_i) at (i, j), and 0 on the diagonal; infinite where two are equal."""
    same = x.beside(np.eye(x.shape[-1], dtype=bool))
    differences = where(same, 1.0, expand_dims(x, -2) - expand_dims(x, -1))
    with np.errstate(divide="ignore"):
        return where(same, 0.0, 1.0 / differences)


def _eigh_forward(a: Any) -> Any:
    half = a.dtype.type(0.5)
    with np.errstate(invalid="ignore"):
        symmetric = half * (a + np.swapaxes(a, -1, -2))
    w, v = _lapack("eigh", lambda a: tuple(np.linalg.eigh(a)), symmetric, "has eigenvalues that did not converge")
    return w, v * _signs(v)


def _eigh_rule(g_w: Tensor | None, g_v: Tensor | None, w: Tensor, v: Tensor) -> list[Tensor]:
    # A' = V (diag(w') + F o (V^T V')) V^T, F_ij = 1 / (w_j - w_i).
    inside = None if g_w is None else diag_embed(g_w)
    if g_v is not None:
        rotation = _reciprocal_differences(w) * matmul(swap(v), g_v)
        inside = rotation if inside is None else inside + rotation
    assert inside is not None
    return [_symmetric(matmul(v, matmul(inside, swap(v))))]


_eigh = Op(
    "eigh",
    "a",
    "w v",
    forward=_eigh_forward,
    vjp=_eigh_rule,
    partial=True,
    formula="(A + A^T) / 2 = V diag(w) V^T",
    source="Giles 2008, section 3.1",
    examples=_definite_examples,
)


def eigh(a: Any) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Parameters
    ----------
    a : (..., n, n), floating, symmetric; its symmetric part is used.

    Returns
    -------
    w : (..., n), ascending;  v : (..., n, n), whose columns are orthonormal; the largest element of each, in
    magnitude, is positive (NumPy leaves the signs open).

    Raises
    ------
    ShapeError : not square.  DtypeError : not floating.  ArgumentError : no convergence.

    Notes
    -----
    The derivative of v divides by differences of eigenvalues: equal ones give infinity or NaN, close ones large
    numbers. A function that does not depend on which eigenvectors are taken (their signs, their rotation within
    an eigenspace) is better written with w, or with `a`, alone.
    """
    return _eigh(_matrix("eigh", a))


_eigh.public = eigh


def _svd_forward(a: Any) -> Any:
    u, s, vh = _lapack(
        "svd", lambda a: tuple(np.linalg.svd(a, full_matrices=False)), a, "has singular values that did not converge"
    )
    sign = _signs(u)
    return u * sign, s, vh * np.swapaxes(sign, -1, -2)


def _svd_rule(
    g_u: Tensor | None, g_s: Tensor | None, g_vh: Tensor | None, u: Tensor, s: Tensor, vh: Tensor
) -> list[Tensor]:
    # A' = U (diag(s') + (F o skew(U^T U')) S + S (F o skew(V^T V'))) V^T
    #      + (1 - U U^T) U' S^-1 V^T + U S^-1 V'^T (1 - V V^T),   F_ij = 1 / (s_j^2 - s_i^2), skew(X) = X - X^T.
    inside: Tensor | None = None if g_s is None else diag_embed(g_s)
    outside: list[Tensor] = []
    if g_u is not None or g_vh is not None:
        f = _reciprocal_differences(s * s)
    if g_u is not None:
        along = matmul(swap(u), g_u)
        rotation = _columns(f * (along - swap(along)), s)
        inside = rotation if inside is None else inside + rotation
        if u.shape[-2] > u.shape[-1]:
            outside.append(matmul(_columns(g_u - matmul(u, along), 1.0 / s), vh))
    if g_vh is not None:
        along = matmul(vh, swap(g_vh))
        rotation = expand_dims(s, -1) * (f * (along - swap(along)))
        inside = rotation if inside is None else inside + rotation
        if vh.shape[-1] > vh.shape[-2]:
            outside.append(matmul(_columns(u, 1.0 / s), g_vh - matmul(swap(along), vh)))
    assert inside is not None
    total = matmul(u, matmul(inside, vh))
    for part in outside:
        total = total + part
    return [total]


def _svd_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a in (_well(rng, 1), _well(rng, 2)[..., :2], _well(rng, 1)[:, :2], _well(rng, n=1), _well(rng, 0, n=2)):
        yield (a,), {}


_svd = Op(
    "svd",
    "a",
    "u s vh",
    forward=_svd_forward,
    vjp=_svd_rule,
    partial=True,
    formula="A = U diag(s) V^T",
    source="Wan & Zhang, Automatic differentiation for complex valued SVD (2019), equation 2; Giles 2008, section 3.2",
    examples=_svd_examples,
)


def svd(a: Any, full_matrices: bool = False, compute_uv: bool = True) -> Any:
    """Singular value decomposition a = u diag(s) vh.

    Parameters
    ----------
    a : (..., m, n), floating; k = min(m, n).
    full_matrices : only False, unlike NumPy's default: the columns that complete a basis have no derivative.
    compute_uv : whether to return u and vh too.

    Returns
    -------
    u : (..., m, k), with orthonormal columns, the largest element of each positive (NumPy leaves the signs open);
    s : (..., k), descending;  vh : (..., k, n), with orthonormal rows. Only s without `compute_uv`.

    Raises
    ------
    ShapeError : not matrices.  DtypeError : not floating.  ArgumentError : full matrices, or no convergence.

    Notes
    -----
    The derivatives of u and vh divide by differences of squared singular values and, unless `a` is square, by the
    singular values: infinite or NaN where those vanish. The derivative of s alone does not.
    """
    if full_matrices:
        raise ArgumentError("svd: full_matrices=True is not supported; expected False (u with min(m, n) columns)")
    u, s, vh = _svd(_matrix("svd", a, square=False))
    return (u, s, vh) if compute_uv else s


_svd.public = svd
