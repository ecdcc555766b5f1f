"""The base of the distributions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions.constraints import Constraint, is_fixed, unit_interval
from gmcore.errors import ArgumentError, DeviceError, DtypeError, GraphError, ShapeError
from gmcore.op import user_line
from gmcore.ops.shape import as_shape
from gmcore.random import Generator
from gmcore.tensor import Array, Tensor, as_tensor, is_floating, no_grad, on_host, tensor
from gmcore.watch import computed
from gmkernels.arrays import on_gpu

Shape = tuple[int, ...]


class Derived:
    """A parameter computed from another one, unless the constructor assigned it.

    Computed at each use: a value kept from inside `no_grad` would cut the tape for later uses.
    """

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else self._function(instance)


def _check_values(x: Array, owner: str, name: str, constraint: Constraint) -> None:
    outside = ~on_host(constraint.contains(x))
    if outside.any():
        index = tuple(np.argwhere(outside)[0].tolist())
        event = x.shape[x.ndim - constraint.event_dim :]
        found = np.broadcast_to(on_host(x), outside.shape + event)[index]
        at = f" at index {index}" if index else ""
        raise ArgumentError(f"{owner}: {name} must be {constraint.name}, got {found}{at}")


class Distribution(ABC):
    """A batch of independent distributions.

    Parameters
    ----------
    batch_shape : shape of the batch of parameters.
    event_shape : shape of one draw.
    validate_args : check parameters and values against their constraints (the default). False saves the passes over
        the data and gives NaN where a check would have raised.

    Attributes
    ----------
    arg_constraints : name of a parameter -> the `Constraint` on it;  support : the `Constraint` on values.
    has_rsample : whether `rsample` exists.

    Raises
    ------
    ArgumentError : a parameter outside its constraint, by name.

    Notes
    -----
    Samples have shape ``sample_shape + batch_shape + event_shape``; `log_prob` of a value of shape
    ``S + batch_shape + event_shape`` has shape ``S + batch_shape``.
    """

    arg_constraints: Mapping[str, Constraint] = {}
    support: Constraint
    has_rsample: bool = False

    def __init__(
        self, batch_shape: Sequence[int] = (), event_shape: Sequence[int] = (), validate_args: bool | None = None
    ) -> None:
        self._batch_shape = tuple(batch_shape)
        self._event_shape = tuple(event_shape)
        self._validate_args = True if validate_args is None else validate_args
        if self._validate_args:
            for name, x in self._given().items():
                self._check(name, x, self.arg_constraints[name])

    def _given(self) -> dict[str, Tensor]:
        """The parameters that the constructor was given; others are `Derived` from them."""
        return {name: vars(self)[name] for name in self.arg_constraints if name in vars(self)}

    def _check(self, name: str, x: Tensor, constraint: Constraint) -> None:
        options: dict[str, Any] = {"owner": type(self).__name__, "name": name, "constraint": constraint}
        # A captured step repeats the test, unless it is of numbers that the constraint was made with, or on a GPU.
        if is_fixed(constraint) and not on_gpu(x._data):
            computed(_check_values, x._data, **options)
        else:
            _check_values(x._data, **options)

    @property
    def batch_shape(self) -> Shape:
        return self._batch_shape

    @property
    def event_shape(self) -> Shape:
        return self._event_shape

    # -- what a subclass gives -------------------------------------------------------------------------
    @property
    def mean(self) -> Tensor:
        """The mean, of shape batch_shape + event_shape.

        Raises
        ------
        ArgumentError : here and below, a quantity that the distribution has no formula for.
        """
        raise self._no_formula("mean", "sample(...).mean(0)")

    @property
    def variance(self) -> Tensor:
        """The variance of each element, of shape batch_shape + event_shape."""
        raise self._no_formula("variance", "sample(...).var(0)")

    @property
    def stddev(self) -> Tensor:
        """The square root of the variance."""
        return ops.sqrt(self.variance)

    @property
    def mode(self) -> Tensor:
        """The value of the largest density or probability, of shape batch_shape + event_shape."""
        raise self._no_formula("mode", "an optimiser on log_prob")

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """A sample through which gradients reach the parameters, with fixed noise.

        Parameters
        ----------
        sample_shape : leading axes of independent samples.
        generator : gives the draws, in a number that does not depend on shapes; by default the context's.

        Raises
        ------
        GraphError : the distribution has no such path.
        """
        raise GraphError(
            f"{type(self).__name__} has no rsample: {self._why_no_path}. Use sample(), and for a gradient the score "
            "function (log_prob of the sample) or a relaxed distribution"
        )

    _why_no_path = "a sample jumps where it changes"

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """A sample without a gradient; arguments of `rsample`."""
        with no_grad():
            return self.rsample(sample_shape, generator)

    @abstractmethod
    def log_prob(self, value: Any) -> Tensor:
        """The log-density, or log-probability, of `value`, which broadcasts with the batch.

        Raises
        ------
        ArgumentError : a value outside the support.  ShapeError : a value that does not broadcast.
        """

    def entropy(self) -> Tensor:
        """The entropy in nats, of shape batch_shape."""
        raise self._no_formula("entropy", "-log_prob(sample(...)).mean(0)")

    def cdf(self, value: Any) -> Tensor:
        """The probability of numbers up to `value`."""
        raise self._no_formula("cdf", "(sample(...) <= value).mean(0)")

    def icdf(self, value: Any) -> Tensor:
        """The number up to which the probability is `value`: the inverse of `cdf`."""
        raise self._no_formula("icdf", "quantiles of sample(...)")

    def expand(self, batch_shape: Sequence[int]) -> Any:
        """The same distribution with its parameters broadcast to another batch_shape.

        Raises
        ------
        ShapeError : batch_shape does not broadcast to the one given.
        """
        batch_shape = tuple(batch_shape)
        new = copy.copy(self)
        new._batch_shape = batch_shape
        for name, x in self._given().items():
            setattr(new, name, ops.broadcast_to(x, batch_shape + x.shape[len(self.batch_shape) :]))
        return new

    def _unchecked(self) -> Any:
        """The same distribution, which takes values outside its support."""
        new = copy.copy(self)
        new._validate_args = False
        return new

    def _no_formula(self, name: str, estimate: str) -> ArgumentError:
        return ArgumentError(
            f"{type(self).__name__} has no closed form of its {name}; estimate it, by {estimate} "
            f"(called at {user_line()})"
        )

    # -- for subclasses --------------------------------------------------------------------------------
    def _extended_shape(self, sample_shape: int | Sequence[int]) -> Shape:
        return (*as_shape(sample_shape), *self.batch_shape, *self.event_shape)

    def _as_value(self, value: Any, dtype: Any = None) -> Tensor:
        """`value` as a tensor of `dtype`, the parameters' by default, if it is not floating, checked."""
        value = _as_float(value, dtype or self._dtype, self._device)
        try:
            np.broadcast_shapes(value.shape, self._extended_shape(()))
            if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
                raise ValueError
        except ValueError:
            raise ShapeError(
                f"{type(self).__name__}: a value of shape {value.shape} does not broadcast with the "
                f"distribution's shape {self._extended_shape(())}"
            ) from None
        if self._validate_args:
            self._check("value", value, self.support)
        return value

    def _as_probability(self, value: Any) -> Tensor:
        """`value` as a tensor of the parameters' dtype if it is not floating, checked to be in [0, 1]."""
        value = _as_float(value, self._dtype, self._device)
        if self._validate_args:
            self._check("value", value, unit_interval)
        return value

    @property
    def _dtype(self) -> Any:
        return next(iter(self._given().values())).dtype

    @property
    def _device(self) -> str:
        return next(iter(self._given().values())).device

    def _normal(self, shape: Shape, generator: Generator | None) -> Tensor:
        """Standard normal numbers in the parameters' dtype, where they are."""
        return ops.normal(shape, dtype=self._dtype, device=self._device, generator=generator)

    def _noise(self, shape: Shape, quantile: Callable[[Tensor], Tensor], generator: Generator | None) -> Tensor:
        """Numbers with the distribution function whose inverse is `quantile`, in the parameters' dtype.

        In float64 until then, where the uniforms are strictly between 0 and 1 and have both tails.
        """
        u = ops.uniform(shape, dtype="float64", device=self._device, generator=generator)
        return ops.cast(quantile(u), self._dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {x.shape}' for name, x in self._given().items())})"


def _as_float(x: Any, dtype: Any, device: str) -> Tensor:
    """`x` as a floating tensor; Python numbers, integers and booleans take `dtype`, and what is no array `device`."""
    if not hasattr(x, "dtype"):
        return tensor(x, dtype, device)
    x = tensor(x, device=device) if isinstance(x, np.generic) else as_tensor(x)
    return x if is_floating(x.dtype) else ops.cast(x, dtype)


def as_parameters(**parameters: Any) -> list[Tensor]:
    """Parameters as tensors of one floating dtype: Python numbers take that of the others, float32 if there is none,
    and their device.

    Raises
    ------
    DtypeError : a parameter that is an array of integers or booleans.  DeviceError : parameters on several devices.
    """
    arrays = {name: as_tensor(x) for name, x in parameters.items() if hasattr(x, "dtype")}
    for name, x in arrays.items():
        if not is_floating(x.dtype):
            raise DtypeError(f"{name} is {x.dtype}, expected floating numbers")
    dtype = np.result_type(*[x.dtype for x in arrays.values()]) if arrays else np.dtype(np.float32)
    places = {name: x.device for name, x in arrays.items() if not isinstance(parameters[name], np.generic)}
    device = max(places.values(), default="cpu")  # a GPU's, if there is one
    if any(place != device for place in places.values()):
        given = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise DeviceError(f"parameters lie on several devices: {given}; move some with .to({device!r})")
    return [ops.cast(_as_float(x, dtype, device), dtype) for x in parameters.values()]


def broadcast_all(**parameters: Any) -> list[Tensor]:
    """`as_parameters`, of one shape.

    Raises
    ------
    DtypeError, DeviceError : as in `as_parameters`.
    ShapeError : shapes that do not broadcast.
    """
    tensors = as_parameters(**parameters)
    try:
        shape = np.broadcast_shapes(*[x.shape for x in tensors])
    except ValueError:
        given = ", ".join(f"{name} {x.shape}" for name, x in zip(parameters, tensors, strict=True))
        raise ShapeError(f"parameters do not broadcast with each other: {given}") from None
    return [ops.broadcast_to(x, shape) for x in tensors]
