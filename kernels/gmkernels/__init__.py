"""gmkernels: fused kernels for deep generative models. Arrays in, arrays out; no autograd.

Every operation is a spec (`registry.KernelSpec`) with kernels on several backends registered against it. Call
the thin wrappers (`gmkernels.gaussian_sample(mu, logvar, key=...)`), or `run` with buffers of your own.
`explain(op, *arrays)` says which kernel a call runs and why; `with use("reference"):` prefers a backend.
"""

from gmkernels.cost import Cost
from gmkernels.registry import (
    Example,
    Explanation,
    KernelError,
    KernelSpec,
    Signature,
    entries,
    explain,
    register,
    run,
    select,
    specs,
    unregister,
    use,
)

__all__ = [
    "Cost",
    "Example",
    "Explanation",
    "KernelError",
    "KernelSpec",
    "Signature",
    "entries",
    "explain",
    "register",
    "run",
    "select",
    "specs",
    "unregister",
    "use",
]
