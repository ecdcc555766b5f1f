"""Functions of `gmcore.ops` that are made of declared ops: values, derivatives to third order, dtypes, PyTorch.

Each entry of COMPOSED is tested like a declared op: against NumPy or SciPy, by finite differences, in float32, and
against PyTorch to the second derivative. A function that is neither declared nor listed here fails.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import special

import gmcore
from gmcore import Tensor, ops
from gmcore.errors import DtypeError
from gmcore.op import OPS

try:
    import torch
except ImportError:
    torch = None

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    """Numbers away from 0, where many functions have a kink."""
    return np.asarray(RNG.uniform(0.2, 2.0, shape) * RNG.choice([-1.0, 1.0], shape))


class Composed(NamedTuple):
    formula: Callable[..., Any]
    """The same on NumPy arrays."""
    torch: str | Callable[..., Any]
    """The same on PyTorch's tensors: its name there, or a function."""
    examples: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Positional and keyword arguments; the float64 arrays among them are differentiated."""


def call(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def _dims(x: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _reduction(name: str, **fixed: Any) -> Callable[..., Any]:
    """PyTorch's reduction of that name, with NumPy's axis, keepdims and ddof."""

    def reduction(x: Any, axis: Any = None, keepdims: bool = False, **options: Any) -> Any:
        if "ddof" in options:
            options["correction"] = options.pop("ddof")
        return getattr(torch, name)(x, dim=_dims(x, axis), keepdim=keepdims, **{**fixed, **options})

    return reduction


def _put_along_axis(x: np.ndarray, indices: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    out = x.copy()
    np.put_along_axis(out, indices, values, axis)
    return out


def _set_at(x: np.ndarray, index: Any, values: Any) -> np.ndarray:
    out = x.copy()
    out[index] = values
    return out


def _add_at(x: np.ndarray, index: Any, values: Any) -> np.ndarray:
    out = x.copy()
    np.add.at(out, index, values)
    return out


def _torch_set_at(x: Any, index: Any, values: Any) -> Any:
    out = x.clone()
    out[index] = values
    return out


def _importance_weights(log_w: np.ndarray, axis: int = 0) -> Any:
    weights = special.softmax(log_w, axis)
    return weights, 1 / np.square(weights).sum(axis)


def _torch_importance_weights(log_w: Any, axis: int = 0) -> Any:
    weights = torch.softmax(log_w, axis)
    return weights, 1 / weights.square().sum(axis)


def _topk(x: np.ndarray, k: int, axis: int = -1, largest: bool = True) -> Any:
    order = np.argsort(-x if largest else x, axis, kind="stable").take(np.arange(k), axis)
    return np.take_along_axis(x, order, axis), order


def _torch_pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Any:
    """By indices, because PyTorch pads the last axes of a batch only."""
    widths = np.broadcast_to(pad_width, (x.ndim, 2)).tolist()
    if mode == "constant":
        flat = [n for pair in widths[::-1] for n in pair]
        return torch.nn.functional.pad(x, flat, value=constant_values)
    for axis, pair in enumerate(widths):
        x = x.index_select(axis, torch.from_numpy(np.pad(np.arange(x.shape[axis]), pair, mode)))
    return x


def _gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    if approximate == "tanh":
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * special.ndtr(x)


A, B, V = real(2, 3), real(3, 2, 4), real(5)
PLACES = np.array([[2, 0], [1, 1]])
REDUCTIONS = [call(A), call(B, axis=(0, 2)), call(A, axis=-1, keepdims=True), call(V, axis=0)]
UNARY = [call(real(2, 3)), call(np.asarray(0.7)), call(real(0))]

COMPOSED: dict[str, Composed] = {
    # activations
    "elu": Composed(lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x)), "nn.functional.elu",
                    [*UNARY, call(A, alpha=0.5)]),
    "selu": Composed(lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
                     "nn.functional.selu", UNARY),
    "silu": Composed(lambda x: x * special.expit(x), "nn.functional.silu", UNARY),
    "gelu": Composed(_gelu, "nn.functional.gelu", [*UNARY, call(A, approximate="tanh")]),
    "hardtanh": Composed(lambda x, min_val=-1.0, max_val=1.0: x.clip(min_val, max_val),
                         "nn.functional.hardtanh", [*UNARY, call(A, -0.3, 0.5)]),
    "logsigmoid": Composed(special.log_expit, "nn.functional.logsigmoid", UNARY),
    "softsign": Composed(lambda x: x / (1 + abs(x)), "nn.functional.softsign", UNARY),
    "celu": Composed(lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x / alpha)), "nn.functional.celu",
                     [*UNARY, call(A, alpha=0.5)]),
    "mish": Composed(lambda x: x * np.tanh(np.logaddexp(0, x)), "nn.functional.mish", UNARY),
    "relu6": Composed(lambda x: x.clip(0, 6), "nn.functional.relu6", [*UNARY, call(4 * A)]),
    "hardsigmoid": Composed(lambda x: (x / 6 + 0.5).clip(0, 1),
                            # torch's own has no second derivative
                            lambda x: torch.nn.functional.relu6(x + 3.0) / 6.0, [*UNARY, call(4 * A)]),
    "hardswish": Composed(lambda x: x * (x / 6 + 0.5).clip(0, 1), "nn.functional.hardswish", [*UNARY, call(4 * A)]),
    "hardshrink": Composed(lambda x, lambd=0.5: np.where(abs(x) > lambd, x, 0), "nn.functional.hardshrink",
                           [*UNARY, call(A, 1.0)]),
    "softshrink": Composed(lambda x, lambd=0.5: np.sign(x) * np.maximum(abs(x) - lambd, 0), "nn.functional.softshrink",
                           [*UNARY, call(A, 1.0)]),
    "tanhshrink": Composed(lambda x: x - np.tanh(x), "nn.functional.tanhshrink", UNARY),
    "threshold": Composed(lambda x, threshold, value: np.where(x > threshold, x, value), "nn.functional.threshold",
                          [call(A, 0.1, -3.0), call(real(), 0.0, 2.0)]),
    "prelu": Composed(
        lambda x, w: np.where(x > 0, x, x * w.reshape(() if w.size == 1 else (-1, *[1] * (x.ndim - 2)))),
        "nn.functional.prelu", [call(B, real(2)), call(A, real(3)), call(V, real(1))],
    ),
    "glu": Composed(
        lambda x, axis=-1: np.split(x, 2, axis)[0] * special.expit(np.split(x, 2, axis)[1]),
        lambda x, axis=-1: torch.nn.functional.glu(x, axis), [call(B), call(A, axis=0), call(B, 1)],
    ),
    # elementwise
    "isclose": Composed(
        np.isclose, lambda x, y, **options: torch.isclose(x, torch.as_tensor(y), **options),
        [call(A, A * (1 + 1e-6)), call(A, A + 1e-3),
         call(np.array([np.inf, np.nan, np.inf]), np.array([np.inf, np.nan, 1.0])),
         call(np.array([np.nan, 1.0]), np.array([np.nan, 2.0]), rtol=0.5, equal_nan=True)],
    ),
    "clip": Composed(lambda x, low=None, high=None: np.clip(x, low, high), "clamp",
                     [call(A, -0.5, 0.7), call(A, None, 0.7), call(A, -0.5), call(A, real(3) - 3, real(2, 1) + 3)]),
    "nan_to_num": Composed(np.nan_to_num, "nan_to_num", [*UNARY]),
    "ndtr": Composed(special.ndtr, "special.ndtr", UNARY),
    "log_ndtr": Composed(special.log_ndtr, "special.log_ndtr", [*UNARY, call(3 * real(4) - 4)]),
    "digamma": Composed(special.digamma, "digamma", [call(abs(A)), call(np.array([-0.3, 7.2]))]),
    # reductions
    "mean": Composed(np.mean, _reduction("mean"), REDUCTIONS),
    "var": Composed(np.var, _reduction("var", correction=0), [*REDUCTIONS, call(A, 0, ddof=1)]),
    "std": Composed(np.std, _reduction("std", correction=0), [*REDUCTIONS, call(A, 1, ddof=0.5)]),
    "norm": Composed(
        lambda x, ord=2, axis=None, keepdims=False: np.linalg.vector_norm(x, ord=ord, axis=axis, keepdims=keepdims),
        lambda x, ord=2, axis=None, keepdims=False: torch.linalg.vector_norm(x, ord, axis, keepdims),
        [*REDUCTIONS, call(A, 1, 1), call(A, 3, 0), call(A, 1.5), call(B, np.inf, axis=2), call(A[:0])],
    ),
    # axes
    "expand_dims": Composed(
        np.expand_dims, lambda x, axis: x[None, :, :, None] if axis == (0, -1) else x.unsqueeze(axis),
        [call(A, 1), call(A, -1), call(A, (0, -1))],
    ),
    "squeeze": Composed(
        np.squeeze, lambda x, axis=None: x.squeeze() if axis is None else x.squeeze(axis),
        [call(real(1, 3, 1)), call(real(1, 3, 1), -1), call(real(1, 3, 1), axis=(0, 2)), call(A)],
    ),
    "atleast_1d": Composed(np.atleast_1d, "atleast_1d", [call(real()), call(V)]),
    "atleast_2d": Composed(np.atleast_2d, "atleast_2d", [call(real()), call(V), call(A)]),
    "atleast_3d": Composed(np.atleast_3d, "atleast_3d", [call(real()), call(V), call(A), call(B)]),
    "ravel": Composed(np.ravel, "ravel", [call(B), call(real())]),
    "flatten": Composed(
        lambda x, a=0, b=-1: x.reshape((*x.shape[:a], -1, *x.shape[b % max(x.ndim, 1) + 1 :])),
        "flatten", [call(B), call(B, 1), call(B, 0, 1), call(real())],
    ),
    "moveaxis": Composed(np.moveaxis, "moveaxis", [call(B, 0, -1), call(B, (0, 1), (2, 0))]),
    "swapaxes": Composed(np.swapaxes, "swapaxes", [call(B, 0, -1), call(B, 1, 1)]),
    # arrangement
    "stack": Composed(
        np.stack, lambda xs, axis=0: torch.stack(xs, axis), [call([A, real(2, 3)]), call([A, A], axis=-1)]
    ),
    "split": Composed(
        np.split, lambda x, parts, axis=0: torch.tensor_split(x, parts, axis), [call(B, 3), call(B, (1, 3), axis=2)]
    ),
    "array_split": Composed(
        np.array_split, lambda x, parts, axis=0: torch.tensor_split(x, parts, axis), [call(V, 3), call(B, 3, axis=-1)]
    ),
    "pad": Composed(
        lambda x, width, mode="constant", **options: np.pad(x, width, mode, **options), _torch_pad,
        [call(A, 1), call(A, ((0, 2), (1, 0)), constant_values=-2.0), call(real(), 1), call(V, (9, 7), "reflect")]
        + [call(A, ((2, 1), (0, 4)), mode) for mode in ("edge", "reflect", "symmetric", "wrap")],
    ),
    "repeat": Composed(
        np.repeat, lambda x, n, axis=None: torch.repeat_interleave(x, torch.as_tensor(n), axis),
        [call(A, 2), call(A, 2, axis=0), call(A, [1, 0, 3], axis=1)],
    ),
    "tile": Composed(
        np.tile, lambda x, reps: torch.tile(x, (reps,) if isinstance(reps, int) else reps),
        [call(A, 2), call(A, (2, 1, 3)), call(B, (2, 1)), call(V, 0)],
    ),
    "flip": Composed(np.flip, lambda x, axis=None: x.flip(_dims(x, axis)), [call(A), call(B, 1), call(B, (0, -1))]),
    "roll": Composed(
        np.roll, lambda x, shift, axis=None: torch.roll(x, shift, axis),
        [call(B, 5), call(B, -1, axis=2), call(B, (7, 1), axis=(0, 2)), call(real(0), 1)],
    ),
    "tril": Composed(np.tril, "tril", [call(B), call(A, 1), call(A, -1)]),
    "triu": Composed(np.triu, "triu", [call(B), call(A, 1), call(A, -1)]),
    "meshgrid": Composed(
        np.meshgrid, lambda *xs, indexing="xy": torch.meshgrid(*xs, indexing=indexing),
        [call(V, real(2)), call(V, real(2), real(3), indexing="ij"), call(V, real(2), real(3))],
    ),
    # indexing
    "take": Composed(
        np.take, lambda x, i, axis=None: x.ravel()[i] if axis is None else x[(*(slice(None),) * axis, i)],
        [call(A, np.array([5, 0, 0])), call(B, PLACES, axis=2), call(B, PLACES, axis=0), call(B, 1, axis=1)],
    ),
    "take_along_axis": Composed(
        np.take_along_axis, lambda x, i, axis: torch.take_along_dim(x, torch.from_numpy(i), axis),
        [call(A, PLACES, 1), call(A, np.array([[1, 0, 1]]), 0), call(A, np.array([[-1]]) + 3, 1)],
    ),
    "put_along_axis": Composed(
        _put_along_axis, lambda x, i, v, axis: x.scatter(axis, torch.from_numpy(i), v.expand(i.shape)),
        [call(A, np.array([[2, 0], [1, 0]]), real(2, 2), 1), call(A, np.array([[1, 0, 1]]), real(1, 3), 0)],
    ),
    "set_at": Composed(
        _set_at, _torch_set_at,
        [call(A, 1, real(3)), call(A, (slice(None), 1), real()), call(A, np.array([1, 0]), real(1, 3)),
         call(A, A > 0, real())],
    ),
    "add_at": Composed(
        _add_at, lambda x, i, v: x.index_put((torch.from_numpy(i),), v, accumulate=True),
        [call(A, np.array([1, 0, 1]), real(3, 3)), call(A, np.array([1, 1]), real(3))],
    ),
    "sort": Composed(np.sort, lambda x, axis=-1: torch.sort(x, axis)[0], [call(B), call(B, axis=0), call(real(0))]),
    "topk": Composed(
        _topk, lambda x, k, axis=-1, largest=True: torch.topk(x, k, axis, largest),
        [call(B, 2), call(B, 3, axis=0), call(B, 1, axis=-2, largest=False), call(V, 0)],
    ),
    "quantile": Composed(
        np.quantile, lambda x, q, axis=None, keepdims=False: torch.quantile(x, q, axis, keepdims),
        [call(A, 0.3), call(B, 0.7, 1), call(B, 1.0, -1), call(A, 0.0, 0, keepdims=True), call(A, 0.4, keepdims=True)],
    ),
    "median": Composed(
        np.median, lambda x, axis=None, keepdims=False: torch.quantile(x, 0.5, axis, keepdims),
        [call(A), call(V), call(B, 1), call(A, keepdims=True)],
    ),
    "one_hot": Composed(
        lambda x, classes=-1: np.eye(x.max() + 1 if classes == -1 else classes, dtype=np.int64)[x],
        lambda x, classes=-1: torch.nn.functional.one_hot(torch.from_numpy(x), classes),
        [call(PLACES), call(PLACES, 5)],
    ),
    # likelihood
    "importance_weights": Composed(
        _importance_weights, _torch_importance_weights, [call(V), call(A), call(B, axis=1), call(A, -1)],
    ),
}  # fmt: skip

# Made of ops elsewhere, or no computation: tested where they belong.
ELSEWHERE = {
    "ACTIVATIONS", "to_device", "straight_through",
    # tests/gmcore/ops
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "conv1d", "conv_transpose1d", "conv_transpose2d",
    "max_pool1d", "max_unpool1d", "max_unpool2d",
    "batch_norm", "cosine_embedding_loss", "cosine_similarity", "cross_entropy", "diag", "dot", "einsum",
    "gaussian_nll_loss", "group_norm", "hinge_embedding_loss", "hinge_loss", "huber_loss", "inner", "kl_div",
    "l1_loss", "layer_norm", "margin_ranking_loss", "mse_loss", "multi_margin_loss", "nll_loss", "outer",
    "contrastive_divergence", "poisson_nll_loss", "rms_norm", "smooth_l1_loss", "softmin", "tensordot", "trace",
}  # fmt: skip


def test_every_function_is_tested() -> None:
    declared = {op.public.__name__ for op in OPS.values()}
    assert set(ops.__all__) <= declared | set(COMPOSED) | ELSEWHERE
    assert not declared & set(COMPOSED)


def map_floats(f: Callable[[np.ndarray], Any], value: Any) -> Any:
    """`value` with f applied to each float64 array in it, also inside lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(map_floats(f, item) for item in value)
    return f(value) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


