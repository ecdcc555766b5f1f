"""Tensor: dtypes, weak numbers, the border to NumPy, and what is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, ops
from gmcore.errors import ArgumentError, DtypeError, GraphError, ShapeError

F32, F64, I64, BOOL = np.dtype("float32"), np.dtype("float64"), np.dtype("int64"), np.dtype(bool)


@pytest.mark.parametrize(
    "x, dtype",
    [
        (1.5, F32),
        (2, I64),
        (True, BOOL),
        ([1.0, 2.0], F32),
        ([1, 2.5], F32),
        ([[1, 2], [3, 4]], I64),
        ([True, False], BOOL),
        (np.float64(1.0), F64),
        (np.zeros(3), F64),
        (np.zeros(3, np.float32), F32),
        (np.zeros(3, np.int32), np.dtype("int32")),
        (np.zeros(3, np.uint8), np.dtype("uint8")),
        (np.zeros(3, bool), BOOL),
        (gmcore.tensor([1.0], dtype="float64"), F64),
    ],
)
def test_dtypes_of_construction(x: Any, dtype: np.dtype) -> None:
    """Python numbers become float32, int64 or bool; arrays and tensors keep their dtype."""
    t = gmcore.tensor(x)
    assert t.dtype == dtype and t.is_leaf and not t.requires_grad
    assert gmcore.tensor(x, dtype="float64").dtype == F64


def test_shapes_of_construction() -> None:
    t = gmcore.tensor([[1.0, 2.0, 3.0]])
    assert (t.shape, t.ndim, t.size, len(t), t.device) == ((1, 3), 2, 3, 1, "cpu")
    assert gmcore.tensor(2.0).shape == () and gmcore.tensor([]).shape == (0,)
    with pytest.raises(DtypeError, match=r"a sequence of tensors; join them with gmcore\.ops\.stack"):
        gmcore.tensor([gmcore.tensor(1.0), gmcore.tensor(2.0)])
    with pytest.raises(TypeError, match="a tensor of no dimensions has no length"):
        len(gmcore.tensor(2.0))


def test_construction_copies_and_as_tensor_does_not() -> None:
    a = np.zeros(3)
    t, shared = gmcore.tensor(a), gmcore.as_tensor(a)
    a[0] = 1.0
    assert t.tolist() == [0.0, 0.0, 0.0] and shared.tolist() == [1.0, 0.0, 0.0]
    assert gmcore.as_tensor(t) is t
    assert gmcore.as_tensor(1.0).dtype == F32


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_another_order_of_bytes(dtype: str) -> None:
    """Arrays of files: kernels would take their bytes for other numbers."""
    a = np.arange(6).reshape(2, 3).astype(dtype)
    swapped = a.astype(a.dtype.newbyteorder("S"))
    one = gmcore.tensor(1.0, a.dtype.newbyteorder("S"))
    for t in (gmcore.tensor(swapped), gmcore.as_tensor(swapped), one * swapped, ops.multiply(swapped, 1)):
        assert t.dtype == dtype and t.dtype.isnative and t.tolist() == a.tolist()
    assert ops.sum(swapped).item() == 15
    step = gmcore.capture(lambda x: ops.sum(ops.square(x)))
    assert [step(swapped + np.array(i, dtype)).item() for i in range(4)] == [np.square(a + i).sum() for i in range(4)]
    x = gmcore.tensor(swapped.astype(">f8"), requires_grad=True)
    assert ops.matmul(x, swapped.T.astype(">f8")).tolist() == (a @ a.T).tolist()
    assert gmcore.grad(ops.sum(ops.exp(x)), x).tolist() == np.exp(a.astype(float)).tolist()


@pytest.mark.parametrize("x", ["text", None, 1j, [[1.0], [1.0, 2.0]], object(), np.array(["a"]), np.zeros(2, "c8"),
                               np.ma.array([1.0, 2.0], mask=[True, False])])  # fmt: skip
def test_what_is_no_number_is_refused(x: Any) -> None:
    for function in (gmcore.tensor, gmcore.as_tensor, ops.sum):
        with pytest.raises(DtypeError, match="cannot make a tensor of"):
            function(x)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_of_subclasses_are_arrays(tmp_path: Path) -> None:
    a = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    mapped = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=a.shape)
    mapped[...] = a
    step = gmcore.capture(lambda x: ops.sum(ops.square(x), axis=0))
    for x in (mapped, np.matrix(a)):
        assert type(gmcore.as_tensor(x)._data) is np.ndarray and np.shares_memory(gmcore.as_tensor(x)._data, x)
        assert ops.sum(x, axis=0).tolist() == a.sum(0).tolist() and ops.ravel(x).shape == (4,)
        for _ in range(3):
            assert step(x).tolist() == np.square(a).sum(0).tolist()


def test_devices() -> None:
    assert gmcore.tensor([1.0], device="cpu").to("cpu").device == "cpu"
    with pytest.raises(ArgumentError, match="device 'gpu'; expected 'cpu', 'cuda' or 'cuda:0'"):
        gmcore.tensor([1.0], device="gpu")


# -- weak numbers ------------------------------------------------------------------------------------------------
OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("number", [2.0, 3, True, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_python_numbers_are_weak(name: str, number: Any, dtype: str) -> None:
    """Operators with Python numbers on either side give NumPy's values and dtypes (NEP 50)."""
    a = np.array([1, 2, 4], dtype)
    t = gmcore.tensor(a)
    for ours, numpys in (
        (OPERATORS[name](t, number), OPERATORS[name](a, number)),
        (OPERATORS[name](number, t), OPERATORS[name](number, a)),
    ):
        assert ours.dtype == numpys.dtype
        np.testing.assert_array_equal(ours.numpy(), numpys)
    if dtype == "float32" and name in "+-*/**":
        assert OPERATORS[name](t, number).dtype == F32


