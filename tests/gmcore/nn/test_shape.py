import numpy as np
import pytest

from gmcore import nn
from gmcore.errors import ArgumentError, ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


def test_flatten_and_unflatten_are_inverse():
    assert nn.Flatten()(X).shape == (2, 12) and nn.Flatten(0, 1)(X).shape == (6, 4)
    for dim, sizes in ((1, (3, 4)), (-1, [3, -1]), (1, (-1, 4))):
        np.testing.assert_array_equal(nn.Unflatten(dim, sizes)(nn.Flatten()(X)).numpy(), X)
    assert nn.Unflatten(1, (0, 2))(np.zeros((2, 0))).shape == (2, 0, 2)
    assert repr(nn.Unflatten(1, [3, 4])) == "Unflatten(dim=1, unflattened_size=(3, 4))"


def test_errors():
    for dim, sizes in ((1, (2, 2)), (1, (-1, 2)), (1, (-1, -1)), (3, (1, 1)), (1, (0, -1))):
        with pytest.raises(ShapeError, match=rf"axis {dim} of an input of shape \(2, 3, 4\) cannot be split"):
            nn.Unflatten(dim, sizes)(X)
    for dim, sizes in (("C", (1, 2)), (1, (("a", 1),))):
        with pytest.raises(ArgumentError, match="without names"):
            nn.Unflatten(dim, sizes)
