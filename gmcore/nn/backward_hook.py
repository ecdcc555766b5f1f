"""Backward hooks of modules: they see all gradients at the edges of a module together, and may replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.tensor import Tensor, is_grad_enabled

Gradients = tuple[Tensor | None, ...]


def _gate(values: Sequence[Any], meet: Callable[[Gradients], Gradients]) -> tuple[Any, ...]:
    """The values; on its way back, `meet` is given all their gradients at once, and gives those that go on.

    The gradients of several tensors arrive one after another. Each tensor passes two identities, first all the outer
    ones, then all the inner ones: the backward pass takes the newest operation first, so when it comes to an outer
    one, every gradient has passed its inner one.
    """
    if not is_grad_enabled():
        return tuple(values)
    places = [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.requires_grad]
    outer = {i: ops.identity(values[i]) for i in places}
    inner = {i: ops.identity(outer[i]) for i in places}
    arrived: dict[int, Tensor] = {}
    leaving: dict[int, Tensor | None] = {}

    def see(i: int, g: Tensor) -> None:
        arrived[i] = g

    def pass_on(i: int, g: Tensor) -> Tensor | None:
        if i not in leaving:
            found = meet(tuple([arrived.get(k) for k in range(len(values))]))
            leaving.update({k: found[k] for k in arrived})
            arrived.clear()  # and nothing stays in `leaving`: gradients kept here could refer to the tape in a circle
        return leaving.pop(i)

    for i in places:
        inner[i].register_hook(partial(see, i))
        outer[i].register_hook(partial(pass_on, i))
    return tuple([inner.get(i, x) for i, x in enumerate(values)])


def call(
    module: Any,
    hooks: Iterable[Callable[..., Any]],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``function(*args, **kwargs)``, with ``hook(module, grad_input, grad_output)`` run in the backward pass.

    Raises
    ------
    ArgumentError : the function returned something else than a tensor or a tuple, or a hook not as many gradients as
        there are positional arguments.
    """
    hooks = list(hooks)
    outgoing: list[Gradients] = []

    def at_input(grads: Gradients) -> Gradients:
        grad_output = outgoing.pop()
        for hook in hooks:
            changed = hook(module, grads, grad_output)
            if changed is not None:
                changed = changed if isinstance(changed, tuple) else (changed,)
                if len(changed) != len(grads):
                    raise ArgumentError(
                        f"{type(module).__name__}: a backward hook returned {len(changed)} gradients, expected "
                        f"{len(grads)}, one for each positional argument, or None"
                    )
                grads = changed
        return grads

    def at_output(grads: Gradients) -> Gradients:
        outgoing[:] = [grads]
        if not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            at_input((None,) * len(args))  # no gradient will arrive there
        return grads

    output = function(*_gate(args, at_input), **kwargs)
    if not isinstance(output, (Tensor, tuple)):
        raise ArgumentError(
            f"{type(module).__name__}: forward returned a {type(output).__name__}, expected a tensor or a tuple of "
            "tensors where there are backward hooks"
        )
    found = _gate(output if isinstance(output, tuple) else (output,), at_output)
    return found if isinstance(output, tuple) else found[0]
