"""Modules that are functions of `gmcore.ops`: what a function takes beside its inputs, the constructor takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gmcore.errors import ArgumentError
from gmcore.nn.module import Module
from gmcore.op import Op
from gmcore.tensor import Tensor, as_tensor
from gmkernels.arrays import is_array

_WHY = {
    "inplace": "tensors do not change in place",
    "size_average": "it is deprecated; use reduction='mean' or 'sum'",
    "reduce": "it is deprecated; use reduction='none'",
}
"""Why arguments of PyTorch's constructors are taken with their default values only."""


class Functional(Module):
    """Base of the modules that a function makes:

        class HuberLoss(Functional, function=ops.huber_loss, inputs=2):
            \"""...\"""

    Class arguments: `function`; `inputs`, how many of its arguments are those of `forward`; `renamed`, the names of
    the others where PyTorch's differ, as ``{"dim": "axis"}``, and these have no defaults; `refused`, further
    arguments of PyTorch's with the only value that is taken.

    Parameters
    ----------
    args, kwargs : the function's other arguments, in their order and with their defaults. They become attributes;
        arrays among them become buffers.

    Raises
    ------
    ArgumentError : an argument that is not supported, by name.
    """

    _function: ClassVar[Callable[..., Any]]
    _arguments: ClassVar[Mapping[str, str]]
    """Attribute -> argument of the function."""
    _refused: ClassVar[Mapping[str, Any]]
    _signature: ClassVar[inspect.Signature]

    def __init_subclass__(
        cls,
        function: Callable[..., Any] | None = None,
        inputs: int = 1,
        renamed: Mapping[str, str] | None = None,
        refused: Mapping[str, Any] | None = None,
    ) -> None:
        if function is None:  # a subclass of one of the modules: the same function, unless it defines forward
            return
        parameters = [] if isinstance(function, Op) else [*inspect.signature(function).parameters.values()][inputs:]
        theirs = {ours: theirs for theirs, ours in (renamed or {}).items()}
        cls._function = staticmethod(function)
        cls._arguments = {theirs.get(p.name, p.name): p.name for p in parameters}
        cls._refused = refused or {}
        parameters = [
            p.replace(name=theirs[p.name], default=inspect.Parameter.empty) if p.name in theirs else p
            for p in parameters
        ]
        kind = parameters[-1].kind if parameters else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters += [inspect.Parameter(name, kind, default=default) for name, default in cls._refused.items()]
        cls._signature = cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{name}: {error}; expected {name}{self._signature}") from None
        bound.apply_defaults()
        for option, value in bound.arguments.items():
            if option in self._refused:
                if value != self._refused[option]:
                    raise ArgumentError(f"{name}: {option}={value!r} is not supported, {_WHY[option]}; leave it out")
            elif isinstance(value, Tensor) or is_array(value):
                self.register_buffer(option, as_tensor(value))
            else:
                setattr(self, option, value)

    def forward(self, *inputs: Any) -> Any:
        if not self._arguments:
            return self._function(*inputs)
        return self._function(*inputs, **{ours: getattr(self, theirs) for theirs, ours in self._arguments.items()})

    def extra_repr(self) -> str:
        defaults = {name: parameter.default for name, parameter in self._signature.parameters.items()}
        values = [(name, getattr(self, name)) for name in self._arguments if name not in self._buffers]
        return ", ".join(f"{name}={value!r}" for name, value in values if value != defaults[name])