def as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


class Case:
    """One example: ``case(*arrays)`` calls the function with its float64 arrays replaced."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.composed = name, COMPOSED[name]
        self.args, self.kwargs = self.composed.examples[number]
        self.id = f"{name}-{number}"
        self.inputs: list[np.ndarray] = []
        map_floats(self.inputs.append, self.args)

    def on(self, function: Callable[..., Any], inputs: Any) -> list[Any]:
        given = iter(inputs)
        return as_list(function(*map_floats(lambda _: next(given), self.args), **self.kwargs))

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(self.on(getattr(ops, self.name), inputs))

    def gradients(self, dtype: Any) -> tuple[list[Tensor], list[Tensor]]:
        xs = [Tensor(x.astype(dtype), requires_grad=True) for x in self.inputs]
        ys = [y for y in self(*xs) if y.dtype.kind == "f"]
        rng = np.random.default_rng(1)
        weights = [np.asarray(rng.uniform(-1.0, 1.0, y.shape)).astype(y.dtype) for y in ys]
        return ys, list(gmcore.grad(ys, xs, weights, fill=True)) if ys else []


CASES = [Case(name, i) for name, composed in COMPOSED.items() for i in range(len(composed.examples))]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
each_differentiable = pytest.mark.parametrize(
    "case", [case for case in CASES if case.inputs], ids=[case.id for case in CASES if case.inputs]
)


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Within `tolerance`, relative to the largest expected magnitude (at least 1)."""
    expected = np.asarray(expected)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@each_case
