"""Products of Jacobians against the tape, closed forms, and what they show: vanishing, exploding, remembering."""

import numpy as np
import pytest

from gmcore import grad, nn, ops, tensor
from gmcore.models.recurrent import gradient_flow
from gmcore.models.recurrent.gradient_flow import jacobian_products, measure

RNG = np.random.default_rng(0)
LAYERS = {
    "rnn": lambda: nn.RNN(3, 4, 2, dtype="float64"),
    "lstm": lambda: nn.LSTM(3, 4, 2, dtype="float64"),
    "gru": lambda: nn.GRU(3, 4, dtype="float64"),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_products_are_the_derivatives_of_the_whole_pass(make):
    layer, codes = make(), np.array([0, 2, 1, 1])
    products = list(jacobian_products(layer, codes))
    states = 2 if isinstance(layer, nn.LSTM) else 1
    hx = [tensor(np.zeros((layer.num_layers, 1, 4)), requires_grad=True) for _ in range(states)]
    _, last = layer(codes[:, None], tuple(hx) if states == 2 else hx[0])
    rows = ops.concatenate([ops.ravel(part) for part in (last if states == 2 else (last,))])
    assert len(products) == 5 and len(products[0]) == rows.size
    np.testing.assert_array_equal(products[0], np.eye(rows.size))
    for i, row in enumerate(products[-1]):
        found = np.concatenate([g.numpy().ravel() for g in grad(rows[i], hx, retain_graph=True)])
        np.testing.assert_allclose(row, found, rtol=1e-12, atol=1e-16)


def test_factors_of_the_simple_rnn_are_slopes_times_the_weight():
    layer, x = nn.RNN(3, 4, dtype="float64"), RNG.standard_normal((6, 3))
    h = layer(x)[0].detach().numpy()
    product = np.eye(4)
    for k, found in zip(range(6, -1, -1), jacobian_products(layer, x), strict=True):
        np.testing.assert_allclose(found, product, rtol=1e-12, atol=1e-16)
        product = product @ np.diag(1 - h[k - 1] ** 2) @ layer.weight_hh_l0.detach().numpy()


@pytest.mark.parametrize("radius", [0.8, 1.0, 1.3])
def test_a_linear_unit_grows_by_its_spectral_radius(radius):
    """A ReLU net with positive weights and states is linear: the slope of the log norm is log of the radius."""
    layer = nn.RNN(1, 6, nonlinearity="relu", bias=False, dtype="float64")
    w = RNG.uniform(0.1, 1.0, (6, 6))
    layer.weight_hh_l0.copy_(w * radius / np.abs(np.linalg.eigvals(w)).max())
    layer.weight_ih_l0.copy_(np.ones((6, 1)))
    norms = np.log([np.linalg.norm(p) for p in jacobian_products(layer, np.ones((40, 1)))])
    np.testing.assert_allclose(np.diff(norms[20:]), np.log(radius), atol=1e-9)


def test_gradients_vanish_explode_or_stay():
    codes = RNG.integers(0, 3, 61)
    output = nn.Linear(8, 3, dtype="float64")

    def flow(layer, scale=None):
        if scale is not None:
            orthogonal = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
            layer.weight_hh_l0.copy_(scale * orthogonal)
        return measure(layer, output, codes)

    vanishing = flow(nn.RNN(3, 8, dtype="float64"), 0.7)
    relu = nn.RNN(3, 8, nonlinearity="relu", dtype="float64")
    relu.bias_hh_l0.copy_(np.full(8, 0.5))
    relu.weight_hh_l0.copy_(np.full((8, 8), 1.25 / 8))  # of spectral radius 1.25
    exploding = flow(relu)
    lstm = nn.LSTM(3, 8, dtype="float64")
    lstm.bias_hh_l0.copy_(np.concatenate([np.zeros(8), np.full(8, 10.0), np.zeros(16)]))  # f = 0.99995
    staying = flow(lstm)
    assert vanishing.gradient[-1] < 1e-6 * vanishing.gradient[0]
    assert exploding.jacobian[-1] > 1e4
    assert 0.1 < staying.jacobian[-1] and staying.gradient[-1] > 1e-3 * staying.gradient[0]
    assert vanishing.jacobian[0] == pytest.approx(1.0) and len(vanishing.gradient) == 61


def test_the_gradient_is_that_of_the_loss():
    layer, output, codes = nn.GRU(3, 4, dtype="float64"), nn.Linear(4, 3, dtype="float64"), np.array([0, 2, 1, 1, 2])
    h0 = tensor(np.zeros((1, 4)), requires_grad=True)
    h, _ = layer(codes[:-1], h0)
    expected = grad(ops.cross_entropy(output(h[-1:]), codes[-1:]), h0).numpy()
    assert measure(layer, output, codes).gradient[-1] == pytest.approx(np.linalg.norm(expected), rel=1e-12)


def test_the_picture(tmp_path):
    flow = measure(nn.RNN(3, 4), nn.Linear(4, 3), np.array([0, 1, 2, 0]))
    gradient_flow.save(tmp_path / "flow.png", {"fresh": flow}, "rnn")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
