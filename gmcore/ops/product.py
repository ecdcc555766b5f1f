"""Products over axes (matmul, einsum, tensordot, ...), and the fully connected layer fused with its activation.

Every contraction is brought to the form of `matmul`, whose derivatives are two products again.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.diagonal import diagonal
from gmcore.ops.elementwise import exp, greater, multiply, real, where
from gmcore.ops.reduce import sum
from gmcore.ops.shape import reshape, transpose
from gmcore.tensor import Tensor, as_tensor, is_floating
from gmkernels.arrays import on_gpu
from gmkernels.dense import spec


def swap(x: Tensor) -> Tensor:
    """The last two axes exchanged: every matrix transposed."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


_product = kernel(spec.MATMUL)


def _matmul_forward(x: Any, y: Any) -> Any:
    if x.dtype == y.dtype and x.ndim == y.ndim == 2:
        return _product(x, y)
    if on_gpu(x) and is_floating(dtype := np.result_type(x.dtype, y.dtype)):
        return _stack_on_gpu(x.astype(dtype, copy=False), y.astype(dtype, copy=False))
    return np.matmul(x, y)  # stacks in the CPU's memory are NumPy's, and mixed dtypes


def _stack_on_gpu(x: Any, y: Any) -> Any:
    """x @ y by the kernel, where the array library would call cuBLAS, which no CUDA graph takes."""
    a, b = x if x.ndim > 1 else x[None, :], y if y.ndim > 1 else y[:, None]
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    c = _product(*[m if m.shape[:-2] == stack else np.broadcast_to(m, (*stack, *m.shape[-2:])) for m in (a, b)])
    c = c if x.ndim > 1 else c[..., 0, :]
    return c if y.ndim > 1 else c[..., 0]


vars(_matmul_forward).update(vars(_product))  # half types are stored there too


def _matmul_examples(rng: np.random.Generator) -> Iterator[Example]:
    shapes = (((2, 3), (3, 4)), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3)))
    for a, b in (*shapes, ((2, 2, 3), (3, 2)), ((2, 1, 2, 3), (4, 3, 2))):
        yield (real(rng, a), real(rng, b)), {}


_matmul: Op = Op(
    "matmul",
    "x y",
    forward=_matmul_forward,
    vjp=[lambda g, y: _matmul(g, swap(y)), lambda g, x: _matmul(swap(x), g)],
    formula="x @ y over the last two axes",
    broadcast=True,
    examples=_matmul_examples,
)


def matmul(x: Any, y: Any) -> Tensor:
    """Matrix product over the last two axes, with NumPy's rules for vectors and for stacks of matrices.

    Parameters
    ----------
    x : (..., m, k), or (k,) for one row.
    y : (..., k, n), or (k,) for one column; the leading axes broadcast.

    Returns
    -------
    (..., m, n), without the axis of a vector, in the dtype to which both promote; zeros for k = 0.

    Raises
    ------
    ShapeError : a number, inner lengths that differ, or leading axes that do not broadcast.
    """
    x, y = as_tensor(x), as_tensor(y)
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit: the last axis of the first must be as long as the "
            f"last but one of the second (called at {user_line()})"
        )
    if x.ndim > 2 and y.ndim <= 2:  # one matrix for the whole stack: one product, forward and backward
        rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    else:
        rows = x if x.ndim > 1 else reshape(x, (1, x.shape[0]))
    columns = y if y.ndim > 1 else reshape(y, (y.shape[0], 1))
    out = _matmul(rows, columns)
    if x.ndim > 1 and y.ndim > 1 and rows is x:
        return out
    shape = out.shape[:-2] if x.ndim == 1 else x.shape[:-1] if rows is not x else out.shape[:-1]
    return reshape(out, (*shape, *y.shape[-1:]) if y.ndim > 1 else shape)


_matmul.public = matmul

# -- einsum -----------------------------------------------------------------------------------------------------
_LETTERS = string.ascii_letters


def _arrange(x: Tensor, labels: str, order: str) -> Tensor:
    """`x` with axes `labels` brought into `order`, with an axis of length 1 for a label it does not have."""
    present = [label for label in order if label in labels]
    axes = tuple([labels.index(label) for label in present])
    if axes != tuple(range(x.ndim)):
        x = transpose(x, axes)
    if len(present) < len(order):
        lengths = iter(x.shape)
        x = reshape(x, tuple([next(lengths) if label in labels else 1 for label in order]))
    return x


