"""Arrays of other libraries as tensors, without a copy; `Tensor.__dlpack__` is the other direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmcore.device import cupy, put
from gmcore.errors import ArgumentError, DtypeError, GraphError, user_line
from gmcore.tensor import Tensor

_CUDA = 2  # DLPack's number of NVIDIA's GPUs


def from_dlpack(x: Any, /, *, device: str | None = None, copy: bool | None = None) -> Tensor:
    """A tensor on the memory of `x`, an array of any library that speaks DLPack (NumPy, PyTorch, JAX, ...).

    Parameters
    ----------
    x : has ``__dlpack__`` and ``__dlpack_device__``, on the CPU or a GPU of NVIDIA's.
    device : ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, a copy unless `x` is there; where `x` is by default.
    copy : True for memory of its own, None or False for that of `x`. What the other library writes into memory that
        is shared, the version of the tensor does not count: do not write between a computation and its gradient.

    Returns
    -------
    Tensor of the shape and dtype of `x`, which requires no gradient.

    Raises
    ------
    ArgumentError : not such an array, or on a device of another kind.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    DtypeError : not floats, integers or booleans; bfloat16, for which NumPy has no DLPack.
    GraphError : the other library refuses, for example because `x` requires a gradient there.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise ArgumentError(
            f"from_dlpack: expected an array with __dlpack__, got {type(x).__name__} (called at {user_line()})"
        )
    kind = type(x).__name__
    library = cupy() if x.__dlpack_device__()[0] == _CUDA else np
    try:
        array = x if isinstance(x, np.ndarray) and x.dtype.kind not in "fiub" else library.from_dlpack(x, copy=copy)
    except BufferError as error:
        raise GraphError(f"from_dlpack: {kind} does not share its memory: {error} (called at {user_line()})") from None
    except (RuntimeError, ValueError, TypeError) as error:
        unknown = DtypeError if "dtype" in str(error) else ArgumentError  # all that NumPy says of bfloat16
        raise unknown(
            f"from_dlpack: NumPy cannot view this {kind} of {getattr(x, 'dtype', 'unknown dtype')}: {error} "
            f"(called at {user_line()})"
        ) from None
    if array.dtype.kind not in "fiub":
        raise DtypeError(
            f"from_dlpack: cannot make a tensor of dtype {array.dtype}; expected floats, integers or booleans that "
            f"NumPy hands out by DLPack (called at {user_line()})"
        )
    return Tensor(put(array, device))