@pytest.mark.parametrize("name", [n for n in OPERATORS if n in "+-*/**"])
def test_gradients_of_operators_stay_float32(name: str) -> None:
    x = gmcore.tensor([1.0, 2.0], requires_grad=True)
    for y in (OPERATORS[name](x, 2.0), OPERATORS[name](2.0, x)):
        assert gmcore.grad(ops.sum(y), x).dtype == F32


def test_numpy_scalars_are_not_weak() -> None:
    assert (gmcore.tensor([1.0]) * np.float64(2.0)).dtype == F64
    x = gmcore.tensor([1.0], requires_grad=True)
    assert gmcore.grad(ops.sum(x * np.float64(2.0)), x).dtype == F32


def test_other_operators_and_methods() -> None:
    a = np.array([[1.0, -2.0], [3.0, 4.0]])
    t = gmcore.tensor(a)
    pairs = [
        (-t, -a),
        (abs(t), abs(a)),
        (t @ t, a @ a),
        (a @ t, a @ a),
        (t @ a, a @ a),
        (t.T, a.T),
        (t[1, ::-1], a[1, ::-1]),
        (t[t > 0], a[a > 0]),
        (t[gmcore.tensor([1, 0])], a[[1, 0]]),
        (t.sum(), a.sum()),
        (t.sum(0, True), a.sum(0, keepdims=True)),
        (t.mean(axis=1), a.mean(1)),
        (t.max(-1), a.max(-1)),
        (t.reshape(4), a.reshape(4)),
        (t.reshape(1, -1), a.reshape(1, -1)),
        (t.reshape((4, 1)), a.reshape(4, 1)),
        (t.transpose(1, 0), a.T),
        (t.transpose(), a.T),
        (t.exp(), np.exp(a)),
        (abs(t).log(), np.log(abs(a))),
        (abs(t).sqrt(), np.sqrt(abs(a))),
        (t.tanh(), np.tanh(a)),
        (t.sigmoid(), 1 / (1 + np.exp(-a))),
        (t.astype("int64"), a.astype("int64")),
        (+t, a),
        (t.min(0), a.min(0)),
        (t.prod(1, keepdims=True), a.prod(1, keepdims=True)),
        (t.var(0, ddof=1), a.var(0, ddof=1)),
        (t.std(keepdims=True), a.std(keepdims=True)),
        (t.norm(axis=1), np.linalg.norm(a, axis=1)),
        (t.logsumexp(0), np.logaddexp.reduce(a, 0)),
        (t.any(0), a.any(0)),
        (t.all(), a.all()),
        (t.argmax(1), a.argmax(1)),
        (t.argmin(), a.argmin()),
        (t.argsort(0), a.argsort(0)),
        (t.cumsum(1), a.cumsum(1)),
        (t.cumprod(), a.cumprod()),
        (t.clip(-1.0, max=3.5), a.clip(-1.0, 3.5)),
        (t.take([1, 0], axis=1), a.take([1, 0], 1)),
        (t.repeat(2, axis=0), a.repeat(2, 0)),
        (t[None].squeeze(), a),
        (t.swapaxes(0, 1), a.swapaxes(0, 1)),
        (t.ravel(), a.ravel()),
        (t[None].flatten(1), a.reshape(1, 4)),
    ]
    for ours, numpys in pairs:
        assert isinstance(ours, Tensor) and ours.dtype == numpys.dtype and ours.shape == numpys.shape
        np.testing.assert_allclose(ours.numpy(), numpys, rtol=1e-15)


