"""Readers of the files that data sets come in, each in its original format.

Every reader takes a path, gzipped or not (told by the contents, not the name), and gives arrays or one
`DataError` that says which file, what was found and what was expected.
"""

from __future__ import annotations

import gzip
import importlib
import io
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcore.data.dataset import check_support
from gmcore.errors import DataError

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def optional_import(module: str, reason: str) -> ModuleType:
    """The module, which only the extra `app` installs, or a `DataError` that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{reason} needs {module.partition('.')[0]}: pip install gmcore[app]") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a file, decompressed if it is gzipped.

    Raises
    ------
    DataError
        If the file is missing, unreadable or empty, or its gzip stream is truncated or corrupt.
    """
    try:
        contents = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if contents.startswith(b"\x1f\x8b"):
        try:
            contents = gzip.decompress(contents)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: truncated or corrupt gzip stream ({error})") from None
    if not contents:
        raise DataError(f"{path}: the file is empty")
    return contents


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an IDX file, the format of MNIST and Fashion-MNIST.

    The file is two zero bytes, a byte for the type, a byte for the number of dimensions, the dimensions as
    big-endian 32-bit integers, and the values in C order, big-endian.

    Returns
    -------
    array of the file's shape
        uint8 for images (n, height, width) and labels (n,); otherwise the file's type in native byte order.

    Raises
    ------
    DataError
        If the magic number is not one of IDX, the length is not what the dimensions say, a dimension is
        zero, or a value is not finite.
    """
    contents = read_bytes(path)
    magic = contents[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or magic[3] == 0:
        raise DataError(f"{path}: expected an IDX magic number (0, 0, type, dimensions), found {magic!r}")
    dtype, start = np.dtype(_IDX_DTYPES[magic[2]]), 4 + 4 * magic[3]
    shape = tuple(int.from_bytes(contents[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(contents) != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for an IDX header and {shape} of {dtype.name}, found {len(contents)}"
        )
    if 0 in shape:
        raise DataError(f"{path}: the array is empty, shape {shape}")
    array = np.frombuffer(contents, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
    check_support(array, "real", str(path))
    return array


def read_amat(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an `.amat` file of binary images: a line an image, digits 0 and 1 with one blank between.

    Returns
    -------
    uint8 array of shape (lines, pixels), values 0 and 1

    Raises
    ------
    DataError
        If a line has another character, or another number of digits than the first line.
    """
    lines = read_bytes(path).strip().splitlines()
    width = (len(lines[0].strip()) + 1) // 2 if lines else 0
    if width == 0:
        raise DataError(f"{path}: expected lines of 0 and 1, found only blanks")
    # Slices and translate run in C on whole lines: half a second for the 78 MB of binarised MNIST.
    digits = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        pixels, blanks = line[::2], line[1::2]
        if len(line) != 2 * width - 1 or pixels.translate(None, b"01") or blanks.translate(None, b" \t"):
            raise DataError(
                f"{path}, line {number}: expected {width} digits 0 or 1 with a blank between, "
                f"found {len(line.split())} values in {line[:40]!r}"
            )
        digits.append(pixels)
    return np.frombuffer(b"".join(digits), np.uint8).reshape(len(lines), width) - np.uint8(ord("0"))


def read_omniglot(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read `chardata.mat`, OMNIGLOT at 28x28 as the IWAE paper has it.

    The file holds an image a column, its pixels in MATLAB's column-major order.

    Returns
    -------
    train, test : float32 arrays of shape (n, 28, 28)
        Upright images, ink in [0, 1].

    Raises
    ------
    DataError
        If the file is not a MATLAB file with `data` and `testdata` of 784 rows, or a value is not in [0, 1].
    """
    arrays = _read_mat(path, {"data": 784, "testdata": 784})
    train, test = (
        np.ascontiguousarray(array.T.reshape(-1, 28, 28).transpose(0, 2, 1), np.float32)
        for array in (arrays["data"], arrays["testdata"])
    )
    check_support(train, "unit-interval", f"{path}, data")
    check_support(test, "unit-interval", f"{path}, testdata")
    return train, test


def read_frey_faces(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read `frey_rawface.mat`, the video frames of one face.

    Returns
    -------
    uint8 array of shape (frames, 28, 20)

    Raises
    ------
    DataError
        If the file is not a MATLAB file with `ff` of 560 rows of uint8.
    """
    faces = _read_mat(path, {"ff": 560})["ff"]
    if faces.dtype != np.uint8:
        raise DataError(f"{path}: expected ff of uint8, found {faces.dtype}")
    return np.ascontiguousarray(faces.T).reshape(-1, 28, 20)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a `.npz` file by name, or the one of a `.npy` file under the name ``array``.

    Raises
    ------
    DataError
        If the file is neither, is truncated or corrupt, or holds Python objects.
    """
    contents = read_bytes(path)
    if not contents.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        raise DataError(f"{path}: expected a .npy or .npz file, found one that starts with {contents[:8]!r}")
    try:
        loaded = np.load(io.BytesIO(contents), allow_pickle=False)
        arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else loaded
        return {name: np.asarray(array) for name, array in arrays.items()}
    except Exception as error:  # noqa: BLE001  a corrupt file can make the parsers raise nearly anything
        raise DataError(f"{path}: truncated or corrupt .npy or .npz file ({error})") from None


def _read_mat(path: str | os.PathLike[str], rows: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """The named matrices of a MATLAB file, checked to be numeric with the given numbers of rows."""
    contents = read_bytes(path)
    scipy_io = optional_import("scipy.io", f"{path}: reading a .mat file")
    try:
        arrays = scipy_io.loadmat(io.BytesIO(contents), variable_names=list(rows))
    except Exception as error:  # noqa: BLE001  a corrupt file can make the parser raise nearly anything
        raise DataError(f"{path}: not a MATLAB file, or truncated or corrupt ({error})") from None
    for name, height in rows.items():
        if name not in arrays:
            raise DataError(f"{path}: expected a variable {name!r}, found none")
        array = arrays[name]
        if array.dtype.kind not in "uif" or array.ndim != 2 or array.shape[0] != height or array.size == 0:
            raise DataError(
                f"{path}: expected {name} as a numeric matrix of {height} rows with an image a column, "
                f"found {array.dtype} {array.shape}"
            )
    return {name: arrays[name] for name in rows}
