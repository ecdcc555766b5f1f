"""A stand-in for CuPy on a machine without a GPU: arrays in host memory that behave as `cupy.ndarray` does.

`install` puts it in the place of `cupy`. Values come from NumPy; what may be called with what, and where the results
lie, follows CuPy 14: NumPy's arrays do not mix with it, NumPy's functions dispatch to it, reductions give 0-d arrays,
results are C-contiguous, indices out of bounds wrap around, floating-point errors pass in silence, and functions or
arguments that CuPy has not are missing. `cuda_stand_in` is its `cupy.cuda`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import math
import os
import sys
import types
from collections.abc import Callable, Iterator
from copy import copy as shallow_copy
from typing import Any

import numpy as np

from tests.support import cuda_stand_in as cuda

VERSION = "14.2.0"
_SCALARS = (bool, int, float, complex, np.generic)

cp = types.SimpleNamespace()
"""The functions of CuPy that are made from NumPy's below; many have the names of Python's own."""


class Flags:
    """As `cupy.ndarray.flags`, which says nothing of writing."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous, self.f_contiguous = array._host.flags.c_contiguous, array._host.flags.f_contiguous
        self.owndata = array.base is None
        self.fnc = self.f_contiguous and not self.c_contiguous
        self.forc = self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc" and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


