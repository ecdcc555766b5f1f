"""Readers: what is written comes back, and every kind of bad file gives one DataError that names it."""

import gzip
import io
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gmcore.data import read_amat, read_arrays, read_frey_faces, read_idx, read_omniglot
from gmcore.errors import DataError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"

IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"the real file {'/'.join(parts)} is not in shared/data beside the checkout")
    return path


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, IDX_TYPES[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def amat_bytes(array: np.ndarray, newline: str = "\n") -> bytes:
    return "".join(" ".join(map(str, row)) + newline for row in array.tolist()).encode()


def mat_bytes(**variables: np.ndarray) -> bytes:
    scipy_io = pytest.importorskip("scipy.io")
    out = io.BytesIO()
    scipy_io.savemat(out, variables)
    return out.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


def refuses(reader, path: Path, contents: bytes, *words: str) -> None:
    """The reader refuses the contents with one DataError that names the file and has all the words."""
    path.write_bytes(contents)
    with pytest.raises(DataError) as error:
        reader(path)
    assert all(word in str(error.value) for word in (path.name, *words)), str(error.value)


idx_arrays = st.sampled_from(sorted(IDX_TYPES)).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype),
        hnp.array_shapes(max_dims=4, max_side=7),
        elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
    )
)


@given(array=idx_arrays, compress=st.booleans())
def test_idx_round_trip(folder: Path, array: np.ndarray, compress: bool) -> None:
    path = folder / "images"
    path.write_bytes(gzip.compress(idx_bytes(array), 1) if compress else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, array)


@given(array=idx_arrays, data=st.data())
def test_idx_of_any_other_length_is_refused(folder: Path, array: np.ndarray, data: st.DataObject) -> None:
    contents = idx_bytes(array)
    cut = data.draw(st.integers(1, len(contents) - 1))
    with pytest.raises(DataError, match="cut.*(expected|magic)"):
        (folder / "cut").write_bytes(contents[:cut])
        read_idx(folder / "cut")
    refuses(read_idx, folder / "long", contents + b"\0", f"expected {len(contents)} bytes")


@pytest.mark.parametrize("magic", [b"\0\1\x08\3", b"\0\0\x07\3", b"\0\0\x08\0", b"<!DO", b"ver"])
def test_idx_wrong_magic_is_refused(tmp_path: Path, magic: bytes) -> None:
    refuses(read_idx, tmp_path / "images", magic + idx_bytes(np.zeros(3, "u1"))[4:], "magic", repr(magic[:3])[:-1])


def test_idx_empty_array_and_nan_are_refused(tmp_path: Path) -> None:
    refuses(read_idx, tmp_path / "none", idx_bytes(np.zeros((0, 28, 28), "u1")), "empty", "(0, 28, 28)")
    refuses(read_idx, tmp_path / "nan", idx_bytes(np.array([[1, np.nan]], "f4")), "nan", "(0, 1)")


@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1)),
    compress=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", " \n", "\t\r\n"]),
)
def test_amat_round_trip(folder: Path, array: np.ndarray, compress: bool, newline: str) -> None:
    path, contents = folder / "images.amat", amat_bytes(array, newline)
    path.write_bytes(gzip.compress(contents, 1) if compress else contents)
    read = read_amat(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("width", [2, 3, 8])
def test_amat_bad_line_is_named(tmp_path: Path, width: int) -> None:
    good = amat_bytes(np.ones((2, width), np.uint8))
    line = b" ".join([b"1"] * width)
    bad_lines = [
        line[:-2],
        line + b" 0",
        line[:-1],
        b"2" + line[1:],
        b"11" + line[2:],
        line.replace(b" ", b","),
        b"",
    ]
    for bad in bad_lines:
        refuses(read_amat, tmp_path / "bad.amat", good + bad + b"\n" + line, "line 3", f"expected {width}")


def test_amat_without_digits_is_refused(tmp_path: Path) -> None:
    refuses(read_amat, tmp_path / "blank.amat", b" \n\n", "blanks")
    refuses(read_amat, tmp_path / "html.amat", b"<html>404</html>\n", "line 1")


def test_omniglot_is_turned_upright(tmp_path: Path) -> None:
    upright = np.random.default_rng(0).random((2, 28, 28)).astype(np.float32)
    columns = np.stack([image.flatten(order="F") for image in upright], axis=1)  # as MATLAB's image(:)
    path = tmp_path / "chardata.mat"
    path.write_bytes(mat_bytes(data=columns, testdata=columns[:, ::-1]))
    train, test = read_omniglot(path)
    np.testing.assert_array_equal(train, upright)
    np.testing.assert_array_equal(test, upright[::-1])
    assert train.dtype == test.dtype == np.float32


def test_omniglot_bad_contents_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "chardata.mat", np.zeros((784, 3))
    refuses(read_omniglot, path, mat_bytes(data=good), "testdata", "found none")
    refuses(read_omniglot, path, mat_bytes(data=good.T, testdata=good), "784 rows", "(3, 784)")
    refuses(read_omniglot, path, mat_bytes(data=good[:, :0], testdata=good), "(784, 0)")
    refuses(read_omniglot, path, mat_bytes(data=good, testdata=good + 1j), "complex128")
    for value in (np.nan, np.inf, -0.5, 1.5):
        bad = good.copy()
        bad[4, 2] = value  # down the first column of image 2
        refuses(read_omniglot, path, mat_bytes(data=good, testdata=bad), "testdata: 1 of", "(2, 4, 0)")


def test_frey_faces_keep_their_order(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 28, 20), np.uint8)
    path = tmp_path / "frey_rawface.mat"
    path.write_bytes(mat_bytes(ff=frames.reshape(5, 560).T))
    np.testing.assert_array_equal(read_frey_faces(path), frames)
    refuses(read_frey_faces, path, mat_bytes(ff=np.zeros((560, 2))), "uint8", "float64")


