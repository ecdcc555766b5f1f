"""Recurrent nets: a worked example, identities between nets, packing, gradients by differences and PyTorch's."""

import numpy as np
import pytest

import gmkernels
from gmkernels import KernelError, gru, gru_backward, lstm, lstm_backward, rnn, rnn_backward

BACKENDS = ("reference", "cpu")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class Net:
    """One kind of net: its forward and backward kernels on arrays by name."""

    def __init__(self, name, gates, options=None, states=1, bias=False):
        self.name, self.gates, self.options, self.states, self.bias = name, gates, options or {}, states, bias

    def inputs(self, rng, batch_sizes, size, dtype="float64"):
        rows, batch = sum(batch_sizes), batch_sizes[0]
        found = [rng.standard_normal((rows, self.gates * size))]
        found += [rng.standard_normal((batch, size)) for _ in range(self.states)]
        found += [rng.standard_normal((self.gates * size, size)) / np.sqrt(size)]
        found += [rng.standard_normal(size)] if self.bias else []
        return [a.astype(dtype) for a in found] + [np.array(batch_sizes)]

    def forward(self, inputs, **options):
        return getattr(gmkernels, self.name)(*inputs, **self.options, **options)

    def backward(self, inputs, outputs, g_h, g_last, **options):
        """Gradients of the inputs but batch_sizes, in their order."""
        _, *states, weight, batch_sizes = inputs[: 1 + self.states + 1] + inputs[-1:]
        h, saved = outputs[0], outputs[1 + self.states :]
        arrays = (g_h, *g_last, weight, *states, h, *saved, batch_sizes)
        return getattr(gmkernels, self.name + "_backward")(*arrays, **self.options, **options)

    def last(self, outputs):
        return outputs[1 : 1 + self.states]


NETS = {
    "tanh": Net("rnn", 1, {"nonlinearity": "tanh"}),
    "relu": Net("rnn", 1, {"nonlinearity": "relu"}),
    "lstm": Net("lstm", 4, states=2),
    "gru": Net("gru", 3, {"reset_after": True}, bias=True),
    "gru of Cho et al.": Net("gru", 3, {"reset_after": False}, bias=True),
}
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


# -- values ---------------------------------------------------------------------------------------------------------
@each_backend
def test_a_worked_example(backend):
    """Two steps by hand, with one unit."""
    x, w = np.array([[0.5], [-1.0]]), np.array([[2.0]])
    h, h_n = rnn(x, np.array([[0.25]]), w, np.array([1, 1]), backend=backend)
    h_1 = np.tanh(0.5 + 2 * 0.25)
    np.testing.assert_allclose(h.ravel(), [h_1, np.tanh(-1 + 2 * h_1)], rtol=1e-15)
    np.testing.assert_array_equal(h_n, h[1:])

    x = np.array([[0.1, 0.2, 0.3, 0.4]])
    _, h_n, c_n, _, gates = lstm(x, np.array([[1.0]]), np.array([[2.0]]), np.eye(4)[:, :1], np.array([1]),
                                 backend=backend)  # fmt: skip
    i, f, g, o = sigmoid(1.1), sigmoid(0.2), np.tanh(0.3), sigmoid(0.4)  # h_0 = 1 reaches the first gate only
    np.testing.assert_allclose(gates, [[i, f, g, o]], rtol=1e-15)
    np.testing.assert_allclose(c_n, [[f * 2 + i * g]], rtol=1e-15)
    np.testing.assert_allclose(h_n, o * np.tanh(c_n), rtol=1e-15)


@each_backend
@each_net
@pytest.mark.parametrize("reverse", [False, True])
def test_each_sequence_is_as_if_alone(net, backend, reverse):
    """Packed sequences of lengths 4, 4, 2, 1; the block of 16 rows is not full, nor are all steps."""
    lengths, size = [4, 4, 2, 1], 5
    batch_sizes = [4, 3, 2, 2]
    inputs = net.inputs(np.random.default_rng(0), batch_sizes, size)
    outputs = net.forward(inputs, reverse=reverse, backend=backend)
    starts = np.cumsum([0, *batch_sizes])
    for b, length in enumerate(lengths):
        rows = [starts[t] + b for t in range(length)]
        x, *states, last = inputs[0][rows], *inputs[1 : 1 + net.states], np.ones(length, int)
        alone = net.forward(
            [x, *[s[b : b + 1] for s in states], *inputs[1 + net.states : -1], last], reverse=reverse, backend=backend
        )
        np.testing.assert_allclose(outputs[0][rows], alone[0], rtol=1e-13, atol=1e-14)
        for found, expected in zip(net.last(outputs), net.last(alone)):
            np.testing.assert_allclose(found[b : b + 1], expected, rtol=1e-13, atol=1e-14)


