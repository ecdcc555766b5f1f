"""What a data set is once it is read, and which values a model may ask of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmcore.errors import DataError, unknown_name

SPLITS = ("train", "valid", "test")

# name: (what the values are to be, the test that holds elementwise where they are)
_SUPPORTS: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[np.bool_]]]] = {
    "bernoulli": ("0 or 1", lambda x: (x == 0) | (x == 1)),
    "unit-interval": ("in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "real": ("finite", np.isfinite),
}


def check_support(array: NDArray[Any], support: str, name: str = "data") -> None:
    """Refuse values that a decoder's likelihood is not defined on.

    Parameters
    ----------
    array : real array of any shape
    support : {'bernoulli', 'unit-interval', 'real'}
        ``bernoulli``: every value is exactly 0 or 1. ``unit-interval``: in [0, 1]. ``real``: finite.
        NaN and infinities are in none of them.
    name : str
        What the error calls the array.

    Raises
    ------
    DataError
        With the number of values outside, and the value and index of the first in C order.
    UnknownNameError
        If `support` is none of the three.
    """
    if support not in _SUPPORTS:
        raise unknown_name("support", support, _SUPPORTS)
    wanted, holds = _SUPPORTS[support]
    inside = holds(array)
    if not inside.all():
        first = tuple(int(i) for i in np.unravel_index(np.argmin(inside), inside.shape))
        count = inside.size - np.count_nonzero(inside)
        raise DataError(
            f"{name}: {count} of {inside.size} values are not {wanted}, the first is {array[first]} at index {first}"
        )


def float_rows(array: NDArray[Any], divisor: int) -> NDArray[np.float32]:
    """Array (n, ...) as rows (n, features) of float32, divided by the largest grey level."""
    with np.errstate(over="ignore"):  # too large for float32: Dataset refuses the infinity, with its place
        rows = array.reshape(len(array), -1).astype(np.float32)
    rows /= np.float32(divisor)
    return rows


class AnyDataset(Protocol):
    """What a data set of any kind has: three splits, a record of where they come from, a digest of their contents.

    `Dataset` holds data vectors. What the splits of another kind hold is a matter between it and its models.
    """

    @property
    def name(self) -> str: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def image_shape(self) -> tuple[int, int] | None:
        """None for all that are no images."""
        ...

    @property
    def train(self) -> Any: ...
    @property
    def valid(self) -> Any: ...
    @property
    def test(self) -> Any: ...
    @property
    def features(self) -> int:
        """Size of an element: length of a data vector, number of symbols."""
        ...

    def fingerprint(self) -> str:
        """Digest of the contents of all splits."""
        ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one data set, in memory.

    Attributes
    ----------
    name : str
    train, valid, test : float32 arrays of shape (n, features)
        Grey levels and ink are scaled to [0, 1]; arrays of one's own may hold any finite values.
    image_shape : (height, width) or None
        Row i of a split, reshaped to this, is the upright image.
    provenance : dict
        What a reported bound must record, ready for JSON. `gmcore.data.load` fills in ``data`` (the name),
        ``files`` (for each, its sha256 and whether that was ``verified`` to be the published file's, None
        where no digest is known), ``split`` (how the splits were made), ``sizes`` and ``range`` (smallest and
        largest value).

    Raises
    ------
    DataError
        If a split is not such an array, is empty, or holds NaN or infinities.
    """

    name: str
    train: NDArray[np.float32] = field(repr=False)
    valid: NDArray[np.float32] = field(repr=False)
    test: NDArray[np.float32] = field(repr=False)
    image_shape: tuple[int, int] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        features = math.prod(self.image_shape or np.shape(self.train)[1:])
        for split in SPLITS:
            array = getattr(self, split)
            where = f"data set {self.name!r}, split {split!r}"
            if not isinstance(array, np.ndarray):
                raise DataError(f"{where}: expected float32 of shape (n, {features}), found a {type(array).__name__}")
            if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != features:
                raise DataError(
                    f"{where}: expected float32 of shape (n, {features}), found {array.dtype} {array.shape}"
                )
            if array.size == 0:
                raise DataError(f"{where}: empty, shape {array.shape}")
            check_support(array, "real", where)

    @property
    def features(self) -> int:
        """Length of a data vector."""
        return self.train.shape[1]

    @property
    def picture_format(self) -> tuple[tuple[int, int], tuple[float, float]]:
        """Shape of an image and range of its values; data that are no images are shown as one row."""
        return self.image_shape or (1, self.features), tuple(self.provenance.get("range", (0.0, 1.0)))

    def fingerprint(self) -> str:
        """Digest of the contents of all splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(np.ascontiguousarray(getattr(self, split)).data)
        return digest.hexdigest()
