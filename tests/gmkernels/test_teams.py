"""Threads over rows and columns: none is left out, and neither alignment nor the width of indices changes a bit."""

import cupy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gmkernels  # noqa: F401 (registers the specs)
from gmkernels import launch, registry, teams

sizes = st.integers(0, 10_000)


@given(length=sizes, itemsize=st.sampled_from([2, 4, 8]))
def test_wide_groups_fill_rows(length, itemsize):
    width, kind = teams.wide(length, itemsize)
    assert length % width == 0 and (width * itemsize == 16) == (kind == "wide")


@given(rows=sizes, length=sizes, each=st.integers(1, 64))
def test_rows_have_their_threads(rows, length, each):
    lanes = teams.lanes(length, each)
    assert lanes.bit_count() == 1 and lanes <= teams.BLOCK
    assert lanes * each >= length or lanes == teams.BLOCK
    assert lanes == 1 or lanes // 2 * each < length
    (blocks,), (threads,) = teams.of_rows(rows, lanes)
    assert threads % lanes == 0 and threads % 32 == 0
    assert (blocks - 1) * threads < rows * lanes <= blocks * threads


@given(groups=sizes, length=st.integers(1, 10**6), pieces=st.integers(1, 1000))
def test_columns_have_their_threads(groups, length, pieces):
    (blocks, along_grid), (across, along), rows = teams.of_columns(groups, length, pieces)
    assert along_grid == pieces and across * along == teams.BLOCK
    assert (blocks - 1) * across < groups <= blocks * across
    assert rows * along >= length


def shifted(a):
    """Memory, and in it the array, one element further than the start: not aligned to the 16 bytes of a vector."""
    memory = cupy.full(a.size + 2, 77, a.dtype)
    view = memory[1:-1].reshape(a.shape)
    view[...] = cupy.asarray(a)
    return memory, view


CALLS = {  # of arrays of these shapes; all have whole vectors in a row
    "iwae_bound columns": ("iwae_bound", [(50, 64)], {"axis": 0}),
    "iwae_bound rows": ("iwae_bound", [(3, 52)], {"axis": 1}),
    "iwae_bound_backward columns": ("iwae_bound_backward", [(64,), (50, 64), (64,), (64,)], {"axis": 0}),
    "iwae_bound_backward rows": ("iwae_bound_backward", [(3,), (3, 52), (3,), (3,)], {"axis": 1}),
    "bernoulli_log_prob": ("bernoulli_log_prob", [(3, 784), (3, 784)], {}),
    "bernoulli_log_prob_backward": ("bernoulli_log_prob_backward", [(3,), (3, 784), (784,)], {}),
    "sum rows": ("sum", [(3, 1000)], {"axis": (1,), "keepdims": False}),
    "sum columns": ("sum", [(1000, 12)], {"axis": (0,), "keepdims": False}),
    "leaky_relu_backward": ("leaky_relu_backward", [(5000,), (5000,)], {"negative_slope": 0.2}),
}


def made(call):
    op, shapes, attrs = CALLS[call]
    rng = np.random.default_rng(0)
    return registry.specs()[op], [rng.random(shape, np.float32) for shape in shapes], attrs


@pytest.mark.parametrize("call", CALLS)
def test_alignment_changes_no_bit(call):
    spec, arrays, attrs = made(call)
    expected = registry.run(spec, [cupy.asarray(a) for a in arrays], attrs, backend="cuda")
    memories, outputs = zip(*map(shifted, expected), strict=True)
    registry.run(spec, [shifted(a)[1] for a in arrays], attrs, outputs=outputs, backend="cuda")
    for memory, actual, a in zip(memories, outputs, expected, strict=True):
        np.testing.assert_array_equal(actual.get(), a.get())
        assert np.all(memory.get()[[0, -1]] == 77), "a neighbour was written"


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_indices_of_64_bits_change_no_bit(call, monkeypatch):
    spec, arrays, attrs = made(call)
    given = [cupy.asarray(a) for a in arrays]
    expected = registry.run(spec, given, attrs, backend="cuda")
    monkeypatch.setattr(launch, "LARGEST_SIZE", 1)
    for actual, a in zip(registry.run(spec, given, attrs, backend="cuda"), expected, strict=True):
        np.testing.assert_array_equal(actual.get(), a.get())


INF = np.float32(np.inf)
LONG = {  # what is cut into pieces, whose results a second launch puts together: operation, arrays, attributes
    "iwae_bound columns": ("iwae_bound", [(2, 1031, 3)], {"axis": 1}),
    "iwae_bound rows": ("iwae_bound", [(2, 8209)], {"axis": 1}),
    "bernoulli_log_prob": ("bernoulli_log_prob", [(2, 20011), (20011,)], {}),
    "sum": ("sum", [(2, 40009)], {"axis": (0, 1), "keepdims": False}),
    "softmax_cross_entropy": ("softmax_cross_entropy", [(3, 20011), np.array([0, 7, 20010])], {}),
}


@pytest.mark.parametrize("special", [None, INF, -INF, np.nan])
@pytest.mark.parametrize("call", LONG)
def test_long_rows_in_two_launches(call, special):
    """One special element is in the second piece; all the others of its row are what they were."""
    op, shapes, attrs = LONG[call]
    spec, rng = registry.specs()[op], np.random.default_rng(2)
    arrays = [s if isinstance(s, np.ndarray) else rng.random(s, np.float32) for s in shapes]
    if special is not None:
        arrays[0].reshape(-1)[arrays[0].size * 3 // 4] = special
    there = [cupy.asarray(a) for a in arrays]
    assert spec.workspace(*there, **attrs), "it is not cut"
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    with np.errstate(invalid="ignore"):
        expected = registry.run(spec, wide, attrs, backend="reference")
    rtol, atol = spec.tolerance["float32"]
    for actual, e in zip(registry.run(spec, there, attrs, backend="cuda"), expected, strict=True):
        np.testing.assert_allclose(actual.get(), e, rtol=rtol, atol=atol)
