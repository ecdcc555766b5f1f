"""NumPy's functions work on tensors, or refuse; no result has lost its tape."""

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, tensor
from gmcore.errors import ArgumentError, GmcoreError, GraphError
from gmcore.numpy_functions import FUNCTIONS
from gmcore.op import OPS

X = np.array([[1.0, 2.0], [4.0, 3.5]])
V = np.array([0.5, 0.25])
POSITIVE = np.array([[2.0, 0.5], [0.5, 1.0]])
CALLS: dict[Callable[..., Any], list[Callable[..., Any]]] = {
    **{
        f: [lambda x, f=f: f(x), lambda x, f=f: f(x, 1), lambda x, f=f: f(x, axis=0)]
        for f in (np.all, np.any, np.argmax, np.argmin, np.cumprod, np.cumsum, np.max, np.mean, np.median, np.min)
    },
    **{
        f: [lambda x, f=f: f(x), lambda x, f=f: f(x, (0, 1)), lambda x, f=f: f(x, axis=0, keepdims=True)]
        for f in (np.sum, np.prod, np.var, np.std)
    },
    **{f: [lambda x, f=f: f(x)] for f in (np.atleast_1d, np.atleast_2d, np.atleast_3d, np.ravel)},
    **{f: [lambda x, f=f: f(x), lambda x, f=f: f(x, 1)] for f in (np.diag, np.tril, np.triu)},
    **{f: [lambda x, f=f: f(x, x + 1.0), lambda x, f=f: f(V, x)] for f in (np.dot, np.matmul)},
    **{f: [lambda x, f=f: f(x)] for f in (np.linalg.det, np.linalg.inv, np.linalg.slogdet)},
    np.inner: [lambda x: np.inner(x, V), lambda x: np.inner(V, x)],
    np.outer: [lambda x: np.outer(x, V)],
    np.argsort: [lambda x: np.argsort(x), lambda x: np.argsort(x, 0)],
    np.sort: [lambda x: np.sort(x), lambda x: np.sort(x, axis=0)],
    np.array_split: [lambda x: np.array_split(x, 2), lambda x: np.array_split(x, [1], axis=1)],
    np.split: [lambda x: np.split(x, 2), lambda x: np.split(x, [1], 1)],
    np.broadcast_to: [lambda x: np.broadcast_to(x, (3, 2, 2))],
    np.clip: [lambda x: np.clip(x, 1.5, 3.6), lambda x: np.clip(x, a_min=1.5, a_max=None), lambda x: np.clip(x, max=3)],
    np.concatenate: [lambda x: np.concatenate([x, X]), lambda x: np.concatenate((X, x), axis=1)],
    np.stack: [lambda x: np.stack([x, X]), lambda x: np.stack([x, x], axis=-1)],
    np.diagonal: [lambda x: np.diagonal(x), lambda x: np.diagonal(x, 1)],
    np.trace: [lambda x: np.trace(x), lambda x: np.trace(x, offset=1)],
    np.einsum: [lambda x: np.einsum("ij,j", x, V), lambda x: np.einsum("ij->ji", x)],
    np.expand_dims: [lambda x: np.expand_dims(x, 1)],
    np.flip: [lambda x: np.flip(x), lambda x: np.flip(x, 1)],
    np.meshgrid: [lambda x: np.meshgrid(x[0], x[1]), lambda x: np.meshgrid(x[0], x[1], indexing="ij")],
    np.moveaxis: [lambda x: np.moveaxis(x, 0, 1)],
    np.nan_to_num: [lambda x: np.nan_to_num(x), lambda x: np.nan_to_num(x, nan=2.0)],
    np.pad: [lambda x: np.pad(x, 1), lambda x: np.pad(x, ((0, 1), (1, 0)), constant_values=2.0)],
    np.quantile: [lambda x: np.quantile(x, 0.3), lambda x: np.quantile(x, 0.3, axis=1)],
    np.repeat: [lambda x: np.repeat(x, 2), lambda x: np.repeat(x, 2, axis=1)],
    np.reshape: [lambda x: np.reshape(x, (4,)), lambda x: np.reshape(x, -1)],
    np.roll: [lambda x: np.roll(x, 1), lambda x: np.roll(x, 1, axis=0)],
    np.squeeze: [lambda x: np.squeeze(x[:1]), lambda x: np.squeeze(x[:1], axis=0)],
    np.swapaxes: [lambda x: np.swapaxes(x, 0, 1)],
    np.take: [lambda x: np.take(x, [0, 3, 3]), lambda x: np.take(x, [1], axis=1)],
    np.take_along_axis: [lambda x: np.take_along_axis(x, np.array([[1], [0]]), axis=1)],
    np.tensordot: [lambda x: np.tensordot(x, X), lambda x: np.tensordot(x, V, axes=1)],
    np.tile: [lambda x: np.tile(x, (2, 1))],
    np.transpose: [lambda x: np.transpose(x), lambda x: np.transpose(x, (1, 0))],
    np.where: [lambda x: np.where(X > 2, x, 0.0), lambda x: np.where(X > 2, X, x)],
    np.linalg.cholesky: [lambda x: np.linalg.cholesky(x * 0.0 + POSITIVE)],
    np.linalg.solve: [lambda x: np.linalg.solve(x, X), lambda x: np.linalg.solve(x, V)],
    np.linalg.vector_norm: [lambda x: np.linalg.vector_norm(x), lambda x: np.linalg.vector_norm(x, axis=1, ord=3)],
}
UFUNCS = {op.forward: op for op in OPS.values() if isinstance(op.forward, np.ufunc)}