def _contract(x: Tensor, a: str, y: Tensor, b: str, kept: str) -> tuple[Tensor, str]:
    """The product of `x` with axes `a` and `y` with axes `b`, summed over the labels not `kept`; and its labels."""
    summed = "".join([label for label in a if label in b and label not in kept])
    shared = "".join([label for label in a if label in b and label in kept])
    left = "".join([label for label in a if label not in b])
    right = "".join([label for label in b if label not in a])
    if not summed:
        order = shared + left + right
        return _arrange(x, a, order) * _arrange(y, b, order), order
    length = {**dict(zip(a, x.shape)), **dict(zip(b, y.shape))}
    batch = tuple([length[label] for label in shared])
    m, k, n = (math.prod([length[label] for label in labels]) for labels in (left, summed, right))
    rows, columns = _arrange(x, a, shared + left + summed), _arrange(y, b, shared + summed + right)
    if rows.shape != (*batch, m, k):
        rows = reshape(rows, (*batch, m, k))
    if columns.shape != (*batch, k, n):
        columns = reshape(columns, (*batch, k, n))
    out, shape = _matmul(rows, columns), tuple([length[label] for label in shared + left + right])
    return (out if out.shape == shape else reshape(out, shape)), shared + left + right


@functools.lru_cache(256)
def _parse(subscripts: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[str], str, dict[str, int]]:
    """A letter for each axis of each operand and of the result, those of an ellipsis included; the letters' lengths."""

    def error(reason: str) -> ShapeError:
        given = ", ".join(map(str, shapes))
        return ShapeError(f"einsum: {subscripts!r} for shapes {given}: {reason} (called at {user_line()})")

    inputs, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise error(f"{len(terms)} subscripts for {len(shapes)} operands")
    for term in (*terms, result):
        if term.count("...") > 1 or any(c not in _LETTERS for c in term.replace("...", "", 1)):
            raise error(f"{term!r} is not letters with at most one ellipsis")
    free = [letter for letter in _LETTERS if letter not in inputs]
    widths = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes)]
    for term, shape, width in zip(terms, shapes, widths):
        if width < 0 or (width and "..." not in term):
            raise error(f"{term!r} does not name the axes of {shape}")
    most = max([width for term, width in zip(terms, widths) if "..." in term], default=0)
    if most > len(free):
        raise error("more than 52 axes")
    around = "".join(free[:most])
    labels = [term.replace("...", around[most - width :]) for term, width in zip(terms, widths)]
    if not arrow:
        named = inputs.replace("...", "").replace(",", "")
        result = around + "".join(sorted(label for label in set(named) if named.count(label) == 1))
    elif "..." in result:
        result = result.replace("...", around)
    elif most:
        raise error("the operands have an ellipsis, the result has none")
    if len(set(result)) != len(result) or not set(result) <= set("".join(labels)):
        raise error(f"the result {result!r} repeats an axis, or has one that no operand has")
    length: dict[str, int] = {}
    for shape, names in zip(shapes, labels):
        for label, n in zip(names, shape):
            if length.setdefault(label, n) == 1:
                length[label] = n
            elif n not in (1, length[label]):
                raise error(f"axes of lengths {length[label]} and {n} have one letter")
    return labels, result, length


def _single(x: Tensor, labels: str, length: dict[str, int], kept: set[str]) -> tuple[Tensor, str]:
    """One operand without repeated labels, without axes that broadcast, and summed over the labels not `kept`."""
    if broadcast := [i for i, label in enumerate(labels) if x.shape[i] != length[label]]:
        x = reshape(x, tuple([n for i, n in enumerate(x.shape) if i not in broadcast]))
        labels = "".join([label for i, label in enumerate(labels) if i not in broadcast])
    while repeated := [label for label in labels if labels.count(label) > 1]:
        first, second = labels.index(repeated[0]), labels.rindex(repeated[0])
        x = diagonal(x, axis1=first, axis2=second)
        labels = labels[:first] + labels[first + 1 : second] + labels[second + 1 :] + repeated[0]
    if absent := tuple([i for i, label in enumerate(labels) if label not in kept]):
        x, labels = sum(x, axis=absent), "".join([label for label in labels if label in kept])
    return x, labels


