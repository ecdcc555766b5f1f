"""Where arrays lie, against NumPy's own account of it."""

import numpy as np
import pytest

from gmkernels import arrays

WHOLE = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "array", [WHOLE, WHOLE[1], WHOLE[::-1, :, ::2], WHOLE.T[1:], WHOLE[0, 0, 0:1], np.broadcast_to(WHOLE[0, 0], (5, 4))]
)
def test_bounds_and_address_are_numpys(array):
    assert arrays.byte_bounds(array) == np.lib.array_utils.byte_bounds(array)
    assert arrays.address(array) == array.ctypes.data


def test_what_numpy_made_belongs_to_numpy():
    assert arrays.is_array(WHOLE) and not arrays.is_array([1.0]) and not arrays.is_array(np.float32(1))
    assert not arrays.on_gpu(WHOLE) and arrays.namespace(WHOLE, WHOLE[0]) is np