def results(value: Any) -> Iterator[Any]:
    """The arrays, tensors and numbers in what a function returned."""
    if isinstance(value, (list, tuple, set)):
        for item in value:
            yield from results(item)
    elif isinstance(value, dict):
        yield from results(list(value.values()))
    else:
        yield value


def test_every_function_is_called_below() -> None:
    assert set(FUNCTIONS) == set(CALLS) | set(UFUNCS)


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_a_function_is_numpys_and_stays_on_the_tape(function: Callable[..., Any]) -> None:
    for call in CALLS[function]:
        x = tensor(X, requires_grad=True)
        found, expected = list(results(call(x))), list(results(call(X)))
        for y, e in zip(found, expected, strict=True):
            assert isinstance(y, Tensor) and y.requires_grad == (y.dtype.kind == "f")
            np.testing.assert_allclose(y.detach().numpy(), e, rtol=1e-13, atol=1e-13)
        ys = [y for y in found if y.dtype.kind == "f"]
        if ys and function is not np.linalg.cholesky:
            gmcore.grad(ys, x, [np.ones(y.shape) for y in ys])


@pytest.mark.parametrize("function", UFUNCS, ids=lambda f: f.__name__)
def test_a_ufunc_is_its_op(function: np.ufunc) -> None:
    op = UFUNCS[function]
    for args, _ in op.examples(np.random.default_rng(0)):
        tensors = [tensor(a, requires_grad=a.dtype.kind == "f") for a in args]
        for i in range(len(args)):  # a tensor among arrays, and tensors alone
            y = function(*[t if i in (j, len(args) - 1) else a for j, (t, a) in enumerate(zip(tensors, args))])
            assert isinstance(y, Tensor) and y.requires_grad == (y.dtype.kind == "f")
            np.testing.assert_array_equal(y.detach().numpy(), function(*args))


# -- all of NumPy ----------------------------------------------------------------------------------------------
def namespace() -> dict[str, Callable[..., Any]]:
    """Everything that can be called in NumPy's public namespaces, by its path."""
    found: dict[str, Callable[..., Any]] = {}
    for module in (np, np.linalg, np.fft, np.random):
        for name in sorted(set(dir(module))):
            value = getattr(module, name)
            if name.startswith("_") or isinstance(value, types.ModuleType) or not callable(value):
                continue
            if not (inspect.isclass(value) and issubclass(value, BaseException)):
                found[f"{module.__name__}.{name}"] = value
    return found


NOT_NUMBERS = {
    "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.savetxt", "numpy.info", "numpy.test",
    "numpy.show_config", "numpy.show_runtime", "numpy.printoptions", "numpy.set_printoptions", "numpy.seterr",
    "numpy.seterrcall", "numpy.setbufsize", "numpy.errstate", "numpy.random.seed", "numpy.random.set_state",
    "numpy.random.set_bit_generator",
    "numpy.linalg.test", "numpy.fft.test", "numpy.random.test", "numpy.load", "numpy.loadtxt", "numpy.genfromtxt",
    "numpy.fromfile", "numpy.fromregex", "numpy.memmap", "numpy.from_dlpack",
}  # fmt: skip
"""They write files or settings, print, or (from_dlpack) have a test of their own."""
NUMBERS_FROM_ELEMENTS = {
    f"numpy.{name}" for name in ("float64", "double", "complex64", "csingle", "complex128", "cdouble", "fromiter")
}
"""They call ``float()`` of tensors of one element, which gives a Python number as `Tensor.item` does."""
NOT_INITIALISED = {"numpy.empty", "numpy.empty_like", "numpy.ndarray"}


