import numpy as np
import pytest

from gmcore import grad, nn, ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.utils import parameters_to_vector, vector_to_parameters


def test_to_a_vector_and_back():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    vector = parameters_to_vector(a.parameters())
    assert vector.shape == (8,)
    vector_to_parameters(vector, b.parameters())
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())
        assert q.version > 0 and q.is_leaf


def test_the_vector_has_a_gradient():
    layer = nn.Linear(3, 2)
    found = grad(ops.sum(ops.square(parameters_to_vector(layer.parameters()))), layer.weight)
    np.testing.assert_array_equal(found.numpy(), 2 * layer.weight.detach().numpy())


def test_errors():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().numpy().copy()
    for n in (7, 9):
        with pytest.raises(ShapeError, match=rf"expected a vector of 8 elements, got shape \({n},\)"):
            vector_to_parameters(np.zeros(n, np.float32), layer.parameters())
    np.testing.assert_array_equal(layer.weight.detach().numpy(), before)
    with pytest.raises(ArgumentError, match="no parameters"):
        parameters_to_vector([])
