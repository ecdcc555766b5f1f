"""Launch configurations: which of a kernel's few variants runs on which GPU for a call of which size.

Nothing is timed inside a call. What was measured is in ``configurations.json``: compute capability -> kernel -> number
of the candidate in each size class. `tune` (``gmcore kernels --tune``) measures and writes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

FILE = Path(__file__).parent / "configurations.json"


@functools.cache
def measured(path: Path = FILE) -> dict[str, dict[str, list[int]]]:
    """What a file of configurations holds; nothing if there is none.

    Parameters
    ----------
    path : of the file.
    """
    return json.loads(path.read_text()) if path.exists() else {}


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
        self._tried: Mapping[str, int] | None = None
        Choices.every[name] = self

    def at(self, size: int) -> Mapping[str, int]:
        """The configuration for calls of a size on the current device.

        Parameters
        ----------
        size : in the unit of the classes.
        """
        import cupy

        if self._tried is not None:
            return self._tried
        known = measured().get(_capability(cupy.cuda.runtime.getDevice()), {}).get(self.name)
        if known is None:
            return self.candidates[0]
        return self.candidates[known[sum(size >= start for start in self.classes)]]

    @contextmanager
    def trying(self, candidate: Mapping[str, int]) -> Iterator[None]:
        """Use one candidate inside the block, to measure it.

        Parameters
        ----------
        candidate : one of `candidates`.
        """
        self._tried = candidate
        try:
            yield
        finally:
            self._tried = None
