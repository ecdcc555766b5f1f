"""Sums over axes: their error, their cut into stages, any axes and strides, errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmkernels
from gmkernels import KernelError, pool
from gmkernels.reduce import spec

shapes = st.lists(st.integers(0, 6), max_size=5).map(tuple)


def numbers(shape, dtype="float32", seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def exact(x, axis, keepdims=False):
    """The sums and those of the magnitudes, in long double, which adds 11 bits to a double."""
    wide = x.astype(np.longdouble)
    return np.sum(wide, axis, keepdims=keepdims), np.sum(np.abs(wide), axis, keepdims=keepdims)


def assert_within_bound(actual, x, axis, keepdims=False):
    """|error| <= n u64 sum |x| of any order of additions in float64 (Higham 1993, eq. 3.2), and u |sum| of the result's
    rounding."""
    total, magnitude = exact(x, axis, keepdims)
    assert actual.shape == total.shape and actual.dtype == x.dtype
    terms = x.size // max(1, total.size)
    bound = terms * 2.0**-53 * magnitude + np.finfo(x.dtype).eps / 2 * np.abs(total) * 1.001
    assert np.all(np.abs(actual - total) <= bound)


@settings(max_examples=60)
@given(shape=shapes, data=st.data(), keepdims=st.booleans())
def test_any_axes_of_any_strides(shape, data, keepdims):
    order = data.draw(st.permutations(range(len(shape))))
    steps = [slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in shape]
    x = np.asarray(numbers(shape).transpose(order)[tuple(steps)])
    if x.size and data.draw(st.booleans()):
        x = np.broadcast_to(x, (3, *x.shape))
    axis = tuple(data.draw(st.sets(st.integers(0, x.ndim - 1)))) if x.ndim else ()
    assert_within_bound(gmkernels.sum(x, axis, keepdims), x, axis, keepdims)


LARGE = [
    ((1031, 65), (0,)), ((70001,), (0,)), ((2, 40009), (1,)), ((200, 700), (0,)), ((64, 3, 337), (0, 2)),
    ((3, 9, 4099), (1,)), ((7, 2500, 6), (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, axis", LARGE)
def test_error_of_a_large_sum(shape, axis, dtype):
    x = numbers(shape, dtype) + np.ones((), dtype)
    assert_within_bound(gmkernels.sum(x, axis), x, axis)
    assert_within_bound(
        gmkernels.sum(x.T, tuple(x.ndim - 1 - a for a in axis)), x.T, tuple(x.ndim - 1 - a for a in axis)
    )


@pytest.mark.parametrize("shape, axis", LARGE)
def test_stages_add_up_each_axis_once_in_pieces_that_cover_it(shape, axis):
    for contiguous in (True, False):
        left = math.prod(shape)
        for stage in spec.stages(shape, axis, contiguous):
            assert math.prod(stage.shape) == left
            length = stage.shape[stage.axis]
            assert (stage.pieces - 1) * stage.piece < length <= stage.pieces * stage.piece
            left = left // length * stage.pieces
        assert left == math.prod(n for i, n in enumerate(shape) if i not in axis)


def test_a_long_sum_and_a_tall_one_are_shared_by_threads():
    for shape, axis in (((1 << 20,), (0,)), ((1 << 14, 64), (0,))):
        first, *rest = spec.stages(shape, axis, True)
        assert first.pieces >= 16 and len(rest) == 1 and math.prod(rest[0].shape) <= math.prod(shape) // 64
    for shape, axis in (((1 << 14, 64), (1,)), ((100, 20), (0,)), ((64, 1 << 14), (0,))):
        assert len(spec.stages(shape, axis, True)) == 1, "enough tiles, or enough for one block"


@pytest.mark.parametrize("shape, axis", LARGE)
def test_threads_do_not_matter(shape, axis):
    x, threads = numbers(shape), pool.get_num_threads()
    found = gmkernels.sum(x, axis)
    try:
        pool.set_num_threads(1)
        assert gmkernels.sum(x, axis).tobytes() == found.tobytes()
    finally:
        pool.set_num_threads(threads)


def test_an_order_of_axes_does_not_matter_where_nothing_is_rounded():
    x = np.random.default_rng(0).integers(-1000, 1000, (5, 7, 3, 11)).astype(np.float32)
    for axis in ((0,), (3,), (1, 2), (0, 3), (0, 2), (1, 3), (0, 1, 2, 3)):
        expected = np.sum(x, axis)
        for order in ((3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)):
            there = [order.index(i) for i in axis]
            kept = [i for i in order if i not in axis]
            found = gmkernels.sum(x.transpose(order), tuple(there))
            np.testing.assert_array_equal(found, expected.transpose([sorted(kept).index(i) for i in kept]))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fields_of_records_whose_strides_are_no_multiples_of_a_number(dtype, axis):
    records = np.zeros((50, 70), [("tag", np.int8), ("x", dtype)])
    records["x"] = np.random.default_rng(0).standard_normal((50, 70))
    found = gmkernels.sum(records["x"], axis=axis, backend="cpu")
    np.testing.assert_allclose(found, records["x"].astype(float).sum(axis), rtol=1e-4, atol=1e-4)


def test_cancellation_that_float32_would_not_survive():
    x = np.tile(np.array([1e8, 1.0, -1e8], np.float32), 5003)
    assert gmkernels.sum(x) == 5003
    np.testing.assert_array_equal(gmkernels.sum(np.repeat(x[:, None], 3, 1), 0), [5003] * 3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinities_and_nan(dtype, backend):
    inf, nan = np.inf, np.nan
    x = np.array([[inf, 1, 2, 3, 4], [-inf, 0, 0, 3, -1], [inf, -inf, 0, 0, 0], [1, nan, 2, inf, 0]], dtype)
    expected = np.array([inf, -inf, nan, nan], dtype)
    np.testing.assert_array_equal(gmkernels.sum(x, 1, backend=backend), expected)
    np.testing.assert_array_equal(gmkernels.sum(np.repeat(x.T, 40, 1), 0, backend=backend), np.repeat(expected, 40))
    largest = np.finfo(dtype).max
    assert gmkernels.sum(np.full(3, largest, dtype), backend=backend) == inf


@settings(max_examples=30)
@given(shape=shapes, data=st.data())
def test_sum_to_is_the_adjoint_of_broadcasting(shape, data):
    small = tuple(1 if data.draw(st.booleans()) else n for n in shape)[data.draw(st.integers(0, len(shape))) :]
    x, y = numbers(shape, "float64"), numbers(small, "float64", 1)
    found = gmkernels.sum_to(x, small)
    assert found.shape == small
    # n roundings of sums that stay below 100 for n <= 6^5.
    assert np.sum(found * y) == pytest.approx(np.sum(x * np.broadcast_to(y, shape)), abs=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gmkernels.sum(np.ones((2, 3), int)), r"sum: expected x float32 or float64, got int64\[2, 3\]"),
        (lambda: gmkernels.sum(np.ones((2, 3)), 2), r"sum: expected axes of x \[2, 3\] .* got \(2,\)"),
        (lambda: gmkernels.sum(np.ones((2, 3)), -3), r"sum: expected axes of x \[2, 3\]"),
        (lambda: gmkernels.sum(np.ones((2, 3)), (0, -2)), r"sum: expected axes of x \[2, 3\] .* got \(0, 0\)"),
        (lambda: gmkernels.sum_to(np.ones((2, 3)), (2,)), r"sum_to: .* broadcasts to that of x, \[2, 3\], got \[2\]"),
        (lambda: gmkernels.sum_to(np.ones(3), (1, 3)), r"sum_to: .* got \[1, 3\]"),
        (lambda: gmkernels.sum_to(np.ones(3, np.float16), ()), "sum_to: .* has no float16 version"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(KernelError, match=message):
        call()