def test_value(case: Case) -> None:
    found, expected = case(*case.inputs), case.on(case.composed.formula, case.inputs)
    for y, e in zip(found, expected, strict=True):
        assert y.dtype == np.asarray(e).dtype
        close(y.numpy(), e, 1e-13)  # some dozen roundings of terms of size at most 10


@each_differentiable
def test_derivatives_to_third_order(case: Case) -> None:
    assert gmcore.gradcheck(case, case.inputs, order=3, directions=1)


@each_differentiable
def test_float32_stays_float32(case: Case) -> None:
    for found, expected in zip(case.gradients(np.float32), case.gradients(np.float64), strict=True):
        for y, e in zip(found, expected, strict=True):
            assert (y.dtype, e.dtype) == (np.float32, np.float64)
            close(y.detach().numpy(), e.detach().numpy(), 2.5e-5)  # as for the declared ops


@each_differentiable
def test_inputs_are_not_written(case: Case) -> None:
    inputs = [x.copy() for x in case.inputs]
    for x in inputs:
        x.flags.writeable = False
    case(*inputs)
    for x, original in zip(inputs, case.inputs, strict=True):
        assert x.tobytes() == original.tobytes()


@pytest.mark.skipif(torch is None, reason="PyTorch is the oracle")
@each_case
def test_matches_pytorch(case: Case) -> None:
    """Values, gradients of weighted sums and gradients of their weighted sums, in float64."""
    xs = [gmcore.tensor(x, requires_grad=True) for x in case.inputs]
    ts = [torch.tensor(x, requires_grad=True) for x in case.inputs]
    function = case.composed.torch
    ys, us = (
        list(case(*xs)),
        case.on(operator.attrgetter(function)(torch) if isinstance(function, str) else function, ts),
    )
    for order in range(3):
        for y, u in zip(ys, us, strict=True):
            close(y.detach().numpy(), u.detach().numpy(force=True), 1e-9)
        pairs = [(y, u) for y, u in zip(ys, us) if u.requires_grad]
        if not pairs:
            return
        rng = np.random.default_rng(order)
        weights = [np.asarray(rng.uniform(-1.0, 1.0, y.shape)) for y, _ in pairs]
        us = torch.autograd.grad([u for _, u in pairs], ts, list(map(torch.from_numpy, weights)), create_graph=True,
                                 materialize_grads=True)  # fmt: skip
        if any(y.requires_grad for y, _ in pairs):
            kept = [(y, w) for (y, _), w in zip(pairs, weights) if y.requires_grad]
            ys = gmcore.grad([y for y, _ in kept], xs, [w for _, w in kept], create_graph=True, fill=True)
        else:
            ys = [Tensor(np.zeros(x.shape)) for x in xs]