@pytest.mark.parametrize("a, b", [([True, False, True], [True, True, False]), ([1, 6, 4], [3, 5, 0])])
def test_bitwise_operators(a: list[Any], b: list[Any]) -> None:
    """Of booleans and integers, on either side of an array and of a number."""
    x, y = np.array(a), np.array(b)
    t, u = gmcore.tensor(a), gmcore.tensor(b)
    for ours, numpys in (
        (t & u, x & y), (t | u, x | y), (t ^ u, x ^ y), (~t, ~x), (t & y, x & y), (x | u, x | y), (a[0] ^ u, a[0] ^ y),
        (a[0] & u, a[0] & y), (a[0] | u, a[0] | y),
    ):  # fmt: skip
        assert isinstance(ours, Tensor) and ours.dtype == numpys.dtype
        np.testing.assert_array_equal(ours.numpy(), numpys)


def test_augmented_assignment_makes_a_new_tensor() -> None:
    x = y = gmcore.tensor([1.0], requires_grad=True)
    y += 1.0
    y *= 3.0
    assert x.tolist() == [1.0] and y.tolist() == [6.0] and x.is_leaf and not y.is_leaf
    assert gmcore.grad(y, x).tolist() == [3.0]


# -- the border to NumPy -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPERATORS)
def test_arrays_on_the_left_give_tensors(name: str) -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    out = OPERATORS[name](a, gmcore.tensor(b, requires_grad=True))
    assert isinstance(out, Tensor) and out.shape == (3,)
    np.testing.assert_array_equal(out.detach().numpy(), OPERATORS[name](a, b))
    scalar = OPERATORS[name](np.float64(2.0), gmcore.tensor(b))
    assert isinstance(scalar, Tensor)
    np.testing.assert_array_equal(scalar.numpy(), OPERATORS[name](2.0, b))


def test_an_array_written_into_by_a_tensor_on_the_tape_is_refused() -> None:
    a = np.ones(2)
    for t in (gmcore.tensor([1.0, 2.0], requires_grad=True), gmcore.tensor([1.0, 2.0], requires_grad=True) * 2.0):
        with pytest.raises(GraphError, match=r"numpy\.add with these arguments would cut the tape"):
            np.add(a, t, out=a)
        with pytest.raises(GraphError, match=r"numpy\.add with these arguments would cut the tape"):
            a += t
    assert a.tolist() == [1.0, 1.0]


def test_arrays_of_tensors() -> None:
    t = gmcore.tensor([1.0, 2.0])
    a = np.asarray(t)
    assert a.dtype == F32 and np.shares_memory(a, t.numpy())
    assert np.asarray(t, dtype="float64").dtype == F64
    copied = np.array(t)
    assert not np.shares_memory(copied, t.numpy()) and copied.flags.writeable
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, dtype="float64", copy=False)
    t.requires_grad = True
    for convert in (np.asarray, np.array, Tensor.numpy):
        with pytest.raises(GraphError, match=r"would cut the tape; call \.detach\(\)\.numpy\(\) if that is meant"):
            convert(t)
    with pytest.raises(GraphError, match="would cut the tape"):
        np.asarray(t * 2.0)


def test_numpy_is_read_only_unless_asked() -> None:
    t = gmcore.tensor([1.0, 2.0])
    view = t.numpy()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(t)[0] = 5.0
    assert t.version == 0
    t.numpy(writable=True)[0] = 5.0
    assert t.version == 1 and t.tolist() == [5.0, 2.0] and view[0] == 5.0


def test_copy_bumps_the_version_and_checks_dtype() -> None:
    t = gmcore.tensor([1.0, 2.0], requires_grad=True)
    assert t.copy_(gmcore.tensor([3.0, 4.0])) is t
    assert t.version == 1 and t.tolist() == [3.0, 4.0] and t.requires_grad
    t.copy_(np.array([1.0, 2.0]))  # float64 into float32 is of the same kind
    assert t.dtype == F32
    with pytest.raises((DtypeError, TypeError)):
        gmcore.tensor([1, 2]).copy_([0.5, 0.5])


