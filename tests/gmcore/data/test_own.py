"""Arrays of one's own: which shapes and types are taken, how they are scaled and split, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmcore.data import load, own_arrays
from gmcore.errors import DataError

RNG = np.random.default_rng(0)


@given(n=st.integers(10, 137), features=st.integers(1, 5))
def test_one_array_is_split_80_10_10_without_loss(tmp_path_factory, n: int, features: int) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.npy"
    rows = np.arange(n * features, dtype=np.float64).reshape(n, features)
    np.save(path, rows)
    dataset = own_arrays(path)
    assert len(dataset.valid) == len(dataset.test) == n // 10
    together = np.concatenate([dataset.train, dataset.valid, dataset.test])
    np.testing.assert_array_equal(together[np.argsort(together[:, 0])], rows)
    np.testing.assert_array_equal(own_arrays(path).test, dataset.test)


def test_the_split_is_that_of_this_version(tmp_path: Path) -> None:
    """Bounds reported on a test split stay comparable: it may not change from release to release."""
    np.save(tmp_path / "rows.npy", np.arange(20.0).reshape(20, 1))
    dataset = own_arrays(tmp_path / "rows.npy")
    assert dataset.valid.ravel().tolist() == [3, 0]
    assert dataset.test.ravel().tolist() == [15, 12]


def test_npz_splits_and_images(tmp_path: Path) -> None:
    arrays = {
        split: RNG.integers(0, 256, (n, 3, 4), np.uint8) for split, n in {"train": 5, "valid": 2, "test": 1}.items()
    }
    np.savez(tmp_path / "faces.npz", labels=np.arange(5), **arrays)
    dataset = load(tmp_path / "faces.npz")
    assert dataset.name == "faces" and dataset.image_shape == (3, 4)
    for split, array in arrays.items():
        rows = getattr(dataset, split)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, array.reshape(len(array), 12) / 255, rtol=1e-7)
    assert dataset.provenance["split"] == "as in the file"
    assert dataset.provenance["divided_by"] == 255


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float16, np.float64, ">f4"])
def test_all_but_uint8_keep_their_values(tmp_path: Path, dtype) -> None:
    values = RNG.integers(0, 2, (30, 4)) * (1 if dtype is bool else -3)
    np.save(tmp_path / "rows.npy", values.astype(dtype))
    dataset = load(tmp_path / "rows.npy")
    assert dataset.train.dtype == np.float32 and dataset.train.dtype.isnative
    assert dataset.provenance["range"] == sorted({float(values.min()), float(values.max())})
    assert dataset.image_shape is None


ROWS = np.zeros((12, 4))
WITH_NAN = np.where(np.arange(12)[:, None] == 7, np.nan, ROWS)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": ROWS[0]}, r"\(n, features\) or \(n, height, width\).*\(4,\)"),
        ({"x": np.zeros((2, 3, 4, 5))}, r"\(2, 3, 4, 5\)"),
        ({"x": ROWS[:0]}, r"\(0, 4\)"),
        ({"x": ROWS[:9]}, "at least 10 rows.*found 9"),
        ({"x": ROWS.astype("U")}, "<U"),
        ({"x": ROWS.astype(complex)}, "complex128"),
        ({"x": WITH_NAN}, r"x: 4 of 48 values are not finite, the first is nan at index \(7, 0\)"),
        ({"x": ROWS + 1e300}, "x: 48 of 48 values are not finite"),
        ({"x": np.ones((12, 4), np.uint8)}, "only 0 and 1.*bool"),
        ({"x": ROWS, "y": ROWS}, "train, valid and test, or one array, found x, y"),
        ({"train": ROWS, "valid": ROWS, "test": ROWS[:, :3]}, r"test: .*\(4,\).*\(3,\)"),
        ({"train": ROWS, "valid": ROWS.astype("f4"), "test": ROWS}, "valid: .*float64.*float32"),
        ({"train": ROWS, "valid": ROWS, "test": WITH_NAN}, r"test: 4 of 48.*\(7, 0\)"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=f"bad.npz.*{words}"):
        load(tmp_path / "bad.npz")
