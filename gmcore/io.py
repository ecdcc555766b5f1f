"""Arrays and strings in one safetensors file, written whole or not at all.

A checkpoint of a run, and weights exchanged with other libraries, are such files. `save` adds two entries to the
metadata: ``gmcore_format``, the version of the format, and ``sha256``, the digest of names, dtypes, shapes, bytes
and metadata, since safetensors itself does not notice a byte that has changed. Files of other libraries carry
neither, and load all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from gmcore.errors import CheckpointError
from gmcore.tensor import Tensor, on_host

FORMAT_VERSION = 1
"""Version of the files that `save` writes, and the only one that `load` reads so far."""


_DTYPES = {"bool", "float16", "bfloat16", "float32", "float64", "complex64"} | {
    f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)
}


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray] | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and metadata to `path`, replacing what is there in one step.

    Parameters
    ----------
    arrays : name -> array, or tensor that requires no gradient, of any shape, layout and device, of a bool, integer or
        floating dtype; a `Module.state_dict`, for example.
    metadata : strings by name; ``gmcore_format`` and ``sha256`` are added.

    Raises
    ------
    CheckpointError : the file cannot be written (disk full, no permission, no such folder), or could not be read again:
        another dtype, or something else than strings. What was at `path` before is still there, and no temporary file
        is left behind.
    """
    held = {name: a.cpu().numpy() if isinstance(a, Tensor) else on_host(a) for name, a in arrays.items()}
    for name, a in held.items():
        if a.dtype.name not in _DTYPES or name == "__metadata__":  # the format's own name
            raise CheckpointError(f"{path}: a file of arrays cannot hold {name!r} of {a.dtype}")
    packed = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in held.items()}
    strings = {**(metadata or {}), "gmcore_format": str(FORMAT_VERSION)}
    try:
        strings["sha256"] = _digest(packed, strings)
        content = to_bytes(packed, metadata=strings)
    except (TypeError, UnicodeEncodeError) as error:
        raise CheckpointError(f"{path}: names and metadata must be strings ({error})") from None
    write_atomically(path, content)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file, of `save` or of another library.

    Returns
    -------
    arrays : name -> array.  metadata : strings by name; empty if the file has none.

    Raises
    ------
    CheckpointError : the file is missing, is truncated or otherwise not what was written, holds a dtype that
        NumPy lacks (float8, or bfloat16 without the package ml_dtypes), or was written by `save` in another version
        of the format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a safetensors file")
    with contextlib.suppress(ImportError):
        import ml_dtypes  # noqa: F401 (teaches NumPy bfloat16; without it such a file is refused below)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            version = metadata.get("gmcore_format")
            if version is not None and version != str(FORMAT_VERSION):
                raise CheckpointError(
                    f"{path}: written in checkpoint format {version}; this gmcore reads format {FORMAT_VERSION}"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, or not a safetensors file ({error})") from None
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: holds a dtype that NumPy lacks ({error})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if version is not None and metadata.get("sha256") != _digest(arrays, metadata):
        raise CheckpointError(f"{path}: corrupt; its contents are not those that were written (sha256 differs)")
    return arrays, metadata


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by one with this content; or leave it as it was, and raise `CheckpointError`.

    Where `path` is a link, the file that it leads to is replaced.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise CheckpointError(f"{path}: cannot be written (a device or a pipe, which would be replaced by a file)")
    # In the same folder, since a rename is atomic only within a file system; a name of this thread's own.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # the contents reach the disk before the name does
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is untouched"
        ) from None


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    layout = [(name, arrays[name].dtype.name, arrays[name].shape) for name in sorted(arrays)]
    strings = sorted((key, value) for key, value in metadata.items() if key != "sha256")
    digest = hashlib.sha256(json.dumps([layout, strings]).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


__all__ = ["FORMAT_VERSION", "load", "save", "write_atomically"]