def test_arrays_round_trip(tmp_path: Path) -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.arange(3)
    (tmp_path / "a.npy").write_bytes(npy_bytes(a))
    (tmp_path / "ab.npz").write_bytes(npz_bytes(a=a, b=b))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npy")["array"], a)
    read = read_arrays(tmp_path / "ab.npz")
    assert list(read) == ["a", "b"]
    np.testing.assert_array_equal(read["b"], b)


def test_arrays_never_unpickle(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}], object), allow_pickle=True)
    refuses(read_arrays, tmp_path / "objects.npy", out.getvalue())
    refuses(read_arrays, tmp_path / "pickle.npy", b"\x80\x04N.", "expected a .npy or .npz")


READERS = {
    read_idx: idx_bytes(np.arange(60, dtype="u1").reshape(5, 4, 3)),
    read_amat: amat_bytes(np.ones((5, 7), np.uint8)),
    read_arrays: npz_bytes(a=np.arange(50.0)),
}


@pytest.mark.parametrize("reader", [read_idx, read_amat, read_omniglot, read_frey_faces, read_arrays])
def test_missing_empty_and_folder_are_refused(reader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent.*No such file"):
        reader(tmp_path / "absent")
    with pytest.raises(DataError, match=tmp_path.name):
        reader(tmp_path)
    refuses(reader, tmp_path / "empty", b"", "empty")
    refuses(reader, tmp_path / "empty.gz", gzip.compress(b""), "empty")
    refuses(reader, tmp_path / "noise", bytes(range(1, 200)))


@pytest.mark.parametrize("reader", READERS)
def test_corrupt_gzip_is_refused(reader, tmp_path: Path) -> None:
    compressed = gzip.compress(READERS[reader])
    (tmp_path / "good.gz").write_bytes(compressed)
    reader(tmp_path / "good.gz")
    flipped = bytearray(compressed)
    flipped[-6] ^= 1  # in the checksum of the contents
    for bad in (compressed[:-9], compressed[: len(compressed) // 2], bytes(flipped)):
        refuses(reader, tmp_path / "bad.gz", bad, "gzip")


def test_truncated_mat_and_npz_are_refused_at_any_length(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (560, 2), np.uint8)
    files = {
        read_frey_faces: mat_bytes(ff=noise),
        read_omniglot: mat_bytes(data=np.ones((784, 1)), testdata=np.ones((784, 1))),
        read_arrays: npz_bytes(a=noise),
    }
    for reader, contents in files.items():
        for length in (*range(1, 200, 7), *range(200, len(contents), len(contents) // 20)):
            refuses(reader, tmp_path / "cut", contents[:length])
    for length in range(1, 128 + math.prod(noise.shape), 31):
        refuses(read_arrays, tmp_path / "cut.npy", npy_bytes(noise)[:length])


def test_without_scipy_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refuses(read_omniglot, tmp_path / "chardata.mat", b"any", "scipy", "pip install gmcore[app]")


@pytest.mark.data
def test_real_mnist() -> None:
    images = read_idx(real("mnist", "train-images-idx3-ubyte.gz"))
    assert images.shape == (60000, 28, 28) and images.dtype == np.uint8
    assert round(float(images.mean()), 4) == 33.3184
    assert round(float(images.std()), 4) == 78.5675
    counts = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "t10k": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for part, expected in counts.items():
        labels = read_idx(real("mnist", f"{part}-labels-idx1-ubyte.gz"))
        assert np.bincount(labels).tolist() == expected


@pytest.mark.data
def test_real_omniglot_is_upright() -> None:
    path = real("omniglot28", "chardata_rebuilt.mat")
    labels = pytest.importorskip("scipy.io").loadmat(path, variable_names=["target", "targetchar", "alphabetnames"])
    train, test = read_omniglot(path)
    assert train.shape == (24345, 28, 28) and test.shape == (8070, 28, 28)
    assert round(float(train.mean(dtype=np.float64)), 5) == 0.08057
    assert round(float(test.mean(dtype=np.float64)), 5) == 0.08035
    latin = [str(name[0]) for name in labels["alphabetnames"][0]].index("Latin")
    letter_b = train[(labels["target"].argmax(axis=0) == latin) & (labels["targetchar"][0] == 2)].mean(axis=0)
    upper_left, upper_right, lower_left = letter_b[:14, :14], letter_b[:14, 14:], letter_b[14:, :14]
    # The stem of a b rises on the left; transposed, upper right and lower left change places.
    assert upper_left.sum() > 2 * upper_right.sum() and lower_left.sum() > 2 * upper_right.sum()


@pytest.mark.data
def test_real_frey_faces() -> None:
    faces = read_frey_faces(real("frey_faces", "frey_rawface.mat")).astype(np.int64)
    assert faces.shape == (1965, 28, 20) and faces.min() == 8 and faces.max() == 238
    # A face is smooth where its pixels lie together: less so with height and width exchanged.
    assert np.abs(np.diff(faces, axis=2)).mean() < 0.5 * np.abs(np.diff(faces.reshape(-1, 20, 28), axis=1)).mean()
