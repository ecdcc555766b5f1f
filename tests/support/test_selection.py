"""The rule by which ``-m gpu`` finds the tests that use a GPU."""

import functools
import types
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import conftest
from tests.support.selection import is_on_gpu

Case = namedtuple("Case", "device")


@functools.cache
def to_device(x):
    import cupy

    return cupy.asarray(x)


@given(st.integers())
def uses_a_function_that_copies(n):
    assert [to_device(k) for k in range(n)]


class Net:
    def __init__(self, device="cuda"):
        self.device = device


def makes_a_net():
    return Net()


def makes_tensors():
    return [make(device=device) for make in () for device in ("cpu", "cuda")]


@given(st.integers())
def draws(there, n):
    assert there == n


def computes(n=0):
    assert np.cumsum(n) == n, "triton"


@pytest.fixture
def there():
    return to_device(1)


def item(function, *fixtures, **parameters):
    return types.SimpleNamespace(
        function=function, fixturenames=fixtures, callspec=types.SimpleNamespace(params=parameters), keywords={}
    )


@pytest.mark.parametrize(
    "test, expected",
    [
        (item(uses_a_function_that_copies), True),
        (item(makes_tensors), True),
        (item(makes_a_net), True),
        (item(computes), False),
        (item(computes, "there", "request"), True),
        (item(draws, "there"), True),
        (item(computes, backend="cuda", dtype="float32"), True),
        (item(computes, x=np.zeros(2)), False),  # whose device is "cpu"
        (item(makes_tensors, library="numpy"), False),
        (item(makes_tensors, case=Case("cpu")), False),
        (item(computes, case=Case("gpu")), True),
    ],
)
def test_what_a_test_names_says_where_its_arrays_lie(test, expected, monkeypatch):
    assert is_on_gpu(test) == expected
    marks = []
    test.add_marker = lambda mark: marks.append(mark.name)
    for has_gpu in (False, True):
        monkeypatch.setattr(conftest, "HAS_GPU", has_gpu)
        conftest.pytest_collection_modifyitems([test])
    assert marks == ["gpu"] * expected, "where there is a GPU, and only there"
