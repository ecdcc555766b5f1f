"""Derivatives of any order against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmcore.device import put_beside
from gmcore.engine import grad
from gmcore.errors import DtypeError
from gmcore.tensor import Tensor, as_tensor, enable_grad, is_floating, no_grad
from gmkernels.arrays import Array, as_array

Function = Callable[..., Any]

# Five-point central difference: error h^4 f^(5) / 30 and rounding 1e-16 f / h; both near 1e-12 at this step.
_STEP = 1e-3
_STENCIL = ((-2.0, 1.0 / 12.0), (-1.0, -8.0 / 12.0), (1.0, 8.0 / 12.0), (2.0, -1.0 / 12.0))


def _as_outputs(y: Any) -> list[Tensor]:
    """The floating outputs of a function; the others have no derivative to check."""
    return [t for t in (y if isinstance(y, (tuple, list)) else (y,)) if is_floating(t.dtype)]


def _directional(f: Function, inputs: Sequence[Tensor], direction: Sequence[Array | None]) -> list[Array]:
    """d/dt f(inputs + t direction) at t = 0, by the five-point stencil."""
    total: list[Array] = []
    for offset, weight in _STENCIL:
        moved = [
            Tensor(as_array(x._data + offset * _STEP * v), requires_grad=True) if v is not None else x
            for x, v in zip(inputs, direction, strict=True)
        ]
        with enable_grad():  # a gradient inside f needs the tape
            ys = [y._data * (weight / _STEP) for y in _as_outputs(f(*moved))]
        total = ys if not total else [a + b for a, b in zip(total, ys, strict=True)]
    return total


def _gradient_function(f: Function, weights: Sequence[Tensor], differentiable: Sequence[int]) -> Function:
    """x -> gradients of sum_i <weights_i, f_i(x)>, itself differentiable."""

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        ys = _as_outputs(f(*inputs))
        pairs = [(y, w) for y, w in zip(ys, weights, strict=True) if y.requires_grad]
        xs = [inputs[i] for i in differentiable]
        if not pairs:  # constant as far as the tape knows; the finite differences will tell
            return tuple(x.new_full(x.shape, 0.0) for x in xs)
        return tuple(grad([y for y, _ in pairs], xs, [w for _, w in pairs], create_graph=True, fill=True))

    return gradient


def gradcheck(
    f: Function,
    inputs: Sequence[Any],
    order: int = 1,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    directions: int = 2,
    seed: int = 0,
) -> bool:
    """Check the first `order` derivatives of `f` at `inputs` against finite differences.

    For the derivative of order n, the gradient of order n - 1, contracted with random weights, is
    differentiated along random directions v by the five-point stencil and compared with <grad, v>. A wrong
    element anywhere shows up in a random direction with probability one.

    Parameters
    ----------
    f : function of tensors giving a tensor or a tuple of them; deterministic.
    inputs : arrays or tensors; the float64 ones are differentiated, others are passed as they are.
    order : highest order checked.
    rtol, atol : tolerance on each directional derivative, relative to the sum of the sizes of its terms.
    directions : random directions per order.
    seed : of the random weights and directions.

    Returns
    -------
    True

    Raises
    ------
    AssertionError : a derivative disagrees; says the order, both numbers and their difference.
    DtypeError : a float32 input, for which finite differences mean nothing, or no floating input.
    """
    rng = np.random.default_rng(seed)
    tensors = [as_tensor(x).detach() for x in inputs]
    for i, x in enumerate(tensors):
        if is_floating(x.dtype) and x.dtype != np.float64:
            raise DtypeError(f"gradcheck: input {i} is {x.dtype}; finite differences need float64")
    differentiable = [i for i, x in enumerate(tensors) if x.dtype == np.float64]
    if not differentiable:
        raise DtypeError("gradcheck: no float64 input to differentiate")
    for level in range(1, order + 1):
        for i in differentiable:
            tensors[i] = Tensor(tensors[i]._data, requires_grad=True)
        leaves = [(i, tensors[i]) for i in differentiable]
        with no_grad() if level == 1 else enable_grad():
            ys = _as_outputs(f(*tensors))
        weights = [y.beside(np.asarray(rng.standard_normal(y.shape))) for y in ys]
        gradient = _gradient_function(f, weights, differentiable)
        with enable_grad():
            grads = gradient(*tensors)
        for _ in range(directions):
            vs = {i: put_beside(np.asarray(rng.standard_normal(x.shape)), x._data) for i, x in leaves}
            analytic_terms = [float(np.sum(g._data * vs[i])) for g, i in zip(grads, differentiable, strict=True)]
            moved = _directional(f, tensors, [vs.get(i) for i in range(len(tensors))])
            numeric_terms = [float(np.sum(w._data * d)) for w, d in zip(weights, moved, strict=True)]
            analytic, numeric = sum(analytic_terms), sum(numeric_terms)
            scale = sum(map(abs, analytic_terms)) + sum(map(abs, numeric_terms))
            if not abs(analytic - numeric) <= atol + rtol * scale:
                raise AssertionError(
                    f"derivative of order {level}: tape {analytic:.12g}, finite differences {numeric:.12g}, "
                    f"difference {abs(analytic - numeric):.3g} > {atol + rtol * scale:.3g}"
                )
        f = gradient
    return True