class ndarray:
    """As `cupy.ndarray`."""

    __slots__ = ("_host", "data", "base", "__weakref__")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray
    data: cuda.MemoryPointer
    base: ndarray | None

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: cuda.MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        shape = tuple(map(int, shape)) if isinstance(shape, (tuple, list)) else (int(shape),)
        dtype = _check_dtype(dtype)
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        if any(n < 0 for n in shape):
            raise ValueError("Negative dimensions are not allowed")
        size = math.prod(shape) * dtype.itemsize
        self.base = None
        self.data = cuda.alloc(size) if memptr is None else memptr
        if strides is None:
            self._host = np.ndarray(shape, dtype, self.data.host(size), order=order or "C")
        else:
            self._host = _at(self.data, shape, dtype, strides)

    # What NumPy asks ------------------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        operands = inputs
        if "out" in kwargs:
            if len(kwargs["out"]) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            operands += kwargs["out"]
            kwargs["out"] = kwargs["out"][0]
        name = function.__name__
        ours = getattr(sys.modules["cupy"], name, None)
        if ours is not None and method != "__call__":
            ours = getattr(ours, method, None)
        if ours is None:
            return NotImplemented
        if not all(isinstance(x, (ndarray, np.ndarray)) or type(x) in _SCALAR_TYPES for x in operands):
            return NotImplemented
        if name in _COMPARISONS.values():
            inputs = tuple(x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
        return ours(*inputs, **kwargs)

    def __array_function__(self, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        try:
            ours = functools.reduce(getattr, function.__module__.split(".")[1:], sys.modules["cupy"])
            ours = getattr(ours, function.__name__)
        except AttributeError:
            return NotImplemented
        if ours is function or not all(issubclass(kind, (ndarray, np.ndarray)) for kind in kinds):
            return NotImplemented
        return ours(*args, **kwargs)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": cuda.get_current_stream().ptr or 1,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        if stream is not None and (not isinstance(stream, int) or stream < -1 or stream == 0):
            raise ValueError(
                f"On CUDA, the valid stream for the DLPack protocol is -1, 1, 2, or any larger value, but {stream} "
                "was provided"
            )
        return _capsule(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.data.device_id

    # What it is -----------------------------------------------------------------------------------------------

    shape = property(lambda self: self._host.shape)

    @shape.setter
    def shape(self, shape: Any) -> None:
        view = self._host.view()
        view.shape = shape
        self._host = view

    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(Flags)
    device = property(lambda self: self.data.device)

    @property
    def T(self) -> ndarray:
        return self if self.ndim < 2 else self.transpose()

    @property
    def mT(self) -> ndarray:
        return self.swapaxes(-1, -2)

    real = property(lambda self: _call("view", np.real, self))
    imag = property(lambda self: _call("elementwise", np.imag, self))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[ndarray]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    # To and from the host -------------------------------------------------------------------------------------

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
            if self.dtype != out.dtype:
                raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
            if self.shape != out.shape:
                raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        result = np.empty(self.shape, self.dtype, order="F" if order == "F" else "C") if out is None else out
        if self.size:
            with self.device, stream or cuda.get_current_stream():
                if out is None or blocking:
                    cuda._refuse_pageable(0)
                else:
                    cuda._refuse_pageable(result.ctypes.data)
                source = self._host
                cuda.submit("to_host", lambda: np.copyto(result, source), cuda.touched(self.data))
                if blocking:
                    cuda.get_current_stream().synchronize()
        return result

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        if self.size:
            with self.device, stream or cuda.get_current_stream():
                cuda._refuse_pageable(arr.ctypes.data)
                target = self._host
                cuda.submit("to_device", lambda: np.copyto(target, arr), cuda.touched(self.data))

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> Any:
        return array, (self.get(),)

    # Elements -------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> ndarray:
        parts, advanced = _index(index)
        if not advanced:  # the ellipsis lets NumPy give an array, not a number
            return _view(self, self._host[parts if Ellipsis in parts else (*parts, ...)])
        _count(parts)
        return _call("elementwise", lambda x, i: x[_wrapped(i, x.shape)], self, parts)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value.ndim:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value.item()
        elif not isinstance(value, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")

        parts, _ = _index(index)
        if isinstance(value, ndarray) and value.size > 1:
            _count(parts)

        def assign(x: np.ndarray, i: Any, v: Any) -> None:
            x[_wrapped(i, x.shape)] = v

        _mutate(assign, self, parts, value)

    def fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value.ndim:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value.item()
        self[...] = value

    def take(self, indices: Any, axis: int | None = None, out: Any = None) -> ndarray:
        return take(self, indices, axis, out)

    def put(self, indices: Any, values: Any, mode: str = "wrap") -> None:
        put(self, indices, values, mode)

    # Shapes and copies ----------------------------------------------------------------------------------------

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        shape = shape[0] if len(shape) == 1 else shape
        return _call("view", np.reshape, self, shape, order=order)

    def transpose(self, *axes: Any) -> ndarray:
        axes = axes[0] if len(axes) == 1 else axes
        return _view(self, self._host.transpose(axes or None))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return _view(self, self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> ndarray:
        return _view(self, self._host.squeeze(axis))

    def ravel(self, order: str = "C") -> ndarray:
        return _call("view", np.ravel, self, order=order)

    def flatten(self, order: str = "C") -> ndarray:
        return _call("elementwise", lambda x: x.flatten(order), self)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> ndarray:
        return _call("view", np.diagonal, self, offset, axis1, axis2)

    def view(self, dtype: Any = None) -> ndarray:
        return _view(self, self._host.view() if dtype is None else self._host.view(dtype))

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        dtype = _check_dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        return _call("elementwise", lambda x: x.astype(dtype, order), self, _order=order)

    def copy(self, order: str = "C") -> ndarray:
        with self.device:
            return _call("elementwise", lambda x: x.copy(order), self, _order=order)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()


def _at(pointer: cuda.MemoryPointer, shape: tuple[int, ...], dtype: np.dtype[Any], strides: Any) -> np.ndarray:
    """A host array on the memory of a pointer."""
    if not all(shape):
        return np.empty(shape, dtype)
    end = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s > 0)
    before = -sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0)
    return np.ndarray(shape, dtype, (pointer - before).host(before + end), before, strides)


def _view(array: ndarray, host: np.ndarray) -> ndarray:
    """An array on the memory of another, where `host` lies, which is on the same."""
    view = ndarray.__new__(ndarray)
    offset = host.__array_interface__["data"][0] - array._host.__array_interface__["data"][0] if host.size else 0
    view.data = array.data + offset
    view.base = array if array.base is None else array.base
    if not host.flags.writeable:  # NumPy's views may be read-only, CuPy's never are
        host = _at(view.data, host.shape, host.dtype, host.strides)
    view._host = host
    return view


# ---------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------


def _unwrap(value: Any, met: list[ndarray]) -> Any:
    """The host's side of an argument; the device's arrays in it are added to `met`."""
    if isinstance(value, ndarray):
        if value.data.device_id != cuda._current_device() and not cuda._machine.peers:
            raise ValueError(
                f"The device where the array resides ({value.data.device_id}) is different from the current device "
                f"({cuda._current_device()}). Peer access is unavailable between these devices."
            )
        met.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)([_unwrap(part, met) for part in value])
    return value


def _call(
    kind: str, function: Callable[..., Any], /, *args: Any, out: Any = None, _order: str = "C", **kwargs: Any
) -> Any:
    """Call a function of NumPy on the host's side of device arrays, and bring what it returns to the device."""
    if isinstance(out, tuple):
        (out,) = out
    met: list[ndarray] = []
    args = tuple(_unwrap(a, met) for a in args)
    kwargs = {name: _unwrap(value, met) for name, value in kwargs.items()}
    touched = cuda.touched(*(a.data for a in met))
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError(f"Unsupported type {type(out)}")
        target = out._host
        if cuda.capturing() is not None:
            _silently(lambda: function(*args, out=target.copy(), **kwargs))  # refuses what does not fit
        work = functools.partial(_silently, lambda: function(*args, out=target, **kwargs))
        cuda.submit("elementwise" if kind == "view" else kind, work, (*touched, *cuda.touched(out.data)))
        return out
    result = _silently(lambda: function(*args, **kwargs))
    parts = result if isinstance(result, (tuple, list)) else (result,)
    wrapped, fresh = [], []
    for part in parts:
        source = None
        if isinstance(part, np.ndarray) and kind == "view":
            source = next((a for a in met if np.may_share_memory(a._host, part)), None)
            if source is None and not part.size and met:
                source = met[0]
        if source is not None:
            wrapped.append(_view(source, part))
        elif isinstance(part, (np.ndarray, np.generic)):
            keep = _order in "KA" and isinstance(part, np.ndarray)
            fortran = keep and part.flags.f_contiguous and not part.flags.c_contiguous or _order == "F"
            wrapped.append(ndarray(part.shape, part.dtype, order="F" if fortran else "C"))
            fresh.append((len(wrapped) - 1, wrapped[-1]._host))
            touched = (*touched, *cuda.touched(wrapped[-1].data))
        else:
            return result
    if any(target.size for _, target in fresh):
        first = [result]  # made already: only a graph makes it again

        def work() -> None:
            made = first.pop() if first else _silently(lambda: function(*args, **kwargs))
            made = made if isinstance(made, (tuple, list)) else (made,)
            for place, target in fresh:
                target[...] = made[place]

        if cuda.capturing() is not None:
            first.clear()
        cuda.submit("elementwise" if kind == "view" else kind, work, touched)
    return (
        wrapped[0]
        if parts is not result
        else type(result)(wrapped)
        if type(result) in (tuple, list)
        else tuple(wrapped)
    )


def _mutate(function: Callable[..., None], target: ndarray, /, *args: Any) -> None:
    """Let a function write into an array."""
    met: list[ndarray] = []
    host = _unwrap(target, met)
    args = tuple(_unwrap(a, met) for a in args)
    touched = cuda.touched(*(a.data for a in met))
    if cuda.capturing() is not None:
        _silently(lambda: function(host.copy(), *args))  # refuses what does not fit
    if host.size:
        cuda.submit("elementwise", functools.partial(_silently, lambda: function(host, *args)), touched)


def _silently(function: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):
        return function()


# ---------------------------------------------------------------------------------------------------------------
# Indices
# ---------------------------------------------------------------------------------------------------------------


def _index(index: Any) -> tuple[Any, bool]:
    """An index whose lists and arrays of the host are on the device, and whether it has arrays."""
    parts, advanced = [], False
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (bool, np.bool_, list, tuple, np.ndarray)):
            part = asarray(part)
            if not part.size and part.dtype == np.float64:
                part = part.astype(np.int32)
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(
                    f"arrays used as indices must be of integer or boolean type. (actual: {part.dtype.type})"
                )
            advanced = True
        parts.append(part)
    return tuple(parts), advanced


def _count(index: tuple[Any, ...]) -> None:
    """Wait, as CuPy does to count what is true in an index."""
    if any(isinstance(part, ndarray) and part.dtype.kind == "b" for part in index):
        cuda._wait()


def _wrapped(index: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An index whose integer arrays are taken modulo the size of their axes."""
    used = sum(p.ndim if isinstance(p, np.ndarray) and p.dtype.kind == "b" else 1
               for p in index if p is not None and p is not Ellipsis)  # fmt: skip
    wrapped, axis = [], 0
    for part in index:
        if part is Ellipsis:
            axis += len(shape) - used
        elif isinstance(part, np.ndarray) and part.dtype.kind == "b":
            axis += part.ndim
        elif part is not None:
            if isinstance(part, np.ndarray) and axis < len(shape) and shape[axis]:
                part = part.astype(np.int64) % shape[axis]
            axis += 1
        wrapped.append(part)
    return tuple(wrapped)


# ---------------------------------------------------------------------------------------------------------------
# Ufuncs
# ---------------------------------------------------------------------------------------------------------------


class ufunc:
    """As `cupy.ufunc`."""

    def __init__(self, name: str) -> None:
        self._numpy = getattr(np, name)
        self.__name__, self.name = name, f"cupy_{self._numpy.__name__}"
        self.nin = getattr(self._numpy, "nin", 1)
        self.nout = getattr(self._numpy, "nout", 1)
        self.nargs = self.nin + self.nout

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: Any = None, **wrong: Any) -> Any:
        if wrong:
            raise TypeError(f"Wrong arguments {wrong}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(f"Wrong number of arguments for {self.name!r}.")
        if len(args) > self.nin:
            args, out = args[: self.nin], args[self.nin]
        for a in args:
            if not isinstance(a, (ndarray, *_SCALARS)):
                raise TypeError(f"Unsupported type {type(a)}")
            if self.__name__ in _WITHOUT_BFLOAT16 and getattr(a, "dtype", np.dtype(bool)).name == "bfloat16":
                raise TypeError(f"Wrong type (({a.dtype!r},)) of arguments for {self.name}")
        options = {name: value for name, value in (("dtype", dtype), ("casting", casting)) if value is not None}
        return _call("elementwise", self._numpy, *args, out=out, **options)

    def outer(self, a: Any, b: Any, **kwargs: Any) -> ndarray:
        a, b = array(a), array(b)
        return self(a.reshape(a.shape + (1,) * b.ndim), b.reshape((1,) * a.ndim + b.shape), **kwargs)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if self._numpy.__name__ not in (
            "add",
            "subtract",
            "maximum",
            "minimum",
            "bitwise_and",
            "bitwise_or",
            "bitwise_xor",
        ):
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        parts, _ = _index(indices)
        if not isinstance(b, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(b)}")
        _mutate(lambda x, i, v: self._numpy.at(x, _wrapped(i, x.shape), v), a, parts, b)

    def reduce(
        self, array: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> ndarray:
        if self._numpy not in (np.add, np.multiply):
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        return (cp.sum if self._numpy is np.add else cp.prod)(array, axis, dtype, out, keepdims)

    def accumulate(self, array: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> ndarray:
        if self._numpy not in (np.add, np.multiply):
            raise NotImplementedError(f"`{self.name}.accumulate` is not supported yet")
        return (cp.cumsum if self._numpy is np.add else cp.cumprod)(array, axis, dtype, out)


UFUNCS = """
abs absolute acos acosh add arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh
bitwise_and bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
cbrt ceil conj conjugate copysign cos cosh deg2rad degrees divide divmod equal exp exp2 expm1 fabs float_power floor
floor_divide fmax fmin fmod frexp gcd greater greater_equal heaviside hypot invert isfinite isinf isnan lcm ldexp
left_shift less less_equal log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
maximum minimum mod modf multiply negative nextafter not_equal positive pow power rad2deg radians reciprocal remainder
right_shift rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc
""".split()

_WITHOUT_BFLOAT16 = {"divmod", "float_power", "logical_not", "logical_xor"}

_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "matmul": "matmul", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "divmod": "divmod", "pow": "power", "lshift": "left_shift",
    "rshift": "right_shift", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
}  # fmt: skip
_COMPARISONS = {
    "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip
_SCALAR_TYPES = {bool, int, float, complex, *(np.dtype(c).type for c in "?bhilqBHILQefdFD")}


def _defers(x: Any, y: Any) -> bool:
    """Whether an operator leaves the call to its right-hand side."""
    try:
        return y.__array_ufunc__ is None
    except AttributeError:
        return getattr(x, "__array_priority__", 0) < getattr(y, "__array_priority__", 0)


def _operator(name: str) -> Callable[[Any, Any], Any]:
    def operator(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray):
            return getattr(cp, name)(self, other)
        return NotImplemented if _defers(self, other) else getattr(np, name)(self, other)

    return operator


def _reflected(name: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: getattr(np, name)(other, self)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: getattr(cp, name)(self, other, self)


for _name in UFUNCS:
    setattr(cp, _name, ufunc(_name))
for _short, _name in _UNARY.items():
    setattr(ndarray, f"__{_short}__", functools.partialmethod(lambda self, name: getattr(cp, name)(self), _name))
for _short, _name in _BINARY.items():
    setattr(ndarray, f"__{_short}__", _operator(_name))
    setattr(ndarray, f"__r{_short}__", _reflected(_name))
    if _short not in ("matmul", "divmod"):
        setattr(ndarray, f"__i{_short}__", _in_place(_name))
for _short, _name in _COMPARISONS.items():
    setattr(ndarray, f"__{_short}__", _operator(_name))


# ---------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "view": """
        atleast_1d(*arys) atleast_2d(*arys) atleast_3d(*arys) broadcast_arrays(*args) broadcast_to(array,shape)
        diagonal(a,offset,axis1,axis2) expand_dims(a,axis) flip(a,axis) fliplr(a) flipud(a) imag(val) real(val)
        matrix_transpose(x) moveaxis(a,source,destination) permute_dims(a,axes) ravel(a,order)
        reshape(a,newshape,order) rollaxis(a,axis,start) rot90(a,k,axes) split(ary,indices_or_sections,axis)
        array_split(ary,indices_or_sections,axis) hsplit(ary,indices_or_sections) vsplit(ary,indices_or_sections)
        dsplit(ary,indices_or_sections) squeeze(a,axis) swapaxes(a,axis1,axis2) transpose(a,axes)
    """,
    "elementwise": """
        all(a,axis,out,keepdims) amax(a,axis,out,keepdims) amin(a,axis,out,keepdims) any(a,axis,out,keepdims)
        append(arr,values,axis) argmax(a,axis,out,keepdims) argmin(a,axis,out,keepdims) argsort(a,axis,kind)
        argpartition(a,kth,axis) around(a,decimals,out) average(a,axis,weights,returned,keepdims)
        choose(a,choices,out,mode) clip(a,a_min,a_max,out) column_stack(tup) concatenate(tup,axis,out,dtype,casting)
        concat(tup,axis,out,dtype,casting) count_nonzero(a,axis) cross(a,b,axisa,axisb,axisc,axis)
        cumprod(a,axis,dtype,out) cumsum(a,axis,dtype,out) diag(v,k) diagflat(v,k) diff(a,n,axis,prepend,append)
        digitize(x,bins,right) dstack(tup) flatnonzero(a) hstack(tup,dtype,casting) interp(x,xp,fp,left,right,period)
        isclose(a,b,rtol,atol,equal_nan) allclose(a,b,rtol,atol,equal_nan) array_equal(a1,a2,equal_nan)
        isin(element,test_elements,assume_unique,invert) isneginf(x,out) isposinf(x,out) kron(a,b) lexsort(keys)
        max(a,axis,out,keepdims) mean(a,axis,dtype,out,keepdims) median(a,axis,out,overwrite_input,keepdims)
        min(a,axis,out,keepdims) nan_to_num(x,copy,nan,posinf,neginf) nanargmax(a,axis,out,keepdims)
        nanmax(a,axis,out,keepdims) nanmean(a,axis,dtype,out,keepdims) nanmin(a,axis,out,keepdims)
        nansum(a,axis,dtype,out,keepdims) outer(a,b,out) packbits(a,axis,bitorder) partition(a,kth,axis)
        percentile(a,q,axis,out,overwrite_input,method,keepdims) prod(a,axis,dtype,out,keepdims)
        ptp(a,axis,out,keepdims) quantile(a,q,axis,out,overwrite_input,method,keepdims) repeat(a,repeats,axis)
        roll(a,shift,axis) round(a,decimals,out) searchsorted(a,v,side,sorter) sinc(x) i0(x) fix(x,out)
        sort(a,axis,kind) stack(tup,axis,out,dtype,casting) std(a,axis,dtype,out,ddof,keepdims)
        sum(a,axis,dtype,out,keepdims) take_along_axis(a,indices,axis) tile(A,reps)
        trace(a,offset,axis1,axis2,dtype,out) tril(m,k) triu(m,k) unpackbits(a,axis,bitorder)
        unravel_index(indices,dims,order) vander(x,N,increasing) var(a,axis,dtype,out,ddof,keepdims)
        vstack(tup,dtype,casting) pad(array,pad_width,mode,**kwargs) meshgrid(*xi,**kwargs) ix_(*args)
        tri(N,M,k,dtype) arange(start,stop,step,dtype) linspace(start,stop,num,endpoint,retstep,dtype,axis)
        logspace(start,stop,num,endpoint,base,dtype,axis) eye(N,M,k,dtype,order) identity(n,dtype)
        indices(dimensions,dtype) tril_indices(n,k,m) triu_indices(n,k,m)
        cov(a,y,rowvar,bias,ddof,fweights,aweights,dtype)
    """,
    "library": """
        dot(a,b,out) einsum(*operands,**kwargs) inner(a,b) matmul(a,b,out) tensordot(a,b,axes) vdot(a,b)
    """,
}  # fmt: skip
"""The functions and arguments that CuPy has, by what they run: another view of an array, kernels of CuPy, or cuBLAS."""

LINALG = """
    cholesky(a) det(a) eigh(a,UPLO) eigvalsh(a,UPLO) inv(a) lstsq(a,b,rcond) matrix_power(M,n) matrix_rank(M,tol)
    norm(x,ord,axis,keepdims) pinv(a,rcond) qr(a,mode) slogdet(a) solve(a,b) svd(a,full_matrices,compute_uv)
    tensorinv(a,ind) tensorsolve(a,b,axes)
"""
_BY_KEYWORD = {
    "axis", "out", "dtype", "keepdims", "ddof", "casting", "order", "kind", "ord", "rcond", "mode", "UPLO", "side",
    "sorter", "weights", "returned", "equal_nan", "rtol", "atol", "prepend", "append", "method", "full_matrices",
    "compute_uv",
}  # fmt: skip
_MAY_BE_NONE = {"axis", "k", "M"}
_COUNTS_ON_THE_HOST = {"flatnonzero", "nonzero", "argwhere", "unique"}


def _function(kind: str, name: str, parameters: list[str], home: Any = np) -> Callable[..., Any]:
    """A function of NumPy, with the arguments that CuPy has for it."""
    theirs = getattr(home, name)
    variadic = parameters[0].startswith("*")
    positional = [p for p in parameters if p not in _BY_KEYWORD]

    def function(*args: Any, **kwargs: Any) -> Any:
        if not variadic:
            if len(args) > len(parameters):
                raise TypeError(f"{name}() takes {len(parameters)} positional arguments but {len(args)} were given")
            given = dict(zip(parameters, args, strict=False)) | kwargs
            if not parameters[-1].startswith("**") and (wrong := given.keys() - set(parameters)):
                raise TypeError(f"{name}() got an unexpected keyword argument {wrong.pop()!r}")
            # NumPy may have other names for what comes first, and another order of the rest.
            args = tuple(given.pop(p) for p in list(itertools.takewhile(given.__contains__, positional)))
            kwargs = {p: a for p, a in given.items() if a is not None or p in _MAY_BE_NONE}
        if name in _COUNTS_ON_THE_HOST:
            cuda._wait()
        return _call(kind, theirs, *args, **kwargs)

    function.__name__ = function.__qualname__ = name
    return function


def _parse(text: str) -> Iterator[tuple[str, list[str]]]:
    for entry in text.split():
        name, _, parameters = entry.partition("(")
        yield name, parameters.rstrip(")").split(",")


for _kind, _text in FUNCTIONS.items():
    for _name, _parameters in _parse(_text):
        setattr(cp, _name, _function(_kind, _name, _parameters))
for _name in ("sum prod mean var std max min argmax argmin any all cumsum cumprod clip round repeat sort argsort trace "
              "ptp dot searchsorted").split():  # fmt: skip
    setattr(ndarray, _name, (lambda name: lambda self, *a, **k: getattr(cp, name)(self, *a, **k))(_name))
ndarray.clip = lambda self, min=None, max=None, out=None: clip(self, min, max, out)
ndarray.conj = ndarray.conjugate = lambda self: cp.conjugate(self)
ndarray.nonzero = lambda self: nonzero(self)


def clip(a: Any, a_min: Any, a_max: Any, out: Any = None) -> ndarray:
    return _call("elementwise", np.clip, a, a_min, a_max, out=out)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    if x is None:
        return nonzero(condition)
    return _call("elementwise", np.where, condition, x, y)


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    cuda._wait()
    return _call("elementwise", np.nonzero, a)


def argwhere(a: ndarray) -> ndarray:
    cuda._wait()
    return _call("elementwise", np.argwhere, a)


def unique(
    ar: ndarray, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False,
    axis: int | None = None, *, equal_nan: bool = True,
) -> Any:  # fmt: skip
    cuda._wait()
    return _call("elementwise", np.unique, ar, return_index, return_inverse, return_counts, axis, equal_nan=equal_nan)


def bincount(x: ndarray, weights: Any = None, minlength: int | None = None) -> ndarray:
    cuda._wait()
    return _call("elementwise", np.bincount, x, weights, minlength or 0)


def take(a: ndarray, indices: Any, axis: int | None = None, out: Any = None) -> ndarray:
    indices = indices if isinstance(indices, (int, np.integer)) else asarray(indices)
    return _call("elementwise", np.take, a, indices, axis, out=out, mode="wrap")


def put(a: ndarray, ind: Any, v: Any, mode: str = "wrap") -> None:
    _mutate(lambda x, i, values: np.put(x, i, values, mode), a, asarray(ind), asarray(v))


def put_along_axis(arr: ndarray, indices: ndarray, values: Any, axis: int) -> None:
    _mutate(lambda x, i, v: np.put_along_axis(x, i, v, axis), arr, indices, values)


def putmask(a: ndarray, mask: ndarray, values: Any) -> None:
    _mutate(np.putmask, a, mask, values)


def place(arr: ndarray, mask: ndarray, vals: Any) -> None:
    _mutate(np.place, arr, mask, asarray(vals))


def fill_diagonal(a: ndarray, val: Any, wrap: bool = False) -> None:
    _mutate(lambda x, v: np.fill_diagonal(x, v, wrap), a, val)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if not isinstance(src, (ndarray, *_SCALARS)):
        raise TypeError(f"Unsupported type {type(src)}")
    _mutate(lambda x, s, w: np.copyto(x, s, casting, where=True if w is None else w), dst, src, where)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    made = ndarray(shape, dtype, order=order)
    made.fill(fill_value)
    return made


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    host = np.lib.stride_tricks.as_strided(np.empty((), prototype.dtype), prototype.shape, prototype.strides)
    like = np.empty_like(host, dtype, order, shape=shape)
    return ndarray(like.shape, like.dtype, order="C" if like.flags.c_contiguous else "F")


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    made = empty_like(a, dtype, order, subok, shape)
    made.fill(fill_value)
    return made


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return full_like(a, 1, dtype, order, subok, shape)


def array(
    obj: Any, dtype: Any = None, copy: bool | None = True, order: str | None = "K", subok: bool = False, ndmin: int = 0,
    *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    if subok:
        raise NotImplementedError
    if isinstance(obj, (list, tuple)) and _has_device_arrays(obj):
        obj = cp.stack([array(part, dtype) for part in obj])
    if isinstance(obj, ndarray):
        if obj.data.device_id == cuda._current_device():
            made = obj.astype(obj.dtype if dtype is None else dtype, order or "K", copy=bool(copy))
        else:
            made = ndarray(obj.shape, obj.dtype)
            source, target = obj._host, made._host
            cuda.submit("elementwise", lambda: np.copyto(target, source), cuda.touched(obj.data, made.data))
            made = made if dtype is None else made.astype(dtype, copy=False)
        return made.reshape((1,) * (ndmin - made.ndim) + made.shape) if ndmin > made.ndim else made
    if hasattr(obj, "__cuda_array_interface__"):
        raise NotImplementedError("the stand-in knows no other arrays of a GPU")
    host = np.array(obj, dtype=dtype, ndmin=ndmin, order=order)
    _check_dtype(host.dtype)
    made = ndarray(host.shape, host.dtype, order="C" if host.flags.c_contiguous else "F")
    if host.ndim == 0:
        made.fill(host)
    elif host.size:
        cuda._refuse_pageable(0)
        target = made._host
        cuda.submit("to_device", lambda: np.copyto(target, host), cuda.touched(made.data))
    return made


def _has_device_arrays(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_device_arrays, value))
    return isinstance(value, ndarray)


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, bool(copy), order)


asanyarray = asarray


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    a = a if a.flags.c_contiguous else a.copy("C")
    return a.reshape(1) if a.ndim == 0 else a


def asfortranarray(a: Any, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    return a if a.flags.f_contiguous else a.copy("F")


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def copy(a: Any, order: str = "K") -> ndarray:
    return a.copy(order)


def astype(x: ndarray, dtype: Any, /, *, copy: bool = True) -> ndarray:
    return x.astype(dtype, copy=copy)


def get_array_module(*args: Any) -> types.ModuleType:
    return sys.modules["cupy"] if _has_device_arrays(args) else np


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in arrays_and_dtypes))


def ndim(a: Any) -> int:
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


def shape(a: Any) -> tuple[int, ...]:
    return a.shape if isinstance(a, ndarray) else np.shape(a)


def size(a: Any, axis: int | None = None) -> int:
    return a.size if axis is None else a.shape[axis]


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.may_share_memory(a._host, b._host)


def shares_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.shares_memory(a._host, b._host)


def iscomplexobj(x: Any) -> bool:
    return x.dtype.kind == "c"


# ---------------------------------------------------------------------------------------------------------------
# DLPack
# ---------------------------------------------------------------------------------------------------------------


def _capsule(a: ndarray) -> Any:
    """NumPy's capsule of the memory, in which it lies on a GPU."""
    capsule = a._host.__dlpack__()
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    tensor = ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")
    place = ctypes.c_int32 * 2
    place.from_address(tensor + ctypes.sizeof(ctypes.c_void_p))[:] = (2, a.data.device_id)
    return capsule


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    if isinstance(array, ndarray):
        return array.copy() if copy else array.view()
    kind, _ = array.__dlpack_device__()
    if kind == 1:
        raise ValueError("Unsupported array type. (CPU arrays need device=)")
    raise NotImplementedError("the stand-in knows no other arrays of a GPU")


# ---------------------------------------------------------------------------------------------------------------
# The module
# ---------------------------------------------------------------------------------------------------------------


class RawModule:
    """As `cupy.RawModule`: compiled for the host by the emulator; a launch is enqueued on the current stream."""

    def __init__(self, **kwargs: Any) -> None:
        from tests.support import emulator

        self._module = emulator.RawModule(**kwargs)

    def compile(self, log_stream: Any = None) -> None: ...

    def get_function(self, name: str) -> Any:
        return _Kernel(self._module.get_function(name))


class _Kernel:
    """A kernel of a module, whose launches wait for their turn in the stream."""

    def __init__(self, kernel: Any) -> None:
        object.__setattr__(self, "_kernel", kernel)

    @property
    def kernel(self) -> Any:
        """The `cupy.cuda.Function` on the current device: its handle is all that is asked of it."""
        return types.SimpleNamespace(ptr=id(self._kernel))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._kernel, name, value)

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        arrays = [a for a in args if isinstance(a, ndarray)]
        touched = cuda.touched(*(a.data for a in arrays))
        if cuda.capturing() is not None:  # a graph holds addresses, not arrays
            args = tuple(_unowned(a) if isinstance(a, ndarray) else a for a in args)
        cuda.submit("launch", lambda: self._kernel(grid, block, args, shared_mem=shared_mem), touched)


def _unowned(a: ndarray) -> ndarray:
    """The same array, without keeping its memory."""
    other = ndarray.__new__(ndarray)
    other.base, other._host = None, a._host
    other.data = cuda.MemoryPointer(cuda.UnownedMemory(a.data.ptr, a.nbytes, None, a.data.device_id), 0)
    return other


FROM_NUMPY = """
bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp uintp float16 float32 float64 complex64 complex128 half
single double intc uintc longlong generic number integer signedinteger unsignedinteger inexact floating
complexfloating dtype finfo iinfo e euler_gamma inf nan newaxis pi can_cast promote_types issubdtype isscalar
broadcast_shapes isdtype
""".split()
OURS = """
ndarray ufunc where nonzero argwhere unique bincount take put put_along_axis putmask place fill_diagonal copyto empty
full zeros ones empty_like full_like zeros_like ones_like array asarray asanyarray ascontiguousarray asfortranarray
asnumpy copy astype get_array_module result_type ndim shape size may_share_memory shares_memory iscomplexobj
from_dlpack clip RawModule
""".split()


def modules() -> dict[str, types.ModuleType]:
    """The stand-in modules, by name."""
    found = cuda.modules()
    cupy = types.ModuleType("cupy", __doc__)
    cupy.__path__ = []  # a package
    cupy.__version__ = VERSION
    for name in FROM_NUMPY:
        setattr(cupy, name, getattr(np, name))
    vars(cupy).update(vars(cp))
    for name in OURS:
        setattr(cupy, name, globals()[name])
    cupy.bool = np.bool_
    cupy.cuda, cupy.is_available = found["cupy.cuda"], cuda.is_available
    cupy.get_default_memory_pool = lambda: cuda._default_pool
    cupy.get_default_pinned_memory_pool = lambda: cuda._default_pinned_pool
    linalg = types.ModuleType("cupy.linalg")
    linalg.LinAlgError = np.linalg.LinAlgError
    for name, parameters in _parse(LINALG):
        setattr(linalg, name, _function("library", name, parameters, np.linalg))
    cupy.linalg = found["cupy.linalg"] = linalg
    return {"cupy": cupy, **found}


class _Interpreted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the launches of Triton's interpreter wait for their turn in the stream, once it is imported."""

    name = "triton.runtime.interpreter"

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self._loader, spec.loader = spec.loader, self  # type: ignore[union-attr]
        return spec

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        launch = module.GridExecutor.__call__

        def enqueue(executor: Any, *args: Any, **kwargs: Any) -> None:
            touched: tuple[cuda.Block, ...] = ()
            if cuda.capturing() is not None:
                pointers = [a.data_ptr() for a in (*args, *kwargs.values()) if hasattr(a, "data_ptr")]
                touched = tuple(block for p in pointers if (block := cuda.block_of(p)) is not None)
                args, kwargs = tuple(map(_pointing, args)), {name: _pointing(a) for name, a in kwargs.items()}
            cuda.submit("launch", lambda: _silently(lambda: launch(executor, *args, **kwargs)), touched)

        module.GridExecutor.__call__ = enqueue


def _pointing(argument: Any) -> Any:
    """An argument of Triton's interpreter, without the memory of its array if it is a `gmkernels.launch.Pointer`."""
    if hasattr(argument, "data_ptr"):
        argument = shallow_copy(argument)
        argument.array = _unowned(argument.array)
    return argument


@functools.cache
def has_gpu() -> bool:
    """Whether this machine has a GPU, as its driver says; nothing is imported."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def install() -> None:
    """Put the stand-in in the place of CuPy, in this process; Triton interprets."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.meta_path.insert(0, _Interpreted())
    for name, module in modules().items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
