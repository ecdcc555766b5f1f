"""Losses: the names, argument order and defaults of ``torch.nn.functional``, without its deprecated arguments.

Arguments that PyTorch has after the deprecated ``size_average`` and ``reduce`` are given by name. `reduction` is
``"mean"``, ``"sum"`` or ``"none"``. Input and target have one shape (class indices excepted): nothing broadcasts,
since a loss of (N,) against (N, 1) is an accident. The mean over no elements is an error, where PyTorch gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, DtypeError, ShapeError, shown
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import (
    absolute,
    as_floating,
    cast,
    equal,
    exp,
    greater,
    less,
    log,
    log1p,
    maximum,
    multiply,
    real,
    relu,
    sigmoid,
    softplus,
    sqrt,
    where,
)
from gmcore.ops.indexing import one_hot
from gmcore.ops.random import straight_through
from gmcore.ops.reduce import mean, normalize_axis, sum, wide
from gmcore.ops.shape import broadcast_to, expand_dims, reshape, transpose
from gmcore.ops.softmax import log_softmax
from gmcore.ops.special import xlogy
from gmcore.tensor import Array, Tensor, as_tensor, is_floating
from gmcore.watch import computed, computed_tensor
from gmkernels.arrays import namespace, on_gpu
from gmkernels.softmax import spec

_REDUCTIONS = ("mean", "sum", "none")


# -- what the losses share ------------------------------------------------------------------------------------
def _check_reduction(name: str, reduction: str, options: tuple[str, ...] = _REDUCTIONS) -> None:
    if reduction not in options:
        raise ArgumentError(
            f"{name}: reduction {reduction!r}; expected one of {', '.join(options)} (called at {user_line()})"
        )


def _reduce(name: str, loss: Tensor, reduction: str) -> Tensor:
    """The mean, the sum, or the elements of `loss`."""
    _check_reduction(name, reduction)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    if loss.size == 0:
        raise ArgumentError(f"{name}: no elements to take the mean of, shape {loss.shape} (called at {user_line()})")
    return mean(loss)


def _same_shape(name: str, **tensors: Any) -> list[Tensor]:
    """The arguments as tensors, integers in the dtype of the others, or as float64: differences of small ones are
    beyond their dtype. Raises `ShapeError` unless they have one shape."""
    found = {key: as_tensor(x) for key, x in tensors.items()}
    floating = [x._data.dtype for x in found.values() if is_floating(x._data.dtype)]
    if len(floating) < len(found):
        dtype = floating[0] if floating else np.float64
        found = {key: x if is_floating(x.dtype) else cast(x, dtype) for key, x in found.items()}
    if len({x.shape for x in found.values()}) > 1:
        shapes = ", ".join(f"{key} {x.shape}" for key, x in found.items())
        raise ShapeError(f"{name}: expected one shape, got {shapes} (called at {user_line()})")
    return list(found.values())


def _weighted(name: str, loss: Tensor, weight: Any) -> Tensor:
    """loss * weight, where `weight` broadcasts to the loss."""
    if weight is None:
        return loss
    return loss * _broadcasts(name, "weight", as_tensor(weight), loss)


def _broadcasts(name: str, argument: str, x: Tensor, to: Tensor) -> Tensor:
    try:
        fits = np.broadcast_shapes(x.shape, to.shape) == to.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{name}: {argument} {x.shape} does not broadcast to input {to.shape} (called at {user_line()})"
        )
    return x


# -- binary targets ---------------------------------------------------------------------------------------------
def _logit_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, weight in (((), ()), ((5,), ()), ((2, 3), (3,)), ((0, 3), (3,))):
        yield (real(rng, shape), rng.uniform(0.0, 1.0, shape), rng.uniform(0.5, 2.0, weight)), {"reduction": "sum"}
    yield (real(rng, (2, 3)), rng.uniform(0.0, 1.0, (2, 3))), {}


def _probability_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, weight in (((), ()), ((2, 3), (3,)), ((0, 3), (3,))):
        arrays = (rng.uniform(0.2, 0.8, shape), rng.uniform(0.0, 1.0, shape), rng.uniform(0.5, 2.0, weight))
        yield arrays, {"reduction": "sum"}


def _logit_forward(x: Any, target: Any, pos_weight: Any) -> Any:
    rest = np.log1p(np.exp(-np.absolute(x)))  # softplus(x) = max(x, 0) + rest
    return pos_weight * target * (np.maximum(-x, 0) + rest) + (1 - target) * (np.maximum(x, 0) + rest)


_bce_with_logits = Op(
    "binary_cross_entropy_with_logits",
    "input target pos_weight",
    forward=_logit_forward,
    vjp=[
        lambda g, input, target, pos_weight: (
            g * ((1.0 - target) * sigmoid(input) - pos_weight * target * sigmoid(-input))
        ),
        lambda g, input, pos_weight: g * (pos_weight * softplus(-input) - softplus(input)),
        lambda g, input, target: g * (target * softplus(-input)),
    ],
    formula="pos_weight t softplus(-x) + (1 - t) softplus(x) = -(pos_weight t log s + (1 - t) log (1 - s)), "
    "s = sigmoid(x)",
    broadcast=True,
    examples=_logit_examples,
)


def _probability_forward(p: Any, target: Any) -> Any:
    with np.errstate(divide="ignore"):
        return -(target * np.maximum(np.log(p), -100) + (1 - target) * np.maximum(np.log1p(-p), -100))


_bce = Op(
    "binary_cross_entropy",
    "input target",
    forward=_probability_forward,
    vjp=[
        lambda g, input, target: g * ((input - target) / maximum(input * (1.0 - input), 1e-12)),
        lambda g, input: g * (maximum(log1p(-input), -100.0) - maximum(log(input), -100.0)),
    ],
    formula="-(t log p + (1 - t) log(1 - p)), each logarithm at least -100; the slope in p is "
    "(p - t) / max(p (1 - p), 1e-12)",
    source="torch.nn.functional.binary_cross_entropy, bounds included",
    broadcast=True,
    examples=_probability_examples,
)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, *, pos_weight: Any = None, reduction: str = "mean"
) -> Tensor:
    """Negative log-probability of `target` in [0, 1] under a Bernoulli variable with logit `input`.

    Parameters
    ----------
    input, target : of one shape.
    weight : of each element; broadcasts to the input.
    pos_weight : of the positive part, t log s; broadcasts to the input.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape: pos_weight t softplus(-x) + (1 - t) softplus(x), times `weight`.

    Raises
    ------
    ShapeError : shapes that do not fit.  ArgumentError : an unknown reduction, or a mean of nothing.
    """
    name = "binary_cross_entropy_with_logits"
    x, t = _same_shape(name, input=input, target=target)
    positive = 1.0 if pos_weight is None else _broadcasts(name, "pos_weight", as_tensor(pos_weight), x)
    return _reduce(name, _weighted(name, _bce_with_logits(x, t, positive), weight), reduction)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> Tensor:
    """-(t log p + (1 - t) log(1 - p)) of probabilities p, each logarithm at least -100 as in PyTorch.

    Parameters
    ----------
    input, target : p and t, of one shape, in [0, 1]; the slope in p is (p - t) / max(p (1 - p), 1e-12).
    weight : of each element; broadcasts to the input.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : an input outside [0, 1], an unknown reduction, or a mean of nothing.
    ShapeError : shapes that do not fit.
    """
    name = "binary_cross_entropy"
    p, t = _same_shape(name, input=input, target=target)
    computed(_check_probabilities, p._data)
    return _reduce(name, _weighted(name, _bce(p, t), weight), reduction)


def _check_probabilities(p: np.ndarray) -> None:
    if ((p < 0) | (p > 1)).any():
        raise ArgumentError(
            f"binary_cross_entropy: expected probabilities in [0, 1], the input goes from {p.min()} to {p.max()}; for "
            f"logits use binary_cross_entropy_with_logits (called at {user_line()})"
        )


_bce_with_logits.public, _bce.public = binary_cross_entropy_with_logits, binary_cross_entropy


# -- classes ------------------------------------------------------------------------------------------------------
def _class_weight(name: str, weight: Any, classes: int, input: Tensor) -> Tensor | None:
    if weight is None:
        return None
    weight = as_tensor(weight)
    if weight.shape != (classes,):
        raise ShapeError(
            f"{name}: weight {weight.shape}, expected one for each of {classes} classes of the input {input.shape} "
            f"(called at {user_line()})"
        )
    return weight


def _rows(name: str, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(C,), (N, C) or (N, C, d1, ...) as rows (M, C), and the shape without the classes."""
    if not x.ndim:
        raise ShapeError(f"{name}: expected input (C,), (N, C) or (N, C, d1, ...), got () (called at {user_line()})")
    axis = 0 if x.ndim == 1 else 1
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if x.ndim > 2:
        x = transpose(x, (0, *range(2, x.ndim), 1))
    return reshape(x, (math.prod(shape), x.shape[-1])), shape


