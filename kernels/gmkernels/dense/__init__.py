"""Dense layers: matrix products, affine maps with an activation, their gradients."""

from __future__ import annotations

from gmkernels import blas
from gmkernels.cost import nominal_cpu
from gmkernels.dense import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, Signature, register, run


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


# NumPy runs products below about 5e5 flops on one core at half its peak, and on threads of its own above: there
# the pool must take over, so that the two do not fight for the cores. The efficiencies say so to the cost model. For
# the smallest products NumPy is quicker by some microseconds of Python, which a captured step does not spend: there the
# overheads of both are given as equal, and the pool takes them.
_ONE_CORE = 40e9 / nominal_cpu().product_rate
for _spec, _reference, _cpu in (
    (spec.MATMUL, (9e-6, _ONE_CORE), (9e-6, 0.6)),
    (spec.LINEAR, (12e-6, _ONE_CORE), (12e-6, 0.6)),
    (spec.ACTIVATION_BACKWARD, (11e-6, 0.25), (11e-6, 0.7)),
):
    register(
        _spec, "reference", getattr(reference, _spec.name),
        strided=True, overhead=_reference[0], efficiency=_reference[1],
    )  # fmt: skip
    register(
        _spec, "cpu", f"gmkernels.dense.cpu:{_spec.name}",
        strided=_spec is not spec.ACTIVATION_BACKWARD, overhead=_cpu[0], efficiency=_cpu[1],
        accepts=_needs_blas if _spec in (spec.MATMUL, spec.LINEAR) else None,
        note=blas.note if _spec in (spec.MATMUL, spec.LINEAR) else None, replays=True,
    )  # fmt: skip
    register(
        _spec, "cuda", f"gmkernels.dense.cuda:{_spec.name}", dtypes=FLOATS + HALVES,
        strided=_spec is not spec.ACTIVATION_BACKWARD, overhead=1e-5, efficiency=0.8,
    )  # fmt: skip
    register(
        _spec, "triton", f"gmkernels.dense.triton:{_spec.name}", dtypes=FLOATS + HALVES,
        strided=_spec is spec.MATMUL, overhead=1.5e-5, efficiency=0.5,
    )  # fmt: skip


def matmul(a: Array, b: Array, *, backend: str | None = None) -> Array:
    """Matrix product ``a @ b`` of two matrices, or of two stacks of as many.

    Transposed views (``a.T``) are read in place; other strided layouts are packed first.

    Parameters
    ----------
    a : (..., m, k) float32 or float64; float16 and bfloat16 too on a GPU, which are summed in float32
    b : (..., k, n) of the same dtype, with the same leading axes

    Returns
    -------
    (..., m, n), zeros where k = 0

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.MATMUL, (a, b), backend=backend)[0]


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str = "identity",
    backend: str | None = None,
) -> Array:
    """``activation(x @ weight.T + bias)``, the activation applied while a tile of the product is in cache.

    Parameters
    ----------
    x : (..., in) float32 or float64; float16 and bfloat16 too on a GPU
    weight : (out, in), as in ``torch.nn.functional.linear``
    bias : (out,), or None
    activation : "identity", "tanh", "sigmoid", "relu" or "softplus"

    Returns
    -------
    (..., out)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or an unknown activation.
    """
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return run(spec.LINEAR, inputs, {"activation": activation}, backend=backend)[0]


def activation_backward(g: Array, y: Array, *, activation: str, backend: str | None = None) -> tuple[Array, Array]:
    """Gradients of ``y = activation(pre)``, ``pre = ... + bias``, from the output y.

    Parameters
    ----------
    g : (..., features), the gradient with respect to y
    y : (..., features), the output
    activation : as in `linear`

    Returns
    -------
    d_pre : (..., features), ``g * activation'(pre)``
    d_bias : (features,), its sum over all leading axes

    Notes
    -----
    The rest of the gradient of `linear` is two products: ``matmul(d_pre, weight)`` with respect to x and
    ``matmul(d_pre.T, x)`` with respect to the weight.

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or an unknown activation.
    """
    d_pre, d_bias = run(spec.ACTIVATION_BACKWARD, (g, y), {"activation": activation}, backend=backend)
    return d_pre, d_bias
