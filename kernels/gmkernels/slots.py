"""Workspaces that blocks share: as many are used as run at once, so that those stay in the caches.

A launcher clears an array of numbers, one for each workspace. A block claims the first that is free, and releases it
at its end: on n threads never more than n are touched. What a block computes may not depend on which one it has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from gmkernels.pool import block_kernel

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees


@block_kernel
def _clear(block, taken):
    for i in range(taken.size):
        taken[i] = 0


def clear(taken: Any) -> None:
    """All workspaces are free."""
    _clear(1, taken)


@_intrinsic
def claim(typing_context: Any, taken: Any) -> Any:
    """Number of the first free workspace, which is taken from now on. There must be one for each block."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = arrayobj.make_array(taken)(context, builder, args[0]).data
        zero, one = (ir.Constant(ir.IntType(64), n) for n in (0, 1))
        number = cgutils.alloca_once_value(builder, zero)
        look, found = builder.append_basic_block("look"), builder.append_basic_block("found")
        builder.branch(look)
        builder.position_at_end(look)
        here = builder.load(number)
        before = builder.atomic_rmw("xchg", builder.gep(data, [here]), one, "acquire")
        builder.store(builder.select(builder.icmp_signed("==", before, zero), here, builder.add(here, one)), number)
        builder.cbranch(builder.icmp_signed("==", before, zero), found, look)
        builder.position_at_end(found)
        return builder.load(number)

    return types.int64(taken), generate


@_intrinsic
def release(typing_context: Any, taken: Any, number: Any) -> Any:
    """Workspace `number` is free again."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = arrayobj.make_array(taken)(context, builder, args[0]).data
        builder.store_atomic(ir.Constant(ir.IntType(64), 0), builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(taken, types.int64), generate
