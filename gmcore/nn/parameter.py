"""Parameter: a leaf tensor that a module owns and an optimiser changes."""

from __future__ import annotations

from typing import Any

from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed, derived
from gmkernels.arrays import namespace


class Parameter(Tensor):
    """A leaf that requires a gradient; a module that it is assigned to registers it.

    Parameters
    ----------
    data : tensor, array or nested sequence of floating numbers. It is copied, in C order: optimisers write into
        a parameter's memory, so it is nobody else's.
    requires_grad : False for a parameter that is saved and loaded but not trained.

    Raises
    ------
    DtypeError : data that is not floating (and a gradient asked for).
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        array = as_tensor(data)._data
        super().__init__(computed(namespace(array).array, array, order="C"), requires_grad)
        derived(self)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
