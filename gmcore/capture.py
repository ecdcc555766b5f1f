"""Training steps that are recorded once and repeated without Python: `capture`.

    step = gmcore.capture(train_step)
    for x in batches:
        loss = step(x)

The first calls run the step eagerly and record it (`gmcore.recorder`); as soon as two recordings agree it becomes a
`gmcore.program.Program`, a flat list of kernel calls on memory that is planned once. Every later call repeats that.
"""

from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import numpy as np

from gmcore.device import device_of, memory_error
from gmcore.errors import ArgumentError, CaptureError, DeviceMemoryError, GmcoreError, GraphError, user_line
from gmcore.tensor import Array, Tensor, _mode
from gmcore.watch import derived
from gmkernels import registry
from gmkernels.arrays import is_array

if TYPE_CHECKING:
    from gmcore.program import Program
    from gmcore.recorder import Recorder

P = ParamSpec("P")
R = TypeVar("R")

_SHARED = (
    "an argument lies in memory that it writes, and a repetition has a copy of it: give it a copy, or let the step "
    "find that memory outside"
)

MOST_RECORDINGS = 4
"""Times that a step is recorded, until two recordings agree, before it is refused."""


class CaptureWarning(UserWarning):
    """A step that runs eagerly where it was to be repeated; the message says why."""


