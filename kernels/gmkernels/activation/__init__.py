"""Elementwise activations that stand between layers, and their gradients."""

from __future__ import annotations

from gmkernels.activation import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, register, run

for _spec in (spec.LEAKY_RELU, spec.LEAKY_RELU_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=5e-6, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.activation.cpu:{_spec.name}", overhead=1e-5, efficiency=0.7, replays=True)
    register(
        _spec, "triton", f"gmkernels.activation.triton:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.9,
    )  # fmt: skip
    register(_spec, "cuda", f"gmkernels.activation.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)


def leaky_relu(x: Array, negative_slope: float = 0.01, *, backend: str | None = None) -> Array:
    """x where x > 0, and negative_slope x elsewhere.

    Parameters
    ----------
    x : float32 or float64, any shape
    negative_slope : the slope below 0

    Returns
    -------
    x.shape

    Raises
    ------
    KernelError : a dtype that does not fit.
    """
    return run(spec.LEAKY_RELU, (x,), {"negative_slope": negative_slope}, backend=backend)[0]


def leaky_relu_backward(g: Array, x: Array, negative_slope: float = 0.01, *, backend: str | None = None) -> Array:
    """Gradient of `leaky_relu`: g where x > 0, and negative_slope g elsewhere.

    Parameters
    ----------
    g : gradient of the output
    x : input of `leaky_relu`, of g's shape and dtype
    negative_slope : that of `leaky_relu`

    Returns
    -------
    x.shape

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.LEAKY_RELU_BACKWARD, (g, x), {"negative_slope": negative_slope}, backend=backend)[0]