# -- numbers, text, truth ------------------------------------------------------------------------------------------
def test_numbers() -> None:
    t = gmcore.tensor([[1.5]])
    assert (t.item(), float(t), int(t), bool(t)) == (1.5, 1.5, 1, True)
    assert isinstance(t.item(), float) and isinstance(gmcore.tensor(3).item(), int)
    assert not gmcore.tensor([0.0]) and gmcore.tensor(2.0, requires_grad=True).item() == 2.0
    two = gmcore.tensor([1.0, 2.0])
    for convert in (Tensor.item, float, int, bool):
        with pytest.raises(ShapeError, match=r"needs a tensor of one element, this one has shape \(2,\)"):
            convert(two)
    assert two.tolist() == [1.0, 2.0]


def test_iteration_ends() -> None:
    assert [t.item() for t in gmcore.tensor([1.0, 2.0])] == [1.0, 2.0]
    first, second = gmcore.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert second.tolist() == [3.0, 4.0] and first.shape == (2,)


def test_text() -> None:
    assert repr(gmcore.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(gmcore.tensor([1, 2])) == "tensor([1, 2])"
    assert repr(gmcore.tensor(True)) == "tensor(True)"
    assert repr(gmcore.tensor([1.0], "float64")) == "tensor([1.], dtype=float64)"
    x = gmcore.tensor([1.0], requires_grad=True)
    assert repr(x) == "tensor([1.], requires_grad=True)"
    assert repr(x * 2.0) == "tensor([2.], op=multiply)"
    assert len(repr(gmcore.tensor(np.zeros(100_000)))) < 300
    assert f"{gmcore.tensor(1.23456):.2f} {gmcore.tensor(7):d} {x}" == f"1.23 7 {x!r}"
    with pytest.raises(ShapeError, match="one element"):
        f"{gmcore.tensor([1.0, 2.0]):.2f}"


def test_equality_is_elementwise_and_hash_is_identity() -> None:
    a, b = gmcore.tensor([1.0, 2.0]), gmcore.tensor([1.0, 3.0])
    assert (a == b).tolist() == [True, False] and (a != b).tolist() == [False, True]
    assert len({a, b, a}) == 2 and hash(a) == hash(a)


# -- refusals ----------------------------------------------------------------------------------------------------
def test_assignment_names_the_functional_way() -> None:
    t = gmcore.tensor([1.0, 2.0])
    with pytest.raises(GraphError, match=r"do not change in place; use gmcore\.ops\.set_at.*copy_ for a whole leaf"):
        t[0] = 5.0
    assert t.tolist() == [1.0, 2.0]
    with pytest.raises(AttributeError):
        t.shape = (2, 1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        t.colour = "blue"  # type: ignore[attr-defined]


def test_copies_are_independent() -> None:
    t = gmcore.tensor([1.0, 2.0], requires_grad=True)
    nested = {"a": t, "b": [t]}
    copied = copy.deepcopy(nested)
    other = copied["a"]
    assert other is not t and other is copied["b"][0]
    assert isinstance(other, Tensor) and other.requires_grad and other.dtype == F32 and other.grad is None
    other.copy_([9.0, 9.0])
    assert t.tolist() == [1.0, 2.0] and t.version == 0


def test_pickling_is_refused() -> None:
    with pytest.raises(TypeError, match=r"not pickled; save arrays with gmcore\.io\.save \(safetensors\)"):
        pickle.dumps(gmcore.tensor([1.0]))
    with pytest.raises(TypeError, match="not pickled"):
        copy.copy(gmcore.tensor([1.0]))


def test_a_tensor_on_the_tape_is_not_copied_off_it() -> None:
    x = gmcore.tensor([1.0], requires_grad=True)
    with pytest.raises(GraphError, match=r"tensor\(\) copies numbers and would cut the tape; call \.detach\(\)"):
        gmcore.tensor(x)
    assert not gmcore.tensor(x.detach()).requires_grad


def test_copy_refuses_another_kind_of_number() -> None:
    t = gmcore.tensor([1, 2])
    with pytest.raises(DtypeError, match="copy_: expected numbers that fit int64, got float64"):
        t.copy_(np.array([0.5, 0.5]))
    assert t.tolist() == [1, 2] and t.version == 0


def test_copy_refuses_memory_that_is_read_only() -> None:
    array = np.zeros(2)
    array.flags.writeable = False
    t = gmcore.as_tensor(array)
    with pytest.raises(ArgumentError, match=rf"copy_: .* float64\[2\], is read-only.*{__file__}"):
        t.copy_([1.0, 2.0])
    assert t.version == 0
