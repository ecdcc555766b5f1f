"""The data sets of the table: their sizes, splits and values, on the real files and on small ones like them."""

import gzip
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from gmcore.data import load, read_omniglot
from gmcore.errors import DataError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GMCORE_DATA", raising=False)


def real(name: str, folder: str):
    if not (DATA / folder).is_dir():
        pytest.skip(f"shared/data/{folder} is not beside the checkout")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(name, DATA, download=False)


def sizes(dataset) -> list[int]:
    return [len(dataset.train), len(dataset.valid), len(dataset.test)]


def put_idx(folder: Path, **images: np.ndarray) -> None:
    for part, array in images.items():
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    dataset = load("digits")
    assert sizes(dataset) == [1439, 179, 179] and dataset.image_shape == (8, 8)
    assert dataset.provenance["range"] == [0.0, 1.0] and dataset.provenance["files"] == {}
    original = datasets.load_digits().data / 16
    together = np.concatenate([dataset.train, dataset.valid, dataset.test])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(original, axis=0))
    np.testing.assert_array_equal(original[[1293, 1250, 94]], dataset.test[:3])  # the split of every release


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"'digits' needs sklearn: pip install gmcore\[app\]"):
        load("digits")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_images_of_any_size(tmp_path: Path, name: str) -> None:
    train = np.random.default_rng(0).integers(0, 256, (60, 5, 4), np.uint8)
    put_idx(tmp_path, train=train, t10k=train[:7])
    with pytest.warns(UserWarning, match=f"no published file of '{name}'"):
        dataset = load(name, tmp_path)
    assert dataset.name == name and sizes(dataset) == [50, 10, 7] and dataset.image_shape == (5, 4)
    np.testing.assert_allclose(dataset.valid, train[50:].reshape(10, 20) / 255, rtol=1e-7)


@pytest.mark.filterwarnings("ignore:.*no published file")
def test_idx_files_that_are_not_such_images(tmp_path: Path) -> None:
    images = np.zeros((12, 5, 4), np.uint8)
    put_idx(tmp_path, train=images[:, 0, 0], t10k=images)
    with pytest.raises(DataError, match=r"train-images.*\(n, height, width\).*\(12,\)"):
        load("mnist", tmp_path)
    put_idx(tmp_path, train=images, t10k=images[:, :4])
    with pytest.raises(DataError, match=r"t10k-images.*all of one size.*\(12, 4, 4\)"):
        load("mnist", tmp_path)
    put_idx(tmp_path, train=images[:5], t10k=images)
    with pytest.raises(DataError, match="train-images.*at least 6 images, found 5"):
        load("mnist", tmp_path)


@pytest.mark.filterwarnings("ignore:.*no published file")
def test_binarized_mnist_has_784_pixels(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"binarized_mnist_{split}.amat").write_bytes(b"0 1 1\n1 0 0\n")
    with pytest.raises(DataError, match="binarized_mnist_train.amat: expected 784 digits a line, found 3"):
        load("binarized-mnist", tmp_path)


def test_too_few_images_to_split(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    for n, expected in ((19, [18, 1, 3]), (18, None)):
        scipy_io.savemat(tmp_path / "chardata.mat", {"data": np.zeros((784, n)), "testdata": np.zeros((784, 3))})
        if expected:
            dataset = load("omniglot", tmp_path)
            assert sizes(dataset) == expected and "note" not in dataset.provenance
        else:
            with pytest.raises(DataError, match="chardata.mat.*at least 19.*found 18"):
                load("omniglot", tmp_path)
    scipy_io.savemat(tmp_path / "frey_rawface.mat", {"ff": np.zeros((560, 9), np.uint8)})
    with pytest.raises(DataError, match="frey_rawface.mat.*at least 10.*found 9"):
        load("frey-faces", tmp_path)


@pytest.mark.data
def test_real_mnist() -> None:
    dataset = real("mnist", "mnist")
    assert sizes(dataset) == [50000, 10000, 10000] and dataset.image_shape == (28, 28)
    both = np.concatenate([dataset.train, dataset.valid])
    assert abs(both.mean(dtype=np.float64) * 255 - 33.3184) < 1e-4
    assert all(record["verified"] for record in dataset.provenance["files"].values())
    assert dataset.provenance["range"] == [0.0, 1.0]
    with pytest.raises(DataError, match="expected data of 'fashion-mnist', found the file of 'mnist'"):
        load("fashion-mnist", DATA / "mnist", download=False)


@pytest.mark.data
def test_real_binarized_mnist() -> None:
    dataset = real("binarized-mnist", "binarized_mnist")
    assert sizes(dataset) == [50000, 10000, 10000] and dataset.image_shape == (28, 28)
    means = [getattr(dataset, split).mean(dtype=np.float64) for split in ("train", "valid", "test")]
    np.testing.assert_allclose(means, [0.130562, 0.131127, 0.132512], atol=5e-7)
    assert all(record["verified"] for record in dataset.provenance["files"].values())


@pytest.mark.slow
@pytest.mark.data
def test_real_omniglot() -> None:
    dataset = real("omniglot", "omniglot28")
    assert sizes(dataset) == [23000, 1345, 8070] and dataset.image_shape == (28, 28)
    both = np.concatenate([dataset.train, dataset.valid])
    assert abs(both.mean(dtype=np.float64) - 0.08057) < 5e-6
    assert "not comparable" in dataset.provenance["note"]
    # The validation images of github.com/yburda/iwae, datasets.py.
    chosen = np.random.RandomState(seed=123).permutation(24345)[-1345:]
    images, _ = read_omniglot(DATA / "omniglot28" / "chardata_rebuilt.mat")
    np.testing.assert_array_equal(dataset.valid, images[chosen].reshape(1345, 784))


@pytest.mark.data
def test_real_frey_faces() -> None:
    dataset = real("frey-faces", "frey_faces")
    assert sizes(dataset) == [1573, 196, 196] and dataset.image_shape == (28, 20)
    np.testing.assert_allclose(dataset.provenance["range"], [8 / 255, 238 / 255], rtol=1e-6)
