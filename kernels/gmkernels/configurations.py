"""Launch configurations: which of a kernel's few variants runs on which GPU for a call of which size.

Nothing is timed inside a call. What was measured is in ``configurations.json``: compute capability -> kernel -> number
of the candidate in each size class. `tune` (``gmcore kernels --tune``) measures and writes it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gmkernels import devices, registry
from gmkernels.registry import KernelError

FILE = Path(__file__).parent / "configurations.json"


@functools.cache
def measured(path: Path = FILE) -> dict[str, dict[str, list[int]]]:
    """What a file of configurations holds.

    Parameters
    ----------
    path : of the file.
    """
    return json.loads(path.read_text())


@functools.cache
def _capability(device: int) -> str:
    import cupy

    return str(cupy.cuda.Device(device).compute_capability)


class Choices:
    """The launch configurations of a kernel, by GPU and size.

    Parameters
    ----------
    name : ``"operation.backend"``, as in ``"gaussian_sample.triton"``.
    candidates : names and values that the launcher reads, such as ``{"block": 1024, "warps": 4}``; the first is right
        wherever nothing was measured.
    classes : sizes in ascending order at which a new class begins; one class if there are none.
    """

    every: dict[str, Choices] = {}
    """All that there are, by name."""

    def __init__(self, name: str, candidates: Sequence[Mapping[str, int]], classes: Sequence[int] = ()) -> None:
        self.name = name
        self.candidates = tuple(candidates)
        self.classes = tuple(classes)
        self.module: str = sys._getframe(1).f_globals["__name__"]
        """Whose kernels ask for them."""
        self._tried: Mapping[str, int] | None = None
        self.asked: int | None = None
        """The size that `at` was last asked for, inside `trying`."""
        self._asking = False
        Choices.every[name] = self

    def at(self, size: int) -> Mapping[str, int]:
        """The configuration for calls of a size on the current device.

        Parameters
        ----------
        size : in the unit of the classes.
        """
        import cupy

        if self._asking:
            raise Asked(size)
        if self._tried is not None:
            self.asked = size
            return self._tried
        known = measured().get(_capability(cupy.cuda.runtime.getDevice()), {}).get(self.name)
        if known is None:
            return self.candidates[0]
        return self.candidates[known[self.class_of(size)]]

    def class_of(self, size: int) -> int:
        """Number of the class of a size.

        Parameters
        ----------
        size : in the unit of the classes.
        """
        return sum(size >= start for start in self.classes)

    @contextmanager
    def trying(self, candidate: Mapping[str, int]) -> Iterator[None]:
        """Use one candidate inside the block, to measure it.

        Parameters
        ----------
        candidate : one of `candidates`.
        """
        self._tried, self.asked = candidate, None
        try:
            yield
        finally:
            self._tried = None

    def size_of(self, call: Callable[[], Any]) -> int | None:
        """The size for which a call asks `at`, which ends it there: its kernel is not launched. None if it does not.

        Parameters
        ----------
        call : of an operation.
        """
        self._asking = True
        try:
            call()
        except Asked as asked:
            return asked.size
        finally:
            self._asking = False
        return None


class Asked(Exception):
    """Ends a call that has asked for a configuration, inside `Choices.size_of`.

    Parameters
    ----------
    size : for which it asked.
    """

    def __init__(self, size: int) -> None:
        self.size = size


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------

_CALLS, _ROUNDS = 10, 7
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))
_MOST_ELEMENTS = 1 << 28
_LARGEST_FACTOR = 1e3


class Measurement(NamedTuple):
    """Times of the candidates of a kernel in one size class.

    Parameters
    ----------
    kernel : name of its `Choices`.
    size : at which it was measured, in their unit.
    seconds : of a call, by candidate, infinite of one that this GPU cannot run; none if no example of an operation
        could be brought to such a size.
    """

    kernel: str
    size: int
    seconds: tuple[float, ...]

    @property
    def best(self) -> int | None:
        """Number of the fastest candidate; the first unless another is 2 % faster, which is more than noise. None
        without a measurement."""
        if not self.seconds:
            return None
        fastest = min(range(len(self.seconds)), key=self.seconds.__getitem__)
        return fastest if self.seconds[fastest] < 0.98 * self.seconds[0] else 0


def tune(path: Path = FILE, names: Sequence[str] = ()) -> Iterator[Measurement]:
    """Measure the candidates of kernels on the current GPU, and write which are the fastest.

    Parameters
    ----------
    path : of the file of configurations; what it holds of other GPUs and kernels stays.
    names : of `Choices` to measure, or what these begin with up to a dot, such as an operation; all if there are none.

    Yields
    ------
    What was measured, class by class. The file is written after each kernel; of a kernel of which a class could not be
    measured, it keeps what it held.

    Raises
    ------
    KernelError : there is no GPU, no such name, or the file cannot be written.
    """
    if (reason := devices.problem()) is not None:
        raise KernelError(f"launch configurations are measured on a GPU: {reason}")
    import cupy

    for spec in registry.specs().values():
        for backend in ("triton", "cuda"):
            if (entry := registry.entries(spec).get(backend)) is not None and not registry.BACKENDS[backend].missing():
                entry.kernel()  # whose module makes its choices
    capability = _capability(cupy.cuda.runtime.getDevice())
    several = {name: choices for name, choices in sorted(Choices.every.items()) if len(choices.candidates) > 1}
    if unknown := [n for n in names if not any(name.startswith(f"{n}.") for name in several)]:
        known = ", ".join(sorted({name.partition(".")[0] for name in several}))
        raise KernelError(f"{unknown[0]} has no launch configurations to measure; expected one of {known}")
    for name, choices in several.items():
        if names and not name.startswith(tuple(f"{n}." for n in names)):
            continue
        best: list[int] = []
        for number in range(len(choices.classes) + 1):
            found = _measure(choices, number)
            if found.best is not None:
                best.append(found.best)
            yield found
        if len(best) <= len(choices.classes):
            continue
        measured.cache_clear()
        held = measured(path)
        held.setdefault(capability, {})[name] = best
        try:
            path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise KernelError(f"cannot write {path}: {error.strerror}") from None


def _typical(choices: Choices, number: int) -> int:
    """A size in the middle of a class."""
    if not choices.classes:
        return 1 << 20
    if number == 0:
        return max(choices.classes[0] // 4, 1)
    if number == len(choices.classes):
        return choices.classes[-1] * 4
    return math.isqrt(choices.classes[number - 1] * choices.classes[number])


def _measure(choices: Choices, number: int) -> Measurement:
    wanted = _typical(choices, number)
    for stretched in examples_of(choices, number, wanted):
        try:
            call = stretched.call()
        except (registry.KernelError, MemoryError):
            continue
        break
    else:
        return Measurement(choices.name, wanted, ())
    seconds = []
    for candidate in choices.candidates:
        with choices.trying(candidate):
            try:
                seconds.append(_seconds(call))
            except registry.KernelError:  # it needs more shared memory than this GPU has
                seconds.append(math.inf)
    assert choices.asked is not None
    return Measurement(choices.name, choices.asked, tuple(seconds))


class Stretched(NamedTuple):
    """An example of an operation in which axes of one length are longer.

    Parameters
    ----------
    spec, backend : the operation, and whose kernel is called.
    example : what is stretched: its arrays, and the attribute ``shape`` of operations that have no other size.
    length, longer : the former and the new length.
    """

    spec: registry.KernelSpec
    backend: str
    example: registry.Example
    length: int
    longer: int

    def _shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.longer if n == self.length else n for n in shape)

    def _call(self, of_array: Callable[[np.ndarray], Any]) -> Callable[..., tuple[Any, ...]]:
        """The call with given outputs, its arrays made of the example's by a function."""

        def made(arrays: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(made(a) if type(a) is tuple else of_array(a) for a in arrays)

        inputs, attrs = made(self.example.inputs), dict(self.example.attrs)
        if "shape" in attrs:
            attrs["shape"] = self._shape(attrs["shape"])
        updated = made(self.example.updated) if self.spec.updates else None

        def call(outputs: Any = updated) -> tuple[Any, ...]:
            return registry.run(self.spec, inputs, attrs, outputs=outputs, backend=self.backend)

        return call

    def size_for(self, choices: Choices) -> int | None:
        """The size for which the call asks; None if it does not. Floats are any: no kernel is to be launched.

        Raises
        ------
        KernelError, MemoryError : the operation refuses such arrays, or there is no room for them.
        """
        import cupy

        def shapes_only(a: np.ndarray) -> Any:
            return cupy.empty(self._shape(a.shape), a.dtype) if a.dtype.kind == "f" else self._longer(a)

        if sum(math.prod(self._shape(shape)) for shape in _shapes(self.example)) > _MOST_ELEMENTS:
            raise MemoryError
        return choices.size_of(self._call(shapes_only))

    def _longer(self, a: np.ndarray) -> Any:
        import cupy

        return cupy.asarray(a if a.dtype == np.uint64 else np.resize(a, self._shape(a.shape)))  # keys stay

    def call(self) -> Callable[[], Any]:
        """The call, to be timed."""
        call = self._call(self._longer)
        return functools.partial(call, call())


def _shapes(example: registry.Example) -> list[tuple[int, ...]]:
    """Of the arrays of a call but its key, and of its result where no array says it."""
    arrays = registry.flat((*example.inputs, *example.updated))
    return [*(a.shape for a in arrays if a.dtype != np.uint64), example.attrs.get("shape", ())]


def _elements(example: registry.Example) -> int:
    return sum(map(math.prod, _shapes(example)))


def examples_of(choices: Choices, number: int, wanted: int) -> Iterator[Stretched]:
    """Examples of operations, with longer arrays, whose kernel asks for a configuration in a class.

    Parameters
    ----------
    choices : of the kernel.
    number : of the class.
    wanted : the size that is asked for, within a factor of four.
    """
    operation, backend = choices.name.partition(".")[0], choices.name.rpartition(".")[2]
    specs = sorted(registry.specs().values(), key=lambda spec: spec.name != operation)
    for spec, dtype in itertools.product(specs, _DTYPES):
        entry = registry.entries(spec).get(backend)
        if entry is None or entry.kernel().__module__ != choices.module:
            continue
        with np.errstate(over="ignore"):  # of what half types lack
            examples = sorted(spec.examples(np.random.default_rng(0), dtype), key=_elements, reverse=True)
        for example in examples:
            for length in sorted({n for shape in _shapes(example) for n in shape if n > 1}, reverse=True):
                factor = 1.0
                for _ in range(16):
                    stretched = Stretched(spec, backend, example, length, max(round(length * factor), 1))
                    try:
                        asked = stretched.size_for(choices)
                    except (registry.KernelError, MemoryError):
                        break
                    if asked is None:  # smaller than what has a choice, or of another kernel
                        if factor > _LARGEST_FACTOR:
                            break
                        factor *= 8
                        continue
                    if choices.class_of(asked) == number and wanted / 4 <= asked <= wanted * 4:
                        yield stretched
                        break
                    factor *= min(max(wanted / max(asked, 1), 1 / 8), 8)  # the size may grow with a power of the length


def _seconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the GPU, by events round several."""
    import cupy

    call()
    found = []
    for _ in range(_ROUNDS):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(_CALLS):
            call()
        end.record()
        end.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, end) / 1e3 / _CALLS)
    return sorted(found)[_ROUNDS // 2]