@each_net
def test_a_sequence_in_two_parts_and_backwards(net):
    """The last states of the first part start the second; reverse reads the steps from the end. Bit for bit."""
    inputs = net.inputs(np.random.default_rng(1), [3] * 6, 4)
    x, states, rest = inputs[0], inputs[1 : 1 + net.states], inputs[1 + net.states : -1]
    whole = net.forward(inputs)
    first = net.forward([x[:6], *states, *rest, np.full(2, 3)])
    second = net.forward([x[6:], *net.last(first), *rest, np.full(4, 3)])
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), whole[0])
    for a, b in zip(net.last(second), net.last(whole)):
        np.testing.assert_array_equal(a, b)
    backwards = net.forward([x.reshape(6, 3, -1)[::-1].reshape(x.shape), *states, *rest, np.full(6, 3)], reverse=True)
    np.testing.assert_array_equal(backwards[0].reshape(6, 3, -1)[::-1].reshape(whole[0].shape), whole[0])


@each_backend
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_that_keeps_nothing_and_resets_nothing_is_a_simple_rnn(backend, reset_after):
    """z = 0 and r = 1 exactly, by arguments at which the sigmoids round to them."""
    net, size = NETS["gru" if reset_after else "gru of Cho et al."], 5
    x, h0, weight, bias_n, batch_sizes = net.inputs(np.random.default_rng(2), [3, 2, 2], size)
    x[:, :size], x[:, size : 2 * size] = 1000, -1000
    h, *_ = gru(x, h0, weight, bias_n, batch_sizes, reset_after=reset_after, backend=backend)
    expected, _ = rnn(x[:, 2 * size :] + bias_n, h0, weight[2 * size :], batch_sizes, backend=backend)
    np.testing.assert_allclose(h, expected, rtol=1e-13)
    x[:, size : 2 * size] = 1000  # and one that keeps everything stays where it is
    h, h_n, *_ = gru(x, h0, weight, bias_n, batch_sizes, reset_after=reset_after, backend=backend)
    np.testing.assert_array_equal(h_n, h0)


@each_backend
def test_the_cell_of_an_lstm_passes_gradients_by_its_forget_gates(backend):
    """With gates that do not see the state, dc_T / dc_0 is diagonal: the product of the forget gates."""
    net, size = NETS["lstm"], 5
    inputs = net.inputs(np.random.default_rng(3), [2] * 4, size)
    inputs[3][:] = 0
    outputs = net.forward(inputs, backend=backend)
    g_cn = np.random.default_rng(4).standard_normal((2, size))
    zero = np.zeros((8, size)), np.zeros((2, size))
    _, d_h0, d_c0, _ = net.backward(inputs, outputs, zero[0], (zero[1], g_cn), backend=backend)
    forget = outputs[4][:, size : 2 * size].reshape(4, 2, size)
    np.testing.assert_allclose(d_c0, g_cn * forget.prod(0), rtol=1e-14)
    np.testing.assert_array_equal(d_h0, 0)


@each_net
def test_many_sequences_in_many_blocks(net):
    """129 sequences, of which fewer and fewer go on: blocks that end at different steps."""
    inputs = net.inputs(np.random.default_rng(5), [129, 128, 64, 15, 3], 3)
    for found, expected in zip(net.forward(inputs, backend="cpu"), net.forward(inputs, backend="reference")):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@each_backend
@each_net
def test_nan_and_infinity_stay_in_their_sequence(net, backend):
    inputs = net.inputs(np.random.default_rng(6), [3, 3, 3], 4)
    clean = net.forward(inputs, backend=backend)[0].reshape(3, 3, 4)
    for value in (np.nan, np.inf, -np.inf):
        inputs[0][4] = value  # step 1 of sequence 1
        with np.errstate(invalid="ignore"):  # infinite states times weights of both signs
            h = net.forward(inputs, backend=backend)[0].reshape(3, 3, 4)
        np.testing.assert_array_equal(h[:, [0, 2]], clean[:, [0, 2]])
        np.testing.assert_array_equal(h[0], clean[0])
        assert np.isnan(h[1:, 1]).all() or not np.isnan(value)