# -- what the examples leave out -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_quantiles_beside_limits(dtype: str) -> None:
    """An element that has no share in a quantile does not count, infinite or NaN; and no difference overflows."""
    inf, nan = np.inf, np.nan
    high = 100 if dtype == "int8" else float(np.finfo(dtype).max)
    rows = [([-high, high], 0.5, 0.0), ([high, high, -high], 0.25, 0.0), ([3, 4], 1.0, 4.0)]
    if dtype != "int8":
        rows += [([inf, 1, 2], 0.5, 2.0), ([nan, 1, 2], 0.5, 2.0), ([1, 2, inf], 0.0, 1.0), ([2, -inf, 3], 0.5, 2.0),
                 ([inf, inf, 1, -inf], 0.9, inf), ([1, nan], 0.5, nan)]  # fmt: skip
    for x, q, expected in rows:
        assert str(ops.quantile(np.array(x, dtype), q).item()) == str(expected)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float64"])
def test_writing_keeps_the_dtype(dtype: str) -> None:
    """2^53 + 1 is no float64; a place of an array of no dimensions is one too, and the last of two values stays."""
    large = np.array([2**53 + 1, 2, 3] if dtype == "int64" else [0, 2, 3], dtype)
    written = [
        (1, large[0]),
        ((np.array(1),), large[0]),
        (np.array([False, True, False]), large[0]),
        ([1, 1], large[[2, 0]]),
    ]
    for index, values in written:
        y = ops.set_at(large, index, values)
        assert y.dtype == large.dtype and y.tolist() == large[[0, 0, 2]].tolist()
    y = ops.put_along_axis(large, np.array([1]), large[:1], 0)
    assert y.dtype == large.dtype and y.tolist() == large[[0, 0, 2]].tolist()
    y = ops.set_at(large[None], (np.array(0), np.array(1)), large[0])
    assert y.dtype == large.dtype and y.tolist() == [large[[0, 0, 2]].tolist()]


