"""The same steps in other libraries, a file each.

A contender's step is a function `step(*noise)` that goes on from the step before and returns what is compared: the
loss, gradients, or parameters. Without arguments it draws from its library's own generator; noise in its place is for
the comparison before the timing. Threads are as many as gmcore's, and denormals are flushed where a library can be told
to.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.workloads import STEPS, Workload

LIBRARIES = {"PyTorch": "torch", "torch.compile": "torch", "JAX": "jax", "scikit-learn": "sklearn"}
"""The package of each contender, and the module here that uses it."""
DISTRIBUTIONS = LIBRARIES | {"scikit-learn": "scikit-learn"}
STEPS_OF = {
    "PyTorch": tuple(STEPS),
    "torch.compile": tuple(name for name, step in STEPS.items() if not step.of_tapes),
    "JAX": tuple(name for name, step in STEPS.items() if not step.of_tapes),
    "scikit-learn": ("cd-step",),
}

Step = Callable[..., Any]


def absent() -> dict[str, str]:
    """Contenders that cannot take part, and why."""
    return {
        contender: f"{package} is not installed"
        for contender, package in LIBRARIES.items()
        if importlib.util.find_spec(package) is None
    }


def contenders(name: str) -> Iterator[str]:
    """Contenders in a step whose libraries are installed."""
    missing = absent()
    return (contender for contender, names in STEPS_OF.items() if name in names and contender not in missing)


def library(contender: str) -> Any:
    """The module here of a contender.

    It has `configure(device)`, which sets threads, the treatment of denormals and the device of the whole process;
    `make(contender, name, workload)`, which makes a step; `array(a)`, which makes what a step takes for noise; and
    `flushes_denormals()`.
    """
    return importlib.import_module(f"benchmarks.peers.{LIBRARIES[contender]}")


def make(contender: str, name: str, workload: Workload, device: str = "cpu") -> Step:
    """The step of a contender on a device, from the weights and the data of a workload."""
    module = library(contender)
    module.configure(device)
    return module.make(contender, name, workload)
