"""L-BFGS with a line search."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.optim.optimizer import Group, Layout, Optimizer, State, check_gradient
from gmcore.tensor import Tensor, copied, enable_grad
from gmkernels import reduce
from gmkernels.arrays import is_array


class LBFGS(Optimizer):
    """Steps along -H g, where H approximates the inverse Hessian from the last steps s and changes y of the gradient.

    H is the BFGS matrix of the pairs (s, y) over ``(s.y / y.y) I``, applied by two loops over the pairs. The step's
    length is `lr`, or satisfies the strong Wolfe conditions: the loss falls by 1e-4 of what its slope promises, and
    the slope to 0.9 of what it was.

    Parameters
    ----------
    params : tensors of one dtype, or one parameter group.
    lr : length of a step, or the line search's first; the very first step is at most `lr` long (in sum of magnitudes).
    max_iter : iterations of a `step`.
    max_eval : evaluations of the closure in a `step`, 5/4 `max_iter` if None.
    tolerance_grad : stop where no element of the gradient is larger.
    tolerance_change : stop where the loss, or no parameter, changes more.
    history_size : number of pairs kept.
    line_search_fn : ``"strong_wolfe"``, or None for steps of length `lr`.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, more than one group, mixed dtypes; and what `Optimizer` raises.

    Notes
    -----
    The state belongs to all parameters together and is kept with the first, under PyTorch's names: ``n_iter`` and
    ``func_evals``; ``d`` and ``t``, the last direction and step; ``old_stps`` (s) and ``old_dirs`` (y), the oldest
    first; ``H_diag``; ``prev_flat_grad``, ``prev_loss``. `line_search_fn` is the constructor's, not a group's.

    References
    ----------
    Nocedal, Updating quasi-Newton matrices with limited storage, Mathematics of Computation 35, 1980 (two loops). Liu &
    Nocedal, On the limited memory BFGS method for large scale optimization, Mathematical Programming 45, 1989 (the
    scale s.y / y.y, section 4). Nocedal & Wright, Numerical optimization, 2nd ed., Algorithms 7.4, 7.5 (both), 3.5 and
    3.6 (line search).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if line_search_fn not in (None, "strong_wolfe"):
            raise ArgumentError(f"LBFGS: line_search_fn must be 'strong_wolfe' or None, got {line_search_fn!r}")
        self.line_search_fn = line_search_fn
        counts = {"max_iter": max_iter, "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval}
        tolerances = {"tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change}
        super().__init__(params, {"lr": lr, **counts, **tolerances, "history_size": history_size})

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        if self.param_groups:
            raise ArgumentError("LBFGS: the parameters are optimised together; give them in one group")
        super().add_param_group(param_group)

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "tolerance_grad", "tolerance_change")
        for name in ("max_iter", "max_eval", "history_size"):
            if not isinstance(group[name], numbers.Integral) or group[name] < 1:
                raise ArgumentError(f"LBFGS: {name} must be an integer of at least 1, got {group[name]!r}")
        dtypes = {p.dtype.name for p in group["params"]}
        if len(dtypes) != 1:
            names = ", ".join(sorted(dtypes)) or "none"
            raise ArgumentError(f"LBFGS: the parameters must be of one dtype, got {names}")

    def state_layout(self, p: Tensor, group: Group, found: Mapping[str, tuple[int, ...]]) -> Layout:
        if p is not group["params"][0]:
            return {}
        layout: Layout = {"n_iter": None, "func_evals": None}
        if "d" in found:  # an iteration has been made
            size = sum(p.size for p in group["params"])
            pairs = min(found.get("old_dirs", (0,))[0], group["history_size"])
            layout |= {"t": None, "H_diag": None, "prev_loss": None, "d": (size,), "prev_flat_grad": (size,)}
            layout |= {"old_dirs": (pairs, size), "old_stps": (pairs, size)}
        return layout

    # -- the update ------------------------------------------------------------------------------------
    @staticmethod
    def update(
        params: Sequence[Tensor], grads: Sequence[Tensor], state: State, hyper: Mapping[str, Any], t: Any = None
    ) -> tuple[tuple[Tensor, ...], State]:
        """One iteration as a function of tensors, made of operations: nothing is changed, any derivative exists.

        An optimisation unrolled with it can be differentiated with respect to where it started and to its step
        lengths. It neither searches nor stops. Whether a pair is kept, which its curvature decides, counts as constant.

        Parameters
        ----------
        params, grads : tensors of one dtype, and their gradients of the same shapes.
        state : ``{}`` before the first step, then what the last call gave; ``optimizer.state`` of the first parameter
            has this form.
        hyper : ``lr`` and ``history_size``, such as ``optimizer.param_groups[0]``; lr may be a tensor.
        t : length of the step, a number or a tensor, such as a line search has found; None for that of `LBFGS` without
            a search.

        Returns
        -------
        The new parameters and the new state.

        Raises
        ------
        ArgumentError : one tensor in place of a sequence.
        """
        if isinstance(params, Tensor) or isinstance(grads, Tensor):
            raise ArgumentError("LBFGS.update: params or grads is one tensor, expected sequences; put it in a list")
        gradient = _flat(grads)
        state = _turn(state, gradient, hyper["history_size"])
        state["t"] = _first_length(state, hyper["lr"]) if t is None else t
        moves = _parts(state["t"] * state["d"], params)
        return tuple([p + move for p, move in zip(params, moves, strict=True)]), state

    # -- the parameters as one vector ------------------------------------------------------------------
    def _gradient(self) -> np.ndarray:
        params = self.param_groups[0]["params"]
        for p in params:
            if p.grad is not None:
                check_gradient(p, p.grad)
        return _flat([p.new_zeros(p.shape)._data if p.grad is None else p.grad._data for p in params])

    def _move(self, t: float, d: np.ndarray) -> None:
        """Add t d to the parameters."""
        params = self.param_groups[0]["params"]
        for p, move in zip(params, _parts(t * d, params), strict=True):
            p._data[...] += move
            p._written()

    # -- the step --------------------------------------------------------------------------------------
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make up to `max_iter` iterations.

        Parameters
        ----------
        closure : clears the gradients, computes the loss and its gradients, and returns the loss; called many times.

        Returns
        -------
        The loss before the step.

        Raises
        ------
        ArgumentError : no closure, or hyperparameters set outside their range.
        ShapeError, DtypeError : a gradient, set by hand, that is not of its parameter's shape and dtype.
        """
        if closure is None:
            raise ArgumentError("LBFGS: step needs a closure that computes the loss and its gradients")
        group = self.param_groups[0]
        self.check_group(group)
        state = self.state.setdefault(group["params"][0], {"n_iter": 0, "func_evals": 0})
        with np.errstate(all="ignore"):  # a search may step where the loss overflows; it comes back
            return self._iterate(closure, group, state)

    def _iterate(self, closure: Callable[[], Any], group: Group, state: dict[str, Any]) -> Any:
        def evaluate() -> tuple[Any, np.ndarray]:
            state["func_evals"] += 1
            with enable_grad():
                loss = closure()
            return loss, self._gradient()

        last_evaluation = state["func_evals"] + group["max_eval"]
        first_loss, gradient = evaluate()
        loss = float(first_loss)
        for iteration in range(group["max_iter"]):
            if not gradient.size or np.max(np.abs(gradient)) <= group["tolerance_grad"]:
                break
            if iteration and state["func_evals"] >= last_evaluation:
                break
            arrays = {name: value._data if isinstance(value, Tensor) else value for name, value in state.items()}
            arrays = _turn(arrays, gradient, group["history_size"])
            direction, length = arrays["d"], float(_first_length(arrays, group["lr"]))
            state |= {name: Tensor(value) if is_array(value) else value for name, value in arrays.items()}
            state |= {"H_diag": float(arrays["H_diag"]), "t": length, "prev_loss": loss}
            slope = float(_dot(gradient, direction))
            if slope > -group["tolerance_change"]:
                break
            if self.line_search_fn is None:
                self._move(length, direction)
                if iteration + 1 == group["max_iter"]:
                    break  # with a stochastic loss there is no use for its value here
                new_loss, gradient = evaluate()
                loss = float(new_loss)
            else:
                found = self._search(evaluate, direction, _Trial(0.0, loss, gradient, slope), length, last_evaluation)
                state["t"], loss, gradient = found.t, found.loss, found.gradient
                self._move(found.t, direction)
            moved = float(np.max(np.abs(direction))) * state["t"]
            if moved <= group["tolerance_change"] or abs(loss - state["prev_loss"]) < group["tolerance_change"]:
                break
        return first_loss

    def _search(
        self,
        evaluate: Callable[[], tuple[Any, np.ndarray]],
        direction: np.ndarray,
        start: _Trial,
        length: float,
        last_evaluation: int,
    ) -> _Trial:
        """The step along the direction that the line search finds; the parameters are back where they were."""
        params = self.param_groups[0]["params"]
        before = [copied(p._data) for p in params]

        def at(t: float) -> _Trial:
            self._move(t, direction)
            loss, gradient = evaluate()
            for p, values in zip(params, before, strict=True):
                p.copy_(values)
            return _Trial(t, float(loss), gradient, float(_dot(gradient, direction)))

        state = self.state[params[0]]
        tolerance = self.param_groups[0]["tolerance_change"] / float(np.max(np.abs(direction)))
        return strong_wolfe(at, start, length, tolerance, last_evaluation - state["func_evals"])


# -- the iteration, on all parameters as one vector ------------------------------------------------------------
# In NumPy's functions, which are operations where they get tensors: a step runs them on arrays, the update on tensors.
def _flat(xs: Sequence[Any]) -> Any:
    return np.concatenate([np.ravel(x) for x in xs])


def _parts(vector: Any, like: Sequence[Tensor]) -> list[Any]:
    """`vector`, cut into parts of the shapes of `like`."""
    ends = np.cumsum([x.size for x in like])[:-1].tolist()
    return [np.reshape(part, x.shape) for part, x in zip(np.split(vector, ends), like, strict=True)]


def _sum(x: Any, axis: int | None = None) -> Any:
    return np.sum(x, axis=axis) if isinstance(x, Tensor) else reduce.sum(x, axis)  # NumPy adds in another order


def _dot(a: Any, b: Any) -> Any:
    return _sum(a * b)


def _turn(state: State, gradient: Any, history_size: int) -> State:
    """The state with a new direction -H gradient, after the last step has been added to the pairs that make up H."""
    n = state.get("n_iter", 0)
    if n == 0:
        steps = changes = gradient[None][:0]
        scale: Any = 1.0
    else:
        steps, changes, scale = state["old_stps"], state["old_dirs"], state["H_diag"]
        s, y = state["t"] * state["d"], gradient - state["prev_flat_grad"]
        curvature = _dot(s, y)
        if curvature.item() > 1e-10:  # else H would not stay positive definite
            steps, changes = (
                np.concatenate([old, new[None]])[-history_size:] for old, new in ((steps, s), (changes, y))
            )
            scale = curvature / _dot(y, y)
    pairs = list(zip(steps, changes, _sum(steps * changes, axis=1), strict=True))
    new = {"n_iter": n + 1, "d": _two_loops(-gradient, pairs, scale)}
    return new | {"old_stps": steps, "old_dirs": changes, "H_diag": scale, "prev_flat_grad": gradient}


def _two_loops(d: Any, pairs: Sequence[tuple[Any, Any, Any]], scale: Any) -> Any:
    """H d, for the BFGS matrix H of the pairs s, y (and s.y), the oldest first, over scale I."""
    shares = []
    for s, y, curvature in reversed(pairs):
        shares.append(_dot(s, d) / curvature)
        d = d - shares[-1] * y
    d = scale * d
    for (s, y, curvature), share in zip(pairs, reversed(shares), strict=True):
        d = d + (share - _dot(y, d) / curvature) * s
    return d


def _first_length(state: State, lr: Any) -> Any:
    """Length of a step without a search, first trial of one: lr, but of the very first step what `LBFGS` says."""
    if state["n_iter"] > 1:
        return lr
    return lr / np.maximum(_sum(np.abs(state["prev_flat_grad"])), 1.0)


# -- the line search ------------------------------------------------------------------------------------------
class _Trial(NamedTuple):
    """The loss at a step t along the direction, its gradient, and its slope in t."""

    t: float
    loss: float
    gradient: Any
    slope: float


def strong_wolfe(
    at: Callable[[float], _Trial],
    start: _Trial,
    t: float,
    tolerance: float,
    trials: int,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> _Trial:
    """A step with ``loss <= loss_0 + c1 t slope_0`` and ``|slope| <= -c2 slope_0``, or the best found.

    Parameters
    ----------
    at : evaluates a step.
    start : the trial at t = 0, whose slope is negative.
    t : the first step tried.
    tolerance : stop when the bracket is narrower.
    trials : steps tried after the first.
    """

    def too_high(trial: _Trial) -> bool:  # also where the loss is NaN
        return not trial.loss <= start.loss + c1 * trial.t * start.slope

    def flat(trial: _Trial) -> bool:
        return abs(trial.slope) <= -c2 * start.slope

    # Lengthen the step until it brackets one that is good (Nocedal & Wright, Algorithm 3.5).
    previous, trial, tried = start, at(t), 0
    while tried < trials:
        if too_high(trial) or (tried > 1 and trial.loss >= previous.loss):
            break
        if flat(trial):
            return trial
        if trial.slope >= 0.0:
            break
        t = _cubic_minimum(previous, trial, (trial.t + 0.01 * (trial.t - previous.t), 10.0 * trial.t))
        previous, trial, tried = trial, at(t), tried + 1
    else:
        previous = start

    # Narrow the bracket (Algorithm 3.6). Of its ends, `low` has the lower loss.
    low, high = (previous, trial) if previous.loss <= trial.loss or math.isnan(trial.loss) else (trial, previous)
    near_end = False
    while tried < trials and abs(high.t - low.t) >= tolerance:
        left, right = min(low.t, high.t), max(low.t, high.t)
        t = _cubic_minimum(low, high, (left, right))
        margin = 0.1 * (right - left)
        # A trial close to an end narrows little: the second in a row, or one at the end, is moved inside.
        if min(right - t, t - left) >= margin:
            near_end = False
        elif near_end or t >= right or t <= left:
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            near_end = False
        else:
            near_end = True
        trial, tried = at(t), tried + 1
        if too_high(trial) or trial.loss >= low.loss:
            high = trial
            if high.loss < low.loss:
                low, high = high, low
        elif flat(trial):
            return trial
        else:
            if trial.slope * (high.t - low.t) >= 0.0:
                high = low
            low = trial
    return low


def _cubic_minimum(a: _Trial, b: _Trial, bounds: tuple[float, float]) -> float:
    """Where the cubic through the losses and slopes of two trials is least, within bounds; their middle if nowhere."""
    if a.t > b.t:
        a, b = b, a
    low, high = bounds
    d1 = a.slope + b.slope - 3.0 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if square >= 0.0:
        d2 = math.sqrt(square)
        denominator = b.slope - a.slope + 2.0 * d2
        t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / denominator) if denominator != 0.0 else math.nan
        if math.isfinite(t):
            return min(max(t, low), high)
    return (low + high) / 2.0
