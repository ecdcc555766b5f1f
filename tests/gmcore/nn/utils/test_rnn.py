"""Packing and padding: against their definitions and PyTorch, there and back, with gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmcore import grad, ops, tensor
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

SEQUENCES = [np.arange(1.0, 3.0)[:, None], np.arange(3.0, 8.0)[:, None], np.arange(8.0, 9.0)[:, None]]


def test_packed_rows_are_those_of_each_step():
    packed = pack_sequence(SEQUENCES, enforce_sorted=False)
    assert packed.data.ravel().tolist() == [3, 1, 8, 4, 2, 5, 6, 7]
    assert packed.batch_sizes.tolist() == [3, 2, 1, 1, 1]
    assert packed.sorted_indices.tolist() == [1, 0, 2] and packed.unsorted_indices.tolist() == [1, 0, 2]
    assert pack_sequence([SEQUENCES[1], SEQUENCES[0]]).sorted_indices is None


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), extra=st.integers(0, 2), batch_first=st.booleans())
def test_there_and_back(lengths, extra, batch_first):
    """Whatever the padding held; the gradient of the padding is zero. PyTorch packs the same."""
    torch = pytest.importorskip("torch")
    steps = max(lengths) + extra
    x = np.random.default_rng(0).standard_normal((steps, len(lengths), 2))
    given = tensor(x.swapaxes(0, 1).copy() if batch_first else x, requires_grad=True)
    packed = pack_padded_sequence(given, lengths, batch_first, enforce_sorted=False)
    theirs = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(given.detach().numpy()), lengths, batch_first, enforce_sorted=False
    )
    np.testing.assert_array_equal(np.sort(packed.data.detach().numpy(), 0), np.sort(theirs.data.numpy(), 0))
    np.testing.assert_array_equal(packed.batch_sizes.numpy(), theirs.batch_sizes.numpy())
    back, found = pad_packed_sequence(packed, batch_first, -1.0, total_length=steps)
    assert found.tolist() == lengths
    alive = np.arange(steps)[:, None] < np.array(lengths)
    alive = (alive.T if batch_first else alive)[..., None]
    np.testing.assert_array_equal(back.detach().numpy(), np.where(alive, given.detach().numpy(), -1.0))
    np.testing.assert_array_equal(grad(ops.sum(back), given).numpy(), np.broadcast_to(alive, x.shape if not batch_first
                                                                                       else back.shape))  # fmt: skip


def test_padding():
    padded = pad_sequence(SEQUENCES, padding_value=-1.0)
    assert padded.shape == (5, 3, 1)
    assert padded[..., 0].tolist() == [[1, 3, 8], [2, 4, -1], [-1, 5, -1], [-1, 6, -1], [-1, 7, -1]]
    left = pad_sequence(SEQUENCES, batch_first=True, padding_side="left")[..., 0]
    assert left.tolist() == [[0, 0, 0, 1, 2], [3, 4, 5, 6, 7], [0, 0, 0, 0, 8]]


def test_errors():
    x = np.zeros((4, 3, 2))
    for call, kind, match in (
        (lambda: pack_padded_sequence(x, [2, 4, 1]), ArgumentError, r"lengths \[2, 4, 1\] do not decrease; pass"),
        (lambda: pack_padded_sequence(x, [4, 2, 0]), ArgumentError, "from 1 to the 4 steps of the input, got 0 to 4"),
        (lambda: pack_padded_sequence(x, [5, 2, 1]), ArgumentError, "from 1 to the 4 steps of the input, got 1 to 5"),
        (lambda: pack_padded_sequence(x, [4, 2]), ArgumentError, r"expected 3 integer lengths, .* int64\[2\]"),
        (lambda: pack_padded_sequence(x, [4.0, 2.0, 1.0]), ArgumentError, "expected 3 integer lengths, .* float"),
        (lambda: pack_padded_sequence(x[:, 0, 0], [4]), ShapeError, r"expected \(T, B, ...\), got \(4,\)"),
        (lambda: pad_packed_sequence(pack_padded_sequence(x, [4, 2, 1]), total_length=3), ArgumentError,
         "total_length 3 is below the 4 steps"),
        (lambda: pad_sequence([]), ArgumentError, "expected sequences, .* got 0"),
        (lambda: pad_sequence([x], padding_side="top"), ArgumentError, "got 1 and 'top'"),
        (lambda: pad_sequence([x, x[:, :2]]), ShapeError, r"alike in the other axes, got \[\(4, 3, 2\), \(4, 2, 2\)\]"),
        (lambda: pack_sequence([np.zeros((0, 2))]), ArgumentError, "from 1 to the 0 steps of the input, got 0 to 0"),
    ):  # fmt: skip
        with pytest.raises(kind, match=match + r".*test_rnn\.py:\d"):
            call()
