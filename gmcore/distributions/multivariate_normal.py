"""Normal distributions of vectors: with a whole covariance matrix, and with a low-rank one plus a diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Derived, Distribution, as_parameters
from gmcore.errors import ArgumentError, ShapeError
from gmcore.random import Generator
from gmcore.tensor import Tensor

_LOG_2PI = math.log(2.0 * math.pi)


def _transpose(a: Tensor) -> Tensor:
    return ops.swapaxes(a, -1, -2)


def _identity(a: Tensor) -> Tensor:
    """That of as many columns."""
    return a.beside(np.eye(a.shape[-1], dtype=a.dtype))


def _log_diagonal(a: Tensor) -> Tensor:
    """The sum of the logarithms of the diagonal."""
    return ops.sum(ops.log(ops.diagonal(a, axis1=-2, axis2=-1)), axis=-1)


def _dot(a: Tensor, x: Tensor) -> Tensor:
    """Matrices times vectors."""
    return ops.matmul(a, ops.expand_dims(x, -1))[..., 0]


def _solve_lower(a: Tensor, x: Tensor) -> Tensor:
    """Inverses of lower triangular matrices times vectors."""
    return ops.solve_triangular(a, ops.expand_dims(x, -1), upper=False)[..., 0]


class MultivariateNormal(Distribution):
    """N(loc, Sigma) of vectors of D elements.

    Parameters
    ----------
    loc : (..., D), or a number for (D,).
    covariance_matrix : Sigma, (..., D, D), symmetric positive definite; or
    precision_matrix : its inverse; or
    scale_tril : its lower triangular factor L, Sigma = L L^T, with a positive diagonal: the cheapest. Exactly one
        of the three is given; its batch broadcasts with that of `loc`.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : not exactly one matrix, or one outside its constraint.  ShapeError, DtypeError : shapes that do not
        fit, integers.

    Notes
    -----
    A sample is loc + L eps; log p(x) = -|L^-1 (x - loc)|^2 / 2 - log det L - D log(2 pi) / 2. Given another matrix, its
    Cholesky factor is computed at each use.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Any,
        covariance_matrix: Any = None,
        precision_matrix: Any = None,
        scale_tril: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        given = {
            "covariance_matrix": covariance_matrix,
            "precision_matrix": precision_matrix,
            "scale_tril": scale_tril,
        }
        given = {name: a for name, a in given.items() if a is not None}
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ArgumentError(
                "MultivariateNormal: expected exactly one of covariance_matrix, precision_matrix and scale_tril, got "
                + found
            )
        ((name, matrix),) = given.items()
        matrix, self.loc = _with_one_batch("MultivariateNormal", name, matrix, loc=loc)
        if matrix.shape[-1] != matrix.shape[-2]:
            raise ShapeError(f"MultivariateNormal: expected square matrices {name}, got shape {matrix.shape}")
        setattr(self, name, matrix)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    @Derived
    def scale_tril(self) -> Tensor:
        """L, by Cholesky's method."""
        if "covariance_matrix" in self._given():
            return ops.cholesky(self.covariance_matrix)
        # Turned round, P = C C^T gives P = R R^T with R upper triangular, and L = R^-T.
        upper = ops.flip(ops.cholesky(ops.flip(self.precision_matrix, (-2, -1))), (-2, -1))
        return ops.solve_triangular(_transpose(upper), ops.broadcast_to(_identity(upper), upper.shape), upper=False)

    @Derived
    def covariance_matrix(self) -> Tensor:
        """L L^T."""
        factor = self.scale_tril
        return ops.matmul(factor, _transpose(factor))

    @Derived
    def precision_matrix(self) -> Tensor:
        """L^-T L^-1."""
        factor = self.scale_tril
        inverse = ops.solve_triangular(factor, ops.broadcast_to(_identity(factor), factor.shape), upper=False)
        return ops.matmul(_transpose(inverse), inverse)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return ops.sum(ops.square(self.scale_tril), axis=-1)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        eps = self._normal(self._extended_shape(sample_shape), generator)
        return self.loc + _dot(self.scale_tril, eps)

    def log_prob(self, value: Any) -> Tensor:
        factor = self.scale_tril
        z = _solve_lower(factor, self._as_value(value) - self.loc)
        distance = ops.sum(ops.square(z), axis=-1)
        return -0.5 * (distance + self.event_shape[0] * _LOG_2PI) - _log_diagonal(factor)

    def entropy(self) -> Tensor:
        """log det L + D (1 + log 2 pi) / 2."""
        return _log_diagonal(self.scale_tril) + 0.5 * self.event_shape[0] * (1.0 + _LOG_2PI)


