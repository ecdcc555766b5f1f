"""Specs, the kernels registered against them, and the choice between kernels.

A `KernelSpec` is the contract of an operation on arrays. A kernel is any callable

    kernel(inputs, outputs, workspace, attrs)

registered for a spec on a backend. It writes the caller's `outputs` (and may scribble on `workspace`) and
allocates nothing. `run` infers and allocates both, picks a kernel, and calls it.

Choice: the `backend` argument, then `with use(...)`, then what `GMKERNELS_BACKEND` was at the start, then the cheapest
by the cost model among the kernels that accept, then `reference`. A kernel accepts or refuses by looking at a
`Signature` only; `run` caches its choice by the shapes, dtypes and strides of a call. `explain` says what was chosen,
why, and why not the others.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gmkernels.arrays import is_array, on_gpu
from gmkernels.buffers import empty, is_small
from gmkernels.cost import Cost, Device, nominal_cpu, nominal_gpu

Array = Any
"""An array of one of the array libraries: `numpy.ndarray` here, `cupy.ndarray` on a GPU."""

Kernel = Callable[[Sequence[Any], Sequence[Any], Sequence[Any], Mapping[str, Any]], None]
Layout = list[tuple[tuple[int, ...], Any]]
"""Shapes and dtypes of the arrays that a call needs: `[(shape, dtype), ...]`."""

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")
"""Stored only: GPU kernels compute with them in float32. bfloat16 is `ml_dtypes.bfloat16`."""
OLDEST_GPU = 80
"""Least compute capability of the GPU kernels: Ampere's, which has bfloat16 and asynchronous copies."""
MOST_HOSTED = 4096
"""Bytes of an input in host memory that a call on a GPU takes along: a key, or a number that varies between calls."""


class KernelError(ValueError):
    """A call that no kernel can take: the message names the operation, what was given and what was expected."""


class KernelDtypeError(KernelError, TypeError):
    """A call that would be taken if its arrays had other dtypes."""


class DeviceMemoryError(KernelError, MemoryError):
    """A GPU has no room for the results of a call: the message says how much was asked for and how much is free."""


class LaunchError(KernelError):
    """A GPU cannot launch a kernel as it must be launched: the message says why, and what to ask for instead."""


class Example(NamedTuple):
    """One call that exercises a spec: its inputs and attributes (a generated test runs it on every kernel).

    Parameters
    ----------
    inputs : arrays in the spec's order.
    attrs : attributes by name.
    updated : initial contents of the outputs, for a spec that updates them in place.
    """

    inputs: tuple[Any, ...]
    attrs: dict[str, Any]
    updated: tuple[Any, ...] = ()
    """Initial contents of the outputs, for a spec that updates its outputs in place."""


def no_workspace(*inputs: Array, **attrs: Any) -> Layout:
    return []


@dataclass(frozen=True, eq=False)
class KernelSpec:
    """The contract of one operation on arrays.

    Attributes
    ----------
    name, family : the operation, and the folder it lives in.
    inputs, outputs : names, in calling order. An input or output called with a leading ``*`` is a tuple of
        arrays (an optimiser's parameters).
    infer : ``infer(*inputs, **attrs) -> [(shape, dtype), ...]`` of the outputs; raises `KernelError` on inputs
        that do not fit. Looks at shapes and dtypes only, as do `workspace`, `cost` and `size`. For `updates` specs it
        checks only and its result is not used.
    cost : ``cost(*inputs, **attrs) -> Cost``.
    examples : ``examples(rng, dtype) -> iterable of Example``; the shapes to test, odd ones included.
    formula, source : the mathematics, and the paper and equation it comes from.
    tolerance : dtype name -> (rtol, atol) against the float64 reference; (0, 0) means bit for bit.
    workspace : shapes and dtypes of scratch arrays, from the inputs.
    size : ``size(*inputs, **attrs) -> int``, the work of a call in elements (or flops), for the size class.
    updates : the outputs are read and written in place, and must be given by the caller.
    draws : the call consumes one draw of the random stream, whose key is the input named ``key``.
    """

    name: str
    family: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    infer: Callable[..., Layout]
    cost: Callable[..., Cost]
    examples: Callable[[np.random.Generator, Any], Iterable[Example]]
    formula: str
    source: str
    tolerance: Mapping[str, tuple[float, float]]
    workspace: Callable[..., Layout] = no_workspace
    size: Callable[..., int] | None = None
    updates: bool = False
    draws: bool = False

    def __repr__(self) -> str:
        return f"KernelSpec({self.name}: {', '.join(self.inputs)} -> {', '.join(self.outputs)})"


