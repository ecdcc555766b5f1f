"""Derivatives of special functions where their terms cancel."""

import numpy as np
import pytest

from gmcore import grad, ops, tensor

mpmath = pytest.importorskip("mpmath")


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-4)])
def test_slopes_of_erfcx_far_out(dtype: str, rtol: float) -> None:
    """Of -1 / (sqrt(pi) x^2) both terms are 2 / sqrt(pi)."""
    x = tensor(np.array([3.0, 10.5, 15.0, 100.0, 1e6], dtype), requires_grad=True)
    with mpmath.workdps(50):
        numbers = [mpmath.mpf(float(v)) for v in x.detach().numpy()]
        values = [mpmath.erfc(v) * mpmath.exp(v * v) for v in numbers]
        slopes = [2 * v * y - 2 / mpmath.sqrt(mpmath.pi) for v, y in zip(numbers, values, strict=True)]
        second = [2 * y + 2 * v * s for v, y, s in zip(numbers, values, slopes, strict=True)]
    found = ops.erfcx(x)
    for exact in (slopes, second):
        (found,) = grad(ops.sum(found), [x], create_graph=True)
        np.testing.assert_allclose(found.detach().numpy(), np.array(exact, float), rtol=rtol)
