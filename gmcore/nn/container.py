"""Modules in a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from gmcore import ops
from gmcore.nn.activation import Identity, ReLU, Sigmoid, Softplus, Tanh
from gmcore.nn.linear import Linear
from gmcore.nn.module import Module

_FUSED: dict[type[Module], str] = {
    Identity: "identity",
    Tanh: "tanh",
    Sigmoid: "sigmoid",
    ReLU: "relu",
    Softplus: "softplus",
}
"""Activation modules by their names in `gmcore.ops.ACTIVATIONS`. Exact types: a subclass may compute anything."""


def _fused_activation(module: Module | None) -> str | None:
    """The activation of `ops.linear` that computes `module`, if there is one."""
    if isinstance(module, Softplus) and module.beta != 1.0:
        return None
    return _FUSED.get(type(module))  # type: ignore[arg-type]


class Sequential(Module):
    """Modules applied one after the other: the output of each is the input of the next.

    Parameters
    ----------
    *args : modules, named ``"0"``, ``"1"``, ...; or one mapping from names to modules.

    Raises
    ------
    ArgumentError : something that is no module.

    Notes
    -----
    A `Linear` followed by an activation that `gmcore.ops.ACTIVATIONS` names is computed in one pass,
    ``ops.linear(x, weight, bias, activation=...)``: the same function, equal to the two steps up to the rounding
    of the activation. Without modules it is the identity.
    """

    def __init__(self, *args: Any) -> None:
        named = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else dict(enumerate(args))
        for name, module in named.items():
            self.add_module(str(name), module)

    def __iter__(self) -> Iterator[Module]:
        return (module for module in vars(self).values() if isinstance(module, Module))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int | slice) -> Any:
        """The module at `index`; a slice gives a Sequential that shares the modules, under their names."""
        if isinstance(index, slice):
            named = [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]
            return type(self)(dict(named[index]))
        return list(self)[index]

    def append(self, module: Module) -> Self:
        """Add a module at the end, named by its position."""
        self.add_module(str(len(self)), module)
        return self

    def forward(self, input: Any) -> Any:
        x, modules = input, list(self)
        at = 0
        while at < len(modules):
            module = modules[at]
            following = modules[at + 1] if at + 1 < len(modules) else None
            if type(module) is Linear and (activation := _fused_activation(following)) is not None:
                x = ops.linear(x, module.weight, module.bias, activation=activation)
                at += 2
            else:
                x = module(x)
                at += 1
        return x
