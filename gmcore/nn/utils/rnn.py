"""Sequences of different lengths: padded to one length, or packed row after row (see `gmcore.ops.recurrent`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import user_line
from gmcore.tensor import Array, Tensor, as_tensor


class PackedSequence(NamedTuple):
    """The rows of all time steps of sequences sorted by decreasing length; made by `pack_padded_sequence`.

    Parameters
    ----------
    data : (N, ...), the rows of step 0, then those of step 1, ...
    batch_sizes : (T,) int64, the number of rows of each step.
    sorted_indices : (B,) int64, the number that each of the sorted sequences had before; None if they were sorted.
    unsorted_indices : (B,) int64, its inverse: where each sequence is now.
    """

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None


def _checked_lengths(lengths: Any, steps: int, batch: int) -> Array:
    """`lengths` as int64. Raises `ArgumentError` unless they are one per sequence, from 1 to the steps there are."""
    found = as_tensor(lengths).cpu().numpy()
    if found.shape != (batch,) or found.dtype.kind not in "iu":
        raise ArgumentError(
            f"pack_padded_sequence: expected {batch} integer lengths, one a sequence, got {found.dtype}"
            f"{list(found.shape)} (called at {user_line()})"
        )
    if batch and not (found.min() >= 1 and found.max() <= steps):
        raise ArgumentError(
            f"pack_padded_sequence: lengths are from 1 to the {steps} steps of the input, got {found.min()} to "
            f"{found.max()} (called at {user_line()})"
        )
    return found.astype(np.int64)


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Leave out the padding of sequences padded to one length.

    Parameters
    ----------
    input : (T, B, ...), or (B, T, ...) with `batch_first`.
    lengths : (B,) integers from 1 to T, the length of each sequence.
    enforce_sorted : the lengths have to decrease; False sorts the sequences, and keeps their order.

    Returns
    -------
    A `PackedSequence`.

    Raises
    ------
    ShapeError : an input without the two axes.
    ArgumentError : lengths that are not one integer a sequence, below 1 or beyond the data; lengths that grow where
        they have to be sorted.
    """
    x = as_tensor(input)
    if x.ndim < 2:
        raise ShapeError(f"pack_padded_sequence: expected (T, B, ...), got {x.shape} (called at {user_line()})")
    x = ops.swapaxes(x, 0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    known = _checked_lengths(lengths, steps, batch)
    if enforce_sorted and np.any(np.diff(known) > 0):
        raise ArgumentError(
            f"pack_padded_sequence: the lengths {known.tolist()} do not decrease; pass enforce_sorted=False to sort "
            f"the sequences (called at {user_line()})"
        )
    order = np.arange(batch) if enforce_sorted else np.argsort(-known, kind="stable")
    alive = np.arange(known.max(initial=0))[:, None] < known[order]  # (T, B)
    places = (np.arange(len(alive))[:, None] * batch + order)[alive]
    data = ops.reshape(x, (steps * batch, *x.shape[2:]))[places]
    sizes = as_tensor(alive.sum(1, dtype=np.int64))
    if enforce_sorted:
        return PackedSequence(data, sizes)
    return PackedSequence(data, sizes, as_tensor(order), as_tensor(np.argsort(order)))


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_padded_sequence`.

    Parameters
    ----------
    sequence : packed rows; the sequences come back in the order they had.
    batch_first : give (B, T, ...).
    padding_value : written after the end of each sequence.
    total_length : pad to so many steps; by default to those of the longest sequence.

    Returns
    -------
    padded : (T, B, ...), or (B, T, ...).
    lengths : (B,) int64.

    Raises
    ------
    ArgumentError : a total_length below the longest length.
    """
    data, sizes = sequence.data, sequence.batch_sizes.numpy()
    steps, batch = len(sizes), int(sizes[0])
    total = steps if total_length is None else total_length
    if total < steps:
        raise ArgumentError(
            f"pad_packed_sequence: total_length {total} is below the {steps} steps of the longest sequence "
            f"(called at {user_line()})"
        )
    places = np.full((total, batch), data.shape[0])  # the padding: a row after the data
    alive = np.arange(batch) < sizes[:, None]
    places[:steps][alive] = np.arange(data.shape[0])
    lengths = alive.sum(0, dtype=np.int64)
    if sequence.unsorted_indices is not None:
        back = sequence.unsorted_indices.numpy()
        places, lengths = places[:, back], lengths[back]
    padding = data.new_full((1, *data.shape[1:]), padding_value)
    padded = ops.concatenate([data, padding])[places.T if batch_first else places]
    return padded, as_tensor(lengths)


def pad_sequence(
    sequences: Sequence[Any], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Sequences of different lengths side by side, padded to the longest.

    Parameters
    ----------
    sequences : tensors (length, ...), alike in the other axes.
    batch_first : give (B, T, ...).
    padding_value : written where a sequence has ended.
    padding_side : ``"right"``, after the sequence, or ``"left"``.

    Returns
    -------
    (T, B, ...), or (B, T, ...).

    Raises
    ------
    ArgumentError : no sequences, or an unknown side.  ShapeError : sequences whose other axes differ.
    """
    xs = [as_tensor(x) for x in sequences]
    if not xs or padding_side not in ("right", "left"):
        raise ArgumentError(
            f"pad_sequence: expected sequences, and padding_side 'right' or 'left'; got {len(xs)} and {padding_side!r} "
            f"(called at {user_line()})"
        )
    if len({x.shape[1:] for x in xs}) > 1 or not xs[0].ndim:
        raise ShapeError(
            f"pad_sequence: expected tensors (length, ...) alike in the other axes, got {[x.shape for x in xs]} "
            f"(called at {user_line()})"
        )
    steps = max(x.shape[0] for x in xs)
    padded = []
    for x in xs:
        padding = x.new_full((steps - x.shape[0], *x.shape[1:]), padding_value)
        padded.append(ops.concatenate([x, padding] if padding_side == "right" else [padding, x]))
    return ops.stack(padded, axis=0 if batch_first else 1)


def pack_sequence(sequences: Sequence[Any], enforce_sorted: bool = True) -> PackedSequence:
    """Sequences of different lengths, packed.

    Parameters
    ----------
    sequences : tensors (length, ...), alike in the other axes, of length 1 or more.
    enforce_sorted : as in `pack_padded_sequence`.

    Returns
    -------
    A `PackedSequence`.

    Raises
    ------
    ArgumentError, ShapeError : as `pad_sequence` and `pack_padded_sequence`.
    """
    xs = [as_tensor(x) for x in sequences]
    padded = pad_sequence(xs)
    return pack_padded_sequence(padded, [x.shape[0] for x in xs], enforce_sorted=enforce_sorted)
