"""Parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.tensor import Tensor, as_tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters, each in C order, in one vector: an operation with a gradient.

    Raises
    ------
    ArgumentError : no parameters.
    """
    flat = [ops.ravel(parameter) for parameter in parameters]
    if not flat:
        raise ArgumentError("parameters_to_vector: no parameters")
    return ops.concatenate(flat)


def vector_to_parameters(vec: Any, parameters: Iterable[Tensor]) -> None:
    """Write the elements of `vec` into the parameters, in the order of `parameters_to_vector`.

    Raises
    ------
    ShapeError : a vector with more or fewer elements than the parameters have; nothing is written then.
    """
    parameters, values = list(parameters), as_tensor(vec)._data
    expected = sum(parameter.size for parameter in parameters)
    if values.shape != (expected,):
        raise ShapeError(f"vector_to_parameters: expected a vector of {expected} elements, got shape {values.shape}")
    start = 0
    for parameter in parameters:
        parameter.copy_(values[start : start + parameter.size].reshape(parameter.shape))
        start += parameter.size