class LowRankMultivariateNormal(Distribution):
    """N(loc, W W^T + diag(d)) of vectors of D elements, at a cost of D R^2 instead of D^3.

    Parameters
    ----------
    loc : (..., D).
    cov_factor : W, (..., D, R).
    cov_diag : d, (..., D), positive.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a parameter outside its constraint.  ShapeError, DtypeError : shapes that do not fit, integers.

    Notes
    -----
    A sample is loc + W eps + sqrt(d) eps', of two draws. With the capacitance matrix C = I + W^T diag(d)^-1 W,
    Woodbury's identity is Sigma^-1 = diag(d)^-1 - diag(d)^-1 W C^-1 W^T diag(d)^-1, and det Sigma = det C prod d.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "cov_factor": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.positive_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Any, cov_factor: Any, cov_diag: Any, validate_args: bool | None = None) -> None:
        self.cov_factor, self.loc, self.cov_diag = _with_one_batch(
            "LowRankMultivariateNormal", "cov_factor", cov_factor, loc=loc, cov_diag=cov_diag
        )
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return ops.sum(ops.square(self.cov_factor), axis=-1) + self.cov_diag

    @property
    def covariance_matrix(self) -> Tensor:
        """W W^T + diag(d)."""
        return ops.matmul(self.cov_factor, _transpose(self.cov_factor)) + ops.diag_embed(self.cov_diag)

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, at its whole cost."""
        return ops.cholesky(self.covariance_matrix)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended_shape(sample_shape)
        low = self._normal((*shape[:-1], self.cov_factor.shape[-1]), generator)
        own = self._normal(shape, generator)
        return self.loc + _dot(self.cov_factor, low) + ops.sqrt(self.cov_diag) * own

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        """diag(d)^-1 W, and the Cholesky factor of C."""
        weighted = self.cov_factor / ops.expand_dims(self.cov_diag, -1)
        return weighted, ops.cholesky(_identity(weighted) + ops.matmul(_transpose(self.cov_factor), weighted))

    def _half_log_det(self, capacitance: Tensor) -> Tensor:
        return _log_diagonal(capacitance) + 0.5 * ops.sum(ops.log(self.cov_diag), axis=-1)

    def log_prob(self, value: Any) -> Tensor:
        weighted, capacitance = self._capacitance()
        apart = self._as_value(value) - self.loc
        inside = _solve_lower(capacitance, _dot(_transpose(weighted), apart))
        distance = ops.sum(ops.square(apart) / self.cov_diag, axis=-1) - ops.sum(ops.square(inside), axis=-1)
        return -0.5 * (distance + self.event_shape[0] * _LOG_2PI) - self._half_log_det(capacitance)

    def entropy(self) -> Tensor:
        """log det Sigma / 2 + D (1 + log 2 pi) / 2."""
        return self._half_log_det(self._capacitance()[1]) + 0.5 * self.event_shape[0] * (1.0 + _LOG_2PI)


def _with_one_batch(op: str, matrix_name: str, matrix: Any, **vectors: Any) -> list[Tensor]:
    """A matrix (..., D, R) and vectors (..., D), or numbers for all of their elements, with one batch and dtype."""
    m, *vs = as_parameters(**{matrix_name: matrix}, **vectors)
    try:
        if m.ndim < 2:
            raise ValueError
        batch = np.broadcast_shapes(m.shape[:-2], *[v.shape[:-1] for v in vs])
        shape = (*batch, m.shape[-2])
        return [ops.broadcast_to(m, (*shape, m.shape[-1])), *[ops.broadcast_to(v, shape) for v in vs]]
    except ValueError:
        given = ", ".join(f"{name} {v.shape}" for name, v in zip(vectors, vs, strict=True))
        raise ShapeError(f"{op}: expected {matrix_name} (..., D, R) for {given}; got shape {m.shape}") from None
