"""Fused functions: the same numbers and derivatives as the operations, or an error that names what cannot be."""

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Tensor, fuse, gradcheck, ops, tensor
from gmcore.errors import ArgumentError, ShapeError
from gmkernels.chain import SMALLEST

RNG = np.random.default_rng(0)


def curve(x, row, number, power=2.0):
    """Uses every rule that has steps of its own: selection, ties, broadcasting, numbers."""
    bent = ops.where(x > row, ops.tanh(x * row), ops.maximum(x, number) - row)
    return bent * number + ops.minimum(x, 1.0) ** power / (1.0 + ops.exp(row))


def arguments(*shapes, dtype="float64"):
    return [tensor(RNG.standard_normal(shape), dtype, requires_grad=True) for shape in shapes]


def bent(x, row, number):
    return ops.where(x > row, ops.tanh(x * row), number * x)


@pytest.mark.parametrize("function, shape", [(curve, (4, 7)), (bent, (SMALLEST // 512, 512))])  # NumPy's; compiled
def test_values_and_gradients_are_those_of_the_operations(function, shape):
    xs, g = arguments(shape, shape[1:], ()), tensor(RNG.standard_normal(shape))
    y, expected = fuse(function)(*xs), function(*xs)
    assert y._node.op.name == "fused"
    # Elementary functions of 4 u, and sums of up to 40,000 of their errors in the gradients of row and number.
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=1e-14, atol=1e-14)
    for a, b in zip(gmcore.grad(y, xs, g), gmcore.grad(expected, xs, g), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-11, atol=1e-11)


def test_only_the_gradients_that_are_wanted_are_computed():
    xs, g = arguments((2, 3), (3,), ()), tensor(np.ones((2, 3)))
    fused = fuse(curve)
    for wanted in (xs[:1], xs[1:]):
        found, expected = (gmcore.grad(function(*xs), wanted, g) for function in (fused, curve))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-13)
    (chain,) = fused._chains.values()
    assert [len(gradient.spec.outputs) for gradient in chain._gradients.values()] == [1, 2]


def test_derivatives_of_order_three():
    x, row, number = 0.3 + RNG.random((2, 3)), 0.2 * RNG.random(3), np.asarray(0.1)  # one side of every kink
    assert gradcheck(fuse(lambda *xs: curve(*xs, power=3.0)), [x, row, number], order=3)


def test_options_are_constants_and_one_program_serves_what_comes_out_the_same():
    seen = []

    @fuse
    def scaled(x, factor, shift=0.0):
        """Scaled."""
        seen.append(factor)
        return x * factor + shift

    x = arguments((3,))[0]
    for factor in (2.0, 3.0, 2.0):
        np.testing.assert_array_equal(scaled(x, factor).detach().numpy(), x.detach().numpy() * factor)
    assert seen == [2.0, 3.0] and scaled.__doc__ == "Scaled."
    np.testing.assert_array_equal(scaled(x, x, shift=x).detach().numpy(), (x * x + x).detach().numpy())
    assert scaled(x[:2], 2.0).shape == (2,) and len(seen) == 4
    with pytest.raises(ArgumentError, match=r"must be hashable, got \[1\]"):
        scaled(x, [1])


def test_other_dtypes_go_through_the_operations():
    def cube(x, y):
        return x * x * y

    x, y = np.array([1, 2]), np.array([0.5, 1.0], np.float32)
    for a, b in ((x, x), (x, y), (y.astype(np.float16), y.astype(np.float16))):
        found = fuse(cube)(a, b)
        assert found.dtype == cube(Tensor(a), Tensor(b)).dtype and found.tolist() == cube(a, b).tolist()


def test_fused_functions_may_be_parts_of_fused_functions():
    x = arguments((SMALLEST,))[0]
    inner = fuse(lambda x: ops.tanh(x))
    found = fuse(lambda x: inner(x) + ops.silu(x))
    with gmkernels.use("reference"):
        y = found(x)
    expected = ops.tanh(x) + ops.silu.__wrapped__(x)
    np.testing.assert_array_equal(y.detach().numpy(), expected.detach().numpy())


OUTSIDE, TRAINED = tensor(np.ones(3)), tensor(2.0, requires_grad=True)
REFUSED = {
    "sum": (lambda x: x / ops.sum(x), "sum is not an elementwise operation"),
    "matmul": (lambda x: x @ x, "matmul is not an elementwise operation"),
    "softmax": (lambda x: ops.softmax(x, axis=0), "softmax is not an elementwise operation"),
    "reshape": (lambda x: ops.reshape(x, (-1,)), "reshape is not an elementwise operation"),
    "getitem": (lambda x: x[0] + x, "getitem is not an elementwise operation"),
    "erf": (lambda x: ops.erf(x), "erf is not an elementwise operation"),
    "if": (lambda x: x if x > 0 else -x, "asks for the value"),
    "item": (lambda x: x * x.item(), "asks for the value"),
    "outside": (lambda x: x * OUTSIDE, r"uses float64\[3\] from elsewhere; make it an argument"),
    "trained": (lambda x: x * TRAINED, "requires a gradient and is no argument"),
    "boolean": (lambda x: x > 0, r"gives bool\[1, 1\], expected a tensor"),
    "number": (lambda x: 1.0, "gives 1.0, expected a tensor"),
    "constant": (lambda x: ops.exp(np.ones((1, 1))), "does not depend on its arguments"),
    "dtype": (lambda x: ops.cast(x, "float32") * 2.0, "converts float64 to float32"),
}


@pytest.mark.parametrize("function, match", REFUSED.values(), ids=REFUSED)
def test_what_is_no_elementwise_function_is_refused_with_its_line(function, match):
    with pytest.raises(ArgumentError, match=f"{match}.*test_fuse.py:"):
        fuse(function)(np.ones((1, 1)))


def test_shapes_that_do_not_broadcast_are_an_error_of_the_operation():
    with pytest.raises(ShapeError, match="multiply"):
        fuse(lambda x, y: x * y)(np.ones(2), np.ones(3))


def test_activations_of_large_arrays_are_one_operation():
    large, small = (tensor(RNG.standard_normal(n), "float32", requires_grad=True) for n in (SMALLEST, 100))
    for function in (ops.elu, ops.selu, ops.celu, ops.silu, ops.mish, ops.hardsigmoid, ops.hardswish, ops.hardshrink,
                     ops.softshrink, ops.softsign, lambda x: ops.gelu(x, "tanh")):  # fmt: skip
        with gmkernels.use("reference"):  # which need not be compiled
            y = function(large)
        assert y._node.op.name == "fused" and function(small)._node.op.name != "elementwise_chain"
        parts = np.concatenate([function(large[i : i + 100]).detach().numpy() for i in (0, 100)])
        np.testing.assert_array_equal(y.detach().numpy()[:200], parts)


@pytest.mark.parametrize("size", [7, SMALLEST])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [
    lambda x: ops.where(ops.greater(x, 0.0), ops.greater(x, 1.0), x) * 1.0,
    lambda x: ops.where(ops.greater(x, 0.0), ops.greater(x, 1.0), 2.5 * x) * x,
    lambda x: x * (ops.greater(x, 0.0) + ops.greater(x, 1.0)),
    lambda x: x * ops.maximum(ops.greater(x, 0.0), ops.less(x, -1.0)),
    lambda x: ops.where(ops.logical_and(ops.greater(x, 0.0), True), x, 0.0),
    lambda x: ops.where(ops.logical_or(x, False), ops.minimum(ops.greater(x, 0.0), x), 3.0 * x),
    lambda x: ops.where(ops.logical_not(x), x, 2.0 * x) * ops.greater(x, 1.0),
    lambda x: ops.sin(2e4 * x) + ops.cos(3e4 * x),
    lambda x: 1.0 / (0.0 * ops.square(x)) - x / (-0.0 * ops.square(x)),
    lambda x: ops.where(ops.greater(x, 0.0), x, float("nan")),
    lambda x: ops.where(ops.greater(x, 0.0), x, float("nan")) * 2.0,
])  # fmt: skip
def test_masks_constants_and_large_angles_are_those_of_the_operations(function, dtype, size):
    x = tensor(np.random.default_rng(0).uniform(-2.0, 2.0, size), dtype=dtype)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(fuse(function)(x), function(x), rtol=4 * np.finfo(dtype).eps, atol=0)


def test_constants_that_are_equal_but_not_the_same():
    x = tensor(np.ones(SMALLEST))
    scaled = fuse(lambda x, k: x * 2.0 if k is True else x * 10.0 * k)
    assert [scaled(x, k).numpy()[0] for k in (True, 1, 1.0)] == [2.0, 10.0, 10.0]
    divided = fuse(lambda x, k: x / (x * k))
    with np.errstate(divide="ignore"):
        assert [divided(x, k).numpy()[0] for k in (0.0, -0.0)] == [np.inf, -np.inf]


def test_functions_of_masks_in_half_precision_are_refused():
    with pytest.raises(ArgumentError, match="computes exp of a mask, in half precision"):
        fuse(lambda x: ops.exp(ops.greater(x, 0.0)) * x)(tensor(np.ones(3)))