class Signature(NamedTuple):
    """All that a kernel may look at to accept or refuse a call.

    Parameters
    ----------
    op : name of the spec.
    device : ``"cpu"``, or ``"cuda:90"`` with the compute capability.
    dtypes : names of the inputs' dtypes, each once.
    contiguous : whether every input is C-contiguous.
    size_class : bit length of the size of the call.
    attrs : the attributes as pairs (name, value).
    """

    op: str
    device: str
    """``"cpu"``, or ``"cuda:90"`` with the compute capability."""
    dtypes: tuple[str, ...]
    contiguous: bool
    """Whether every input is C-contiguous; `run` packs the others for kernels that need it."""
    size_class: int
    """Bit length of the size of the call."""
    attrs: tuple[tuple[str, Any], ...]

    @property
    def place(self) -> str:
        """The device in words: ``"cpu"``, or ``"cuda, compute capability 9.0"``."""
        kind, _, capability = self.device.partition(":")
        return f"{kind}, compute capability {int(capability) / 10:.1f}" if capability else kind


@dataclass(frozen=True)
class Entry:
    """A kernel registered for a spec on a backend. See `register` for the fields."""

    spec: KernelSpec
    backend: str
    target: Kernel | str
    dtypes: tuple[str, ...]
    strided: bool
    overhead: float
    efficiency: float
    accepts: Callable[[Signature], str | None] | None
    note: Callable[..., str] | None
    estimate: Callable[..., float] | None
    replays: bool
    host: bool
    _loaded: list[Kernel] = field(default_factory=list, compare=False, repr=False)

    def kernel(self) -> Kernel:
        """The callable, imported at its first use."""
        if not self._loaded:
            self._loaded.append(self.target if callable(self.target) else _imported(self.target))
        return self._loaded[0]

    def refusal(self, signature: Signature) -> str | None:
        """Why this kernel does not take the call, or None if it does."""
        backend = BACKENDS[self.backend]
        if not signature.device.startswith(backend.device):
            return f"runs on {backend.device}, the arrays are on {signature.place}"
        if (missing := backend.missing()) is not None:
            return missing
        if backend.device == "cuda" and (capability := int(signature.device.partition(":")[2])) < OLDEST_GPU:
            return (
                f"needs compute capability {OLDEST_GPU / 10:.1f} or newer, this GPU has {capability / 10:.1f}: "
                "its calls run in CuPy (backend 'reference')"
            )
        if unfit := [d for d in signature.dtypes if is_float(d) and d not in self.dtypes]:
            return f"has no {unfit[0]} version (has {', '.join(self.dtypes)})"
        return self.accepts(signature) if self.accepts is not None else None


