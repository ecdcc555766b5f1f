"""Contracts of elementwise chains, made from the program that they run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout

FUNCTIONS = {
    "absolute": 1, "add": 1, "cos": 30, "divide": 8, "equal": 1, "exp": 14, "expm1": 18, "greater": 1,
    "greater_equal": 1, "isinf": 2, "isnan": 1, "less": 1, "less_equal": 1, "log": 22, "log1p": 28, "logical_and": 1,
    "logical_not": 1, "logical_or": 1, "maximum": 3, "minimum": 4, "multiply": 1, "negative": 1, "not_equal": 1,
    "power": 80, "reciprocal": 8, "sign": 3, "sin": 30, "sqrt": 8, "square": 1, "subtract": 1, "tanh": 28, "where": 1,
}  # fmt: skip
"""Functions that a program may use, by their names in NumPy, and instructions that one takes."""

Operand = str | float
"""``"x0"``, ``"x1"``, ... for the inputs; ``"t0"``, ``"t1"``, ... for the steps; or a number."""


@dataclass(frozen=True)
class Program:
    """What a chain computes of each element, in order.

    Parameters
    ----------
    inputs : number of inputs.
    steps : function and operands; step number i is ``"t<i>"``.
    outputs : operands.
    """

    inputs: int
    steps: tuple[tuple[str, tuple[Operand, ...]], ...]
    outputs: tuple[Operand, ...]

    def __str__(self) -> str:
        lines = [f"t{i} = {name}({', '.join(map(str, operands))})" for i, (name, operands) in enumerate(self.steps)]
        return "; ".join([*lines, "return " + ", ".join(map(str, self.outputs))])

    @property
    def name(self) -> str:
        """``chain_`` and a digest: the same for the same program."""
        return "chain_" + hashlib.sha256(f"{self.inputs} {self}".encode()).hexdigest()[:12]


def spec_of(program: Program) -> KernelSpec:
    """The contract of a program: inputs of one floating dtype that broadcast, outputs of the broadcast shape."""
    names = tuple([f"x{i}" for i in range(program.inputs)])
    slots = sum(FUNCTIONS[name] for name, _ in program.steps)

    def infer(*xs: Array) -> Layout:
        if len({x.dtype for x in xs}) != 1 or xs[0].dtype.kind != "f":
            given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in xs)
            raise KernelError(f"{program.name}: expected arrays of one floating dtype, got {given}")
        try:
            shape = np.broadcast_shapes(*[x.shape for x in xs])
        except ValueError as error:
            raise KernelError(f"{program.name}: {error}") from None
        return [(shape, xs[0].dtype)] * len(program.outputs)

    def cost(*xs: Array) -> Cost:
        (shape, dtype), *_ = infer(*xs)
        size = int(np.prod(shape))
        return Cost(sum(x.nbytes for x in xs) + dtype.itemsize * size * len(program.outputs), 0, slots * size)

    def examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
        for shape in ((), (0,), (7,), (3, 7001)):
            yield Example(tuple(rng.uniform(0.3, 2.0, shape).astype(dtype) for _ in names), {})
        if len(names) > 1:  # a row, and numbers
            xs = [rng.uniform(0.3, 2.0, shape).astype(dtype) for shape in [(3, 7001), (7001,)] + [()] * len(names)]
            yield Example(tuple(xs[: len(names)]), {})

    return KernelSpec(
        name=program.name,
        family="traced",  # not shipped: made when it is needed
        inputs=names,
        outputs=tuple([f"y{i}" for i in range(len(program.outputs))]),
        infer=infer,
        cost=cost,
        examples=examples,
        formula=str(program),
        source="traced by gmcore.fuse",
        # A step rounds by 4 u at most; the examples are of order 1, and 20 steps may add up.
        tolerance={"float32": (1e-5, 1e-5), "float64": (2e-14, 2e-14)},
    )
