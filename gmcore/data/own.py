"""Arrays of one's own as a data set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmcore.data.dataset import SPLITS, Dataset, check_support, float_rows
from gmcore.data.readers import read_arrays
from gmcore.errors import DataError

Rows = NDArray[np.float32]


def split_at_random(array: Rows, name: str) -> tuple[Rows, Rows, Rows, str]:
    """Split rows 80/10/10 by a fixed permutation, the same for every run and NumPy version.

    Parameters
    ----------
    array : (n, features), n >= 10
    name : str
        What the error calls the array.

    Returns
    -------
    train, valid, test : float32 arrays
        Valid and test have n // 10 rows each.
    split : str
        How the split was made, for `Dataset.provenance`.

    Raises
    ------
    DataError
        If there are fewer than 10 rows.
    """
    n = len(array)
    if n < 10:
        raise DataError(f"{name}: expected at least 10 rows to split 80/10/10, found {n}")
    # RandomState's stream is frozen by NumPy's policy; that of default_rng may change.
    order = np.random.RandomState(0).permutation(n)
    tenth = n // 10
    train, valid, test = np.split(array[order], [n - 2 * tenth, n - tenth])
    split = f"numpy RandomState(0).permutation({n}); the last {tenth} test, the {tenth} before valid"
    return train, valid, test, split


def own_arrays(path: str | os.PathLike[str]) -> Dataset:
    """Read a `.npy` or `.npz` file as a data set.

    A `.npz` with arrays ``train``, ``valid`` and ``test`` gives these splits; a single array is split
    80/10/10 by a fixed permutation. An array is (n, features), or (n, height, width) for images. uint8 is
    taken for grey levels and divided by 255; everything else keeps its values.

    Returns
    -------
    Dataset
        Named by the file's name without its ending.

    Raises
    ------
    DataError
        If the file cannot be read, has no such arrays, holds NaN or infinities (as float32), has images of
        different sizes or fewer than 10 rows to split, or is uint8 with only 0 and 1, which may be meant
        as grey levels or as binary data.
    """
    path = Path(path)
    arrays = read_arrays(path)
    if set(SPLITS) <= set(arrays):
        arrays = {split: arrays[split] for split in SPLITS}
    elif len(arrays) != 1:
        raise DataError(
            f"{path}: expected arrays train, valid and test, or one array, found {', '.join(arrays) or 'none'}"
        )
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
            raise DataError(
                f"{path}, {name}: expected real numbers of shape (n, features) or (n, height, width), "
                f"found {array.dtype} {array.shape}"
            )
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            raise DataError(
                f"{path}, {name}: expected {first.dtype} with rows of shape {first.shape[1:]} as before, "
                f"found {array.dtype} {array.shape[1:]}"
            )
    grey = first.dtype == np.uint8
    if grey and max(array.max() for array in arrays.values()) <= 1:
        raise DataError(
            f"{path}: found uint8 with only 0 and 1, expected grey levels up to 255; "
            "save binary data as bool or float32"
        )
    divisor = 255 if grey else 1
    rows = {name: float_rows(array, divisor) for name, array in arrays.items()}
    image_shape = (first.shape[1], first.shape[2]) if first.ndim == 3 else None
    for name, array in rows.items():  # before they are permuted, so that the index is the file's
        check_support(array, "real", f"{path}, {name}")
    if len(rows) == len(SPLITS):
        train, valid, test = rows.values()
        split = "as in the file"
    else:
        (array,) = rows.values()
        train, valid, test, split = split_at_random(array, str(path))
    return Dataset(path.stem, train, valid, test, image_shape, {"split": split, "divided_by": divisor})