@dataclass(frozen=True)
class Backend:
    """A way to run kernels: the kind of device it needs and the modules it imports."""

    name: str
    device: str
    modules: tuple[str, ...]

    def missing(self) -> str | None:
        """The reason why this backend cannot run here, or None."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return None


BACKENDS: dict[str, Backend] = {
    b.name: b
    for b in (
        Backend("reference", "", ()),
        Backend("cpu", "cpu", ("numba",)),
        Backend("triton", "cuda", ("triton", "cupy")),
        Backend("cuda", "cuda", ("cupy",)),
    )
}

_specs: dict[str, KernelSpec] = {}
_entries: dict[str, dict[str, Entry]] = {}
_plans: dict[tuple[Any, ...], Plan] = {}
_MOST_PLANS = 4096
_preferred: ContextVar[str | None] = ContextVar("gmkernels.backend", default=None)
_environment = os.environ.get("GMKERNELS_BACKEND", "")  # once: to ask the system takes as long as a small product


def deferred(target: str, *first: Any) -> Callable[..., Any]:
    """A function that is imported when it is called, for `note` and `estimate` of a kernel whose module is large.

    Parameters
    ----------
    target : ``"module:function"``.
    first : arguments that it gets before those of the call.
    """

    def call(*inputs: Any, **attrs: Any) -> Any:
        return _imported(target)(*first, *inputs, **attrs)

    return call


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def register(
    spec: KernelSpec,
    backend: str,
    target: Kernel | str,
    *,
    dtypes: tuple[str, ...] = FLOATS,
    strided: bool = False,
    overhead: float = 5e-6,
    efficiency: float = 0.5,
    accepts: Callable[[Signature], str | None] | None = None,
    note: Callable[..., str] | None = None,
    estimate: Callable[..., float] | None = None,
    replays: bool = False,
    host: bool = False,
) -> None:
    """Register a kernel for `spec` on `backend`; from outside the package just as from inside.

    Parameters
    ----------
    target : the kernel, or ``"module:function"``, imported at the first call that chooses it.
    dtypes : floating dtypes it takes.
    strided : whether it takes arrays that are not C-contiguous; otherwise they are packed first.
    overhead : seconds that a call costs before any work, for the cost model.
    efficiency : share of the floor reached on large calls, in (0, 1].
    accepts : a predicate on the `Signature`; returns the reason when it refuses.
    note : ``note(*inputs, **attrs)`` says what else a reader of `explain` should know: the library that the kernel
        calls, or which of its variants takes these shapes and why.
    estimate : ``estimate(*inputs, **attrs)`` predicts the seconds of a call, in place of `overhead` and `efficiency`,
        where they depend on how often the kernel launches or waits (`gmkernels.cost` has what that takes).
    replays : whether all that its Python does follows from the shapes, dtypes, strides and attributes of a call, so
        that calls after the first repeat its launches without it (`gmkernels.replay`). If it is `strided`, it packs no
        array that is C-contiguous, and no matrix that is the transpose of one that is.
    host : whether it is a reference that goes through the elements in Python: arrays of a GPU are copied to the host
        for it, and its results back.
    spec : the operation; registered under its name with its first kernel.
    backend : ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises
    ------
    KernelError : unknown backend, a pair registered twice, or a spec whose name is taken by another spec.
    """
    if backend not in BACKENDS:
        raise KernelError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if _specs.setdefault(spec.name, spec) is not spec:
        raise KernelError(f"another kernel spec is called {spec.name!r} already")
    if backend in _entries.setdefault(spec.name, {}):
        raise KernelError(f"{spec.name} has a kernel on {backend} already; unregister it first")
    _entries[spec.name][backend] = Entry(
        spec, backend, target, dtypes, strided, overhead, efficiency, accepts, note, estimate, replays, host
    )
    _plans.clear()


def unregister(spec: KernelSpec, backend: str) -> None:
    """Remove the kernel of `spec` on `backend`, and the spec with its last kernel.

    Parameters
    ----------
    spec : the operation.
    backend : whose kernel is removed.

    Raises
    ------
    KernelError : no such kernel.
    """
    registered = _entries.get(spec.name, {})
    if backend not in registered:
        known = f"on {', '.join(registered)}" if registered else "on no backend"
        raise KernelError(f"{spec.name} has no kernel on {backend!r} to unregister; it has kernels {known}")
    del registered[backend]
    if not registered:
        del _entries[spec.name], _specs[spec.name]
    _plans.clear()


def specs() -> dict[str, KernelSpec]:
    """Every registered spec by name."""
    return dict(_specs)


def entries(spec: KernelSpec | str) -> dict[str, Entry]:
    """The kernels registered for a spec, by backend.

    Parameters
    ----------
    spec : a spec, or the name of one that is registered.

    Returns
    -------
    dict: backend -> `Entry`.

    Raises
    ------
    KernelError : a name that is not registered.
    """
    return dict(_entries[_resolve(spec).name])


def _resolve(spec: KernelSpec | str) -> KernelSpec:
    if isinstance(spec, KernelSpec):
        return spec
    if spec not in _specs:
        raise KernelError(f"unknown kernel {spec!r}; known: {', '.join(sorted(_specs))}")
    return _specs[spec]


def _infer(spec: KernelSpec, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Layout:
    """What `spec.infer` gives; a `KernelError` of it is a `KernelDtypeError` if the shapes are not to blame."""
    try:
        return spec.infer(*inputs, **attrs)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if not isinstance(error, KernelError):  # it did not look for what nobody would give
            given = ", ".join(
                [f"{a.dtype}{list(a.shape)}" for a in flat(inputs)] + [f"{k}={v}" for k, v in attrs.items()]
            )
            raise KernelError(f"{spec.name}: expected {spec.formula}; got {given}: {error}") from error
        usual = next(iter(spec.examples(np.random.default_rng(0), np.float64)), None)

        def in_usual_dtype(a: Any, example: Any) -> Any:
            if type(a) is tuple:
                return tuple([in_usual_dtype(part, example[0]) for part in a])
            return np.broadcast_to(np.empty((), example.dtype), a.shape)

        try:
            if usual is None:
                raise error
            spec.infer(*map(in_usual_dtype, inputs, usual.inputs), **attrs)
        except KernelError:
            raise error from None
        raise KernelDtypeError(str(error)) from None


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Prefer `backend` for the calls inside the block; a kernel that refuses a call leaves it to the others.

    Parameters
    ----------
    backend : ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises
    ------
    KernelError : an unknown backend.
    """
    if backend not in BACKENDS:
        raise KernelError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    token = _preferred.set(backend)
    try:
        yield
    finally:
        _preferred.reset(token)


