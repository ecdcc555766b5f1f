"""A chain in Numba: one loop, whose steps stay in vector registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import elementary
from gmkernels.chain.spec import Program
from gmkernels.pool import BlockKernel, block_kernel, jitable, long_loop, part

Arrays = Sequence[np.ndarray]

_BLOCK = 16384  # elements: 64 kB of float32, about 10 us, against a few us to start a thread
_SHORTEST_ROW = 64  # elements; shorter rows are repeated in memory, as a loop over one would be shorter than vectors

# Elementary functions vectorise; math's and NumPy's do not, but for those that are an instruction.
_CODE = {
    "absolute": "abs({})", "add": "{} + {}", "divide": "{} / {}", "equal": "{} == {}", "greater": "{} > {}",
    "greater_equal": "{} >= {}", "isinf": "abs({}) == infinity", "isnan": "{0} != {0}", "less": "{} < {}",
    "less_equal": "{} <= {}", "logical_and": "{} & {}", "logical_not": "not {}", "logical_or": "{} | {}",
    "minimum": "-maximum(-{}, -{})", "multiply": "{} * {}", "negative": "-{}", "not_equal": "{} != {}",
    "power": "{} ** {}", "reciprocal": "one / {}",
    "sign": "select({0} > zero, one, select({0} < zero, -one, {0} * zero))",
    "square": "{0} * {0}", "subtract": "{} - {}", "where": "select({}, {}, {})",
}  # fmt: skip
_NAMES: dict[str, Any] = {
    "sqrt": np.sqrt, "range": range, "abs": abs, "min": min, "long_loop": long_loop, "part": part, "BLOCK": _BLOCK,
    "__name__": __name__,
} | {name: getattr(elementary, name)
     for name in ("exp", "expm1", "log", "log1p", "tanh", "maximum", "select")}  # fmt: skip


def _block_kernel(program: Program, dtype: np.dtype[Any], kinds: tuple[str, ...]) -> BlockKernel:
    """The block kernel of a program; `kinds` says of each input whether it is "full", a "row" or a "number"."""
    numbers: dict[str, str] = {}  # by what they are written as: 0.0 == -0.0, and NaN equals nothing

    def operand(x: str | float) -> str:
        return x.replace("x", "e") if isinstance(x, str) else numbers.setdefault(repr(x), f"c{len(numbers)}")

    lines = [
        f"t{i} = " + _CODE.get(name, f"{name}({', '.join(['{}'] * len(operands))})").format(*map(operand, operands))
        for i, (name, operands) in enumerate(program.steps)
    ] + [f"y{i}[i] = {operand(y)}" for i, y in enumerate(program.outputs)]
    xs, ys = [f"x{i}" for i in range(program.inputs)], [f"y{i}" for i in range(len(program.outputs))]
    numbered = {x: kind for x, kind in zip(xs, kinds, strict=True)}
    once = [f"e{x[1:]} = {x}[0]" for x, kind in numbered.items() if kind == "number"]
    each = [f"e{x[1:]} = {x}[i]" for x, kind in numbered.items() if kind != "number"]
    loop = ["long_loop()", *once, "for i in range(y0.size):", *(f"    {line}" for line in (*each, *lines))]
    pieces = {"full": "part({}, at, width)", "row": "part({0}, at % {0}.size, width)", "number": "{}"}
    arguments = [pieces[kind].format(x) for x, kind in numbered.items()] + [f"part({y}, at, width)" for y in ys]
    rows = [f"width = min(width, {x}.size - at % {x}.size)" for x, kind in numbered.items() if kind == "row"]
    blocks = [
        "at = block * BLOCK", "stop = min(at + BLOCK, y0.size)", "while at < stop:",
        *(f"    {line}" for line in ("width = stop - at", *rows, f"loop({', '.join(arguments)})", "at += width")),
    ]  # fmt: skip
    names = ", ".join([*xs, *ys])
    scope = _NAMES | {name: dtype.type(float(c)) for c, name in numbers.items()}
    scope |= {"zero": dtype.type(0), "one": dtype.type(1), "infinity": dtype.type(np.inf)}
    exec(f"def loop({names}):\n    " + "\n    ".join(loop), scope)
    scope["loop"] = jitable(scope["loop"])
    exec(f"def chain(block, {names}):\n    " + "\n    ".join(blocks), scope)
    return block_kernel(scope["chain"])


def _in_place(x: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """An input as the loop reads it, and its kind; one that repeats in another way is written out."""
    if x.shape == shape:
        return x, "full"
    if x.size == 1:
        return x, "number"
    lead = len(shape) - x.ndim
    first = next((i for i, n in enumerate(x.shape) if n != 1), x.ndim)
    if x.size >= _SHORTEST_ROW and x.shape[first:] == shape[lead + first :]:
        return x, "row"
    return np.ascontiguousarray(np.broadcast_to(x, shape)), "full"


def chain(
    program: Program,
    compiled: dict[Any, BlockKernel],
    inputs: Arrays,
    outputs: Arrays,
    workspace: Arrays,
    attrs: Mapping[str, Any],
) -> None:
    """Run a program on arrays that are C-contiguous; `compiled` keeps its block kernels."""
    size, dtype = outputs[0].size, outputs[0].dtype
    if size:
        read = [_in_place(x, outputs[0].shape) for x in inputs]
        kinds = tuple([kind for _, kind in read])
        key = dtype, kinds
        if key not in compiled:
            compiled[key] = _block_kernel(program, dtype, kinds)
        compiled[key](-(-size // _BLOCK), *[x for x, _ in read], *outputs)
