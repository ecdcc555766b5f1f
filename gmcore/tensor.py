"""Tensor: an array, and the place in the tape it came from.

A tensor never changes under the user: arithmetic makes new tensors, and the two ways to write into one
(`copy_` on a leaf, and asking `numpy(writable=True)` for its memory) bump a version that the backward pass
checks. The tape itself (`Node`) holds arrays, not tensors, so that nothing refers in a circle.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from gmcore import hooks
from gmcore.device import allocating, device_of, put, put_beside
from gmcore.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    GraphError,
    ShapeError,
    shown,
    user_function,
    user_line,
)
from gmcore.extras import require
from gmkernels.arrays import is_array, namespace, on_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gmcore.op import Node, Op
    from gmcore.watch import Watched

Array = Any
"""A `numpy.ndarray`, or a `cupy.ndarray` on a GPU."""

FLOATING = "fV"
"""NumPy's kinds of the floating dtypes. bfloat16, an extension type of ml_dtypes, has the kind V, which no other
tensor has."""


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether tensors of `dtype` hold real numbers, and so can carry a gradient."""
    return dtype.kind in FLOATING


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of a name or type.

    Raises
    ------
    DtypeError : not a dtype of floats, integers or booleans.
    MissingPackageError : bfloat16 where the package ml_dtypes is not installed.
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        dtype = require("ml_dtypes", "bfloat16").bfloat16
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or (found.kind not in "fiub" and found.name != "bfloat16"):
        raise DtypeError(
            f"{user_function()}: expected a dtype of floats, integers or booleans, got {found or repr(dtype)} "
            f"(called at {user_line()})"
        )
    return native(found)


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in the machine's order of bytes: what tensors hold, and kernels compute with."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def finfo(dtype: np.dtype[Any]) -> Any:
    """`numpy.finfo` of a floating dtype, also of bfloat16."""
    return np.finfo(dtype) if dtype.kind == "f" else require("ml_dtypes", "bfloat16").finfo(dtype)


_mode: ContextVar[bool | Watched] = ContextVar("gmcore.mode", default=True)
"""Whether operations are recorded: True or False; inside a watch, a `Watched` with that truth value. An engine that
nobody watches asks whether the mode is True and then whether it is False, and so pays nothing for what it might be."""


def mode_with(recording: bool) -> bool | Watched:
    """The mode of this context, but for whether operations are recorded."""
    mode = _mode.get()
    return recording if type(mode) is bool else mode.recording(recording)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this context."""
    return bool(_mode.get())


@contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Record operations inside the block, or do not; restored on leaving it, in this context only.

    Parameters
    ----------
    enabled : whether to record.

    Yields
    ------
    None
    """
    token = _mode.set(mode_with(enabled))
    try:
        yield
    finally:
        _mode.reset(token)


def no_grad() -> Any:
    """Do not record operations inside the block (or inside the function, as a decorator)."""
    return set_grad_enabled(False)


def enable_grad() -> Any:
    """Record operations inside the block, also inside `no_grad`."""
    return set_grad_enabled(True)