def _indices(
    name: str, target: Any, input: Tensor, shape: tuple[int, ...], classes: int, ignored: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the rows, 0 for ignored ones, and which rows are not ignored."""
    t = as_tensor(target)._data
    if t.dtype.kind not in "iu":
        raise DtypeError(
            f"{name}: expected class indices, integers, as the target, got {shown(t)} (called at {user_line()})"
        )
    if t.shape != shape:
        raise ShapeError(
            f"{name}: expected target {shape} for an input {input.shape}, got {t.shape} (called at {user_line()})"
        )
    index, kept = computed(_classes, t, ignored=ignored)
    computed(_check_classes, index, name=name, shape=shape, classes=classes, ignored=ignored)
    return index, kept


def _classes(t: np.ndarray, ignored: int | None) -> tuple[np.ndarray, np.ndarray]:
    kept = namespace(t).ones(t.shape, bool) if ignored is None else t != ignored
    index = t.astype(np.int64)
    if on_gpu(t) or not kept.all():  # a GPU is not waited for
        index = np.where(kept, index, 0)
    return index.ravel(), kept.ravel()


def _check_classes(index: np.ndarray, name: str, shape: tuple[int, ...], classes: int, ignored: int | None) -> None:
    if index.size and not (index.min() >= 0 and index.max() < classes):
        first = int(np.argmax((index < 0) | (index >= classes)))
        at = tuple(map(int, np.unravel_index(first, shape)))
        raise ArgumentError(
            f"{name}: target {at} is {index[first]}; expected a class in 0..{classes - 1}"
            f"{'' if ignored is None else f' or ignore_index {ignored}'} (called at {user_line()})"
        )


def _check_kept(kept: np.ndarray, name: str, shape: tuple[int, ...], ignored: int) -> None:
    if not kept.any():
        raise ArgumentError(
            f"{name}: no element to take the mean of: the target {shape} is empty or holds nothing but "
            f"ignore_index {ignored} (called at {user_line()})"
        )


def _pick(rows: Tensor, index: np.ndarray) -> Tensor:
    """rows[m, index[m]]"""
    return rows[namespace(index).arange(index.size), index]


def _entropy_examples(rng: np.random.Generator) -> Iterator[Example]:
    for rows, classes in ((4, 3), (1, 1), (0, 2)):
        yield (real(rng, (rows, classes)), rng.integers(0, classes, rows)), {}


def _entropy_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (logits, target), _ in _entropy_examples(rng):
        yield (real(rng, target.shape), real(rng, logits.shape), target), {}


def _minus_one_at(p: Tensor, target: Tensor) -> Tensor:
    """p - e, where e is 1 at the target of each row and 0 elsewhere."""
    return p - cast(one_hot(target, p.shape[1]), p.dtype)


_NO_DERIVATIVE = "it is an array of integers"
_softmax_cross_entropy_backward = Op(
    "softmax_cross_entropy_backward",
    "g_loss probabilities target",
    forward=kernel(spec.SOFTMAX_CROSS_ENTROPY_BACKWARD),
    vjp=[
        lambda g, probabilities, target: sum(g * _minus_one_at(probabilities, target), axis=1),
        lambda g, g_loss: g * expand_dims(g_loss, 1),
        _NO_DERIVATIVE,
    ],
    formula=spec.SOFTMAX_CROSS_ENTROPY_BACKWARD.formula,
    examples=_entropy_backward_examples,
)


def _entropy_rule(
    g_loss: Tensor | None, g_probabilities: Tensor | None, target: Tensor, probabilities: Tensor
) -> list[Tensor | None]:
    total = None if g_loss is None else _softmax_cross_entropy_backward(g_loss, probabilities, target)
    if g_probabilities is not None:
        through = probabilities * (g_probabilities - sum(g_probabilities * probabilities, axis=1, keepdims=True))
        total = through if total is None else total + through
    return [total, None]


_softmax_cross_entropy = Op(
    "softmax_cross_entropy",
    "logits target",
    "loss probabilities",
    forward=kernel(spec.SOFTMAX_CROSS_ENTROPY),
    vjp=_entropy_rule,
    partial=True,
    formula=spec.SOFTMAX_CROSS_ENTROPY.formula,
    source=spec.SOFTMAX_CROSS_ENTROPY.source,
    examples=_entropy_examples,
)


def _negative_log_likelihood(
    name: str, input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, *,
    logits: bool = False, smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Of classes, given log-probabilities, or logits, which are not smoothed."""
    _check_reduction(name, reduction)
    input = as_floating(input, name)
    rows, shape = _rows(name, input)
    classes = rows.shape[1]
    weight = _class_weight(name, weight, classes, input)
    index, kept = _indices(name, target, input, shape, classes, ignore_index)
    if reduction == "mean":
        computed(_check_kept, kept, name=name, shape=shape, ignored=ignore_index)
    present = Tensor(kept)
    weights = where(present, rows.new_ones(()) if weight is None else weight[index], 0.0)
    losses = _softmax_cross_entropy(rows, index)[0] if logits else -_pick(rows, index)
    loss = where(present, losses, 0.0)
    if weight is not None:
        loss = loss * weights
    if smoothing:
        uniform = sum(rows if weight is None else rows * weight, axis=1)
        loss = (1.0 - smoothing) * loss - (smoothing / classes) * where(present, uniform, 0.0)
    if reduction == "none":
        return reshape(loss, shape)
    return sum(loss) if reduction == "sum" else cast(sum(wide(loss)) / sum(wide(weights)), loss.dtype)


def nll_loss(
    input: Any, target: Any, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """-w_t input_t: the negative log-likelihood of classes `target`, given log-probabilities.

    Parameters
    ----------
    input : (C,), (N, C) or (N, C, d1, ...).
    target : class indices, integers of shape (), (N,) or (N, d1, ...).
    weight : (C,). The mean is the weighted one: divided by the sum of the weights of the targets.
    ignore_index : elements with this target count for nothing.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the target's shape; 0 where it is ignored.

    Raises
    ------
    ArgumentError : a target that is no class, an unknown reduction, or nothing to take the mean of.
    ShapeError, DtypeError : arguments that do not fit.
    """
    return _negative_log_likelihood("nll_loss", input, target, weight, ignore_index, reduction)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum_c w_c q_c log softmax(input)_c, of classes or of class probabilities q.

    Parameters
    ----------
    input : logits, (C,), (N, C) or (N, C, d1, ...).
    target : class indices as in `nll_loss`; or probabilities q of the input's shape, floating.
    weight : (C,), as in `nll_loss`; with probabilities the mean is over all elements, unweighted.
    ignore_index : as in `nll_loss`; for indices only.
    label_smoothing : in [0, 1]: q becomes (1 - label_smoothing) q + label_smoothing / C (Szegedy, Vanhoucke, Ioffe,
        Shlens & Wojna, Rethinking the Inception architecture, 2016, section 7).
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape without the classes; 0 where the target is ignored.

    Raises
    ------
    As `nll_loss`.
    """
    name = "cross_entropy"
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(
            f"{name}: label_smoothing must be in [0, 1], got {label_smoothing} (called at {user_line()})"
        )
    x, q = as_floating(input, name), as_tensor(target)
    if not is_floating(q.dtype) and not label_smoothing:
        return _negative_log_likelihood(name, x, q, weight, ignore_index, reduction, logits=True)
    log_probs = log_softmax(x, axis=min(1, x.ndim - 1)) if x.ndim else x
    if not is_floating(q.dtype):
        return _negative_log_likelihood(name, log_probs, q, weight, ignore_index, reduction, smoothing=label_smoothing)
    if q.shape != x.shape:
        kind = DtypeError if q.shape == _rows(name, x)[1] else ShapeError
        raise kind(
            f"{name}: expected class indices, integers, or probabilities of the input's shape {x.shape} as the target, "
            f"got {shown(q)} (called at {user_line()})"
        )
    rows, shape = _rows(name, log_probs)
    weight = _class_weight(name, weight, rows.shape[1], x)
    q, _ = _rows(name, q)
    if label_smoothing:
        q = (1.0 - label_smoothing) * q + label_smoothing / rows.shape[1]
    terms = rows * q if weight is None else rows * q * weight
    return _reduce(name, reshape(-sum(terms, axis=1), shape), reduction)


def _other_classes(index: np.ndarray, classes: int) -> np.ndarray:
    return namespace(index).arange(classes) != index[:, None]


def multi_margin_loss(
    input: Any, target: Any, p: int = 1, margin: float = 1.0, weight: Any = None, *, reduction: str = "mean"
) -> Tensor:
    """w_t / C sum over the classes c other than t of max(0, margin - input_t + input_c)^p, p = 1 or 2.

    Parameters
    ----------
    input : (C,) or (N, C).
    target : class indices, () or (N,).
    weight : (C,).
    p : 1 or 2.
    margin : what the target's score should exceed the others by.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the target's shape. The derivative at the margin is 0.

    Raises
    ------
    ArgumentError : a target that is no class, p, an unknown reduction, or a mean of nothing.
    ShapeError, DtypeError : arguments that do not fit.
    """
    name = "multi_margin_loss"
    if p not in (1, 2):
        raise ArgumentError(f"{name}: p must be 1 or 2, got {p} (called at {user_line()})")
    input = as_floating(input, name)
    rows, shape = _rows(name, input)
    classes = rows.shape[1]
    weight = _class_weight(name, weight, classes, input)
    index, _ = _indices(name, target, input, shape, classes)
    excess = relu(margin - expand_dims(_pick(rows, index), 1) + rows)
    others = computed_tensor(_other_classes, index, classes=classes)
    loss = sum(where(others, excess if p == 1 else excess * excess, 0.0), axis=1) * (1.0 / max(classes, 1))
    if weight is not None:
        loss = loss * weight[index]
    return _reduce(name, reshape(loss, shape), reduction)


# -- regression -----------------------------------------------------------------------------------------------------
def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """(input - target)^2.

    Parameters
    ----------
    input, target : of one shape.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ShapeError : shapes that differ.  ArgumentError : an unknown reduction, or a mean of nothing.
    """
    x, t = _same_shape("mse_loss", input=input, target=target)
    difference = x - t
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """abs(input - target), with derivative 0 where they are equal.

    Parameters
    ----------
    input, target : of one shape.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ShapeError : shapes that differ.  ArgumentError : an unknown reduction, or a mean of nothing.
    """
    x, t = _same_shape("l1_loss", input=input, target=target)
    return _reduce("l1_loss", absolute(x - t), reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d^2 / 2 where abs(d) < delta, else delta (abs(d) - delta / 2), for d = input - target.

    Parameters
    ----------
    input, target : of one shape.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.
    delta : where the parabola goes over into lines; positive.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : delta not positive, an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.

    References
    ----------
    Huber, Robust estimation of a location parameter, Ann. Math. Statist. 35, 1964.
    """
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta must be positive, got {delta} (called at {user_line()})")
    x, t = _same_shape("huber_loss", input=input, target=target)
    d = x - t
    size = absolute(d)
    return _reduce("huber_loss", where(less(size, delta), 0.5 * d * d, delta * (size - 0.5 * delta)), reduction)


def smooth_l1_loss(input: Any, target: Any, *, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where abs(d) < beta, else abs(d) - beta / 2, for d = input - target: `huber_loss` / beta.

    Parameters
    ----------
    input, target : of one shape.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.
    beta : where the parabola goes over into lines; 0 for `l1_loss`.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : beta negative, an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.
    """
    if not beta >= 0:
        raise ArgumentError(f"smooth_l1_loss: beta must not be negative, got {beta} (called at {user_line()})")
    x, t = _same_shape("smooth_l1_loss", input=input, target=target)
    if beta == 0:
        return l1_loss(x, t, reduction=reduction)
    return _reduce("smooth_l1_loss", huber_loss(x, t, "none", beta) * (1.0 / beta), reduction)


# -- likelihoods and divergences --------------------------------------------------------------------------------------
def kl_div(input: Any, target: Any, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """Terms t (log t - input) of the divergence of a model's log-probabilities `input` from probabilities t.

    Parameters
    ----------
    input : log-probabilities, of any shape.
    target : probabilities t, or their logarithms with `log_target`. A term with t = 0 is 0.
    reduction : also ``"batchmean"``, the sum divided by the first length: the divergence itself of (N, C). The
        ``"mean"`` over all elements is PyTorch's default, and no divergence.
    log_target : whether `target` holds logarithms.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.
    """
    x, t = _same_shape("kl_div", input=input, target=target)
    _check_reduction("kl_div", reduction, (*_REDUCTIONS, "batchmean"))
    q = exp(t) if log_target else t
    absent = equal(q, 0.0)
    x = where(absent, 0.0, x)
    loss = q * (where(absent, 0.0, t) - x) if log_target else xlogy(t, t) - t * x
    if reduction != "batchmean":
        return _reduce("kl_div", loss, reduction)
    if not x.ndim or not x.shape[0]:
        raise ArgumentError(f"kl_div: no batch to take the mean of in shape {x.shape} (called at {user_line()})")
    return cast(sum(wide(loss)) * (1.0 / x.shape[0]), loss.dtype)


def _check_variance(v: Array, name: str) -> None:
    if (v < 0).any():
        raise ArgumentError(f"{name}: expected var >= 0, its least element is {v.min()} (called at {user_line()})")


def gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """(log v + (target - input)^2 / v) / 2 with v = max(var, eps); with ``full``, + log(2 pi) / 2.

    Parameters
    ----------
    input, target : means and data, of one shape.
    var : variances, of that shape, or with a last axis of 1, or without the last axis: one for each row. Where
        eps takes its place, the gradient is still passed to it, as in PyTorch.
    full : whether to add the constant.
    eps : the least variance, positive.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : a negative variance, eps not positive, an unknown reduction, or a mean of nothing.
    ShapeError : shapes that do not fit.
    """
    name = "gaussian_nll_loss"
    if not eps > 0:
        raise ArgumentError(f"{name}: eps must be positive, got {eps} (called at {user_line()})")
    x, t = _same_shape(name, input=input, target=target)
    v = as_tensor(var)
    if x.ndim and v.shape == x.shape[:-1] and v.shape != x.shape:
        v = expand_dims(v, -1)
    if v.shape not in (x.shape, (*x.shape[:-1], 1)):
        raise ShapeError(f"{name}: var {v.shape} does not fit input {x.shape} (called at {user_line()})")
    computed(_check_variance, v._data, name=name)
    v = straight_through(maximum(v, eps), v)
    difference = x - t
    loss = 0.5 * (log(v) + difference * difference / v)
    return _reduce(name, loss + 0.5 * math.log(2.0 * math.pi) if full else loss, reduction)


def poisson_nll_loss(
    input: Any, target: Any, log_input: bool = True, full: bool = False, *, eps: float = 1e-8, reduction: str = "mean"
) -> Tensor:
    """exp(input) - target input, the Poisson negative log-likelihood of counts without log target!.

    Parameters
    ----------
    input : the logarithm of the rate; the rate r itself without `log_input`: r - target log(r + eps).
    target : counts.
    full : add Stirling's approximation of log target!, t log t - t + log(2 pi t) / 2, where t > 1.
    log_input : whether `input` is the logarithm of the rate.
    eps : added under the logarithm of a rate.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.
    """
    x, t = _same_shape("poisson_nll_loss", input=input, target=target)
    loss = exp(x) - t * x if log_input else x - t * log(x + eps)
    if full:
        large = where(greater(t, 1.0), t, 1.0)
        stirling = large * log(large) - large + 0.5 * log(2.0 * math.pi * large)
        loss = loss + where(greater(t, 1.0), stirling, 0.0)
    return _reduce("poisson_nll_loss", loss, reduction)


# -- margins and angles -----------------------------------------------------------------------------------------------
def hinge_loss(input: Any, target: Any, *, reduction: str = "mean") -> Tensor:
    """max(0, 1 - target input): the margin loss of a support vector machine, with derivative 0 at the margin.

    Parameters
    ----------
    input, target : scores, and labels -1 or 1, of one shape.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.

    Notes
    -----
    A discriminator with the hinge loss of Lim & Ye (Geometric GAN, 2017, equation 16) minimises it on data with label 1
    plus the same on samples with label -1. PyTorch has no function for it.
    """
    x, y = _same_shape("hinge_loss", input=input, target=target)
    return _reduce("hinge_loss", relu(1.0 - y * x), reduction)


def hinge_embedding_loss(input: Any, target: Any, margin: float = 1.0, *, reduction: str = "mean") -> Tensor:
    """input where target is 1, max(0, margin - input) where it is -1, 0 where it is neither.

    Parameters
    ----------
    input, target : distances, and labels -1 or 1, of one shape.
    margin : the distance from which a pair with target -1 costs nothing.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the input's shape.

    Raises
    ------
    ArgumentError : an unknown reduction, or a mean of nothing.  ShapeError : shapes that differ.
    """
    x, y = _same_shape("hinge_embedding_loss", input=input, target=target)
    zero = x.new_zeros(())
    loss = where(equal(y, 1.0), x, zero) + where(equal(y, -1.0), relu(margin - x), zero)
    return _reduce("hinge_embedding_loss", loss, reduction)


def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """max(0, margin - target (input1 - input2)): input1 should be larger where target is 1, smaller where -1.

    Parameters
    ----------
    input1, input2, target : of one shape.
    margin : by how much.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else the inputs' shape.

    Raises
    ------
    ShapeError : shapes that differ.  ArgumentError : an unknown reduction, or a mean of nothing.
    """
    a, b, y = _same_shape("margin_ranking_loss", input1=input1, input2=input2, target=target)
    return _reduce("margin_ranking_loss", relu(margin - y * (a - b)), reduction)


def cosine_similarity(x1: Any, x2: Any, axis: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 . x2 / (max(norm of x1, eps) max(norm of x2, eps)) along an axis.

    Parameters
    ----------
    x1, x2 : of shapes that broadcast.
    axis : of the vectors; the second by default, as in PyTorch.
    eps : the least norm, which keeps a vector of zeros out of the denominator.

    Returns
    -------
    The broadcast shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : shapes that do not broadcast.
    """
    (a, b), dtype = _wide(x1, x2)
    products = multiply(a, b)
    at = normalize_axis(products, axis, "cosine_similarity")
    a, b = broadcast_to(a, products.shape), broadcast_to(b, products.shape)
    lengths = [sqrt(maximum(sum(x * x, axis=at), eps * eps)) for x in (a, b)]
    return cast(sum(products, axis=at) / (lengths[0] * lengths[1]), dtype)


def _wide(*xs: Any) -> tuple[list[Tensor], np.dtype[Any]]:
    """Floating numbers whose squares are not beyond their dtype as those of half types are; and the results' dtype."""
    tensors = [as_tensor(x) for x in xs]
    dtype = np.result_type(*[x.dtype for x in tensors])
    dtype = dtype if is_floating(dtype) else np.dtype(np.float64)
    return [wide(cast(x, dtype)) for x in tensors], dtype


def cosine_embedding_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, *, reduction: str = "mean"
) -> Tensor:
    """1 - cos where target is 1, max(0, cos - margin) where it is -1.

    Parameters
    ----------
    input1, input2 : (N, D) or (D,). Their squared norms have 1e-12 added, as in PyTorch.
    target : (N,) or ().
    margin : the cosine up to which a pair with target -1 costs nothing.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Returns
    -------
    () for a mean or sum, else (N,). A target that is neither 1 nor -1 costs nothing.

    Raises
    ------
    ShapeError : shapes that do not fit.  ArgumentError : an unknown reduction, or a mean of nothing.
    """
    name = "cosine_embedding_loss"
    a, b = _same_shape(name, input1=input1, input2=input2)
    y = as_tensor(target)
    if a.ndim not in (1, 2) or y.shape != a.shape[:-1]:
        raise ShapeError(
            f"{name}: expected inputs (N, D) and target (N,), or (D,) and (); got {a.shape} and {y.shape} "
            f"(called at {user_line()})"
        )
    (a, b), dtype = _wide(a, b)
    square_norms = [sum(x * x, axis=-1) + 1e-12 for x in (a, b)]
    cosine = sum(a * b, axis=-1) / sqrt(square_norms[0] * square_norms[1])
    zero = cosine.new_zeros(())
    loss = where(equal(y, 1.0), 1.0 - cosine, zero) + where(equal(y, -1.0), relu(cosine - margin), zero)
    return cast(_reduce(name, loss, reduction), dtype)
