"""A chain in NumPy: a pass over memory for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.chain.spec import Program

Arrays = Sequence[np.ndarray]


def chain(program: Program, inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    """Run a program."""
    dtype = inputs[0].dtype
    values: dict[Any, Any] = {f"x{i}": x for i, x in enumerate(inputs)}

    def value(operand: Any) -> Any:
        return values[operand] if isinstance(operand, str) else dtype.type(operand)

    with np.errstate(all="ignore"):  # of what `where` does not take
        for i, (name, operands) in enumerate(program.steps):
            values[f"t{i}"] = getattr(np, name)(*map(value, operands))
    for y, operand in zip(outputs, program.outputs, strict=True):
        y[...] = value(operand)