# -- gradients --------------------------------------------------------------------------------------------------------
@each_backend
@pytest.mark.parametrize("reverse", [False, True])
@each_net
def test_backpropagation_through_20_steps_by_differences(net, backend, reverse):
    """Of a random weighted sum of all states and the last ones: central differences, error about h^2 = 1e-10."""
    rng = np.random.default_rng(7)
    inputs = net.inputs(rng, [3] * 7 + [2] * 9 + [1] * 4, 3)
    outputs = net.forward(inputs, reverse=reverse, backend=backend)
    g_h = rng.standard_normal(outputs[0].shape)
    g_last = [rng.standard_normal(a.shape) for a in net.last(outputs)]
    gradients = net.backward(inputs, outputs, g_h, g_last, reverse=reverse, backend=backend)

    def objective(arrays):
        found = net.forward(arrays, reverse=reverse, backend=backend)
        return np.sum(g_h * found[0]) + sum(np.sum(g * a) for g, a in zip(g_last, net.last(found)))

    step = 1e-5
    for k, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape)
        up, down = ([*inputs[:k], inputs[k] + s * direction, *inputs[k + 1 :]] for s in (step, -step))
        slope = (objective(up) - objective(down)) / (2 * step)
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", ["tanh", "relu", "lstm", "gru"])
def test_forward_and_backward_equal_pytorch(name):
    """A layer of torch.nn, with an identity for its input weight."""
    torch = pytest.importorskip("torch")
    net, size = NETS[name], 31
    inputs = net.inputs(np.random.default_rng(8), [35] * 9, size, "float32")
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(name, torch.nn.RNN)
    options = {"nonlinearity": name} if kind is torch.nn.RNN else {}
    layer = kind(net.gates * size, size, bias=net.bias, **options)
    x, *states = (torch.tensor(a).requires_grad_() for a in inputs[: 1 + net.states])
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(net.gates * size))
        layer.weight_hh_l0.copy_(torch.from_numpy(inputs[1 + net.states]))
        if net.bias:
            layer.bias_ih_l0.zero_()
            layer.bias_hh_l0.zero_()
            layer.bias_hh_l0[2 * size :] = torch.from_numpy(inputs[-2])
    hx = tuple(s[None] for s in states)
    h, last = layer(x.reshape(9, 35, -1), hx if net.states == 2 else hx[0])
    outputs = net.forward(inputs)
    g_h = np.random.default_rng(9).standard_normal(outputs[0].shape, "float32")
    g_last = [np.ones((35, size), "float32")] * net.states
    last = last if isinstance(last, tuple) else (last,)
    (h.reshape(-1, size) * torch.from_numpy(g_h)).sum().add(sum(s.sum() for s in last)).backward()
    d_x, *rest = net.backward(inputs, outputs, g_h, g_last)
    pairs = [(outputs[0], h.reshape(-1, size)), (d_x, x.grad), (rest[net.states], layer.weight_hh_l0.grad)]
    pairs += zip(rest, [s.grad for s in states])
    pairs += [(rest[-1], layer.bias_hh_l0.grad[2 * size :])] if net.bias else []
    for found, expected in pairs:
        expected = expected.detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


# -- errors -----------------------------------------------------------------------------------------------------------
def test_refusals():
    x, h0, weight = np.ones((5, 3)), np.ones((3, 3)), np.ones((3, 3))
    for wrong in ([2, 2, 1], [1, 3, 1], [3, 3], [3, 1], [3, 3, -1]):
        with pytest.raises(KernelError, match=r"do not describe 5 rows of 3 sequences"):
            rnn(x, h0, weight, np.array(wrong))
    with pytest.raises(KernelError, match=r"rnn: expected x \(N, G\), .* G = 1 H, .* x float64\[5, 4\]"):
        rnn(np.ones((5, 4)), h0, weight, np.array([3, 2]))
    with pytest.raises(KernelError, match="batch_sizes int32"):
        rnn(x, h0, weight, np.array([3, 2], np.int32))
    with pytest.raises(KernelError, match="one floating dtype .* x float32"):
        rnn(x.astype("f"), h0, weight, np.array([3, 2]))
    with pytest.raises(KernelError, match="rnn: unknown nonlinearity 'sigmoid'; expected one of tanh, relu"):
        rnn(x, h0, weight, np.array([3, 2]), nonlinearity="sigmoid")
    with pytest.raises(KernelError, match="lstm: expected x .* G = 4 H"):
        lstm(x, h0, h0, weight, np.array([3, 2]))
    with pytest.raises(KernelError, match="gru: expected"):
        gru(np.ones((5, 9)), h0, np.ones((9, 3)), np.ones(9), np.array([3, 2]))
    backward = {"rnn": rnn_backward, "lstm": lstm_backward, "gru": gru_backward}
    arguments = {"rnn": 5, "lstm": 9, "gru": 7}
    for name, function in backward.items():
        with pytest.raises(KernelError, match=f"{name}_backward: expected g_h"):
            function(*[x] * arguments[name], np.array([3, 2]))
