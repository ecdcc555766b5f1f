"""Parameters that are computed from others: `torch.nn.utils.parametrize`, with its names in state dicts.

A parametrised weight is a property of the module. Its value is computed, on the tape, each time it is read, by a
module with a `forward` from the original parameter to the weight. The originals live in
``module.parametrizations.<name>``, as ``original``, or ``original0``, ``original1``, ... where there are several.
"""

from __future__ import annotations

from typing import Any

from gmcore.errors import ArgumentError
from gmcore.nn.container import ModuleDict
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.tensor import Tensor


class ParametrizationList(Module):
    """The originals of one parameter and the modules that compute it, in their order, named by number."""

    def __init__(self, originals: list[Parameter], several: bool) -> None:
        for i, original in enumerate(originals):
            setattr(self, f"original{i}" if several else "original", original)

    def add(self, parametrization: Module) -> None:
        self.add_module(str(sum(1 for _ in self.children())), parametrization)

    def forward(self) -> Tensor:
        """The value of the parameter."""
        values: tuple[Any, ...] = tuple(self.parameters(recurse=False))
        for parametrization in self.children():
            values = (parametrization(*values),)
        return values[0]


def register_parametrization(module: Module, tensor_name: str, parametrization: Module) -> Module:
    """Compute the parameter `tensor_name` of `module` by `parametrization` from now on; returns the module.

    Parameters
    ----------
    parametrization : a module whose `forward` takes the original to the weight. If it has a `right_inverse`, that
        gives the original, or a tuple of originals, from the present value; else this is the original. A second
        parametrization of a parameter takes the result of the first.

    Raises
    ------
    ArgumentError : no such parameter, a value of another shape or dtype, or a second one with several originals.
    """
    kind = type(module).__name__
    if is_parametrized(module, tensor_name):
        held: Any = _held(module)[tensor_name]
        if hasattr(parametrization, "right_inverse") and isinstance(
            parametrization.right_inverse(held().detach()), tuple
        ):
            raise ArgumentError(f"{kind}.{tensor_name}: only a first parametrization may have several originals")
        held.add(parametrization)
        return module
    parameter = vars(module).get(tensor_name)
    if not isinstance(parameter, Parameter):
        raise ArgumentError(f"{kind} has no parameter {tensor_name!r} to parametrize")
    originals: Any = parameter
    if hasattr(parametrization, "right_inverse"):
        originals = parametrization.right_inverse(parameter.detach())
    several = isinstance(originals, tuple)
    # Where the original is the parameter itself, it stays the same object, which an optimiser may hold.
    made = [
        x if x is parameter else Parameter(x, parameter.requires_grad) for x in (originals if several else [originals])
    ]
    held = ParametrizationList(made, several)
    held.add(parametrization)
    value = held()
    if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
        raise ArgumentError(
            f"{kind}.{tensor_name}: {type(parametrization).__name__} gives {value.dtype}{list(value.shape)}, expected "
            f"{parameter.dtype}{list(parameter.shape)}"
        )
    delattr(module, tensor_name)
    if not is_parametrized(module):
        module.add_module("parametrizations", ModuleDict())
    _held(module)[tensor_name] = held
    _swap_class(module)
    return module


def _held(module: Module) -> ModuleDict:
    """The parametrizations of a module that has some."""
    return vars(module)["parametrizations"]


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether any parameter of `module`, or the one of that name, is computed by a parametrization."""
    held = vars(module).get("parametrizations")
    return isinstance(held, ModuleDict) and (tensor_name is None or tensor_name in held)


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make `tensor_name` a plain parameter again; returns the module.

    Parameters
    ----------
    leave_parametrized : with its present computed value; otherwise the original, which needs that there is one.

    Raises
    ------
    ArgumentError : a parameter that is not parametrised, or several originals to leave.
    """
    if not is_parametrized(module, tensor_name):
        raise ArgumentError(f"{type(module).__name__}.{tensor_name} is not parametrized")
    held: Any = _held(module)[tensor_name]
    originals = list(held.parameters(recurse=False))
    if not leave_parametrized and len(originals) > 1:
        raise ArgumentError(f"{type(module).__name__}.{tensor_name} has {len(originals)} originals; none can be left")
    if leave_parametrized and len(originals) > 1:
        parameter = Parameter(held().detach(), originals[0].requires_grad)
    else:
        parameter = originals[0]
        if leave_parametrized:
            parameter.copy_(held().detach())
    del _held(module)[tensor_name]
    if not len(_held(module)):
        delattr(module, "parametrizations")
    _swap_class(module)
    setattr(module, tensor_name, parameter)
    return module


def _swap_class(module: Module) -> None:
    """Give `module` a class of its own with the parametrised parameters as properties, or its plain class back."""
    plain = getattr(type(module), "_plain_class", type(module))
    held = vars(module).get("parametrizations")
    if held is None:
        module.__class__ = plain
        return
    properties = {name: property(_reader(name)) for name in held}
    module.__class__ = type(f"Parametrized{plain.__name__}", (plain,), {"_plain_class": plain, **properties})


def _reader(name: str) -> Any:
    return lambda module: module.parametrizations[name]()
