"""Learning-rate schedules: `torch.optim.lr_scheduler`'s names, defaults and sequences.

A schedule here is a function of the epoch: the rate of a group in an epoch follows from its rate at the start,
``group["initial_lr"]``, and nothing is lost to rounding on the way. So two schedules do not chain on one optimiser,
where PyTorch multiplies them: `SequentialLR` runs one after another, `LambdaLR` takes any product. "Epoch" is whatever
`step` is called once for, an epoch or a batch.
"""

from __future__ import annotations

import bisect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gmcore import watch
from gmcore.errors import ArgumentError, CheckpointError
from gmcore.optim.optimizer import Optimizer


class LRScheduler:
    """Base of the schedules: writes the rates of epoch 0 when made, and those of the next epoch at each `step`.

    Parameters
    ----------
    optimizer : whose groups' ``lr`` are set.
    last_epoch : only -1, a new schedule; `load_state_dict` continues one.

    Attributes
    ----------
    last_epoch : the epoch whose rates are set, from 0.

    Raises
    ------
    ArgumentError : something that is no optimiser, another `last_epoch`; at a `step`, a rate that something else has
        changed since the last one.

    Notes
    -----
    A subclass defines `factor`, or `rates` where they are not multiples of the first.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        _check_optimizer(self, optimizer)
        if last_epoch != -1:
            raise ArgumentError(
                f"{type(self).__name__}: last_epoch={last_epoch!r} is not supported; leave it out, and continue a "
                "schedule with load_state_dict"
            )
        self.optimizer = optimizer
        self.last_epoch = 0
        self._set()

    # -- what a subclass says --------------------------------------------------------------------------
    def factor(self, epoch: int) -> float:
        """The rate in an epoch, over the rate at the start."""
        raise NotImplementedError(f"{type(self).__name__} defines neither factor() nor rates()")

    def rates(self, epoch: int) -> list[float]:
        """The groups' rates in an epoch."""
        factor = self.factor(epoch)
        return [base * factor for base in self.base_lrs]

    # -- stepping --------------------------------------------------------------------------------------
    @property
    def base_lrs(self) -> list[float]:
        """The groups' rates at the start: before the first schedule, or when the group was added."""
        groups = self.optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        return [group["initial_lr"] for group in groups]

    def _set(self) -> None:
        self._last_lr = self.rates(self.last_epoch)
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        """The rates set last."""
        return list(self._last_lr)

    def step(self) -> None:
        """Set the rates of the next epoch.

        Raises
        ------
        ArgumentError : a rate that something else has changed since this schedule set it.
        """
        watch.hosted(self._step)

    def _step(self) -> None:
        for i, (group, lr) in enumerate(zip(self.optimizer.param_groups, self._last_lr, strict=False)):
            if group["lr"] != lr:
                raise ArgumentError(
                    f"{type(self).__name__}: the rate of group {i} is {group['lr']!r}, this schedule had set {lr!r}. "
                    "Schedules do not chain; use SequentialLR, or LambdaLR with the product of the factors"
                )
        self.last_epoch += 1
        self._set()

    # -- saving ----------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """``last_epoch`` and ``base_lrs``; the options are the constructor's."""
        return {"last_epoch": np.array(self.last_epoch), "base_lrs": np.array(self.base_lrs, np.float64)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of a schedule with the same options, and set its rates.

        Raises
        ------
        CheckpointError : names that do not fit, or another number of groups; nothing is changed then.
        """
        arrays = _arrays(self, state_dict, {"last_epoch": (), "base_lrs": (len(self.base_lrs),)})
        for group, lr in zip(self.optimizer.param_groups, arrays["base_lrs"].tolist(), strict=True):
            group["initial_lr"] = lr
        self.last_epoch = int(arrays["last_epoch"])
        self._set()


class LambdaLR(LRScheduler):
    """Multiplies the rate by a function of the epoch.

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    lr_lambda : epoch -> factor; or a list with one for each group.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and another number of functions than groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer, last_epoch)

    def rates(self, epoch: int) -> list[float]:
        bases = self.base_lrs
        lambdas = list(self.lr_lambda) if isinstance(self.lr_lambda, (list, tuple)) else [self.lr_lambda] * len(bases)
        if len(lambdas) != len(bases):
            raise ArgumentError(f"LambdaLR: {len(lambdas)} functions for {len(bases)} parameter groups")
        return [base * function(epoch) for base, function in zip(bases, lambdas, strict=True)]


