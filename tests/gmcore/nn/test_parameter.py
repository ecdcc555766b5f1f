import copy

import numpy as np
import pytest

from gmcore import nn, tensor
from gmcore.errors import DtypeError


def test_is_a_leaf_that_requires_a_gradient():
    p = nn.Parameter([1.0, 2.0])
    assert p.is_leaf and p.requires_grad and p.dtype == np.float32
    (p * p).sum().backward()
    np.testing.assert_array_equal(p.grad, [2.0, 4.0])
    assert not nn.Parameter([1.0], requires_grad=False).requires_grad
    assert not hasattr(p, "__dict__")


def test_has_memory_of_its_own_in_c_order():
    array = np.arange(6.0).reshape(2, 3)
    frozen = array.T
    frozen.flags.writeable = False
    for source in (frozen, tensor(frozen), tensor(frozen, requires_grad=True)):
        p = nn.Parameter(source)
        assert p._data.flags.c_contiguous and p._data.flags.writeable and p.dtype == np.float64
        p.copy_(np.zeros((3, 2)))
        np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))


def test_deepcopy_is_a_parameter_apart():
    p = nn.Parameter([1.0])
    q = copy.deepcopy(p)
    q.copy_([5.0])
    assert type(q) is nn.Parameter and q.requires_grad and p.item() == 1.0


def test_repr_and_dtype():
    assert repr(nn.Parameter([1.0])) == "Parameter containing:\ntensor([1.], requires_grad=True)"
    with pytest.raises(DtypeError, match="floating"):
        nn.Parameter([1, 2])
