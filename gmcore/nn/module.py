"""Module: parameters, buffers and modules in a tree, each under the name it was assigned to."""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from gmcore.device import allocating, gpu_number, put
from gmcore.errors import ArgumentError, CheckpointError, unknown_name
from gmcore.hooks import RemovableHandle, changed
from gmcore.nn import backward_hook
from gmcore.nn.parameter import Parameter
from gmcore.ops.elementwise import dtype_of
from gmcore.tensor import Array, Tensor, is_floating
from gmcore.watch import is_watched, reads, relies
from gmkernels.arrays import is_array


class IncompatibleKeys(NamedTuple):
    """Names that did not match in a `load_state_dict` with ``strict=False``.

    Parameters
    ----------
    missing_keys : names of the module that the state dict lacks.
    unexpected_keys : names of the state dict that the module lacks.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of every model and layer: a function with parameters.

    A subclass assigns its parameters and modules to attributes and defines `forward`:

        class Affine(Module):
            def __init__(self, size):
                self.weight = Parameter(np.ones(size, np.float32))
                self.shift = Linear(size, size)

            def forward(self, x):
                return self.weight * x + self.shift(x)

    Attributes
    ----------
    training : set by `train` and `eval`; for layers that act differently in the two.

    Notes
    -----
    There is no registry beside the attributes: what is registered is what the attributes are. Names of parameters
    are paths of attributes (``shift.weight``), as in PyTorch, so state dicts are exchanged with it.
    """

    training: bool = True
    _buffers: Mapping[str, bool] = MappingProxyType({})
    """Names of the buffers of this module, and whether they belong to its state dict."""
    _forward_pre_hooks: Mapping[int, tuple[Callable[..., Any], bool]] = MappingProxyType({})
    _forward_hooks: Mapping[int, tuple[Callable[..., Any], bool]] = MappingProxyType({})
    """(hook, with_kwargs), in the order of the calls."""
    _backward_hooks: Mapping[int, tuple[Callable[..., Any], bool]] = MappingProxyType({})

    # -- calling ---------------------------------------------------------------------------------------
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function that calling the module computes; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_watched():
            _rely_on(self)
        if not self._forward_hooks and not self._forward_pre_hooks and not self._backward_hooks:
            return self.forward(*args, **kwargs)
        for hook, with_kwargs in list(self._forward_pre_hooks.values()):
            changed = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if changed is not None and with_kwargs:
                args, kwargs = changed
            elif changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        if self._backward_hooks:
            hooks = [hook for hook, _ in self._backward_hooks.values()]
            output = backward_hook.call(self, hooks, self.forward, args, kwargs)
        else:
            output = self.forward(*args, **kwargs)
        for hook, with_kwargs in list(self._forward_hooks.values()):
            changed = hook(self, args, kwargs, output) if with_kwargs else hook(self, args, output)
            output = output if changed is None else changed
        return output

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args)`` before each `forward`; unless None, what it returns takes the place of args.

        Parameters
        ----------
        prepend : before the hooks that are there, instead of after them.
        with_kwargs : ``hook(module, args, kwargs)``, which returns None or (args, kwargs).
        """
        return self._register("_forward_pre_hooks", hook, prepend, with_kwargs)

    def register_forward_hook(
        self,
        hook: Callable[..., Any],
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after each `forward`; unless None, it returns the output to use.

        Parameters
        ----------
        prepend : before the hooks that are there, instead of after them.
        with_kwargs : ``hook(module, args, kwargs, output)``.
        always_call : only False; a hook is not called where `forward` raised.

        Raises
        ------
        ArgumentError : ``always_call=True``.
        """
        if always_call:
            raise ArgumentError("register_forward_hook: always_call=True is not supported; use try and finally")
        return self._register("_forward_hooks", hook, prepend, with_kwargs)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` in each backward pass through the module.

        Both are tuples: the gradients of the positional arguments and of the outputs, None where there is none.
        Unless None, what the hook returns takes the place of grad_input. Where no argument requires a gradient, it is
        called as soon as grad_output is known.

        Parameters
        ----------
        prepend : before the hooks that are there, instead of after them.

        Raises
        ------
        ArgumentError : at the call, of a module that returns no tensor or tuple; in the backward pass, for a wrong
            number of gradients.
        """
        return self._register("_backward_hooks", hook, prepend, with_kwargs=False)

    def _register(self, kind: str, hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> RemovableHandle:
        if kind not in vars(self):
            setattr(self, kind, {})
        return RemovableHandle(getattr(self, kind), (hook, with_kwargs), prepend)

    # -- registering -----------------------------------------------------------------------------------
    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        for kind in (Parameter, Module):
            if isinstance(current, kind) and value is not None and not isinstance(value, kind):
                raise ArgumentError(
                    f"{type(self).__name__}.{name} is a {kind.__name__}; expected another one or None, got "
                    f"{type(value).__name__} (write new values into a parameter with copy_)"
                )
        if (
            name in self._buffers
            and value is not None
            and (not isinstance(value, Tensor) or isinstance(value, Parameter))
        ):
            raise ArgumentError(
                f"{type(self).__name__}.{name} is a buffer; expected a tensor or None, got {type(value).__name__}"
            )
        super().__setattr__(name, value)
        if value is not current:
            changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        changed()

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ArgumentError(f"a name in a module is a non-empty string without '.', got {name!r}")
        if hasattr(self, name):
            raise ArgumentError(f"{type(self).__name__} has an attribute {name!r} already")

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make `tensor` an attribute that is state but not trained (a running mean, a mask).

        Parameters
        ----------
        persistent : whether it is part of the state dict.

        Raises
        ------
        ArgumentError : a name that is taken or holds a dot, or something that is no tensor.
        """
        if name not in self._buffers:
            self._check_name(name)
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, tensor)

    def add_module(self, name: str, module: Module) -> None:
        """Assign `module` to an attribute, where the name is no identifier (``"0"``) or comes from a user.

        Raises
        ------
        ArgumentError : a name that is taken or holds a dot, or something that is no module.
        """
        self._check_name(name)
        if not isinstance(module, Module):
            raise ArgumentError(f"expected a Module for {name!r}, got {module!r}")
        setattr(self, name, module)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Assign `param` to an attribute of that name; None for a parameter that a layer was told to leave out.

        Raises
        ------
        ArgumentError : a name that is taken or holds a dot, or something that is no parameter.
        """
        self._check_name(name)
        if param is not None and not isinstance(param, Parameter):
            raise ArgumentError(f"expected a Parameter for {name!r}, got {type(param).__name__}")
        setattr(self, name, param)

    register_module = add_module

    # -- the tree --------------------------------------------------------------------------------------
    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules assigned to this one, each once, with their names."""
        seen = set()
        for name, value in vars(self).items():
            if isinstance(value, Module) and value not in seen:
                seen.add(value)
                yield name, value

    def children(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, a parent before its children, with their paths from here.

        Parameters
        ----------
        memo : modules to leave out; the ones yielded are added.
        remove_duplicate : yield a module that is reached by two paths once, by the first.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield from value.named_modules(memo, _join(prefix, name), remove_duplicate)

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def get_submodule(self, target: str) -> Module:
        """The module at the path `target`, like ``"encoder.0"``; this one for ``""``.

        Raises
        ------
        UnknownNameError : no module there.
        """
        module: Any = self
        for name in target.split(".") if target else ():
            found = vars(module).get(name)
            if not isinstance(found, Module):
                raise unknown_name(f"module of this {type(self).__name__}", target, dict(self.named_modules()))
            module = found
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at the path `target`. Raises `UnknownNameError` if there is none."""
        return self._get("parameter", target, dict(self.named_parameters(remove_duplicate=False)))

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at the path `target`. Raises `UnknownNameError` if there is none."""
        return self._get("buffer", target, dict(self.named_buffers(remove_duplicate=False)))

    def _get(self, kind: str, target: str, named: dict[str, Any]) -> Any:
        if target not in named:
            raise unknown_name(f"{kind} of this {type(self).__name__}", target, named)
        return named[target]

    def _own_parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Parameter)]

    def _own_buffers(self) -> list[tuple[str, Tensor]]:
        values = vars(self)
        return [(name, values[name]) for name in self._buffers if values.get(name) is not None]

    def _named_tensors(
        self,
        own: Callable[[Module], list[tuple[str, Tensor]]],
        prefix: str,
        recurse: bool,
        remove_duplicate: bool,
    ) -> Iterator[tuple[str, Any]]:
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        seen: set[int] = set()
        for path, module in modules:
            for name, tensor in own(module):
                if id(tensor) not in seen:
                    if remove_duplicate:
                        seen.add(id(tensor))
                    yield _join(path, name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters with their paths, a module's own before its children's; a shared one once."""
        return self._named_tensors(Module._own_parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers with their paths."""
        return self._named_tensors(Module._own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    # -- state -----------------------------------------------------------------------------------------
    def _own_state(self) -> list[tuple[str, Tensor]]:
        return self._own_parameters() + [(name, buffer) for name, buffer in self._own_buffers() if self._buffers[name]]

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Name -> tensor for every parameter and persistent buffer, under PyTorch's names.

        The tensors share the module's memory, as in PyTorch (``.numpy()`` gives read-only arrays): copy them to
        keep a snapshot. A shared parameter appears under each of its names.
        """
        state = self._named_tensors(Module._own_state, prefix, recurse=True, remove_duplicate=False)
        return {name: tensor.detach() for name, tensor in state}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Write the arrays or tensors of `state_dict` into the parameters and persistent buffers of those names.

        Parameters
        ----------
        state_dict : name -> tensor or array of the same shape; other floating dtypes are converted.
        strict : refuse missing and unexpected names; otherwise they are returned. Shapes must always fit.

        Raises
        ------
        CheckpointError : names, shapes or dtypes that do not fit, all in one message; nothing is written then.
        """
        own = dict(self._named_tensors(Module._own_state, "", recurse=True, remove_duplicate=False))
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        arrays = {name: _array(state_dict[name]) for name in own if name in state_dict}
        wrong = [
            f"{name} is {array.dtype}{list(array.shape)}, expected {own[name].dtype}{list(own[name].shape)}"
            for name, array in arrays.items()
            if array.shape != own[name].shape or not np.can_cast(array.dtype, own[name].dtype, "same_kind")
        ]
        problems = []
        if strict and missing:
            problems.append(f"missing {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected {', '.join(map(str, unexpected))}")
        if wrong:
            problems.append(f"wrong shape or dtype: {', '.join(wrong)}")
        if problems:
            raise CheckpointError(f"the state dict does not fit this {type(self).__name__}: {'; '.join(problems)}")
        for name, array in arrays.items():
            own[name].copy_(array)
        return IncompatibleKeys(missing, unexpected)

    # -- modes -----------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Self:
        """Set `training` here and below."""
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        return self.train(False)

    def to(self, *args: Any, device: str | None = None, dtype: Any = None) -> Self:
        """Move the parameters and buffers here and below, and convert the floating ones: they stay the same objects.

        Parameters
        ----------
        *args : a device (``"cpu"``, ``"cuda"``, ``"cuda:1"``), a floating dtype, both, or a tensor whose device and
            dtype to take.

        Raises
        ------
        ArgumentError : no name of a device, a dtype that is not floating.
        MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.

        Notes
        -----
        Gradients go along. The version of what changes is bumped: a tape recorded before is void. What an optimiser
        remembers stays where it is; ``optimizer.load_state_dict(optimizer.state_dict())`` takes it to its parameters.
        """
        for argument in args:
            if isinstance(argument, Tensor):
                device, dtype = argument.device, argument.dtype
            elif isinstance(argument, str) and argument.partition(":")[0] in ("cpu", "cuda"):
                device = argument
            else:
                dtype = argument
        if device is not None:
            number = gpu_number(device)
            device = "cpu" if number is None else f"cuda:{number}"
        dtype = None if dtype is None else dtype_of(dtype)
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            converts = dtype is not None and is_floating(tensor.dtype) and tensor.dtype != dtype
            if not converts and device in (None, tensor.device):
                continue
            tensor._data = put(allocating(tensor._data.astype, dtype) if converts else tensor._data, device)
            tensor._written()
            if (grad := tensor.grad) is not None:
                tensor.grad = Tensor(put(allocating(grad._data.astype, dtype) if converts else grad._data, device))
        return self

    def cpu(self) -> Self:
        """`to` the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> Self:
        """`to` a GPU: the current one, or that of the number `device`."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def float(self) -> Self:
        """`to` float32."""
        return self.to(np.float32)

    def double(self) -> Self:
        """`to` float64."""
        return self.to(np.float64)

    def half(self) -> Self:
        """`to` float16, a dtype to store in."""
        return self.to(np.float16)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train the parameters here and below, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters here and below; or make them zeros."""
        relies(list(self.parameters()))
        for parameter in self.parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad = parameter.new_zeros(parameter.shape)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every module below and then on this one; for initialising."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # -- showing ---------------------------------------------------------------------------------------
    def extra_repr(self) -> str:
        """The arguments of the constructor, for `repr`; a subclass defines it."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [extra] if extra else []
        lines += [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in children]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _array(value: Any) -> Array:
    return value._data if isinstance(value, Tensor) else value if is_array(value) else np.asarray(value)


def _rely_on(module: Module) -> None:
    """Tell what decides what calling a module does, besides numbers in memory: a captured step relies on it."""
    values, hooks = vars(module), _hooks(module)
    names = (type(module), *values)
    relies((), lambda: _hooks(module) == hooks, counted=True)
    relies((), lambda: (type(module), *values) == names, counted=True)
    for name in {"training": None, **values}:
        _read(module, name)
    for value in values.values():
        if isinstance(value, Module) and type(value).forward is Module.forward:
            _rely_on(value)  # a container, which is not called itself


def _read(module: Module, name: str) -> Any:
    """The attribute of a module that is asked for while a step is recorded, which relies on it, too, of a module that
    it does not call; and on that there is none of the name."""
    if name == "__dict__" and is_watched():  # to go through what the module consists of
        parts = _parts(module)
        relies((), lambda: _are_same(_parts(module), parts), counted=True)
    elif not name.startswith("__") and is_watched():
        found, own = _attribute(module, name), name in object.__getattribute__(module, "__dict__")
        option, same = _is_option(found), _sameness(found)
        if own or option or name not in vars(Module):
            counted = own or not option or name in vars(Module)  # not what is assigned to a class
            relies((), lambda: same(_attribute(module, name)), counted)
    return object.__getattribute__(module, name)


reads(Module, _read)


def _parts(module: Module) -> dict[str, Any]:
    """The modules, parameters and buffers of a module."""
    values = object.__getattribute__(module, "__dict__")
    buffers = values.get("_buffers", ())
    return {name: v for name, v in values.items() if isinstance(v, (Module, Parameter)) or name in buffers}


def _are_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(map(operator.is_, a.values(), b.values()))


def _attribute(module: Module, name: str) -> Any:
    """What a module, or its class, has under a name, of a property the property itself; `_attribute` if nothing."""
    own = object.__getattribute__(module, "__dict__")
    if name in own:
        return own[name]
    for cls in type(module).__mro__:
        if name in cls.__dict__:
            found = cls.__dict__[name]
            if hasattr(type(found), "__set__") and not isinstance(found, property):  # of a slot
                with contextlib.suppress(AttributeError):
                    return found.__get__(module, type(module))
            return found
    return _attribute


def _sameness(value: Any) -> Callable[[Any], bool]:
    """Tells whether what an attribute holds later is the same: numbers and texts, also in tuples, by value."""
    if _is_option(value):
        kind, text = type(value), repr(value)  # which tells -0.0 from 0.0, and finds NaN the same
        return lambda now: now is value or (type(now) is kind and repr(now) == text)
    try:
        same = weakref.ref(value)  # what a step leaves in an attribute is not kept alive
    except TypeError:
        return lambda now: now is value
    return lambda now: now is same() and now is not None


def _is_option(value: Any) -> bool:
    """Whether an attribute of a module is an option, such as the probability of a dropout or the size of a window."""
    if type(value) is tuple:
        return all(map(_is_option, value))
    return type(value) in (bool, int, float, complex, str, bytes, type(None)) or isinstance(value, np.generic)


def _hooks(module: Module) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)))


def is_hooked(module: Module) -> bool:
    """Whether somebody watches the calls of `module`, so that no fused operation may take its place; where one does, a
    captured step relies on the module as on one that it calls."""
    if is_watched():
        _rely_on(module)
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