class Captured(Generic[P, R]):
    """A step that is recorded at its first calls and repeated at later ones: see `capture`.

    Attributes
    ----------
    programs : the `gmcore.program.Program` of each kind of arguments so far; `gmcore.explain.captured` shows them.
    refusal : why the step runs eagerly for good, or None.
    """

    def __init__(self, step: Callable[P, R], limit: int, fallback: bool) -> None:
        self._step = step
        self._limit = limit
        self._fallback = fallback
        self._programs: dict[Any, Program] = {}
        self._recordings: dict[Any, list[Recorder]] = {}
        self._lock = threading.RLock()
        self._in_vain = 0
        self.refusal: str | None = None

    @property
    def programs(self) -> list[Program]:
        return list(self._programs.values())

    @property
    def _name(self) -> str:
        return getattr(self._step, "__qualname__", repr(self._step))

    @property
    def state(self) -> str:
        """How the step is run, in words."""
        if self.refusal is not None:
            return f"eager, since it cannot be repeated: {self.refusal}"
        if not self._programs:
            return "eager so far, to be recorded"
        programs = self.programs
        sizes = " and ".join(f"{len(p.instructions)} calls on {p.size / 1e6:.3g} MB" for p in programs)
        return f"captured: {sizes}, planned once"

    def __repr__(self) -> str:
        return f"<{self._name}, {self.state}>"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A step that was captured in the body of a class is a method of its objects."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        # A copy, of a model that has it or to another process, records anew: a program is of the memory it was made on.
        return type(self), (self._step, self._limit, self._fallback)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # Inside a watch or another recording the step is to be seen as it is.
        if self.refusal is not None or type(_mode.get()) is not bool:
            return self._step(*args, **kwargs)
        arrays: list[Array] = []
        given = [_signature(value, arrays) for value in args]
        if kwargs:
            given.append(("keywords", _signature(kwargs, arrays)))
        key = (tuple(given), _mode.get(), registry.preferred())
        with self._lock:
            program = self._programs.get(key)
            if program is not None:
                if program.holds():
                    if program.fits(arrays):
                        return program.run(arrays)
                    self._recordings[key] = [program.recorder]  # to find out whether what is different matters
                elif not program.was_repeated:
                    self._made_in_vain()
                del self._programs[key]
            return self._record(key, arrays, args, kwargs)

    def _record(self, key: Any, arrays: list[Array], args: Any, kwargs: Any) -> R:
        """Run the step eagerly, and record it."""
        # With Numba or CuPy, which one who captures nothing need not wait for.
        from gmcore.recorder import difference

        if len(self._recordings | self._programs) >= self._limit and key not in self._recordings:
            self._warn(
                f"it was called with more than {self._limit} kinds of arguments, the last of {_described(key[0])}; "
                "calls of another kind run eagerly. Give it batches of a few sizes, and numbers that vary as tensors"
            )
            return self._step(*args, **kwargs)
        try:
            recorder, result = self._recorded(key, arrays, args, kwargs)
        except MemoryError as error:
            # From here, since the frames of the recording hold all the memory of the step.
            name = f"{self._name}, in a recording by gmcore.capture, which keeps all that the step computes"
            raise memory_error(error, name) from None
        earlier = self._recordings.setdefault(key, [])
        refusal = recorder.refusal
        kind: type[GmcoreError] = CaptureError
        program = None
        if refusal is None and earlier and (refusal := difference(earlier[-1], recorder)) is None:
            recorder.agree(earlier[-1])
            try:
                program = _program(recorder, result)
            except (CaptureError, DeviceMemoryError) as error:
                refusal, kind = f"{error}", type(error)
                recorder.refusal = refusal
        if program is not None:
            self._programs[key] = program
            for each in (*earlier, recorder):
                each.disown(recorder)
            recorder.release()
            del self._recordings[key]
            return result
        recorder.release()
        if recorder.refusal is not None or len(earlier) + 1 == MOST_RECORDINGS:
            self._recordings.clear()
            self._refuse(f"{refusal}", kind)
            return result
        earlier.append(recorder)
        return result

    def _recorded(self, key: Any, arrays: list[Array], args: Any, kwargs: Any) -> tuple[Recorder, R]:
        """Run the step eagerly on copies of its arguments; what it did, and what it returned."""
        from gmcore.recorder import Recorder, mapped

        copies: list[Array] = []
        raw: list[int] = []
        tensors: list[tuple[Tensor, Tensor]] = []

        def own(value: Any) -> Any:
            if isinstance(value, Tensor) and value.requires_grad:
                return value
            array = _copy(value._data if isinstance(value, Tensor) else value)
            if isinstance(value, np.ndarray):
                raw.append(len(copies))
            copies.append(array)
            if not isinstance(value, Tensor):
                return array
            tensor = Tensor(array)
            tensor.grad = value.grad
            tensors.append((value, tensor))
            return tensor

        own_args, own_kwargs = mapped(args, own), mapped(kwargs, own)
        parts = _parts((own_args, own_kwargs))
        recorder = Recorder(copies, raw, next(iter(self._recordings.get(key, [])[-1:]), None))
        with recorder.recording():
            for _, tensor in tensors:
                derived(tensor)
            result = self._step(*own_args, **own_kwargs)
        if _parts((own_args, own_kwargs)) != parts:
            recorder.refuse("it changes a list or a dict that it is given, of which a repetition has a copy")
        for given, tensor in tensors:
            if tensor.requires_grad or tensor.grad is not given.grad:
                recorder.refuse(
                    "it asks for the gradient of an argument, of which a repetition has a copy: give it a leaf that "
                    "requires one"
                )
                given.requires_grad, given.grad = tensor.requires_grad, tensor.grad
        recorder.finish(result)
        if recorder.shares(arrays):
            recorder.refuse(_SHARED)
        if recorder.refusal is not None:  # it may be that the step writes into them
            for array, own_array in zip(arrays, copies, strict=True):
                if array.tobytes() != own_array.tobytes():
                    array[...] = own_array
        return recorder, result

    def _made_in_vain(self) -> None:
        """Count a program that was given up before its first repetition; say so if that goes on."""
        self._in_vain += 1
        if self._in_vain == MOST_RECORDINGS:
            self._warn(
                f"{MOST_RECORDINGS} of its programs no longer held when they were to be repeated. Something that it "
                "relies on changes between the calls, such as the training flag or an option of a module, what is "
                "frozen, or a number that Python looks at"
            )

    def _refuse(self, reason: str, kind: type[GmcoreError]) -> None:
        if not self._fallback:
            raise kind(f"capture: this step cannot be repeated: {reason}. It has been run, eagerly")
        self.refusal = reason
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        text = f"captured {self._name} runs eagerly: {reason} (called at {user_line()})"
        warnings.warn(text, CaptureWarning, stacklevel=4)