class Leaf:
    """The end of the tape at a leaf: where its gradient is added up. Refers to its tensor weakly."""

    __slots__ = ("tensor", "hooks", "accumulated")

    hooks: dict[int, tuple[int, Callable[[Tensor], Tensor | None]]] | None
    accumulated: dict[int, Callable[[Tensor], None]] | None

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)
        self.hooks = None
        self.accumulated = None


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    Make one with `gmcore.tensor`. A tensor requires a gradient when it is a leaf that was asked to
    (``requires_grad=True``) or was computed from such a leaf while recording was on.

    Parameters
    ----------
    data : array of floats, integers or booleans; its memory is taken over without a copy or a check.
    requires_grad : whether to record what is computed from it.
    """

    __slots__ = ("_data", "_edge", "_version", "_cut", "_grad", "__weakref__")
    __hash__ = object.__hash__

    _data: Array
    _edge: tuple[Any, int] | None
    """Its place on the tape: what computed it and which output of that it is; None off the tape."""
    _version: list[int] | None
    """How often its memory was written, shared with its views; made when somebody first wants to know."""
    _cut: Op
    """What computed it from tensors on the tape, where it carries no gradient; absent otherwise."""
    _grad: Tensor | None

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        self._data = data
        self._edge = None
        self._version = None
        self._grad = None
        if requires_grad:
            self.requires_grad = True

    # -- what it is -----------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._data.size

    @property
    def device(self) -> str:
        """``"cpu"``; ``"cuda:0"`` for an array on the first GPU."""
        return device_of(self._data)

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user, not by a recorded operation."""
        return self._edge is None or type(self._edge[0]) is Leaf

    @property
    def grad(self) -> Tensor | None:
        """What backward passes have added up here; assign None to begin again."""
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("relies", (self,), None, False)
        return self._grad

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("relies", (self,), None, False)
        self._grad = gradient

    @property
    def requires_grad(self) -> bool:
        return self._edge is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value == self.requires_grad:
            return
        if not self.is_leaf:
            raise GraphError("only a leaf can stop requiring a gradient; use .detach() on a computed tensor")
        if value and not is_floating(self._data.dtype):
            raise DtypeError(f"only floating tensors can require a gradient, this one is {self.dtype}")
        self._edge = (Leaf(self), 0) if value else None
        hooks.changed()

    @property
    def _node(self) -> Node | Leaf | None:
        return None if self._edge is None else self._edge[0]

    @property
    def version(self) -> int:
        """How often its memory was written; the backward pass checks it."""
        return 0 if self._version is None else self._version[0]

    def _counter(self) -> list[int]:
        """The cell that counts the writes into its memory."""
        if self._version is None:
            self._version = [0]
        return self._version

    def _written(self) -> None:
        """Its memory has been written: tapes that saved it are void."""
        self._counter()[0] += 1
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("wrote", self)

    def _read(self) -> Array:
        """Its memory, for Python code that looks at the numbers."""
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("read", self)
        return self._data

    def __getattr__(self, name: str) -> Any:
        # Only for what is not there: `gmcore.capture` takes the memory from tensors whose numbers it will overwrite.
        if name == "_data":
            raise GraphError(
                "this tensor was computed inside a captured step, or is what the step got for an argument, and its "
                "memory is used for other numbers now. Return it from the step, or write it into a leaf with copy_ "
                f"(used at {user_line()})"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of no dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        body = np.array2string(put(self._read(), "cpu"), separator=", ", prefix="tensor(", threshold=100)
        default = _DEFAULT_DTYPES.get(self.dtype.kind)
        dtype = "" if self.dtype == default else f", dtype={self.dtype}"
        if on_gpu(self._data):
            dtype += f", device={self.device!r}"
        if self.is_leaf:
            tail = ", requires_grad=True" if self.requires_grad else ""
        else:
            tail = f", op={self._node.op.name}"  # type: ignore[union-attr]
        return f"tensor({body}{dtype}{tail})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    # -- getting at the numbers ------------------------------------------------------------------------
    def numpy(self, *, writable: bool = False) -> np.ndarray:
        """The memory as a NumPy array, without a copy; read-only unless `writable`, which bumps the version.

        Raises
        ------
        GraphError : the tensor requires a gradient (NumPy code would silently cut the tape).
        DeviceError : the tensor is on a GPU: ``t.cpu().numpy()`` copies its numbers. Those of one element, `item` does.
        """
        if self.requires_grad:
            raise GraphError("numpy() on a tensor that requires a gradient would cut the tape; "
                             "call .detach().numpy() if that is meant")  # fmt: skip
        if on_gpu(self._data):
            raise DeviceError(
                f"numpy() on a tensor on {self.device}; copy its numbers to the CPU first, with .cpu() "
                f"(called at {user_line()})"
            )
        data = self._read()
        if writable:
            mode = _mode.get()
            if type(mode) is not bool:
                mode.tell("unrepeatable", "it takes the memory of a tensor to write into it; use copy_")
            self._written()
            return data
        view = data.view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> Any:
        """The Python number in a tensor of one element; on a GPU, what computes it is waited for.

        Raises
        ------
        ShapeError : not one element.
        """
        if self.size != 1:
            raise ShapeError(f"item() needs a tensor of one element, this one has shape {self.shape}")
        return self._read().item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        return self._read().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    # -- other libraries: NumPy's functions are in gmcore.numpy_functions, from_dlpack in gmcore.dlpack ------
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _numpy.call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _numpy.call_function(function, types, args, kwargs)

    def __dlpack__(self, **options: Any) -> Any:
        """The memory for another library, marked read-only, as `numpy()` gives it; ``copy=True`` for a copy.

        ``other.from_dlpack(t.numpy(writable=True))`` gives it memory to write into, and bumps the version. PyTorch
        does not look at the mark: do not write into what it makes of a tensor.

        Raises
        ------
        GraphError : the tensor requires a gradient.
        BufferError : a library that does not know read-only memory.
        """
        if on_gpu(self._data) and not self.requires_grad:
            return self._read().__dlpack__(**options)
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._data.__dlpack_device__()

    # -- the tape --------------------------------------------------------------------------------------
    def backward(self, gradient: Tensor | None = None, *, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf), contracted with `gradient`, to the `grad` of every leaf.

        Parameters
        ----------
        gradient : tensor of this tensor's shape; may be left out for one element, where it is 1.
        retain_graph : keep the tape for another backward pass; by default its memory is freed on the way.

        Raises
        ------
        GraphError : nothing was recorded, the tape was freed by an earlier pass, an array it saved has since
            been changed, or an operation on the way has no derivative.
        """
        _backward(self, gradient, retain_graph)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> hooks.RemovableHandle:
        """Call ``hook(gradient)`` whenever the gradient of this tensor has been computed.

        It sees the sum over all paths, before it flows on or is added to `grad`; what it returns, unless None, takes
        its place and must have its shape and dtype. Hooks run in the order they were registered. Those of a leaf
        last until its ``requires_grad`` is switched off, those of a computed tensor as long as its tape.

        Raises
        ------
        GraphError : the tensor does not require a gradient.
        """
        if self._edge is None:
            raise GraphError("register_hook: this tensor does not require a gradient, so there is none to see")
        return hooks.register(*self._edge, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> hooks.RemovableHandle:
        """Call ``hook(tensor)`` whenever a backward pass has added to the `grad` of this leaf.

        Raises
        ------
        GraphError : the tensor is no leaf that requires a gradient.
        """
        if self._edge is None or not self.is_leaf:
            raise GraphError("register_post_accumulate_grad_hook: only leaves that require a gradient accumulate one")
        leaf = self._edge[0]
        if leaf.accumulated is None:
            leaf.accumulated = {}
        return hooks.RemovableHandle(leaf.accumulated, hook)

    def retain_grad(self) -> None:
        """Add the gradient of this computed tensor to its `grad`, as if it were a leaf; nothing to do for a leaf.

        Raises
        ------
        GraphError : the tensor does not require a gradient.
        """
        if self._edge is None:
            raise GraphError("retain_grad: this tensor does not require a gradient, so there is none to keep")
        place, slot = self._edge
        retained = [h.tensor() for _, h in (place.hooks or {}).values() if isinstance(h, hooks.Retain)]
        if not self.is_leaf and not any(tensor is self for tensor in retained):
            hooks.register(place, slot, hooks.Retain(self))

    def detach(self) -> Tensor:
        """The same memory, off the tape."""
        out = Tensor(self._data)
        out._version = self._counter()
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("relies", (self,), None, False)
            mode.tell("derived", out)
        return out

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Record what is computed from this tensor, or do not; returns it.

        Raises
        ------
        GraphError : a tensor that was computed.  DtypeError : one that is not floating.
        """
        self.requires_grad = requires_grad
        return self

    def copy_(self, source: Any) -> Tensor:
        """Write into this leaf's memory and bump its version; returns the leaf.

        Parameters
        ----------
        source : tensor or array of this shape, on any device, of a dtype that converts without a change of kind.

        Raises
        ------
        GraphError : a tensor that was computed.  ShapeError : another shape.  DtypeError : another kind of dtype.
        ArgumentError : memory that is read-only.
        """
        value = source._data if isinstance(source, Tensor) else source if is_array(source) else np.asarray(source)
        if not self.is_leaf:
            raise GraphError(f"copy_ writes into leaves only; this tensor was computed by {self._node.op.name}")  # type: ignore[union-attr]
        if value.shape != self.shape:
            raise ShapeError(f"copy_: expected the shape {self.shape}, got {value.shape} (called at {user_line()})")
        if not np.can_cast(value.dtype, self.dtype, "same_kind"):
            raise DtypeError(
                f"copy_: expected numbers that fit {self.dtype}, got {value.dtype} (called at {user_line()})"
            )
        if isinstance(self._data, np.ndarray) and not self._data.flags.writeable:
            raise ArgumentError(
                f"copy_: the memory of this tensor, {shown(self)}, is read-only; write into a tensor "
                f"of a copy of it, gmcore.tensor(array) (called at {user_line()})"
            )
        if device_of(value) != self.device:
            value = put(value, self.device)
        _computed(copied, value, out=self._data)
        self._written()
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError("tensors do not change in place; use gmcore.ops.set_at(x, index, value), which "
                         "gives a new one, gmcore.ops.where, or copy_ for a whole leaf")  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise GraphError("only leaves can be copied with copy.deepcopy; use .detach() first")
        out = type(self)(_computed(copied, self._data), requires_grad=self.requires_grad)
        memo[id(self)] = out
        mode = _mode.get()
        if type(mode) is not bool:
            mode.tell("relies", (self,), None, False)
            mode.tell("derived", out)
        return out

    def __reduce__(self) -> Any:
        raise TypeError("tensors are not pickled; save arrays with gmcore.io.save (safetensors)")

    # -- methods that are operations -------------------------------------------------------------------
    # `gmcore.ops` and `gmcore.engine` are written in terms of tensors, so they import this module; the methods
    # reach them through what they leave in `_ops` and `_backward`.
    def astype(self, dtype: Any) -> Tensor:
        """Converted to another dtype: `gmcore.ops.cast`."""
        return _ops.cast(self, dtype)

    def to(self, device: str) -> Tensor:
        """This tensor on `device`, an operation with a gradient: `gmcore.ops.to_device`."""
        return _ops.to_device(self, device)

    def cpu(self) -> Tensor:
        """This tensor on the CPU: ``to("cpu")``."""
        return _ops.to_device(self, "cpu")

    def cuda(self, device: int | None = None) -> Tensor:
        """This tensor on a GPU, the current one or that of the number `device`: ``to("cuda")``, ``to("cuda:1")``."""
        return _ops.to_device(self, "cuda" if device is None else f"cuda:{device}")

    def new_zeros(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        """Zeros of a shape, in the dtype and on the device of this tensor unless another `dtype` is given."""
        return Tensor(allocating(namespace(self._data).zeros, shape, dtype or self._data.dtype))

    def new_ones(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        """Ones of a shape, in the dtype and on the device of this tensor unless another `dtype` is given."""
        return Tensor(allocating(namespace(self._data).ones, shape, dtype or self._data.dtype))

    def new_full(self, shape: Sequence[int], fill_value: float, dtype: Any = None) -> Tensor:
        """A number at every place of a shape, in the dtype and on the device of this tensor unless given a `dtype`."""
        return Tensor(allocating(namespace(self._data).full, shape, fill_value, dtype or self._data.dtype))

    def beside(self, array: np.ndarray) -> Tensor:
        """An array of the CPU as a tensor on the device of this one; without a copy on the CPU."""
        return Tensor(put_beside(array, self._data))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over `axis`: `gmcore.ops.sum`."""
        return _ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Mean over `axis`: `gmcore.ops.mean`."""
        return _ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Largest element over `axis`: `gmcore.ops.max`."""
        return _ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Smallest element over `axis`: `gmcore.ops.min`."""
        return _ops.min(self, axis, keepdims)

    def prod(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Product over `axis`: `gmcore.ops.prod`."""
        return _ops.prod(self, axis, keepdims)

    def var(self, axis: Any = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
        """Variance over `axis`: `gmcore.ops.var`."""
        return _ops.var(self, axis, ddof, keepdims)

    def std(self, axis: Any = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
        """Standard deviation over `axis`: `gmcore.ops.std`."""
        return _ops.std(self, axis, ddof, keepdims)

    def norm(self, ord: float = 2, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Vector norm over `axis`: `gmcore.ops.norm`."""
        return _ops.norm(self, ord, axis, keepdims)

    def logsumexp(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Logarithm of the sum of exponentials over `axis`: `gmcore.ops.logsumexp`."""
        return _ops.logsumexp(self, axis, keepdims)

    def any(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether any element over `axis` is true: `gmcore.ops.any`."""
        return _ops.any(self, axis, keepdims)

    def all(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Whether all elements over `axis` are true: `gmcore.ops.all`."""
        return _ops.all(self, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Index of the first largest element: `gmcore.ops.argmax`."""
        return _ops.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Index of the first smallest element: `gmcore.ops.argmin`."""
        return _ops.argmin(self, axis, keepdims)

    def argsort(self, axis: int = -1) -> Tensor:
        """Indices that sort along `axis`: `gmcore.ops.argsort`."""
        return _ops.argsort(self, axis)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """Running sums: `gmcore.ops.cumsum`."""
        return _ops.cumsum(self, axis)

    def cumprod(self, axis: int | None = None) -> Tensor:
        """Running products: `gmcore.ops.cumprod`."""
        return _ops.cumprod(self, axis)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """Limited to `min` .. `max`: `gmcore.ops.clip`."""
        return _ops.clip(self, min, max)

    def take(self, indices: Any, axis: int | None = None) -> Tensor:
        """Elements at integer indices: `gmcore.ops.take`."""
        return _ops.take(self, indices, axis)

    def repeat(self, repeats: Any, axis: int | None = None) -> Tensor:
        """Elements repeated where they stand: `gmcore.ops.repeat`."""
        return _ops.repeat(self, repeats, axis)

    def squeeze(self, axis: Any = None) -> Tensor:
        """Without axes of length 1: `gmcore.ops.squeeze`."""
        return _ops.squeeze(self, axis)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Two axes exchanged: `gmcore.ops.swapaxes`."""
        return _ops.swapaxes(self, axis1, axis2)

    def ravel(self) -> Tensor:
        """The elements in C order: `gmcore.ops.ravel`."""
        return _ops.ravel(self)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Axes merged into one: `gmcore.ops.flatten`."""
        return _ops.flatten(self, start_dim, end_dim)

    def reshape(self, *shape: Any) -> Tensor:
        """Another shape, as lengths or as one sequence: `gmcore.ops.reshape`."""
        return _ops.reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)

    def transpose(self, *axes: int) -> Tensor:
        """Axes permuted, reversed if none are given: `gmcore.ops.transpose`."""
        return _ops.transpose(self, axes or None)

    @property
    def T(self) -> Tensor:
        """All axes reversed: `gmcore.ops.transpose`."""
        return _ops.transpose(self, None)

    def exp(self) -> Tensor:
        """e^x: `gmcore.ops.exp`."""
        return _ops.exp(self)

    def log(self) -> Tensor:
        """log x: `gmcore.ops.log`."""
        return _ops.log(self)

    def sqrt(self) -> Tensor:
        """sqrt x: `gmcore.ops.sqrt`."""
        return _ops.sqrt(self)

    def tanh(self) -> Tensor:
        """tanh x: `gmcore.ops.tanh`."""
        return _ops.tanh(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + e^-x): `gmcore.ops.sigmoid`."""
        return _ops.sigmoid(self)

    def __getitem__(self, index: Any) -> Tensor:
        return _ops.getitem(self, index)

    def __add__(self, other: Any) -> Tensor:
        return _ops.add.apply(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _ops.add.apply(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _ops.subtract.apply(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _ops.subtract.apply(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _ops.multiply.apply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _ops.multiply.apply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _ops.divide.apply(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _ops.divide.apply(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return _ops.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return _ops.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return _ops.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return _ops.remainder(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _ops.power.apply(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _ops.power.apply(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        return _ops.negative.apply(self)

    def __abs__(self) -> Tensor:
        return _ops.absolute.apply(self)

    def __pos__(self) -> Tensor:
        return self

    def __invert__(self) -> Tensor:
        return _ops.invert(self)

    def __and__(self, other: Any) -> Tensor:
        return _ops.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return _ops.bitwise_and(other, self)

    def __or__(self, other: Any) -> Tensor:
        return _ops.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return _ops.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Tensor:
        return _ops.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return _ops.bitwise_xor(other, self)

    def __gt__(self, other: Any) -> Tensor:
        return _ops.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _ops.greater_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _ops.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return _ops.less_equal(self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _ops.equal(self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _ops.not_equal(self, other)


def copied(value: Array, out: Array | None = None) -> Array:
    """The numbers of an array in memory of their own, or in that of `out`."""
    if out is None:
        return allocating(value.copy)
    np.copyto(out, value, casting="same_kind")
    return out


_ops: Any = None
_backward: Any = None
_computed: Any = None
_numpy: Any = None

# What Python numbers become, by NumPy's kind.
_DEFAULT_DTYPES: dict[str, str] = {"f": "float32", "i": "int64", "u": "int64", "b": "bool"}


def tensor(x: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A new leaf tensor with a copy of `x`.

    Parameters
    ----------
    x : number, (nested) sequence of numbers, array, or tensor. Python numbers become float32, int64 or bool;
        arrays keep their dtype.
    dtype : NumPy dtype or its name; converts. Half types (``"float16"``; ``"bfloat16"`` with the package
        ml_dtypes) are storage: operations compute in float32 and round their results.
    device : ``"cpu"``; ``"cuda"`` for the current GPU, ``"cuda:1"`` for the second one. By default that of an array or
        tensor, and otherwise the CPU.
    requires_grad : record what is computed from it.

    Returns
    -------
    Tensor of the shape of `x`, with memory of its own.

    Raises
    ------
    DtypeError : not numbers, or a gradient asked of integers.
    GraphError : a tensor that requires a gradient.
    ArgumentError : no name of a device.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    """
    if isinstance(x, Tensor):
        if x.requires_grad:
            raise GraphError("tensor() copies numbers and would cut the tape; call .detach() if that is meant")
        x = x._data
    dtype = None if dtype is None else as_dtype(dtype)
    data = _named(_computed, _numbers, x, dtype)
    out = Tensor(data if device is None else put(data, device), requires_grad)
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("derived", out)
    return out


def _numbers(x: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """A copy of `x` as an array; of one on a GPU, there."""
    if is_array(x) and on_gpu(x):
        return x.astype(x.dtype if dtype is None else dtype)
    _check_unmasked(x)
    if isinstance(x, Sequence) and any(isinstance(value, Tensor) for value in x):
        raise DtypeError("cannot make a tensor of a sequence of tensors; join them with gmcore.ops.stack")
    try:
        data: np.ndarray = np.array(x, dtype)
    except (ValueError, TypeError) as error:
        raise DtypeError(f"cannot make a tensor of {type(x).__name__}: {error}; expected numbers") from None
    if data.dtype.kind not in "fiub" and data.dtype.name != "bfloat16":
        raise DtypeError(f"cannot make a tensor of dtype {data.dtype}; expected floats, integers or booleans")
    if dtype is None and not hasattr(x, "dtype"):
        return data.astype(_DEFAULT_DTYPES[data.dtype.kind])
    return data.astype(native(data.dtype), copy=False)


def _check_unmasked(x: Any) -> None:
    masked = sys.modules.get("numpy.ma")  # which NumPy imports when it is first used
    if masked is not None and isinstance(x, masked.MaskedArray):
        raise DtypeError("cannot make a tensor of a masked array, which would forget its mask; expected x.filled(...)")


def _named(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``; a `DtypeError` of it says which function the user called, and where."""
    try:
        return function(*args)
    except DtypeError as error:
        raise DtypeError(f"{user_function()}: {error} (called at {user_line()})") from None


def on_host(x: Any) -> np.ndarray:
    """The numbers of a tensor, an array or a Python number in host memory; without a copy where they are there."""
    array = x._read() if isinstance(x, Tensor) else x
    return put(array, "cpu") if is_array(array) else np.asarray(array)


def as_tensor(x: Any) -> Tensor:
    """`x` itself if it is a tensor; an array without a copy, unless it is in another machine's order of bytes; Python
    numbers as by `tensor`.

    Returns
    -------
    Tensor of the shape of `x`.

    Raises
    ------
    DtypeError : not numbers.
    """
    return x if isinstance(x, Tensor) else _named(wrap, x)


def wrap(x: Any) -> Tensor:
    """`as_tensor` for a caller that completes the text of a `DtypeError`."""
    if isinstance(x, Tensor):
        return x
    if is_array(x) and (x.dtype.kind in "fiub" or x.dtype.name == "bfloat16"):
        if type(x) is not np.ndarray and not on_gpu(x):
            _check_unmasked(x)
            x = x.view(np.ndarray)  # as functions of matrices, and of other subclasses, have shapes of their own
        return Tensor(x if x.dtype.isnative else _computed(_numbers, x))
    return Tensor(_numbers(x))
