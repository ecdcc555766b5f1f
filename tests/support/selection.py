"""Which tests have arrays on a GPU, real or emulated: those that ``-m gpu`` selects where there is one.

The rule takes the place of a mark in each file. Where the GPU is emulated it is checked against what a test did.
"""

import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

PLACES = {
    **dict.fromkeys(("gpu", "cupy", "cuda", "cuda:0", "triton"), True),
    **dict.fromkeys(("cpu", "numpy", "reference"), False),
}
"""Names of devices, libraries and backends, and whether their arrays lie on a GPU."""


def is_on_gpu(item: pytest.Item) -> bool:
    """Whether a test has arrays on a GPU.

    A parameter says it, a text or a tuple's attribute `device`; without one, the names in the test's code and in that
    of the fixtures and functions of its module that it uses.

    Parameters
    ----------
    item : the test.
    """
    parameters = getattr(item, "callspec", types.SimpleNamespace(params={})).params.values()
    named = [getattr(value, "device", None) if isinstance(value, tuple) else value for value in parameters]
    said = [PLACES[name] for name in named if isinstance(name, str) and name in PLACES]
    if said:
        return any(said)
    tests = _functions(getattr(item, "function", None))
    fixtures = [test.__globals__.get(name) for test in tests for name in getattr(item, "fixturenames", ())]
    return any(map(_names_gpu, [*tests, *(f for value in fixtures for f in _functions(value))]))


def _functions(value: Any) -> list[types.FunctionType]:
    """The function in what decorators have made of it, or the methods of a class."""
    if isinstance(value, type):
        return [method for method in vars(value).values() if isinstance(method, types.FunctionType)]
    value = inspect.unwrap(value)
    value = getattr(getattr(value, "hypothesis", None), "inner_test", value)
    return [value] if isinstance(value, types.FunctionType) else []


@functools.cache
def _names_gpu(function: types.FunctionType) -> bool:
    """Whether a function, or what of its module it names, names CuPy, a device of CUDA, or a module with CuPy."""
    known, waiting = {function}, [function]
    while waiting:
        user = waiting.pop()
        for name in (*_names(user.__code__), *_texts(user.__defaults__), *_texts((user.__kwdefaults__ or {}).values())):
            if PLACES.get(name) and name not in ("gpu", "triton"):  # also names of tests' own, and of packages
                return True
            value = user.__globals__.get(name)
            if isinstance(value, types.ModuleType) and hasattr(value, "cupy"):
                return True
            named = {f for f in _functions(value) if f.__module__ == function.__module__} - known
            known |= named
            waiting += named
    return False


def _names(code: types.CodeType) -> Iterator[str]:
    """The names and the texts in a piece of code, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
        else:
            yield from _texts(constant if isinstance(constant, tuple) else (constant,))


def _texts(values: Iterable[Any] | None) -> list[str]:
    return [value for value in values or () if isinstance(value, str)]
