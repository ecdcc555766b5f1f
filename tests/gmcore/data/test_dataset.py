"""Dataset refuses what is not a data set; check_support says how much lies outside, and where first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gmcore.data import Dataset, check_support
from gmcore.errors import DataError, UnknownNameError

MEMBERS = {
    "bernoulli": ({0.0, 1.0}, {0.5, -1.0, 2.0, np.nan, np.inf}),
    "unit-interval": ({0.0, 0.25, 1.0}, {-1e-7, 1.0000001, np.nan, -np.inf}),
    "real": ({-1e30, 0.0, 7.0}, {np.nan, np.inf, -np.inf}),
}


@given(support=st.sampled_from(sorted(MEMBERS)), shape=hnp.array_shapes(max_dims=3, max_side=6), data=st.data())
def test_support_counts_and_finds_the_first(support: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    inside, outside = MEMBERS[support]
    array = data.draw(hnp.arrays(np.float64, shape, elements=st.sampled_from(sorted(inside))))
    check_support(array, support)
    places = data.draw(st.sets(st.integers(0, array.size - 1), min_size=1))
    array.flat[list(places)] = data.draw(st.sampled_from(sorted(outside, key=str)))
    first = tuple(int(i) for i in np.unravel_index(min(places), shape))
    with pytest.raises(DataError) as error:
        check_support(array, support, "pixels")
    assert str(error.value).startswith(f"pixels: {len(places)} of {array.size} values")
    assert str(error.value).endswith(f"is {array[first]} at index {first}")


def test_support_of_integers_and_unknown_support() -> None:
    check_support(np.array([0, 1], np.uint8), "bernoulli")
    with pytest.raises(DataError, match="255"):
        check_support(np.array([0, 255], np.uint8), "unit-interval")
    with pytest.raises(UnknownNameError, match="did you mean 'bernoulli'"):
        check_support(np.zeros(1), "bernouli")


GOOD = np.zeros((4, 6), np.float32)


@pytest.mark.parametrize(
    "bad, words",
    [
        (GOOD.astype(np.float64), "float64"),
        (np.zeros(6, np.float32), r"shape \(n, 6\).*\(6,\)"),
        (np.zeros((4, 5), np.float32), r"shape \(n, 6\).*\(4, 5\)"),
        (GOOD[:0], "empty"),
        (GOOD.tolist(), "found a list"),
        (np.where(np.eye(4, 6) == 1, np.nan, GOOD), r"4 of 24 values are not finite.*\(0, 0\)"),
    ],
)
def test_each_split_is_checked(bad: np.ndarray, words: str) -> None:
    for split in ("train", "valid", "test"):
        splits = {"train": GOOD, "valid": GOOD, "test": GOOD, split: bad}
        with pytest.raises(DataError, match=f"'mine', split '{split}'.*{words}"):
            Dataset("mine", **splits, image_shape=(2, 3))


def test_repr_is_short_and_shape_optional() -> None:
    dataset = Dataset("mine", GOOD, GOOD, GOOD)
    assert dataset.image_shape is None
    assert len(repr(dataset)) < 100
