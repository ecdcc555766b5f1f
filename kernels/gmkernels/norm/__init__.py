"""Batch normalisation over (N, C) and (N, C, ...), in training, and its gradient."""

from __future__ import annotations

from gmkernels.norm import reference, spec
from gmkernels.registry import Array, register, run

__all__ = ["batch_norm", "batch_norm_backward"]

for _spec in (spec.BATCH_NORM, spec.BATCH_NORM_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=5e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.norm.cpu:{_spec.name}", overhead=1e-5, efficiency=0.6, replays=True)


def batch_norm(
    x: Array, weight: Array, bias: Array, *, eps: float = 1e-5, backend: str | None = None
) -> tuple[Array, Array, Array]:
    """Each channel brought to mean 0 and variance 1 over the batch, times a weight, plus a bias.

    Parameters
    ----------
    x : (N, C, ...) float32 or float64, with an element in each channel
    weight, bias : (C,) of the same dtype
    eps : added to the variance under the root

    Returns
    -------
    y : the shape of x
    mean, var : (C,), of each channel; var divides by the number of its elements

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or channels without elements.

    References
    ----------
    Ioffe & Szegedy, Batch normalization, ICML 2015, algorithm 1.
    """
    y, mean, var = run(spec.BATCH_NORM, (x, weight, bias), {"eps": eps}, backend=backend)
    return y, mean, var


def batch_norm_backward(
    g: Array, x: Array, weight: Array, mean: Array, var: Array, *, eps: float = 1e-5, backend: str | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of the y of `batch_norm`.

    Parameters
    ----------
    g : of the shape of x, the gradient with respect to y
    x, weight, eps : as in `batch_norm`
    mean, var : as `batch_norm` returns them

    Returns
    -------
    d_x : the shape of x
    d_weight, d_bias : (C,)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or channels without elements.
    """
    inputs = (g, x, weight, mean, var)
    d_x, d_weight, d_bias = run(spec.BATCH_NORM_BACKWARD, inputs, {"eps": eps}, backend=backend)
    return d_x, d_weight, d_bias