def test_integers_do_not_wrap() -> None:
    """Differences, squares and exponentials of small integers are those of the numbers."""
    a, b = np.array([[200, 100, 3]], np.uint8), np.array([[20, 250, 4]], np.uint8)
    wide = (a.astype(np.float64), b.astype(np.float64))
    losses = (ops.mse_loss, ops.l1_loss, ops.huber_loss, ops.smooth_l1_loss, ops.hinge_loss, ops.cosine_similarity,
              ops.isclose)  # fmt: skip
    for function in losses:
        assert function(a, b).tolist() == function(*wide).tolist()
    assert ops.isclose(a, b, rtol=1.0).tolist() == np.isclose(a, b, rtol=1.0).tolist() == [[False, True, True]]
    assert ops.isclose(a > 0, b > 0).all() and ops.isclose(np.full(1, 0.1), 0.1, rtol=1e-12).all()
    assert ops.softplus(a).tolist() == ops.softplus(wide[0]).tolist()
    assert ops.logsigmoid(a).tolist() == ops.logsigmoid(wide[0]).tolist()
    least = np.array([-128, 100], np.int8)
    assert ops.softplus(least).tolist() == ops.softplus(least.astype(float)).tolist()
    for ord in (1, 2, 3, np.inf):
        close(ops.norm(least, ord).numpy(), np.linalg.vector_norm(least.astype(float), ord=ord), 1e-14)
    for refuse in (ops.logsumexp, lambda x: ops.nll_loss(x, [0]), lambda x: ops.multi_margin_loss(x, [0])):
        with pytest.raises(DtypeError, match="expected floating numbers, got uint8"):
            refuse(a)


