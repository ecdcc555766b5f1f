"""Weight norm and spectral norm: `torch.nn.utils.parametrizations`, state dicts included."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.module import Module
from gmcore.nn.utils.parametrize import register_parametrization
from gmcore.tensor import Tensor, no_grad


class _WeightNorm(Module):
    """g v / |v|, with norms over all axes but `dim`, or over all."""

    def __init__(self, dim: int | None) -> None:
        self.dim = dim

    def _norm(self, v: Tensor) -> Tensor:
        if self.dim is None or self.dim == -1:  # PyTorch takes -1 for all axes, too
            return ops.norm(v)
        if not -v.ndim <= self.dim < v.ndim:
            raise ShapeError(f"weight_norm: dim {self.dim} of a weight of shape {v.shape}")
        return ops.norm(v, axis=tuple(a for a in range(v.ndim) if a != self.dim % v.ndim), keepdims=True)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / self._norm(v))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._norm(weight), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Give `module` the weight g v / |v| with the length g and the direction v as parameters; returns it.

    Parameters
    ----------
    name : of a parameter. In state dicts g is ``parametrizations.<name>.original0`` and v ``...original1``.
    dim : the axis that keeps a length for each place, (out, 1, ...) for 0; None (or -1) for one length of all.

    Raises
    ------
    ArgumentError : no such parameter.  ShapeError : no such axis.

    References
    ----------
    Salimans & Kingma, Weight normalization, NIPS 2016, equation 2.
    """
    return register_parametrization(module, name, _WeightNorm(dim))


class _SpectralNorm(Module):
    """weight / sigma, with the largest singular value sigma of the weight as a matrix by power iteration."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int, dim: int, eps: float) -> None:
        self.dim, self.n_power_iterations, self.eps = dim, n_power_iterations, eps
        if weight.ndim < 2:
            return
        matrix = self._matrix(weight)
        for name, n in zip(("_u", "_v"), matrix.shape, strict=True):
            start = ops.normal((n,), dtype="float64").numpy()
            self.register_buffer(name, weight.beside((start / np.linalg.norm(start)).astype(weight.dtype)))
        self._iterate(matrix, 15)

    def _matrix(self, weight: Tensor) -> Tensor:
        return ops.flatten(ops.moveaxis(weight, self.dim, 0), 1)

    @no_grad()
    def _iterate(self, matrix: Tensor, times: int) -> None:
        """Move u and v towards the singular vectors of the largest singular value."""
        u, v = self._u, self._v
        for _ in range(times):
            u = self._unit(ops.matmul(matrix, v))
            v = self._unit(ops.matmul(u, matrix))
        self._u.copy_(u)
        self._v.copy_(v)

    def _unit(self, x: Tensor) -> Tensor:
        return x / ops.maximum(ops.norm(x), self.eps)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return weight / ops.maximum(ops.norm(weight), self.eps)
        matrix = self._matrix(weight)
        if self.training:
            self._iterate(matrix, self.n_power_iterations)
        u, v = copy.deepcopy((self._u, self._v))  # for the tape: the next iteration writes into the buffers
        return weight / ops.dot(u, ops.matmul(matrix, v))


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Module:
    """Give `module` the weight W / sigma(W), with the largest singular value sigma as a matrix; returns it.

    Parameters
    ----------
    name : of a parameter. In state dicts W is ``parametrizations.<name>.original``, and the singular vectors
        ``parametrizations.<name>.0._u`` and ``..._v``.
    n_power_iterations : steps of the power iteration each time the weight is read in training; at first 15.
    eps : smallest norm to divide by in the iteration.
    dim : the axis of the rows of the matrix; 0.

    Raises
    ------
    ArgumentError : no such parameter, or n_power_iterations not positive.

    Notes
    -----
    The singular vectors are constants for the gradient, which is that of sigma all the same where they have
    converged. Takes two draws of the context's generator. Miyato, Kataoka, Koyama & Yoshida, ICLR 2018, algorithm 1.
    """
    weight: Any = vars(module).get(name)
    if n_power_iterations < 1:
        raise ArgumentError(f"spectral_norm: n_power_iterations must be positive, got {n_power_iterations}")
    if not isinstance(weight, Tensor):
        raise ArgumentError(f"{type(module).__name__} has no parameter {name!r} to parametrize")
    made = _SpectralNorm(weight.detach(), n_power_iterations, 0 if dim is None else dim, eps)
    return register_parametrization(module, name, made)