def flat(arrays: Sequence[Any]) -> Iterator[Array]:
    """The arrays of a call's inputs or outputs, also those inside tuples.

    Parameters
    ----------
    arrays : arrays, and tuples of arrays.

    Yields
    ------
    The arrays, in order.
    """
    for a in arrays:
        if type(a) is tuple:
            yield from a
        else:
            yield a


def is_float(dtype: str) -> bool:
    """Whether the name of a dtype is that of a floating one: also of bfloat16, which NumPy takes for no number.

    Parameters
    ----------
    dtype : such as ``"float32"``.
    """
    return dtype in FLOATS or dtype in HALVES or dtype == "longdouble" or dtype.startswith("float")


@functools.cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy computes it anew at each access


def _gpu_of(spec: KernelSpec, inputs: Sequence[Any], updated: Sequence[Any]) -> int | None:
    """Number of the GPU that the arrays of a call lie on, beside small inputs in host memory; None if none does."""
    on, first = None, ""
    hosted = ""
    named = [*zip(spec.inputs, inputs, strict=False), *zip(spec.outputs, updated, strict=False)]
    for i, (name, part) in enumerate(named):
        name = name.removeprefix("*")
        for a in flat([part]):
            if on_gpu(a):
                number = a.data.device_id
                if on is not None and number != on:
                    raise KernelError(
                        f"{spec.name}: {first} is on cuda:{on} and {name} on cuda:{number}; expected one device: "
                        f"with cupy.cuda.Device({on}): {name} = cupy.asarray({name})"
                    )
                if any([n > 1 and stride % a.dtype.itemsize for n, stride in zip(a.shape, a.strides, strict=True)]):
                    raise KernelError(
                        f"{spec.name}: {name} is {a.dtype}{list(a.shape)} with strides {a.strides}; expected multiples "
                        f"of its {a.dtype.itemsize} bytes: a GPU reads numbers at those alone"
                    )
                on, first = number, first or name
            elif a.nbytes > MOST_HOSTED or i >= len(inputs):  # what is updated is no copy
                hosted = hosted or name
    if on is not None and hosted:
        raise KernelError(
            f"{spec.name}: {hosted} is in host memory and {first} on cuda:{on}; expected one device: "
            f"{hosted} = cupy.asarray({hosted})"
        )
    return on


