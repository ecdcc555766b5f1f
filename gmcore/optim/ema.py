"""Exponential moving averages of parameters."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gmcore.device import allocating
from gmcore.errors import ArgumentError, CheckpointError
from gmcore.tensor import Tensor, copied, is_floating, on_host
from gmcore.watch import computed, hosted, relies
from gmkernels.arrays import namespace
from gmkernels.optim import spec
from gmkernels.registry import run

if TYPE_CHECKING:
    from gmcore.nn import Module


class EMA:
    """A running average of parameters, to evaluate or sample with.

        a <- a + (1 - decay) (p - a),   a = p at the start

    As `torch.optim.swa_utils.AveragedModel` with ``get_ema_multi_avg_fn(decay)``, but of the parameters in place of a
    copy of the model:

        ema = EMA(model, 0.999)
        ...
            optimizer.step()
            ema.update()
        with ema.applied():
            evaluate(model)

    Parameters
    ----------
    params : a module, all of whose parameters are averaged, or an iterable of tensors. Buffers are not averaged.
    decay : in [0, 1].

    Attributes
    ----------
    averages : name -> tensor. Names are those of the module's parameters, or numbers ``"0"``, ``"1"``.
    updates : the number of updates so far.

    Raises
    ------
    ArgumentError : no parameters, something that is no floating tensor, or a decay outside its range.

    References
    ----------
    Polyak & Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30(4), 1992.
    """

    def __init__(self, params: Module | Iterable[Tensor], decay: float = 0.999) -> None:
        if not (isinstance(decay, numbers.Real) and 0.0 <= float(decay) <= 1.0):
            raise ArgumentError(f"EMA: decay must be a number in [0, 1], got {decay!r}")
        if isinstance(params, Tensor):
            raise ArgumentError("EMA: params is one tensor, expected a module or an iterable of tensors")
        named = params.named_parameters() if hasattr(params, "named_parameters") else enumerate(params)
        self._params: dict[str, Tensor] = {str(name): p for name, p in named}
        if not self._params:
            raise ArgumentError("EMA: params is empty; give the parameters to average")
        for name, p in self._params.items():
            if not isinstance(p, Tensor) or not is_floating(p.dtype):
                kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise ArgumentError(f"EMA: parameter {name} is a {kind}, expected a floating tensor")
        self.decay: float = decay
        self.updates: int = 0
        self.averages: dict[str, Tensor] = {
            name: Tensor(allocating(namespace(p._data).array, p._data, order="C")) for name, p in self._params.items()
        }

    def update(self) -> None:
        """Move the averages towards the parameters as they are now."""
        known = dict(self.averages)
        relies(
            [*self._params.values(), *known.values()],
            lambda: all([self.averages.get(name) is average for name, average in known.items()]),
        )
        decay = hosted(self._next_decay)
        calls: dict[tuple[np.dtype[Any], str], list[str]] = {}
        for name, p in self._params.items():
            calls.setdefault((p.dtype, p.device), []).append(name)
        for names in calls.values():
            params = tuple([self._params[name]._data for name in names])
            averages = tuple([self.averages[name]._data for name in names])
            allocating(run, spec.AVERAGE, (params, decay), outputs=(averages,))
            for name in names:
                self.averages[name]._written()

    def _next_decay(self) -> np.ndarray:
        """Count an update, and the kernel's array of the decay at it."""
        if not 0.0 <= self.decay <= 1.0:
            raise ArgumentError(f"EMA: decay must be a number in [0, 1], got {self.decay!r}")
        self.updates += 1
        return np.array([self.decay], np.float64)

    def copy_to(self) -> None:
        """Write the averages into the parameters, for good."""
        for name, p in self._params.items():
            p.copy_(self.averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the averages inside the block, and their own values again after it."""
        own = {name: computed(copied, p._data) for name, p in self._params.items()}
        self.copy_to()
        try:
            yield
        finally:
            for name, p in self._params.items():
                p.copy_(own[name])

    def state_dict(self) -> dict[str, np.ndarray]:
        """``updates``, and ``averages.<name>`` as read-only views, of a GPU as copies: copy them to keep a snapshot."""
        averages = {f"averages.{name}": a.cpu().numpy() for name, a in self.averages.items()}
        return {"updates": np.array(self.updates), **averages}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of an average of parameters of these names and shapes.

        Raises
        ------
        CheckpointError : names or shapes that do not fit, all in one message; nothing is changed then.
        """
        arrays = {name: on_host(value) for name, value in state_dict.items()}
        expected = {"updates": (), **{f"averages.{name}": p.shape for name, p in self._params.items()}}
        problems = [f"{name} is missing" for name in expected if name not in arrays]
        problems += [f"{name} is unexpected" for name in arrays if name not in expected]
        problems += [
            f"{name} has shape {arrays[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in arrays and arrays[name].shape != shape
        ]
        if problems:
            raise CheckpointError(f"the state dict does not fit this EMA: {'; '.join(problems)}")
        self.updates = int(arrays["updates"])
        for name, a in self.averages.items():
            a.copy_(arrays[f"averages.{name}"])