def einsum(subscripts: str, *operands: Any) -> Tensor:
    """Products of the operands summed over the axes that the result does not name: NumPy's string form.

    Parameters
    ----------
    subscripts : a letter for each axis, ``"bij,bjk->bik"``. A letter repeated in an operand takes its diagonal; an
        ellipsis stands for axes that broadcast; without ``->`` the result has the ellipsis, then the letters that
        occur once, in alphabetical order.
    operands : tensors. More than two are multiplied in pairs, next the pair with the smallest product.

    Returns
    -------
    The tensor that ``numpy.einsum`` gives. Pairs are computed by `matmul`, so that derivatives of any order are
    products again, and intermediate results are shared by the gradients.

    Raises
    ------
    ShapeError : subscripts that do not fit the operands.  ArgumentError : subscripts that are no string.
    """
    if not isinstance(subscripts, str):
        raise ArgumentError(
            f"einsum: expected subscripts like 'ij,jk->ik' first, got {type(subscripts).__name__} "
            f"(called at {user_line()})"
        )
    tensors = [as_tensor(x) for x in operands]
    labels, result, length = _parse(subscripts, tuple([x.shape for x in tensors]))
    terms = []
    for i, (x, names) in enumerate(zip(tensors, labels)):
        elsewhere = {*result, *"".join(labels[:i] + labels[i + 1 :])}
        terms.append(_single(x, names, length, elsewhere))
    while len(terms) > 1:
        candidates = []
        for i, j in itertools.combinations(range(len(terms)), 2):
            rest = {*result, *"".join([names for k, (_, names) in enumerate(terms) if k not in (i, j)])}
            kept = "".join([label for label in dict.fromkeys(terms[i][1] + terms[j][1]) if label in rest])
            candidates.append((math.prod([length[label] for label in kept]), i, j, kept))
        _, i, j, kept = min(candidates)
        (y, b), (x, a) = terms.pop(j), terms.pop(i)
        # A label may have lost its only partner to an axis that broadcast.
        (x, a), (y, b) = _single(x, a, length, {*kept, *b}), _single(y, b, length, {*kept, *a})
        terms.append(_contract(x, a, y, b, kept))
    x, names = _single(*terms[0], length, set(result))
    return _arrange(x, names, result)


# -- other products -----------------------------------------------------------------------------------------------
def tensordot(x: Any, y: Any, axes: int | Sequence[Any] = 2) -> Tensor:
    """Product summed over several axes of both.

    Parameters
    ----------
    x, y : of equal lengths along the axes summed over.
    axes : a number, for the last ones of x and the first ones of y; or a pair, those of x and those of y.

    Returns
    -------
    The other lengths of x, then those of y, in the dtype to which both promote.

    Raises
    ------
    ArgumentError : axes out of range, repeated, or not as many of x as of y.  ShapeError : lengths that differ.
    """
    x, y = as_tensor(x), as_tensor(y)
    if isinstance(axes, (int, np.integer)) and axes >= 0:
        axes = (range(x.ndim - axes, x.ndim), range(axes))
    if not isinstance(axes, Sequence) or len(axes) != 2:
        raise ArgumentError(f"tensordot: axes {axes!r}; expected a number of axes, or those of x and of y")
    of_x, of_y = ([operator.index(a) for a in np.atleast_1d(part)] for part in axes)
    for t, part in ((x, of_x), (y, of_y)):
        at = [a + t.ndim if a < 0 else a for a in part]
        if len(of_x) != len(of_y) or len(set(at)) != len(at) or not all(0 <= a < t.ndim for a in at):
            raise ArgumentError(
                f"tensordot: axes {of_x} and {of_y} do not fit shapes {x.shape} and {y.shape} (called at {user_line()})"
            )
        part[:] = at
    if [x.shape[a] for a in of_x] != [y.shape[a] for a in of_y]:
        raise ShapeError(
            f"tensordot: shapes {x.shape} and {y.shape} have other lengths along the axes {of_x} and {of_y} "
            f"(called at {user_line()})"
        )
    a = _LETTERS[: x.ndim]
    letters = iter(_LETTERS[x.ndim :])
    b = "".join([a[of_x[of_y.index(i)]] if i in of_y else next(letters) for i in range(y.ndim)])
    kept = [label for i, label in enumerate(a) if i not in of_x] + [b[i] for i in range(y.ndim) if i not in of_y]
    return _arrange(*_contract(x, a, y, b, "".join(kept)), "".join(kept))


def dot(x: Any, y: Any) -> Tensor:
    """Sum of products over the last axis of x and the last but one (the only one) of y; a number multiplies.

    Parameters
    ----------
    x : (..., k), or a number.
    y : (..., k, n) or (k,), or a number.

    Returns
    -------
    The other lengths of x, then those of y.

    Raises
    ------
    ShapeError : lengths that differ.
    """
    given = x, y
    x, y = as_tensor(x), as_tensor(y)
    if not x.ndim or not y.ndim:
        return multiply(*given)  # Python's numbers are weak there
    if x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ShapeError(
            f"dot: shapes {x.shape} and {y.shape} do not fit; expected (..., k), and (..., k, n) or (k,) "
            f"(called at {user_line()})"
        )
    return tensordot(x, y, ([-1], [-2 if y.ndim > 1 else 0]))


def inner(x: Any, y: Any) -> Tensor:
    """Sum of products over the last axes; a number multiplies.

    Parameters
    ----------
    x, y : (..., k), or numbers.

    Returns
    -------
    The other lengths of x, then those of y.

    Raises
    ------
    ShapeError : lengths that differ.
    """
    given = x, y
    x, y = as_tensor(x), as_tensor(y)
    if not x.ndim or not y.ndim:
        return multiply(*given)  # Python's numbers are weak there
    if x.shape[-1] != y.shape[-1]:
        raise ShapeError(
            f"inner: shapes {x.shape} and {y.shape} do not fit; expected equal last lengths (called at {user_line()})"
        )
    return tensordot(x, y, ([-1], [-1]))