class StepLR(LRScheduler):
    """Multiplies the rate by `gamma` every `step_size` epochs: gamma^(epoch // step_size).

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    step_size : a positive number of epochs.
    gamma : factor.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and numbers outside their range.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size = _count(self, "step_size", step_size, 1)
        self.gamma = _number(self, "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        return self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """Multiplies the rate by `gamma` at each milestone: gamma^(number of milestones that are not after the epoch).

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    milestones : epochs, in any order; one given twice counts twice.
    gamma : factor.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and numbers outside their range.
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = sorted(_count(self, "a milestone", m, 0) for m in milestones)
        self.gamma = _number(self, "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        return self.gamma ** bisect.bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """Multiplies the rate by `gamma` every epoch: gamma^epoch.

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    gamma : factor.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and numbers outside their range.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = _number(self, "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        return self.gamma**epoch


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the rate down to `eta_min` in `T_max` epochs, and back up after it.

        lr = eta_min + (base - eta_min) (1 + cos(pi epoch / T_max)) / 2

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    T_max : a positive number of epochs.
    eta_min : the lowest rate.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and numbers outside their range.

    References
    ----------
    Loshchilov & Hutter, SGDR: stochastic gradient descent with warm restarts, ICLR 2017, eq. 5 (without restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = _count(self, "T_max", T_max, 1)
        self.eta_min = _number(self, "eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    def rates(self, epoch: int) -> list[float]:
        share = (1.0 + math.cos(math.pi * epoch / self.T_max)) / 2.0
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]


class LinearLR(LRScheduler):
    """Moves the factor on the rate from `start_factor` to `end_factor` in `total_iters` epochs: a warm-up.

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    start_factor : in (0, 1].
    end_factor : in [0, 1].
    total_iters : a positive number of epochs.

    Raises
    ------
    ArgumentError : as `LRScheduler`, and numbers outside their range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor = _number(self, "start_factor", start_factor, most=1.0)
        if start_factor == 0:
            raise ArgumentError("LinearLR: start_factor must be a number in (0, 1], got 0")
        self.end_factor = _number(self, "end_factor", end_factor, most=1.0)
        self.total_iters = _count(self, "total_iters", total_iters, 1)
        super().__init__(optimizer, last_epoch)

    def factor(self, epoch: int) -> float:
        share = min(epoch, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * share


class SequentialLR(LRScheduler):
    """One schedule after another; each counts its epochs from its milestone, and its rates from the first rate.

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`.
    schedulers : schedules of this optimiser, which only this one steps.
    milestones : increasing epochs, at which the second, third, ... schedule begins.

    Raises
    ------
    ArgumentError : as `LRScheduler`, schedules of another optimiser or none, or milestones that do not fit.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int], last_epoch: int = -1
    ) -> None:
        for i, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizer:
                raise ArgumentError(f"SequentialLR: schedule {i} is no schedule of this optimizer with rates by epoch")
        if len(schedulers) == 0 or len(milestones) != len(schedulers) - 1:
            raise ArgumentError(
                f"SequentialLR: {len(milestones)} milestones for {len(schedulers)} schedules, expected one less"
            )
        starts = [0, *[_count(self, "a milestone", m, 1) for m in milestones]]
        if any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
            raise ArgumentError(f"SequentialLR: milestones must increase, got {list(milestones)}")
        self.schedulers = list(schedulers)
        self.starts = starts
        super().__init__(optimizer, last_epoch)

    def rates(self, epoch: int) -> list[float]:
        current = bisect.bisect_right(self.starts, epoch) - 1
        return self.schedulers[current].rates(epoch - self.starts[current])


def iwae_schedule(epoch: int) -> float:
    """Factor on the learning rate: 10^(-i/7) in stage i = 0..7, which lasts 3^i epochs, 3280 in all.

    Parameters
    ----------
    epoch : counted from 1; later ones stay at the last stage's rate.

    Returns
    -------
    float

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016, section 5.
    """
    stage, end = 0, 1
    while stage < 7 and epoch > end:
        stage += 1
        end += 3**stage
    return 10.0 ** (-stage / 7.0)


def inverse_schedule(epoch: int) -> float:
    """Factor on the learning rate: 1 / (1 + (epoch - 1) / 10), whose sum diverges and whose squares' sum does not.

    Parameters
    ----------
    epoch : counted from 1.

    Returns
    -------
    float

    References
    ----------
    Robbins & Monro, A stochastic approximation method, Annals of Mathematical Statistics 22(3), 1951.
    """
    return 1.0 / (1.0 + (epoch - 1) / 10.0)


class IWAELR(LRScheduler):
    """The schedule of the IWAE paper: eight stages i = 0..7 of 3^i epochs, with factor 10^(-i/7).

    Parameters
    ----------
    optimizer, last_epoch : as for `LRScheduler`; the paper's first rate is 0.001.

    Raises
    ------
    ArgumentError : as `LRScheduler`.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016, section 5.
    """

    def factor(self, epoch: int) -> float:
        return iwae_schedule(epoch + 1)


class ReduceLROnPlateau:
    """Multiplies the rate by `factor` when a measure has not improved for more than `patience` epochs.

    Parameters
    ----------
    optimizer : whose groups' ``lr`` are set.
    mode : ``"min"`` if the measure should fall, ``"max"`` if it should rise.
    factor : in [0, 1).
    patience : epochs without improvement that are let pass.
    threshold, threshold_mode : an improvement is better than the best by this share of it (``"rel"``) or by this
        (``"abs"``).
    cooldown : epochs after a reduction in which nothing is counted.
    min_lr : the lowest rate; or a list with one for each group.
    eps : a reduction by no more than this is not made.

    Attributes
    ----------
    best : the best measure so far.
    num_bad_epochs, cooldown_counter, last_epoch : counts of epochs.

    Raises
    ------
    ArgumentError : something that is no optimiser, or a value outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: list[float] | float = 0,
        eps: float = 1e-8,
    ) -> None:
        _check_optimizer(self, optimizer)
        if mode not in ("min", "max"):
            raise ArgumentError(f"ReduceLROnPlateau: mode must be 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ArgumentError(f"ReduceLROnPlateau: threshold_mode must be 'rel' or 'abs', got {threshold_mode!r}")
        groups = len(optimizer.param_groups)
        self.min_lrs = list(min_lr) if isinstance(min_lr, (list, tuple)) else [min_lr] * groups
        if len(self.min_lrs) != groups:
            raise ArgumentError(f"ReduceLROnPlateau: {len(self.min_lrs)} lowest rates for {groups} parameter groups")
        for lowest in self.min_lrs:
            _number(self, "min_lr", lowest)
        self.factor = _number(self, "factor", factor, most=1.0)
        if factor == 1:
            raise ArgumentError(f"ReduceLROnPlateau: factor must be a number in [0, 1), got {factor!r}")
        self.optimizer = optimizer
        self.mode, self.threshold_mode = mode, threshold_mode
        self.patience = _count(self, "patience", patience, 0)
        self.cooldown = _count(self, "cooldown", cooldown, 0)
        self.threshold = _number(self, "threshold", threshold)
        self.eps = _number(self, "eps", eps)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def get_last_lr(self) -> list[float]:
        """The rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _is_better(self, measure: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            return sign * measure > sign * self.best * (1.0 + sign * self.threshold)
        return sign * measure > sign * self.best + self.threshold

    def step(self, metrics: Any) -> None:
        """Take note of an epoch's measure, a number or a tensor of one element, and reduce the rates if it is time."""
        measure = float(metrics)
        self.last_epoch += 1
        if self._is_better(measure):
            self.best = measure
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, lowest in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                reduced = max(group["lr"] * self.factor, lowest)
                if group["lr"] - reduced > self.eps:
                    group["lr"] = reduced
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    _STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")

    def state_dict(self) -> dict[str, np.ndarray]:
        """``best`` and the counts; the rates are in the optimiser's."""
        return {name: np.array(getattr(self, name)) for name in self._STATE}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of a schedule with the same options.

        Raises
        ------
        CheckpointError : names that do not fit; nothing is changed then.
        """
        for name, value in _arrays(self, state_dict, dict.fromkeys(self._STATE, ())).items():
            setattr(self, name, value.item())


# -- checks ---------------------------------------------------------------------------------------------------
def _check_optimizer(schedule: Any, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"{type(schedule).__name__}: expected an optimizer, got a {type(optimizer).__name__}")


def _number(schedule: Any, name: str, value: Any, most: float = math.inf) -> float:
    if not (isinstance(value, numbers.Real) and 0.0 <= float(value) <= most and math.isfinite(value)):
        raise ArgumentError(f"{type(schedule).__name__}: {name} must be a number in [0, {most}], got {value!r}")
    return float(value)


def _count(schedule: Any, name: str, value: Any, least: int) -> int:
    if not isinstance(value, numbers.Integral) or value < least:
        raise ArgumentError(f"{type(schedule).__name__}: {name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def _arrays(
    schedule: Any, state_dict: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    found = {name: a.shape for name, a in arrays.items()}
    if found != expected:
        raise CheckpointError(
            f"the state dict does not fit this {type(schedule).__name__}: it has {found}, expected {dict(expected)}"
        )
    return arrays
