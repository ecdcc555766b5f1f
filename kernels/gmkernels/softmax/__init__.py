"""Softmax of rows, as the cross-entropy of classes needs it."""

from __future__ import annotations

from gmkernels.registry import FLOATS, HALVES, Array, register, run
from gmkernels.softmax import reference, spec

for _spec in (spec.SOFTMAX_CROSS_ENTROPY, spec.SOFTMAX_CROSS_ENTROPY_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.softmax.cpu:{_spec.name}", overhead=1.5e-5, efficiency=0.5)
    register(_spec, "cuda", f"gmkernels.softmax.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)
    register(
        _spec, "triton", f"gmkernels.softmax.triton:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.85,
    )  # fmt: skip


def softmax_cross_entropy(logits: Array, target: Array, *, backend: str | None = None) -> tuple[Array, Array]:
    """Negative log-probability of a class in each row of logits, and the probabilities of all classes.

        p_c = exp(l_c) / sum_j exp(l_j),   loss = -log p_target

    Parameters
    ----------
    logits : (rows, classes) float32 or float64
    target : (rows,) int64, from 0 to classes - 1

    Returns
    -------
    loss : (rows,)
    probabilities : (rows, classes)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or a target that is no class.

    Notes
    -----
    A logit of minus infinity has probability 0; where all of a row are, the loss is infinite. Plus infinity and NaN
    give NaN.

    On a GPU a target that is no class is not refused, for which the host would have to wait: the loss is then any
    number, and NaN from the kernel in CUDA C.
    """
    loss, probabilities = run(spec.SOFTMAX_CROSS_ENTROPY, (logits, target), backend=backend)
    return loss, probabilities


def softmax_cross_entropy_backward(
    g: Array, probabilities: Array, target: Array, *, backend: str | None = None
) -> Array:
    """Gradient of `softmax_cross_entropy` with respect to the logits: g (p - e), with e 1 at the target, 0 elsewhere.

    Parameters
    ----------
    g : (rows,) gradient with respect to the losses
    probabilities : (rows, classes), as `softmax_cross_entropy` returned them
    target : (rows,) int64

    Returns
    -------
    (rows, classes)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or a target that is no class.
    """
    return run(spec.SOFTMAX_CROSS_ENTROPY_BACKWARD, (g, probabilities, target), backend=backend)[0]
