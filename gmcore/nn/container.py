"""Modules and parameters in rows and under names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

from gmcore.nn.activation import Identity, ReLU, Sigmoid, Softplus, Tanh
from gmcore.nn.linear import Linear
from gmcore.nn.module import Module, is_hooked
from gmcore.nn.parameter import Parameter

_FUSED: dict[type[Module], str] = {
    Identity: "identity",
    Tanh: "tanh",
    Sigmoid: "sigmoid",
    ReLU: "relu",
    Softplus: "softplus",
}
"""Activation modules by their names in `gmcore.ops.ACTIVATIONS`. Exact types: a subclass may compute anything."""


def _fused_activation(module: Module | None) -> str | None:
    """The activation of `ops.linear` that computes `module`, if there is one and nobody watches it."""
    if module is None or is_hooked(module):
        return None
    if isinstance(module, Softplus) and module.beta != 1.0:
        return None
    return _FUSED.get(type(module))


def _held(owner: Module, kind: type[Any]) -> dict[str, Any]:
    """The attributes of `owner` of that kind, by name."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, kind)}


class _List(Module):
    """Attributes of one kind, named ``"0"``, ``"1"``, ... by their positions; with the methods of a list."""

    _kind: ClassVar[type[Any]] = Module

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        self.extend(() if values is None else values)

    def _rename(self, values: Iterable[Any]) -> None:
        """Hold `values` and nothing else, named by their positions."""
        values = list(values)
        for name in _held(self, self._kind):
            delattr(self, name)
        self.extend(values)

    def _add(self, name: str, value: Any) -> None:
        self.add_module(name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(_held(self, self._kind).values()))

    def __len__(self) -> int:
        return len(_held(self, self._kind))

    def __getitem__(self, index: int | slice) -> Any:
        """The value at `index`; a slice gives another of these that shares the values."""
        found = list(self)[index]
        return type(self)(found) if isinstance(index, slice) else found

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, list(_held(self, self._kind))[index], value)

    def __delitem__(self, index: int | slice) -> None:
        values = list(self)
        del values[index]
        self._rename(values)

    def append(self, value: Any) -> Self:
        """Add a value at the end, named by its position."""
        self._add(str(len(self)), value)
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Add values at the end."""
        for value in values:
            self.append(value)
        return self

    def insert(self, index: int, value: Any) -> None:
        """Add a value before position `index`; those after it are renamed."""
        values = list(self)
        values.insert(index, value)
        self._rename(values)

    def pop(self, index: int = -1) -> Any:
        """Take the value at `index` away and return it; those after it are renamed."""
        value = self[index]
        del self[index]
        return value


class ModuleList(_List):
    """Modules in a list; call them as you like.

    Parameters
    ----------
    modules : named ``"0"``, ``"1"``, ...

    Raises
    ------
    ArgumentError : something that is no module.
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__(modules)


class ParameterList(_List):
    """Parameters in a list.

    Parameters
    ----------
    values : tensors or arrays, which are copied unless they are parameters; named ``"0"``, ``"1"``, ...
    """

    _kind = Parameter

    def _add(self, name: str, value: Any) -> None:
        self.register_parameter(name, value if isinstance(value, Parameter) else Parameter(value))


class _Dict(Module):
    """Attributes of one kind under names of the user's; with the methods of a dictionary."""

    _kind: ClassVar[type[Any]] = Module

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.update({} if values is None else values)

    def _add(self, name: str, value: Any) -> None:
        self.add_module(name, value)

    def __getitem__(self, key: str) -> Any:
        return _held(self, self._kind)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            setattr(self, key, value)
        else:
            self._add(key, value)

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def __contains__(self, key: str) -> bool:
        return key in _held(self, self._kind)

    def __iter__(self) -> Iterator[str]:
        return iter(list(_held(self, self._kind)))

    def __len__(self) -> int:
        return len(_held(self, self._kind))

    def keys(self) -> Iterable[str]:
        return _held(self, self._kind).keys()

    def values(self) -> Iterable[Any]:
        return _held(self, self._kind).values()

    def items(self) -> Iterable[tuple[str, Any]]:
        return _held(self, self._kind).items()

    def update(self, values: Mapping[str, Any]) -> None:
        """Add the values of a mapping, or put them in the place of those of the same names."""
        for key, value in values.items():
            self[key] = value

    def pop(self, key: str) -> Any:
        """Take the value of that name away and return it."""
        value = self[key]
        delattr(self, key)
        return value

    def clear(self) -> None:
        for key in self:
            del self[key]


class ModuleDict(_Dict):
    """Modules under names; call them as you like.

    Parameters
    ----------
    modules : a mapping from names, which hold no dot and are no attribute of a `Module`.

    Raises
    ------
    ArgumentError : another name, or something that is no module.
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__(modules)


class ParameterDict(_Dict):
    """Parameters under names.

    Parameters
    ----------
    parameters : a mapping from names, as for `ModuleDict`, to tensors or arrays, which are copied unless they are
        parameters.
    """

    _kind = Parameter

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)

    def _add(self, name: str, value: Any) -> None:
        self.register_parameter(name, value if isinstance(value, Parameter) else Parameter(value))


class Sequential(_List):
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

    def __getitem__(self, index: int | slice) -> Any:
        """The module at `index`; a slice gives a Sequential that shares the modules, under their names."""
        if isinstance(index, slice):
            return type(self)(dict(list(_held(self, Module).items())[index]))
        return super().__getitem__(index)

    def forward(self, input: Any) -> Any:
        x, modules = input, list(_held(self, Module).values())
        at = 0
        while at < len(modules):
            module = modules[at]
            following = modules[at + 1] if at + 1 < len(modules) else None
            activation = _fused_activation(following) if type(module) is Linear and not is_hooked(module) else None
            if activation is not None:
                x = module.activated(x, activation)
                at += 2
            else:
                x = module(x)
                at += 1
        return x