def forms(v: np.ndarray, x: np.ndarray) -> list[tuple[Any, ...]]:
    """Arguments to try: of the values v and x, tensors that require a gradient, among arrays and numbers."""
    t, square = tensor(v, requires_grad=True), tensor(x, requires_grad=True)
    one = t[:1]
    return [
        (t,), (square,), (t, t), ([t, t],), ((square, square),), (V, t), (t, V), (t, 1), (1, t), (t, 0.5), (square, X),
        (X, square), (V, V, t), (t, t, t), (one,), (one, one), (2, one), (V > 0.3, t, V), (V, [0], t), ("i,i", t, t),
    ]  # fmt: skip


def off_tape(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """The floating results that are not on the tape; an error gives none."""
    try:
        out = function(*args)
    except Exception as error:  # of whatever class: NumPy's own for calls that make no sense to it
        assert str(error)
        return []
    # An array of objects that holds the tensors themselves has lost nothing.
    plain = (np.ndarray, np.inexact, float, complex)
    found = [y.detach().numpy() if isinstance(y, Tensor) and not y.requires_grad else y for y in results(out)]
    return [y for y in found if isinstance(y, plain) and np.asarray(y).dtype.kind in "fc"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(namespace()) - NOT_NUMBERS - NUMBERS_FROM_ELEMENTS - NOT_INITIALISED))
def test_no_function_of_numpy_detaches(name: str) -> None:
    """What a function returns off the tape does not depend on the numbers in the tensors it was given."""
    function = namespace()[name]
    for args, others in zip(forms(V, X), forms(V + 0.125, X * 1.5), strict=True):
        before = [a.copy() for a in args if isinstance(a, np.ndarray)]
        found = off_tape(function, args)
        if found:
            for y, z in zip(found, off_tape(function, others), strict=True):
                np.testing.assert_array_equal(y, z, err_msg=f"{name}{args}")
        for a, b in zip((a for a in args if isinstance(a, np.ndarray)), before, strict=True):
            np.testing.assert_array_equal(a, b)


# -- refusals --------------------------------------------------------------------------------------------------
def test_errors_name_the_function_the_remedy_and_the_line() -> None:
    t = tensor(X, requires_grad=True)
    for call, match in (
        (lambda: np.fft.fft(t), r"numpy\.fft would cut the tape .*\.detach\(\).*test_numpy_functions\.py:\d"),
        (lambda: np.sum(t, dtype="f8"), r"numpy\.sum with these arguments would cut"),
        (lambda: np.linalg.norm(t, 2), r"numpy\.norm with these arguments would cut"),
        (lambda: np.add.reduce(t), r"numpy\.add\.reduce would cut"),
        (lambda: np.histogram(V, weights=t[0]), r"numpy\.histogram would cut"),
        (lambda: np.asarray(t), r"\.detach\(\)"),
        (lambda: np.array([t[0, 0], t[0, 1]]), r"\.detach\(\)"),
    ):
        with pytest.raises(GraphError, match=match):
            call()
    for call in (lambda: np.add(X, X, out=t), lambda: np.sum(X, out=t.detach())):
        with pytest.raises(ArgumentError, match="out is a tensor"):
            call()
    with pytest.raises(GraphError):
        X.copy()[0] = t[0]


def test_a_tensor_off_the_tape_is_an_array_to_other_functions() -> None:
    t = tensor(X)
    np.testing.assert_array_equal(np.fft.fft(t), np.fft.fft(X))
    assert np.allclose(t, X) and np.linalg.norm(t) == np.linalg.norm(X) and np.add.reduce(t).tolist() == [5.0, 5.5]
    out = np.zeros((2, 2))
    np.add(t, 1.0, out=out)
    np.testing.assert_array_equal(out, X + 1.0)
    with pytest.raises(ValueError, match="read-only"):
        np.copyto(t, 0.0)
    np.testing.assert_array_equal(t.numpy(), X)


def test_shapes_can_be_asked_for() -> None:
    t = tensor(X.astype(np.float32), requires_grad=True)
    assert np.shape(t) == (2, 2) and np.ndim(t) == 2 and np.size(t) == 4 and np.result_type(t, 1.0) == np.float32
    assert np.zeros_like(t).dtype == np.float32 and np.ones_like(t).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_an_array_of_a_class_of_its_own_decides() -> None:
    class Other(np.lib.mixins.NDArrayOperatorsMixin):
        def __array_function__(self, function, kinds, args, kwargs):
            return "other"

    assert np.concatenate([tensor(X), Other()]) == "other"


def test_errors_of_the_operation_come_through() -> None:
    with pytest.raises(GmcoreError, match="concatenate"):
        np.concatenate([tensor(X, requires_grad=True), V])