def outer(x: Any, y: Any) -> Tensor:
    """Products of all elements of x with all elements of y.

    Parameters
    ----------
    x, y : any shape; taken in C order.

    Returns
    -------
    (x.size, y.size), in the dtype to which both promote.
    """
    x, y = as_tensor(x), as_tensor(y)
    return reshape(x, (x.size, 1)) * reshape(y, (1, y.size))


# -- linear + bias + activation ------------------------------------------------------------------------------
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu", "softplus")
"""Activations that the linear kernel applies while its product is still in cache."""


def _slope(y: Tensor, activation: str) -> Tensor | float:
    """f'(a) in terms of y = f(a)."""
    return {
        "identity": lambda: 1.0,
        "tanh": lambda: 1.0 - y * y,
        "sigmoid": lambda: y * (1.0 - y),
        "relu": lambda: where(greater(y, 0.0), y.new_ones(()), 0.0),
        "softplus": lambda: 1.0 - exp(-y),
    }[activation]()


def _activation_backward_plain(g: Tensor, y: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    d_pre = g * _slope(y, activation)
    return d_pre, sum(d_pre, axis=tuple(range(g.ndim - 1)))


def _activation_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for activation in ACTIVATIONS:
        y = {"sigmoid": rng.uniform(0.1, 0.9, (4, 3)), "tanh": rng.uniform(-0.9, 0.9, (4, 3))}
        yield (real(rng, (4, 3)), y.get(activation, rng.uniform(0.2, 2.0, (4, 3)))), {"activation": activation}
    yield (real(rng, (0, 3)), real(rng, (0, 3))), {"activation": "identity"}


_activation_backward = Op(
    "activation_backward",
    "g_out y",
    "d_pre d_bias",
    forward=kernel(spec.ACTIVATION_BACKWARD),
    vjp=by_decomposition("g_out y", _activation_backward_plain, "activation"),
    formula="d_pre = g_out f'(a) with f' from y = f(a); d_bias = its sum over all axes but the last",
    examples=_activation_backward_examples,
)


def _linear_rule(
    g: Tensor, x: Tensor, weight: Tensor, out: Tensor, activation: str, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    if activation == "identity":
        d_pre, d_bias = g, sum(g, axis=tuple(range(g.ndim - 1))) if needs[2] else None
    else:
        d_pre, d_bias = _activation_backward(g, out, activation=activation)
    d_x = d_weight = None
    if x.ndim == 2:  # each operation that is left out is felt in a small layer
        if needs[0]:
            d_x = _matmul(d_pre, weight)
        if needs[1]:
            d_weight = _matmul(transpose(d_pre), x)
        return [d_x, d_weight, d_bias]
    count = math.prod(x.shape[:-1])
    rows = reshape(d_pre, (count, weight.shape[0]))
    if needs[0]:
        d_x = reshape(_matmul(rows, weight), x.shape)
    if needs[1]:
        d_weight = _matmul(transpose(rows), reshape(x, (count, weight.shape[1])))
    return [d_x, d_weight, d_bias]


def _linear_examples(rng: np.random.Generator) -> Iterator[Example]:
    for activation in ACTIVATIONS:
        yield (real(rng, (4, 3)), real(rng, (2, 3)), real(rng, (2,))), {"activation": activation}
    yield (real(rng, (2, 3, 5)), real(rng, (4, 5)), real(rng, (4,))), {"activation": "tanh"}
    yield (real(rng, (3,)), real(rng, (2, 3)), None), {}
    yield (real(rng, (0, 3)), real(rng, (2, 3)), real(rng, (2,))), {}


_linear = Op(
    "linear",
    "x weight bias",
    forward=kernel(spec.LINEAR),
    vjp=_linear_rule,
    formula="f(x weight^T + bias)",
    examples=_linear_examples,
)


def linear(x: Any, weight: Any, bias: Any = None, *, activation: str = "identity") -> Tensor:
    """Fully connected layer with its activation in one pass: f(x weight^T + bias).

    Parameters
    ----------
    x : (..., in_features).
    weight : (out_features, in_features), PyTorch's layout.
    bias : (out_features,), or None.
    activation : one of `ACTIVATIONS`.

    Returns
    -------
    (..., out_features)

    Raises
    ------
    ShapeError : lengths that do not fit.  ArgumentError : an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"linear: activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    x, weight = as_tensor(x), as_tensor(weight)
    if bias is None:
        bias = weight.new_zeros(weight.shape[:1])
    return _linear(x, weight, bias, activation=activation)


_linear.public = linear
