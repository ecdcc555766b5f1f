"""Recurrent ops: gradients of what is saved, long chains of derivatives, errors. Values are in test_ops.py."""

import numpy as np
import pytest

import gmcore
from gmcore import grad, ops, tensor
from gmcore.errors import ArgumentError, ShapeError

SIZES = np.array([2, 2, 1])
RNG = np.random.default_rng(0)
W = RNG.standard_normal((12, 3))


def leaf(*shape):
    return tensor(RNG.standard_normal(shape), requires_grad=True)


def test_gates_and_cells_have_gradients():
    """The gates of step 0 reach the state of step 1 by the same path as ops on single steps."""
    x, h0, c0, w = leaf(4, 8), leaf(2, 2), leaf(2, 2), leaf(8, 2)
    _, _, _, c, gates = ops.lstm(x, h0, c0, w, np.array([2, 2]))
    i, f, g, _ = ops.split(gates, 4, axis=1)
    np.testing.assert_allclose((f[2:] * c[:2] + i[2:] * g[2:]).detach().numpy(), c[2:].detach().numpy(), rtol=1e-15)
    for a, b in zip(grad(ops.sum(c[2:] * c[2:]), [x, h0, c0, w], retain_graph=True),
                    grad(ops.sum(ops.square(f[2:] * c[:2] + i[2:] * g[2:])), [x, h0, c0, w])):  # fmt: skip
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-14)


def test_the_last_state_alone_or_all_states():
    x, h0, w = leaf(5, 3), leaf(2, 3), leaf(3, 3)
    h, h_n = ops.rnn(x, h0, w, SIZES)
    np.testing.assert_array_equal(h_n.detach().numpy(), h.detach().numpy()[[4, 3]])
    for a, b in zip(
        grad(ops.sum(h_n * h_n), [x, h0, w], retain_graph=True),
        grad(ops.sum(ops.square(h[np.array([4, 3])])), [x, h0, w]),
    ):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-13, atol=1e-15)


def test_backpropagation_through_time_to_the_second_order():
    """T = 20, by differences."""
    inputs = [RNG.standard_normal((20, 8)), RNG.standard_normal((1, 2)), np.ones((1, 2)), RNG.standard_normal((8, 2))]
    sizes = np.ones(20, int)
    assert gmcore.gradcheck(lambda *xs: ops.lstm(*xs, sizes)[0], inputs, order=2, directions=1)


@pytest.mark.parametrize("function, gates", [(ops.rnn, 1), (ops.lstm, 4), (ops.gru, 3)], ids=["rnn", "lstm", "gru"])
def test_a_captured_step_launches_alone_and_looks_at_the_batch_sizes(function, gates):
    weight = leaf(gates * 3, 3)

    def step(x, sizes):
        states = [np.zeros((2, 3))] * (2 if gates == 4 else 1)
        h = function(x, *states, weight, *([np.ones(3)] if gates == 3 else []), sizes)[0]
        return h, grad(ops.sum(h * h), weight)

    captured = gmcore.capture(step)
    for sizes in ([2, 2, 1], [2, 1, 1, 1], [2, 2, 1], [2, 1, 1, 1], [2, 1, 1, 1]):
        x = tensor(RNG.standard_normal((5, gates * 3)))
        for found, expected in zip(captured(x, np.array(sizes)), step(x, np.array(sizes))):
            np.testing.assert_array_equal(found.detach().numpy(), expected.detach().numpy())
    for program in captured.programs:
        kernels = [i for i in program.instructions if i.name.startswith(function.__name__)]
        assert len(kernels) == 2 and all(i.launches for i in kernels)
    with pytest.raises(ShapeError, match=r"batch_sizes \[2, 2, 2\] do not describe 5 rows of 2 sequences"):
        captured(x, np.array([2, 2, 2]))


def test_errors():
    x, h0 = np.ones((5, 3)), np.ones((2, 3))
    with pytest.raises(ShapeError, match=r"rnn\(x: float64\[5, 3\].* batch_sizes \[2, 2\] do not describe 5 rows of 2 "
                       r"sequences.*test_recurrent\.py:\d"):  # fmt: skip
        ops.rnn(x, h0, W[:3], [2, 2])
    with pytest.raises(ArgumentError, match=r"rnn: nonlinearity 'gelu'; expected one of tanh, relu .*test_recurrent"):
        ops.rnn(x, h0, W[:3], SIZES, nonlinearity="gelu")
    with pytest.raises(ShapeError, match=r"lstm: expected x \(N, G\)"):
        ops.lstm(x, h0, h0, W, SIZES)
