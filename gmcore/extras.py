"""The optional packages, by the extra of the distribution that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from gmcore.errors import MissingPackageError

EXTRAS: dict[str, tuple[str, ...]] = {
    "app": ("rich", "matplotlib", "sklearn", "scipy"),
    "bfloat16": ("ml_dtypes",),
    "cuda12": ("cupy", "triton", "ml_dtypes"),
    "cuda13": ("cupy", "triton", "ml_dtypes"),
    "mkl": ("mkl",),
    "mpi": ("mpi4py",),
    "test": ("pytest", "hypothesis"),
    "peers": ("torch", "jax", "sklearn"),
}


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "gmcore[{extra}]"'


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module (``"matplotlib.figure"``), or say how to get it.

    Raises
    ------
    MissingPackageError : its package is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        extra = next(name for name, packages in EXTRAS.items() if package in packages)
        raise MissingPackageError(
            f"{purpose} needs {package}, which is not installed: {install_command(extra)}"
        ) from None


__all__ = ["EXTRAS", "install_command", "require"]