@pytest.mark.parametrize("ord", [0.5, 1, 1.5, 2, 3, np.inf])
def test_derivatives_of_norms_at_zeros(ord: float) -> None:
    """An element that is 0 has no part in them, among others or alone."""
    x, others = (gmcore.tensor(a, requires_grad=True) for a in (np.array([0.0, 0.7, -0.4]), np.array([0.7, -0.4])))
    found, expected = (ops.square(ops.norm(leaf, ord)) for leaf in (x, others))
    for _ in range(2):
        g, e = gmcore.grad(found, x, create_graph=True), gmcore.grad(expected, others, create_graph=True)
        assert g.tolist() == [0.0, *e.tolist()]
        found, expected = ops.sum(ops.square(g)), ops.sum(ops.square(e))
    zeros = gmcore.tensor(np.zeros(3), requires_grad=True)
    assert gmcore.grad(ops.norm(zeros, ord), zeros).tolist() == [0.0] * 3


def test_a_number_has_no_dtype_in_a_product() -> None:
    x = np.array([3.0, 7.0])
    for product in (ops.dot, ops.inner):
        assert product(x, 0.1).tolist() == product(0.1, x).tolist() == (x * 0.1).tolist()
        assert product(x.astype("float32"), 0.1).dtype == np.float32


@pytest.mark.parametrize("size", [3, 40_000])
def test_nan_stays_under_a_threshold(size: int) -> None:
    """One that became 0 would hide what is wrong; also where the function is one loop."""
    x = np.resize([np.nan, 0.1, 2.0], size)
    functions = (ops.hardshrink, ops.softshrink, lambda x: ops.threshold(x, 0.2, -1.0), ops.relu6, ops.leaky_relu,
                 ops.elu, lambda x: ops.prelu(x, [0.5]))  # fmt: skip
    for function in functions:
        assert np.isnan(function(x).numpy()).tolist() == np.isnan(x).tolist()
