"""gmcore: deep generative models on a hand-written autograd core with fused kernels.

    import gmcore
    x = gmcore.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    x.grad                                   # tensor([2., 4.])

`gmcore.ops` holds the operations, `gmcore.nn`, `gmcore.optim` and `gmcore.distributions` what models are made
of, `gmcore.models` the models, `gmcore.data` the data sets; `gmcore.fit` trains and `gmcore.load` brings back.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmcore import numpy_functions as _numpy_functions  # noqa: F401 (NumPy finds our functions by it)
from gmcore import ops
from gmcore.anomaly import detect_anomaly
from gmcore.capture import capture
from gmcore.dlpack import from_dlpack
from gmcore.engine import grad
from gmcore.fuse import fuse
from gmcore.gradcheck import gradcheck
from gmcore.memory import peak_memory
from gmcore.random import Generator, default_generator, manual_seed
from gmcore.recompute import checkpoint
from gmcore.tensor import Tensor, as_tensor, enable_grad, is_grad_enabled, no_grad, set_grad_enabled, tensor

if TYPE_CHECKING:
    from gmcore import data, distributions, errors, explain, functional, io, models, nn, optim
    from gmcore.train import fit, load

__version__ = "0.1.0"

# Imported at first use, so that an embedder who wants the engine does not wait for the rest.
_LAZY_MODULES = ("data", "distributions", "errors", "explain", "functional", "io", "models", "nn", "optim")
_LAZY_NAMES = {"fit": "gmcore.train", "load": "gmcore.train"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"gmcore.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'gmcore' has no attribute {name!r}")


def set_num_threads(threads: int) -> None:
    """Let kernels use at most so many threads; results do not depend on it.

    Parameters
    ----------
    threads : from 1 to Numba's ``NUMBA_NUM_THREADS``, as a rule the number of cores.

    Raises
    ------
    ArgumentError : another number.
    """
    from gmcore.errors import ArgumentError
    from gmkernels import pool

    try:
        pool.set_num_threads(threads)
    except ValueError as error:
        raise ArgumentError(f"set_num_threads: {error}") from None


def get_num_threads() -> int:
    """Number of threads that kernels may use."""
    from gmkernels import pool

    return pool.get_num_threads()


__all__ = [
    "Generator",
    "Tensor",
    "as_tensor",
    "capture",
    "checkpoint",
    "data",
    "default_generator",
    "detect_anomaly",
    "distributions",
    "enable_grad",
    "errors",
    "explain",
    "fit",
    "from_dlpack",
    "functional",
    "fuse",
    "get_num_threads",
    "grad",
    "gradcheck",
    "io",
    "is_grad_enabled",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "peak_memory",
    "set_grad_enabled",
    "set_num_threads",
    "tensor",
]
