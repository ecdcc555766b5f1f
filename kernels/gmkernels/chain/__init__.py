"""Chains of elementwise functions as one loop: a kernel for any program of `spec.Program`, made when it is needed."""

from __future__ import annotations

import functools
from typing import Any

from gmkernels.chain import reference
from gmkernels.chain.spec import FUNCTIONS, Program, spec_of
from gmkernels.registry import KernelSpec, Signature, register

SMALLEST = 1 << 15
"""Elements from which a chain is compiled."""


def _worth_compiling(signature: Signature) -> str | None:
    if signature.size_class < SMALLEST.bit_length():
        return f"is compiled, which takes about a second, for {SMALLEST} elements or more"
    return None


def _cpu(program: Program, compiled: dict[Any, Any], *call: Any) -> None:
    from gmkernels.chain import cpu  # takes Numba along, which small arrays do not need

    cpu.chain(program, compiled, *call)


_SPECS: dict[str, KernelSpec] = {}
"""By programs in writing: 0.0 == -0.0, and NaN equals nothing."""


def kernel_spec(program: Program) -> KernelSpec:
    """The contract of a program, with its kernels registered; they are compiled at the first call that chooses them.

    Parameters
    ----------
    program : what is computed of each element.

    Returns
    -------
    The same `KernelSpec` for the same program; ``gmkernels.run(spec, arrays)`` takes float32 or float64 arrays that
    broadcast.
    """
    if (known := _SPECS.get(repr(program))) is not None:
        return known
    spec = _SPECS[repr(program)] = spec_of(program)
    passes = len(program.steps)
    register(
        spec,
        "reference",
        functools.partial(reference.chain, program),
        strided=True,
        overhead=2e-6 * passes,
        efficiency=0.1,
    )
    # Sines and cosines that vectorise have a largest argument, which NumPy's have not.
    if {"sin", "cos"}.isdisjoint(name for name, _ in program.steps):
        cpu = functools.partial(_cpu, program, {})
        register(spec, "cpu", cpu, overhead=2e-5, efficiency=0.5, accepts=_worth_compiling)
    return spec


__all__ = ["FUNCTIONS", "SMALLEST", "Program", "kernel_spec"]