def signature(spec: KernelSpec, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Signature:
    """The `Signature` of a call."""
    device, dtypes, contiguous, largest = "cpu", [], True, 0
    for a in flat(inputs):
        if type(a) is not np.ndarray and on_gpu(a):
            device = f"cuda:{a.device.compute_capability}"
        if a.dtype not in dtypes:
            dtypes.append(a.dtype)
        if contiguous and not a.flags.c_contiguous:
            contiguous = False
        if a.size > largest:
            largest = a.size
    size = largest if spec.size is None else int(spec.size(*inputs, **attrs))
    names = tuple([_dtype_name(dtype) for dtype in dtypes])
    return Signature(spec.name, device, names, contiguous, size.bit_length(), tuple(attrs.items()))


def preferred() -> str | None:
    """The backend that `use` or the environment prefers, or None."""
    return _preference()[0]


def _preference() -> tuple[str | None, str]:
    if (name := _preferred.get()) is not None:
        return name, "with gmkernels.use(...)"
    if _environment:
        if _environment not in BACKENDS:
            raise KernelError(f"GMKERNELS_BACKEND={_environment!r} is not one of {', '.join(BACKENDS)}")
        return _environment, "GMKERNELS_BACKEND"
    return None, ""


def _floor(spec: KernelSpec, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    """Least seconds of a call at the nominal rates of the device that its arrays lie on."""
    itemsize = max((a.dtype.itemsize for a in flat(inputs) if is_float(_dtype_name(a.dtype))), default=4)
    device: Device = next((nominal_gpu(a.data.device_id) for a in flat(inputs) if on_gpu(a)), nominal_cpu())
    return device.floor(spec.cost(*inputs, **attrs), itemsize)


def _estimate(entry: Entry, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> float:
    """Predicted seconds of a call: the kernel's own estimate, or overhead + floor / efficiency."""
    if entry.estimate is not None:
        return entry.estimate(*inputs, **attrs)
    return entry.overhead + _floor(entry.spec, inputs, attrs) / entry.efficiency


def select(spec: KernelSpec, inputs: Sequence[Any], attrs: Mapping[str, Any], backend: str | None = None) -> Entry:
    """The kernel that a call will run (see the module's docstring for the order).

    Parameters
    ----------
    spec : the operation.
    inputs : arrays in the spec's order.
    attrs : its attributes by name.
    backend : ask for one backend; None leaves the choice to the rules above.

    Returns
    -------
    The `Entry` of the kernel.

    Raises
    ------
    KernelError : the `backend` asked for by argument has no kernel or refuses, or no kernel takes the call.
    """
    sig = signature(spec, inputs, attrs)
    candidates = _entries.get(spec.name, {})
    refusals = {name: entry.refusal(sig) for name, entry in candidates.items()}
    if backend is not None:
        reason = refusals.get(backend, "no kernel is registered for it")
        if reason is not None:
            raise KernelError(f"{spec.name}: backend {backend!r} {reason}")
        return candidates[backend]
    accepting = {name: entry for name, entry in candidates.items() if refusals[name] is None}
    preferred = _preference()[0]
    if preferred in accepting:
        return accepting[preferred]
    if not accepting:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items()) or "none is registered"
        there = [entry for entry in candidates.values() if sig.device.startswith(BACKENDS[entry.backend].device)]
        known = {dtype for entry in there for dtype in entry.dtypes}
        unknown = there and any(is_float(d) and d not in known for d in sig.dtypes)
        kind = KernelDtypeError if unknown else KernelError
        raise kind(f"{spec.name}: no kernel takes this call ({reasons})")
    last = sig.device != "cpu"  # NumPy's functions on arrays of CuPy: for what has no kernel of ours

    def rank(entry: Entry) -> tuple[bool, float, bool]:
        is_reference = entry.backend == "reference"
        return last and is_reference, _estimate(entry, inputs, attrs), is_reference

    return min(accepting.values(), key=rank)


def run(
    spec: KernelSpec,
    inputs: Sequence[Any],
    attrs: Mapping[str, Any] | None = None,
    *,
    outputs: Sequence[Any] | None = None,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """Check, choose, allocate what is not given, and call a kernel.

    Parameters
    ----------
    inputs : arrays in the spec's order; read only.
    outputs : caller-owned, C-contiguous arrays of the inferred shapes and dtypes, in memory that no input lies in;
        allocated if absent.
    spec : the operation.
    attrs : its attributes by name; none by default.
    backend : ask for one backend; None, the default, leaves the choice to `select`.

    Returns
    -------
    The outputs, as a tuple.

    Raises
    ------
    KernelError : inputs, outputs or attributes that do not fit the spec, or a backend that refuses.
    """
    attrs = attrs or {}
    form: list[Any] = [spec, backend, _preferred.get(), _environment, *attrs.items()]
    try:
        for a in inputs:  # plain loops and few calls: for small arrays this takes as long as the kernel
            if type(a) is tuple:
                form.append(_form(a))
            else:
                kind = type(a)
                form += (kind, a.shape, a.dtype, a.strides)
                if kind is not np.ndarray:
                    form.append(_place(a))
    except AttributeError:
        _check_arrays(spec, spec.inputs, inputs)
        raise
    if spec.updates:
        if outputs is None:
            raise KernelError(f"{spec.name} updates {', '.join(spec.outputs)} in place: give outputs=")
        try:
            for part in outputs:
                form.append(_form(part if type(part) is tuple else (part,), True))
        except AttributeError:
            _check_arrays(spec, spec.outputs, outputs)
            raise
    key = tuple(form)
    try:
        plan = _plans.get(key)
    except TypeError as error:
        raise KernelError(f"{spec.name}: expected attributes with a hash, tuples in place of lists; {error}") from None
    if plan is None:
        plan = _plan(spec, inputs, attrs, backend, outputs if spec.updates else None)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    if outputs is not None and not spec.updates:
        _check_outputs(spec, plan, outputs)
    if _interceptors and (interceptor := _interceptors.get(threading.get_ident())) is not None:
        return interceptor(spec, plan, inputs, outputs, attrs)
    if plan.device is not None:
        return _run_on_gpu(spec, plan, plan.device, inputs, outputs, attrs)
    allocate = np.empty if plan.small else empty
    if outputs is None:
        outputs = tuple([allocate(shape, dtype) for shape, dtype in plan.outputs])
    if plan.pack:
        inputs = tuple(tuple(map(_packed, a)) if type(a) is tuple else _packed(a) for a in inputs)
    plan.kernel(inputs, outputs, [allocate(shape, dtype) for shape, dtype in plan.workspace], attrs)
    return tuple(outputs)


def _check_arrays(spec: KernelSpec, names: Sequence[str], arrays: Sequence[Any]) -> None:
    for name, a in zip(names, arrays):
        if not all(map(is_array, a if isinstance(a, tuple) else (a,))):
            given = type(a).__name__
            raise KernelError(f"{spec.name}: expected {name} to be an array of NumPy or CuPy, got {given}") from None


def _form(arrays: Iterable[Any], updated: bool = False) -> tuple[Any, ...]:
    """All that plans depend on; of arrays that are `updated`, whether they can be, too."""
    return tuple(
        [
            (a.shape, a.dtype, a.strides, updated and a.flags.writeable)
            if type(a) is np.ndarray
            else (type(a), a.shape, a.dtype, a.strides, updated and _writeable(a), _place(a))
            for a in arrays
        ]
    )


def _place(a: Array) -> int | None:
    """Number of the GPU that an array lies on; None in host memory."""
    return a.data.device_id if on_gpu(a) else None


def _writeable(a: Array) -> bool:
    return on_gpu(a) or a.flags.writeable  # arrays of CuPy always are


def _run_on_gpu(
    spec: KernelSpec,
    plan: Plan,
    device: int,
    inputs: Sequence[Any],
    outputs: Sequence[Any] | None,
    attrs: Mapping[str, Any],
) -> tuple[Any, ...]:
    """What `run` does after the choice, with the arrays' device the current one."""
    import cupy

    from gmkernels import launch

    with cupy.cuda.Device(device):
        try:
            return _run_here(spec, plan, inputs, outputs, attrs)
        except DeviceMemoryError as error:
            message = str(error)
        except cupy.cuda.memory.OutOfMemoryError as error:  # of what a kernel in CuPy makes on its way
            message = f"{spec.name} (backend {plan.backend!r}): {launch.describe_memory(error)}"
    # Outside of the handlers: the error holds no frame that holds an array of this call.
    raise DeviceMemoryError(message)


def _run_here(
    spec: KernelSpec, plan: Plan, inputs: Sequence[Any], outputs: Sequence[Any] | None, attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    from gmkernels import launch

    if plan.hosted:
        inputs = tuple(tuple(map(_moved, a)) if type(a) is tuple else _moved(a) for a in inputs)
    if plan.pack:
        inputs = tuple(tuple(map(_packed, a)) if type(a) is tuple else _packed(a) for a in inputs)
    name = f"{spec.name} (backend {plan.backend!r})"
    made = launch.allocate(name, plan.workspace if outputs is not None else plan.outputs + plan.workspace)
    if outputs is None:
        outputs, made = tuple(made[: len(plan.outputs)]), made[len(plan.outputs) :]
    try:
        plan.kernel(inputs, outputs, made, attrs)
    except LaunchError as error:
        raise LaunchError(f"{spec.name} (backend {plan.backend!r}): {error}") from None
    return tuple(outputs)


def _moved(a: Array) -> Array:
    """An array of the host, on the current device."""
    from gmkernels import launch

    return a if on_gpu(a) else launch.resident(a)


Interceptor = Callable[[KernelSpec, "Plan", Sequence[Any], Sequence[Any] | None, Mapping[str, Any]], tuple[Any, ...]]
"""Called with (spec, plan, inputs, outputs, attrs) in place of running a kernel; gives what `run` returns."""

_interceptors: dict[int, Interceptor] = {}
"""By thread."""


@contextmanager
def intercepted(by: Interceptor) -> Iterator[None]:
    """Let `by` run the kernels that this thread runs inside the block: a recording of a step keeps the calls."""
    thread = threading.get_ident()
    outer = _interceptors.get(thread)
    _interceptors[thread] = by
    try:
        yield
    finally:
        if outer is None:
            del _interceptors[thread]
        else:
            _interceptors[thread] = outer


def _packed(a: Array) -> Array:
    return a if a.flags.c_contiguous else a.copy()  # C order; ascontiguousarray would give a scalar an axis


class Plan(NamedTuple):
    """All that `run` derives from the shapes, dtypes and layouts of a call, kept for the next call like it."""

    kernel: Kernel
    outputs: Layout
    workspace: Layout
    pack: bool
    small: bool
    """Whether all of its outputs and workspaces are."""
    device: int | None
    """Number of the GPU that it runs on."""
    hosted: bool
    """Whether it runs there and an input is in host memory."""
    backend: str
    """Whose kernel it is."""


def _plan(
    spec: KernelSpec,
    inputs: Sequence[Any],
    attrs: Mapping[str, Any],
    backend: str | None,
    updated: Sequence[Any] | None,
) -> Plan:
    device = _gpu_of(spec, inputs, updated or ())
    for a in flat([*inputs, *(updated or ())]):
        if not a.dtype.isnative:  # whose name does not tell
            raise KernelError(
                f"{spec.name}: expected arrays in the machine's order of bytes, got one of {a.dtype.str!r}; convert it "
                "with a.astype(a.dtype.newbyteorder('='))"
            )
    outputs = _infer(spec, inputs, attrs)
    entry = select(spec, inputs, attrs, backend)
    pack = not entry.strided and not all(a.flags.c_contiguous for a in flat(inputs))
    workspace = spec.workspace(*inputs, **attrs)
    kernel = entry.kernel() if device is None or not entry.host else _through_host(spec)
    if entry.replays:
        kernel = importlib.import_module("gmkernels.replay").Replay(kernel, spec.updates)  # which imports the compiler
    made = _with_dtypes(outputs), _with_dtypes(workspace)
    small = all(is_small(shape, dtype) for layout in made for shape, dtype in layout)
    hosted = device is not None and not all(map(on_gpu, flat(inputs)))
    return Plan(kernel, *made, pack, small, device, hosted, entry.backend)


def _through_host(spec: KernelSpec) -> Kernel:
    """The kernel that copies arrays of a GPU to the host, runs there what is cheapest, and copies the results back."""

    def fetched(a: Array) -> Array:
        return a.get() if on_gpu(a) else a

    def kernel(
        inputs: Sequence[Any], outputs: Sequence[Any], workspace: Sequence[Any], attrs: Mapping[str, Any]
    ) -> None:
        taken = [tuple(map(fetched, a)) if type(a) is tuple else fetched(a) for a in inputs]
        for out, found in zip(outputs, run(spec, taken, attrs), strict=True):
            out.set(found)

    return kernel


def _with_dtypes(layout: Layout) -> Layout:
    return [(tuple(shape), np.dtype(dtype)) for shape, dtype in layout]


def _check_outputs(spec: KernelSpec, plan: Plan, outputs: Sequence[Any]) -> None:
    layout = plan.outputs
    if len(outputs) != len(layout):
        raise KernelError(f"{spec.name} has {len(layout)} outputs ({', '.join(spec.outputs)}), got {len(outputs)}")
    _check_arrays(spec, spec.outputs, outputs)
    for name, (shape, dtype), out in zip(spec.outputs, layout, outputs, strict=True):
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not _writeable(out):
            raise KernelError(
                f"{spec.name}: output {name} must be a writable C-contiguous {dtype} array of shape "
                f"{shape}, got {out.dtype} {out.shape}"
            )
        if (place := _place(out)) != plan.device:
            here, there = ("host memory" if n is None else f"cuda:{n}" for n in (plan.device, place))
            raise KernelError(f"{spec.name}: output {name} must be in {here}, as the inputs are; it is in {there}")


@dataclass(frozen=True)
class Explanation:
    """Which kernel a call runs and why; `str()` prints it.

    Parameters
    ----------
    spec, signature : the operation, and what the kernels looked at.
    chosen : the backend of the kernel that runs.
    why : the reason in words.
    floor : least seconds of the call at nominal rates.
    estimates : predicted seconds by backend, of those that accept.
    refusals : reason by backend, of those that do not.
    """

    spec: KernelSpec
    signature: Signature
    chosen: str
    why: str
    floor: float
    estimates: dict[str, float]
    refusals: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.spec.name}({', '.join(self.spec.inputs)}) on {self.signature.place}, "
                 f"{'/'.join(self.signature.dtypes)}, floor {self.floor * 1e6:.1f} us (nominal rates)"]  # fmt: skip
        for name in BACKENDS:
            if name in self.estimates:
                mark, text = ("->", self.why) if name == self.chosen else ("  ", "accepts")
                lines.append(f"{mark} {name:<10} estimated {self.estimates[name] * 1e6:9.1f} us  {text}")
            else:
                lines.append(f"   {name:<10} refuses: {self.refusals[name]}")
        return "\n".join(lines)


def explain(op: KernelSpec | str, *inputs: Any, backend: str | None = None, **attrs: Any) -> Explanation:
    """Say which kernel a call of `op` on these inputs would run, why, and why not the others. Runs nothing.

    Parameters
    ----------
    op : a spec, or the name of one that is registered.
    inputs : arrays in the spec's order.
    backend : as in `run`.
    attrs : the attributes of the call.

    Returns
    -------
    An `Explanation`, which prints as a table.

    Raises
    ------
    KernelError : an unknown name, inputs that do not fit the spec, or no kernel that takes the call.
    """
    spec = _resolve(op)
    _infer(spec, inputs, attrs)
    sig = signature(spec, inputs, attrs)
    chosen = select(spec, inputs, attrs, backend)
    candidates = _entries[spec.name]
    refusals = {}
    for name in BACKENDS:
        reason = candidates[name].refusal(sig) if name in candidates else "no kernel is registered"
        if reason is not None:
            refusals[name] = reason
    estimates = {n: _estimate(e, inputs, attrs) for n, e in candidates.items() if n not in refusals}
    preferred, where = _preference()
    if backend is not None:
        why = "asked for by argument"
    elif preferred == chosen.backend:
        why = f"preferred by {where}"
    elif len(estimates) == 1:
        why = "the only one that accepts"
    else:
        why = "cheapest by the cost model"
    if chosen.note is not None:
        why += f"; {chosen.note(*inputs, **attrs)}"
    if chosen.host and sig.device != "cpu":
        why += "; copies its arrays to the host and back"
    return Explanation(spec, sig, chosen.backend, why, _floor(spec, inputs, attrs), estimates, refusals)
