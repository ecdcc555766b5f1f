"""The derivative of gamma samples, and counts: what the generated tests of the ops leave out."""

import numpy as np
import pytest

import gmcore
from gmcore import Generator, ops
from gmcore.errors import GraphError
from gmcore.random import shift_key

A = np.array([0.05, 0.7, 1.0, 3.0, 50.0])


@pytest.mark.parametrize("log", [False, True])
def test_the_derivative_keeps_the_probability(log):
    """P(a, x(a)) is constant: its derivatives in a and x, of another op, cancel."""
    for seed in range(50):
        a = gmcore.tensor(A, requires_grad=True)
        x = ops.standard_gamma(a, log=log, generator=Generator(seed))
        g = gmcore.grad(ops.sum(ops.gammainc(a, ops.exp(x) if log else x)), a)
        np.testing.assert_allclose(g.numpy(), 0.0, atol=2e-13)


def test_expectations_have_their_derivatives():
    """d/da of E[x] = a, E[x^2] = a (a + 1) and E[log x] = digamma(a), within 5 standard errors."""
    n = 20_000
    a = gmcore.tensor(np.tile(A, (n, 1)), requires_grad=True)
    key = Generator(3).draw()
    x, log_x = ops.standard_gamma(a, key=key), ops.standard_gamma(a, log=True, key=key)
    expected = (np.ones(5), 2 * A + 1, ops.polygamma(1, A).numpy())
    for y, slope in zip((x, x * x, log_x), expected, strict=True):
        g = gmcore.grad(ops.sum(y), a, retain_graph=True).numpy()
        assert (np.abs(g.mean(0) - slope) < 5 * g.std(0) / np.sqrt(n)).all()


def test_a_second_derivative_in_the_sample_but_not_in_the_shape():
    """The derivative of the derivative in x is there, by finite differences; in a it is refused, with the remedy."""
    a = gmcore.tensor(A)
    from gmcore.op import OPS

    for log in (False, True):
        x = np.log(A) if log else A
        assert gmcore.gradcheck(lambda x, log=log: OPS["standard_gamma_grad"](a, x, log=log), [x + 0.2], order=2)
    a = gmcore.tensor(A, requires_grad=True)
    g = gmcore.grad(ops.sum(ops.standard_gamma(a, generator=Generator(1))), a, create_graph=True)
    with pytest.raises(GraphError, match=r"standard_gamma_grad has no derivative with respect to a: .*\.detach\(\)"):
        gmcore.grad(ops.sum(g), a)


def test_small_shapes_underflow_without_their_logarithms():
    a = np.full(1000, 0.01, np.float32)
    x, log_x = (ops.standard_gamma(a, log=log, generator=Generator(1)).numpy() for log in (False, True))
    assert x.min() == np.finfo(np.float32).tiny and np.isfinite(log_x).all() and log_x.min() < -500
    a = gmcore.tensor(a, requires_grad=True)
    g = gmcore.grad(ops.sum(ops.standard_gamma(a, log=True, generator=Generator(1))), a)
    assert np.isfinite(g.numpy()).all() and g.dtype == np.float32


@pytest.mark.parametrize("draw", [
    lambda n, **how: ops.standard_gamma(np.full(n, 0.7), **how), lambda n, **how: ops.poisson(np.full(n, 20.0), **how),
    lambda n, **how: ops.binomial(np.full(n, 90.0), np.full(n, 0.4), **how),
], ids=["gamma", "poisson", "binomial"])  # fmt: skip
def test_one_draw_each_and_parts_with_a_shifted_key(draw):
    generator = Generator(3)
    whole = draw(100, generator=generator).numpy()
    assert generator.state == (3, 1)
    np.testing.assert_array_equal(draw(60, key=shift_key(Generator(3).draw(), 40)).numpy(), whole[40:])