def _program(recorder: Recorder, result: Any) -> Program:
    """The recording as what repeats it: on the CPU, or as a CUDA graph."""
    if recorder.gpus:
        from gmcore.graph import GraphProgram

        return GraphProgram(recorder, result)
    from gmcore.program import Program

    return Program(recorder, result)


def _signature(value: Any, arrays: list[Array]) -> Any:
    """What of an argument must be the same for a program to fit it; the arrays that may differ go to `arrays`."""
    if isinstance(value, Tensor):
        array = value._data
        if value._edge is None:
            arrays.append(array)
            return ("tensor", array.shape, _layout(array), array.dtype, device_of(array), value.grad is not None)
        if not value.is_leaf:
            raise GraphError(
                "capture: an argument was computed by a recorded operation; the gradient would end at the step. "
                f"Compute it inside the step, or detach() it (called at {user_line()})"
            )
        return _Same(value)
    if is_array(value):
        arrays.append(value)
        return ("array", value.shape, _layout(value), value.dtype, device_of(value))
    if isinstance(value, (tuple, list)):
        return (type(value), *[_signature(part, arrays) for part in value])
    if isinstance(value, dict):
        return (type(value), *[(name, _signature(part, arrays)) for name, part in value.items()])
    if isinstance(value, set):
        value = frozenset(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return (type(value), value, repr(value) if isinstance(value, (float, complex, np.inexact)) else "")  # 0.0 == -0.0


def _layout(array: Array) -> tuple[int, ...] | None:
    """Strides, as small as they can be, of an array whose numbers NumPy takes in the order and in the runs in which it
    takes these: sums of runs of other lengths are rounded otherwise. None in C order."""
    if array.flags.c_contiguous:
        return None
    strides, size, end = [0] * array.ndim, array.itemsize, 0
    for axis in sorted(range(array.ndim), key=lambda axis: abs(array.strides[axis])):
        stride, n = array.strides[axis], array.shape[axis]
        if stride and n > 1:
            if abs(stride) < end:  # windows that overlap, whose memory is a part of what packed ones would take
                return array.strides
            # What follows on what lies inside it goes on doing so, and all else is a gap away.
            size += 0 if abs(stride) == (end or array.itemsize) else array.itemsize
            strides[axis] = size if stride > 0 else -size
            end, size = abs(stride) * n, size * n
    return tuple(strides)


def _copy(array: Array) -> Array:
    """The numbers of an array in memory of their own, of its layout."""
    strides = _layout(array)
    if strides is None or not isinstance(array, np.ndarray) or not array.size:
        return array.copy(order="K")
    spans = [(n - 1) * stride for n, stride in zip(array.shape, strides, strict=True)]
    memory = np.zeros(sum(map(abs, spans)) + array.itemsize, np.uint8)
    copy: Array = np.ndarray(array.shape, array.dtype, memory, -sum(s for s in spans if s < 0), strides)
    copy[...] = array
    return copy


def _parts(value: Any) -> Any:
    """What a value is made of, by identity: it differs if a list or a dict inside it was changed."""
    if isinstance(value, (tuple, list)):
        return [_parts(part) for part in value]
    if isinstance(value, dict):
        return [(name, _parts(part)) for name, part in value.items()]
    return id(value)


class _Same:
    """Equal for one object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _described(signature: Any) -> str:
    """The arrays and numbers of a signature."""
    if isinstance(signature, tuple) and signature and signature[0] in ("tensor", "array"):
        return f"{signature[3]}{list(signature[1])}"
    if isinstance(signature, tuple):
        parts = [_described(part) for part in signature if not isinstance(part, type)]
        return ", ".join(part for part in parts if part)
    return "" if isinstance(signature, (_Same, str)) else repr(signature)


def capture(step: Callable[P, R], *, limit: int = 8, fallback: bool = False) -> Captured[P, R]:
    """The same step, recorded at its first calls and from then on repeated without Python, a graph or allocation.

    Parameters
    ----------
    step : a function that trains, or computes anything else with gmcore. What varies from call to call comes to it as
        arguments: tensors and arrays (also inside tuples, lists and dicts), whose numbers may differ; all else about
        the arguments, such as shapes, dtypes and Python numbers, makes another program.
    limit : the most programs; calls of further kinds run eagerly, with a `CaptureWarning`.
    fallback : run a step that cannot be repeated eagerly, with a `CaptureWarning` that says why, instead of raising.

    Returns
    -------
    `Captured`: call it as the step. It returns what the step returns, with tensors and arrays in memory of their own.

    Raises
    ------
    ArgumentError : a step that cannot be called, or a limit that is no count.
    CaptureError : from a call, once the step has run: it looks at numbers that it computes (``if loss > 3``,
        ``.item()``, ``.numpy()``, ``print(loss)``), or uses numbers that vary and are neither computed nor given to it.
    DeviceMemoryError : from a call: no room for it, or for the CUDA graph once the step has run.
    GraphError : from a call: an argument that an operation on the tape computed; or, wherever it is used, a tensor of
        the step that was kept without being returned.

    Notes
    -----
    The step runs eagerly, and as it is, until two runs of it have been the same, as a rule twice; then repetitions give
    the same bits as eager steps. Read from memory at each repetition are the arguments, of which it has copies, the
    parameters and the buffers; hyperparameters of the optimisers (also what a schedule changes); random draws, each a
    fresh one of its generator. Frozen are Python numbers inside the step, the branches it took, and which arrays,
    tensors and generators it found in variables, lists, dicts and attributes of what is no module. Arrays of NumPy
    among the arguments, and what NumPy computes of them, it sees only when they come to operations: give tensors to a
    step that looks at its arguments.
    ``p.grad`` of the leaves is there after a repetition, in memory that the next one writes again. A backward pass
    through what a repetition returns is refused.

    The step is recorded anew where something else was exchanged or switched that the program knows: memory of a
    parameter; what a module that it calls consists of and its hooks; of any module the attributes that it reads or
    misses, such as the training flag, the weight of a term, a function or an optimiser: numbers and texts, also in
    tuples, if they are others, and all else if it is another object; what is frozen, the groups and the state of an
    optimiser, whether there was a gradient before, numbers outside that Python looked at. A `CaptureWarning` tells
    where that happens again and again. An argument is only read: one that lies in memory which the step writes, or
    whose gradient it asks for, is refused.

    State that a step hands to the next one lives in leaves: ``self.h.copy_(h)``, not ``self.h = h.detach()``. What
    Python alone does, a repetition leaves out: a counter does not go on, and a training flag that the step sets by
    ``model.train()`` stays as others have set it, though the program is that of training.

    On a GPU the program is a CUDA graph, on the GPU where the arrays lie, whichever is the current one; the first calls
    are eager steps, and want it to be that. It is launched on the current stream of that GPU, and waits there for the
    repetition before it, on whatever stream that was: they share the program's memory. All else that several streams
    use is the caller's to order, as between eager steps. Values of arrays that lie there are not checked in a
    repetition, which waits for nothing: a class that is none gives NaN.

    References
    ----------
    Abadi et al., TensorFlow: a system for large-scale machine learning, OSDI 2016, section 3 (static graphs); NVIDIA,
    CUDA C++ programming guide, CUDA graphs (recording a stream).
    """
    if not callable(step):
        raise ArgumentError(f"capture: expected a function, got {step!r} (called at {user_line()})")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ArgumentError(f"capture: limit must be an integer from 1, got {limit!r} (called at {user_line()})")
    return Captured(step, limit, fallback)


__all__ = ["CaptureWarning", "Captured", "capture"]
