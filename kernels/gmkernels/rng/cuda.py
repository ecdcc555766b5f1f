"""The fills of the random stream in CUDA C: the launchers of ``cuda.cu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch

Arrays = Sequence[Any]

THREADS = 256
ELEMENTS = 16
"""Of a thread: as in the .cu file."""


def _fill(name: str, inputs: Arrays, outputs: Arrays, dtype: str) -> None:
    (out,) = outputs
    # The first group may begin with up to three elements that lie before the array.
    blocks = -(-(out.size + 3) // (THREADS * ELEMENTS)) if out.size else 0
    launch.cuda("rng", name, dtype, (blocks,), (THREADS,), (inputs[0], out, out.size))


def random_words(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _fill("random_words", inputs, outputs, "float32")  # they are the same whatever REAL is


def uniform(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _fill("uniform_fill", inputs, outputs, attrs["dtype"])


def normal(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _fill("normal_fill", inputs, outputs, attrs["dtype"])
