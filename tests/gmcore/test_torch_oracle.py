"""Every op against PyTorch in float64: values, gradients and second gradients to 1e-9; then random programs."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gmcore
from gmcore import Tensor, ops
from gmcore.op import OPS

torch = pytest.importorskip("torch")

TOLERANCE = 1e-9


# -- the counterparts ----------------------------------------------------------------------------------------
def _cells(shape: tuple[int, ...], index: Any) -> Any:
    """Positions in C order of the elements that an index selects; PyTorch has no negative steps."""
    return torch.from_numpy(np.ascontiguousarray(np.arange(np.prod(shape)).reshape(shape)[index]))


def _scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    zeros = torch.zeros(int(np.prod(shape)), dtype=x.dtype)
    cells = _cells(shape, index)
    return zeros.index_add(0, cells.ravel(), x.expand(cells.shape).reshape(-1)).reshape(shape)


def _axes(x: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return torch.logsumexp(x, _axes(x, axis), keepdims) if x.ndim else x.clone()


def _activation(a: Any, activation: str) -> Any:
    functions = {"identity": lambda a: a, "softplus": torch.nn.functional.softplus}
    return functions.get(activation, getattr(torch, activation, None))(a)


def _linear(x: Any, weight: Any, bias: Any, activation: str = "identity") -> Any:
    return _activation(torch.nn.functional.linear(x, weight, bias), activation)


def _activation_backward(g: Any, y: Any, activation: str) -> Any:
    """The derivative of the activation at the argument that gives y, by PyTorch's own backward pass."""
    inverse = {
        "identity": lambda y: y,
        "tanh": torch.atanh,
        "sigmoid": torch.logit,
        "relu": lambda y: y,
        "softplus": lambda y: torch.log(torch.expm1(y)),
    }
    a = inverse[activation](y)
    d_pre = torch.autograd.grad(_activation(a, activation), a, g, create_graph=True)[0]
    return d_pre, d_pre.reshape(-1, y.shape[-1]).sum(0)


def _noise(mu: Any, key: Tensor, samples: int | None) -> Any:
    """The noise of the op's own stream, fed into PyTorch's formula."""
    shape = tuple(mu.shape) if samples is None else (samples, *mu.shape)
    return torch.from_numpy(ops.normal(shape, dtype="float64", key=key).numpy().copy())


def _gaussian_sample(mu: Any, logvar: Any, samples: int | None, key: Tensor) -> Any:
    q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    z = q.loc + q.scale * _noise(mu, key, samples)
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return z, torch.distributions.kl_divergence(q, prior).sum(-1), q.log_prob(z).sum(-1)


def _gaussian_sample_backward(
    g_z: Any, g_kl: Any, g_log_q: Any, mu: Any, logvar: Any, key: Tensor, samples: int | None
) -> Any:
    ys = _gaussian_sample(mu, logvar, samples, key)
    return torch.autograd.grad(ys, (mu, logvar), (g_z, g_kl, g_log_q), create_graph=True)


def _bernoulli_log_prob(logits: Any, x: Any) -> Any:
    x = x.expand_as(logits)
    return -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def _bernoulli_log_prob_backward(g: Any, logits: Any, x: Any) -> Any:
    return torch.autograd.grad(_bernoulli_log_prob(logits, x), logits, g, create_graph=True)[0]


def _linear_bernoulli_residual(h: Any, weight: Any, bias: Any, x: Any) -> Any:
    logits = torch.nn.functional.linear(h, weight, bias)
    return _bernoulli_log_prob(logits, x), x - torch.sigmoid(logits)


def _linear_bernoulli_residual_backward(g: Any, residual: Any, h: Any, weight: Any) -> Any:
    bias = torch.zeros(len(weight), dtype=h.dtype, requires_grad=True)
    logits = torch.nn.functional.linear(h, weight, bias)
    return torch.autograd.grad(logits, (h, weight, bias), g[..., None] * residual, create_graph=True)


def _iwae_bound(log_w: Any, axis: int) -> Any:
    return torch.logsumexp(log_w, axis) - np.log(log_w.shape[axis])


def _positive_columns(x: Any) -> Any:
    """The signs that make the largest element of each column positive, with an axis of rows in front."""
    if not x.numel():
        return torch.ones_like(x[..., :1, :])
    return torch.sign(torch.take_along_dim(x, x.abs().argmax(-2, keepdim=True), -2)).detach()


def _qr(a: Any) -> Any:
    q, r = torch.linalg.qr(a)
    sign = torch.sign(torch.diagonal(r, 0, -2, -1)).detach()
    return q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)


def _eigh(a: Any) -> Any:
    w, v = torch.linalg.eigh((a + a.mT) / 2)
    return w, v * _positive_columns(v)


def _svd(a: Any) -> Any:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return u * _positive_columns(u), s, vh * _positive_columns(u).mT


def _dropout(x: Any, p: float, key: Tensor) -> Any:
    mask = ops.dropout(np.ones(tuple(x.shape)), p, key=key).numpy()
    return x * torch.tensor(mask)


def _weighted(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss with its weight applied outside, where PyTorch gives it a gradient."""

    def function(x: Any, t: Any, weight: Any = 1.0, reduction: str = "mean") -> Any:
        return getattr(torch, reduction)(loss(x, t, reduction="none") * weight)

    return function


def _prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    for at in sorted((a % x.ndim for a in _axes(x, axis)), reverse=True):
        x = x.prod(at, keepdim=keepdims)
    return x if x.requires_grad else x.clone()


def _linear_recurrence(a: Any, b: Any, axis: int) -> Any:
    out = [b.select(axis, i) for i in range(b.shape[axis])]
    for i in range(1, len(out)):
        out[i] = a.select(axis, i) * out[i - 1] + out[i]
    return torch.stack(out, axis) if out else b.clone()


def _running(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis: function(x.ravel(), 0) if axis is None else function(x, axis)


def _logical(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, _axes(x, axis), keepdims) if x.ndim else x != 0


def _first(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, axis, keepdims)


def _standardize(x: Any, axis: Any, eps: float = 1e-5) -> Any:
    mean = x.mean(_axes(x, axis), True)
    var = (x - mean).square().mean(_axes(x, axis), True)
    return (x - mean) * torch.rsqrt(var + eps), mean, var


def _conv2d(*args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that even kernels need a copy for padding="same"
        return torch.nn.functional.conv2d(*args, **options)


def _conv2d_of(x: Any, weight: Any, padding: Any, **options: Any) -> Any:
    """With zeros that may differ from side to side."""
    padded = torch.nn.functional.pad(x, (*padding[1], *padding[0]))
    return torch.nn.functional.conv2d(padded, weight, **options)


def _conv2d_backward_input(g: Any, weight: Any, size: Any, groups: int, **options: Any) -> Any:
    x = torch.zeros(len(g), weight.shape[1] * groups, *size, dtype=g.dtype, requires_grad=True)
    return torch.autograd.grad(_conv2d_of(x, weight, groups=groups, **options), x, g, create_graph=True)[0]


def _conv2d_backward_weight(g: Any, x: Any, size: Any, groups: int, **options: Any) -> Any:
    weight = torch.zeros(g.shape[1], x.shape[1] // groups, *size, dtype=g.dtype, requires_grad=True)
    return torch.autograd.grad(_conv2d_of(x, weight, groups=groups, **options), weight, g, create_graph=True)[0]


def _plane_gather(x: Any, indices: np.ndarray) -> Any:
    places = torch.from_numpy(indices)
    return x.flatten(2).gather(2, places.flatten(2)).reshape(places.shape)


def _plane_scatter(x: Any, indices: np.ndarray, size: Any) -> Any:
    zeros = torch.zeros(*x.shape[:2], size[0] * size[1], dtype=x.dtype)
    return zeros.scatter_add(2, torch.from_numpy(indices).flatten(2), x.flatten(2)).unflatten(2, size)


def _avg_pool2d_backward(g: Any, size: Any, kernel: Any, divisor: Any, **windows: Any) -> Any:
    x = torch.zeros(*g.shape[:2], *size, dtype=g.dtype, requires_grad=True)
    y = torch.nn.functional.avg_pool2d(x, kernel, divisor_override=divisor, **windows)
    return torch.autograd.grad(y, x, g, create_graph=True)[0]


def _batch_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    axes = (0, *range(2, x.ndim))
    out = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.1, eps)
    return out, x.mean(axes), x.var(axes, correction=0)


def _recurrent(step: Callable[..., Any], x: Any, states: Any, batch_sizes: Any, reverse: bool) -> tuple[Any, Any]:
    """step(rows of x, states) -> (states, outputs of the rows), over packed sequences: states and all outputs."""
    ends = np.cumsum(batch_sizes).tolist()
    steps = list(zip([end - n for end, n in zip(ends, batch_sizes)], ends))
    found = {}
    for low, high in steps[::-1] if reverse else steps:
        new, found[low] = step(x[low:high], [s[: high - low] for s in states])
        states = [torch.cat([a, s[high - low :]]) for a, s in zip(new, states)]
    rows = [found[low] for low, _ in steps]
    return states, [torch.cat(parts) for parts in zip(*rows)]


def _without_steps(x: Any, h0: Any, *widths: int) -> list[Any]:
    return [x.reshape(0, width * h0.shape[1]) for width in widths]


def _rnn(x: Any, h0: Any, weight: Any, batch_sizes: Any, nonlinearity: str, reverse: bool) -> Any:
    def step(x: Any, states: Any) -> Any:
        h = getattr(torch, nonlinearity)(x + states[0] @ weight.T)
        return [h], [h]

    (h_n,), outputs = _recurrent(step, x, [h0], batch_sizes, reverse)
    return (*(outputs or _without_steps(x, h0, 1)), h_n.clone())


def _lstm(x: Any, h0: Any, c0: Any, weight: Any, batch_sizes: Any, reverse: bool) -> Any:
    def step(x: Any, states: Any) -> Any:
        h, c = states
        i, f, g, o = (x + h @ weight.T).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * c + i * g
        h = o * torch.tanh(c)
        return [h, c], [h, c, torch.cat([i, f, g, o], 1)]

    (h_n, c_n), outputs = _recurrent(step, x, [h0, c0], batch_sizes, reverse)
    h, c, gates = outputs or _without_steps(x, h0, 1, 1, 4)
    return h, h_n.clone(), c_n.clone(), c, gates


def _gru(x: Any, h0: Any, weight: Any, bias_n: Any, batch_sizes: Any, reset_after: bool, reverse: bool) -> Any:
    w_rz, w_n = weight[: 2 * h0.shape[1]], weight[2 * h0.shape[1] :]

    def step(x: Any, states: Any) -> Any:
        (h,) = states
        r, z = torch.sigmoid(x[:, : w_rz.shape[0]] + h @ w_rz.T).chunk(2, 1)
        reset = h @ w_n.T + bias_n if reset_after else r * h
        n = torch.tanh(x[:, w_rz.shape[0] :] + (r * reset if reset_after else reset @ w_n.T + bias_n))
        h = (1 - z) * n + z * h
        return [h], [h, torch.cat([r, z, n], 1), reset]

    (h_n,), outputs = _recurrent(step, x, [h0], batch_sizes, reverse)
    h, gates, reset = outputs or _without_steps(x, h0, 1, 3, 1)
    return h, h_n.clone(), gates, reset


def _gibbs_half_step(states: Any, weight: Any, bias: Any, units: str, key: Tensor) -> Any:
    """Its sample is of another random stream; of Gaussian units, the op's own noise is fed in."""
    inputs = torch.nn.functional.linear(torch.as_tensor(states, dtype=weight.dtype), weight, bias)
    return (inputs, inputs + _noise(inputs, key, None)) if units == "gaussian" else torch.sigmoid(inputs)


def _free_energy(visible: Any, weight: Any, visible_bias: Any, hidden_bias: Any, units: str) -> Any:
    visible = torch.as_tensor(visible, dtype=weight.dtype)
    inputs = torch.nn.functional.linear(visible, weight, hidden_bias)
    own = (visible - visible_bias).square().sum(-1) / 2 if units == "gaussian" else -torch.mv(visible, visible_bias)
    return own - torch.nn.functional.softplus(inputs).sum(-1), torch.sigmoid(inputs)


COUNTERPARTS: dict[str, Callable[..., Any]] = {
    "batch_norm_training": _batch_norm,
    "max_pool2d": torch.nn.functional.max_pool2d,
    "avg_pool2d": torch.nn.functional.avg_pool2d,
    "avg_pool2d_backward": _avg_pool2d_backward,
    "plane_gather": _plane_gather,
    "plane_scatter": _plane_scatter,
    "conv2d": _conv2d,
    "conv2d_backward_input": _conv2d_backward_input,
    "conv2d_backward_weight": _conv2d_backward_weight,
    **{name: getattr(torch, name) for name in (
        "add", "subtract", "multiply", "divide", "negative", "square", "absolute", "sign", "sqrt", "exp", "expm1",
        "log", "log1p", "sin", "cos", "tanh", "sigmoid", "relu", "maximum", "minimum", "where", "reshape", "matmul",
        "greater", "greater_equal", "less", "less_equal", "not_equal", "isfinite", "broadcast_to",
        "reciprocal", "hypot", "floor", "ceil", "trunc", "remainder", "exp2", "log2", "log10", "logaddexp", "tan",
        "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh", "arcsinh", "arccosh", "arctanh", "isinf", "isnan",
        "logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor",
        "erf", "erfc", "erfinv", "lgamma", "polygamma", "argsort", "fmax", "fmin", "fmod", "copysign",
        "logaddexp2", "signbit",
    )},
    "equal": torch.eq,
    # torch.heaviside has no derivative.
    "heaviside": lambda x, y: torch.where(x == 0, y, (x > 0).to(x.dtype)),
    "power": torch.pow,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda x: x.clone(),
    "fused": lambda function, x, y: torch.tanh(x * y) * x + torch.exp(-y),
    "checkpoint": lambda function, x, y: (torch.tanh(x * y) * x, torch.exp(y) + x * x),
    "cast": lambda x, dtype: x.to(getattr(torch, dtype)),
    "to_device": lambda x, device: x.to(device),
    "transpose": lambda x, axes: x.permute(axes or tuple(range(x.ndim))[::-1]),
    "sum_to": lambda x, shape: x.sum_to_size(shape),
    "getitem": lambda x, index: x.reshape(-1)[_cells(tuple(x.shape), index)],
    "scatter_add": _scatter_add,
    "softmax_cross_entropy": lambda a, target: (
        torch.nn.functional.cross_entropy(a, torch.from_numpy(target), reduction="none"), torch.softmax(a, 1)
    ),
    "softmax_cross_entropy_backward": lambda g, p, target: (
        g[:, None] * (p - torch.nn.functional.one_hot(torch.from_numpy(target), p.shape[1]))
    ),
    "gather_rows": lambda table, index: table[index],
    "scatter_add_rows": lambda x, index, rows: torch.zeros(
        rows, *x.shape[index.ndim :], dtype=x.dtype
    ).index_put((torch.from_numpy(index),), x, accumulate=True),
    "concatenate": lambda xs, axis: torch.cat(xs, axis),
    "sum": lambda x, axis=None, keepdims=False: x.sum(_axes(x, axis), keepdims),
    "max": lambda x, axis=None, keepdims=False: x.amax(_axes(x, axis), keepdims),
    "logsumexp": _logsumexp,
    "diagonal": lambda x, offset=0, axis1=0, axis2=1: torch.diagonal(x, offset, axis1, axis2),
    "diag_embed": lambda x, offset=0, axis1=-2, axis2=-1: torch.diag_embed(x, offset, axis1, axis2),
    **{name: getattr(torch.linalg, name) for name in ("inv", "solve", "solve_triangular", "det", "slogdet")},
    "cholesky": lambda a: torch.linalg.cholesky((a + a.mT) / 2),
    "qr": _qr,
    "eigh": _eigh,
    "svd": _svd,
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "dropout": _dropout,
    "xlogy": torch.xlogy,
    **{name: _weighted(getattr(torch.nn.functional, name)) for name in (
        "binary_cross_entropy", "binary_cross_entropy_with_logits",
    )},
    "rint": torch.round,
    "cbrt": lambda x: torch.sign(x) * torch.pow(torch.abs(x), 1 / 3),
    "floor_divide": lambda x, y: torch.floor(x / y),
    "invert": torch.bitwise_not,
    "erfcx": lambda x: torch.exp(x * x) * torch.erfc(x),
    "ndtri": torch.special.ndtri,
    "min": lambda x, axis=None, keepdims=False: x.amin(_axes(x, axis), keepdims),
    "prod": _prod,
    "any": _logical(torch.any),
    "all": _logical(torch.all),
    "argmax": _first(torch.argmax),
    "argmin": _first(torch.argmin),
    "cumsum": _running(torch.cumsum),
    "cumprod": _running(torch.cumprod),
    "linear_recurrence": _linear_recurrence,
    "standardize": _standardize,
    "linear": _linear,
    "rnn": _rnn,
    "lstm": _lstm,
    "gru": _gru,
    "activation_backward": _activation_backward,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "leaky_relu_backward": lambda g, x, negative_slope: torch.where(x > 0, g, negative_slope * g),
    "gaussian_sample": _gaussian_sample,
    "gaussian_sample_backward": _gaussian_sample_backward,
    "bernoulli_log_prob": _bernoulli_log_prob,
    "bernoulli_log_prob_backward": _bernoulli_log_prob_backward,
    "linear_bernoulli_log_prob": lambda *layer, recompute: _linear_bernoulli_residual(*layer)[0],
    "linear_bernoulli_log_prob_backward": lambda g, h, weight, bias, x: _linear_bernoulli_residual_backward(
        g, _linear_bernoulli_residual(h, weight, bias, x)[1], h, weight
    ),
    "linear_bernoulli_residual": _linear_bernoulli_residual,
    "linear_bernoulli_residual_backward": _linear_bernoulli_residual_backward,
    "iwae_bound": _iwae_bound,
    "iwae_bound_backward": lambda g, log_w, highest, scale, axis: (
        (g * scale).unsqueeze(axis) * torch.exp(log_w - highest.unsqueeze(axis))
    ),
    "gibbs_half_step": _gibbs_half_step,
    "free_energy": _free_energy,
}  # fmt: skip
NO_COUNTERPART = {
    "batch_norm_backward": "as the derivative of batch_norm_training, which is compared to second order",
    **{f"{name}_backward": f"a function of arrays that {name} saved; second gradients of {name}" for name in (
        "rnn", "lstm", "gru",
    )},
    "gammainc": "PyTorch has no derivative in a; against SciPy and mpmath in tests/gmkernels/test_special.py",
    "gammainc_grad_a": "PyTorch has no derivative in a; against mpmath in tests/gmkernels/test_special.py",
    "normal": "another random stream; known answers in tests/gmkernels",
    "uniform": "another random stream; known answers in tests/gmkernels",
    **{name: "another random stream; tests/gmkernels/test_rejection.py" for name in (
        "standard_gamma", "poisson", "binomial",
    )},
    "standard_gamma_grad": "PyTorch's is an approximation; against mpmath in tests/gmkernels/test_rejection.py",
    "bernoulli_sample": "another random stream, and no derivative; its formula in test_ops.py",
    **{name: "another random stream; against enumeration in tests/gmkernels/test_gibbs.py" for name in (
        "gibbs_chain", "boltzmann_sweep",
    )},
    "bernoulli_sample_logits": "another random stream, and no derivative; its formula in test_ops.py",
}  # fmt: skip
EXAMPLES = {
    f"{name}-{i}": (name, example)
    for name, op in OPS.items()
    if name in COUNTERPARTS
    for i, example in enumerate(op.examples(np.random.default_rng(0)))
}


def test_every_op_has_a_counterpart_or_a_reason() -> None:
    assert set(OPS) == set(COUNTERPARTS) | set(NO_COUNTERPART)
    assert not set(COUNTERPARTS) & set(NO_COUNTERPART)


# -- comparison ------------------------------------------------------------------------------------------------
def map_arrays(f: Callable[[np.ndarray], Any], value: Any) -> Any:
    """f of every array in `value` that is not an index."""
    if isinstance(value, (list, tuple)):
        return type(value)(map_arrays(f, item) for item in value)
    return f(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fb" else value


def as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


def weighted(ys: list[Any], make: Callable[[np.ndarray], Any], seed: int) -> list[tuple[Any, Any]]:
    """The outputs with weights to contract them with, the same ones for both libraries."""
    rng = np.random.default_rng(seed)
    return [(y, make(rng.uniform(-1.0, 1.0, tuple(y.shape)))) for y in ys]


def ours(function: Callable[..., Any], xs: list[Tensor]) -> list[list[Any]]:
    """Values, gradients and second gradients of weighted sums."""
    levels = [[y for y in as_list(function()) if y.dtype.kind == "f"]]
    for order in (1, 2):
        pairs = [(y, w) for y, w in weighted(levels[-1], gmcore.tensor, order) if y.requires_grad]
        ys, ws = [y for y, _ in pairs], [w for _, w in pairs]
        levels.append(list(gmcore.grad(ys, xs, ws, create_graph=True, fill=True)) if xs else [])
    return [[t.detach().numpy() for t in level] for level in levels]


def theirs(function: Callable[..., Any], xs: list[Any]) -> list[list[Any]]:
    levels = [[y for y in as_list(function()) if y.is_floating_point()]]
    for order in (1, 2):
        pairs = [(y, w) for y, w in weighted(levels[-1], torch.from_numpy, order) if y.requires_grad]
        ys, ws = [y for y, _ in pairs], [w for _, w in pairs]
        if not ys:
            levels.append([torch.zeros_like(x) for x in xs])
            continue
        options: dict[str, Any] = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        levels.append(list(torch.autograd.grad(ys, xs, ws, **options)))
    return [[t.detach().numpy(force=True) for t in level] for level in levels]


def agree(found: list[list[Any]], expected: list[list[Any]]) -> None:
    for order, (level, references) in enumerate(zip(found, expected, strict=True)):
        for y, reference in zip(level, references, strict=True):
            assert y.shape == reference.shape
            scale = max(1.0, float(np.max(np.abs(reference), initial=0.0)))
            np.testing.assert_allclose(y, reference, TOLERANCE, TOLERANCE * scale, err_msg=f"order {order}")


@pytest.mark.parametrize("name, example", EXAMPLES.values(), ids=EXAMPLES)
def test_op(name: str, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    args, kwargs = example
    if name == "getitem" or name == "scatter_add":  # the second argument is an index, not data
        args, rest = args[:1], args[1:]
    else:
        rest = ()
    xs: list[Tensor] = []
    torch_xs: list[Any] = []

    def leaf(a: np.ndarray) -> Tensor:
        x = gmcore.tensor(a, requires_grad=a.dtype == np.float64)
        xs.extend([x] if x.requires_grad else [])
        return x

    def torch_leaf(a: np.ndarray) -> Any:
        x = torch.tensor(a, requires_grad=a.dtype == np.float64)
        torch_xs.extend([x] if x.requires_grad else [])
        return x

    our_args, torch_args = map_arrays(leaf, args), map_arrays(torch_leaf, args)
    found = ours(lambda: OPS[name].public(*our_args, *rest, **kwargs), xs)
    expected = theirs(lambda: COUNTERPARTS[name](*torch_args, *rest, **kwargs), torch_xs)
    agree(found, expected)


@pytest.mark.parametrize(
    "name",
    [
        "equal",
        "not_equal",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
        "isfinite",
        "isinf",
        "isnan",
        "logical_and",
        "logical_or",
        "logical_xor",
        "logical_not",
    ],
)
def test_comparisons(name: str) -> None:
    x, y = np.array([1.0, 2.0, np.nan, np.inf]), np.array([1.0, 3.0, 0.0, -np.inf])
    arrays = [x, y][: len(OPS[name].inputs)]
    found = OPS[name].public(*map(gmcore.tensor, arrays))
    np.testing.assert_array_equal(found.numpy(), COUNTERPARTS[name](*map(torch.tensor, arrays)).numpy())


# -- random programs ---------------------------------------------------------------------------------------------
# An instruction takes one or two values of shapes that broadcast to (3, 4) and gives another such value. It is
# written once, in the functions that the two libraries share, and in the ones that differ.
class Library:
    def __init__(self, module: Any, **functions: Callable[..., Any]) -> None:
        self.module = module
        self.functions = functions

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.functions.get(name) or getattr(self.module, name)


OURS = Library(
    ops,
    mean=lambda x, axis: ops.mean(x, axis, keepdims=True),
    sum=lambda x, axis: ops.sum(x, axis, keepdims=True),
    max=lambda x, axis: ops.max(x, axis, keepdims=True),
    lse=lambda x, axis: ops.logsumexp(x, axis, keepdims=True),
    var=lambda x, axis: ops.var(x, axis, keepdims=True),
    prod=lambda x, axis: ops.prod(x, axis, keepdims=True),
)
THEIRS = Library(
    torch,
    softplus=torch.nn.functional.softplus,
    linear=_linear,
    concatenate=torch.cat,
    bernoulli_log_prob=_bernoulli_log_prob,
    iwae_bound=_iwae_bound,
    importance_weights=lambda x, axis: (torch.softmax(x, axis),),
    mean=lambda x, axis: x.mean(axis, keepdim=True),
    sum=lambda x, axis: x.sum(axis, keepdim=True),
    max=lambda x, axis: x.amax(axis, keepdim=True),
    lse=lambda x, axis: x.logsumexp(axis, keepdim=True),
    var=lambda x, axis: x.var(axis, correction=0, keepdim=True),
    prod=lambda x, axis: x.prod(axis, keepdim=True),
    gelu=torch.nn.functional.gelu,
    elu=torch.nn.functional.elu,
    take_along_axis=lambda x, indices, axis: torch.take_along_dim(x, torch.from_numpy(indices), axis),
)

INSTRUCTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda f, x, y: x + y,
    "subtract": lambda f, x, y: 0.5 * x - y,
    "multiply": lambda f, x, y: x * y,
    "divide": lambda f, x, y: x / (1.0 + y * y),
    "power": lambda f, x, y: (0.5 + f.sigmoid(x)) ** f.tanh(y),
    "maximum": lambda f, x, y: f.maximum(x, y + 0.1),
    "where": lambda f, x, y: f.where(x > y, f.sin(x), f.cos(y)),
    "exp": lambda f, x, y: f.exp(-f.softplus(x)),
    "log": lambda f, x, y: f.log(1.0 + x * x),
    "sqrt": lambda f, x, y: f.sqrt(1.0 + x * x),
    "tanh": lambda f, x, y: f.tanh(x),
    "expm1": lambda f, x, y: f.expm1(f.sin(x)) + f.log1p(f.square(y)),
    "arctan2": lambda f, x, y: f.arctan2(x, 1.0 + y * y),
    "logaddexp": lambda f, x, y: f.logaddexp(x, y),
    "erf": lambda f, x, y: f.erf(x) + f.lgamma(1.5 + f.square(f.tanh(y))),
    "gelu": lambda f, x, y: f.gelu(x) - f.elu(y),
    "var": lambda f, x, y: f.var(x, 1) * y,
    "prod": lambda f, x, y: f.prod(f.tanh(x), 0) + y,
    "cumsum": lambda f, x, y: f.cumsum(x, 1),
    "cumprod": lambda f, x, y: f.cumprod(f.cos(x), 0),
    "flip": lambda f, x, y: f.flip(x, (0,)) * f.roll(y, 1, 1),
    "along": lambda f, x, y: f.take_along_axis(x, np.array([[0], [1], [0]]), 1) if x.shape == (3, 4) else x,
    "triangle": lambda f, x, y: f.tril(x) + f.triu(y, 1),
    "rows": lambda f, x, y: f.mean(x, -1) - y,
    "columns": lambda f, x, y: f.sum(f.tanh(x), 0),
    "max": lambda f, x, y: f.max(x, 1),
    "logsumexp": lambda f, x, y: f.lse(x, 0) * y,
    "reversed": lambda f, x, y: f.concatenate([x[:, 1:], x[:, :1]], 1) if x.shape[1] > 1 else x,
    "gather": lambda f, x, y: x[[2, 0, 2]] if x.shape[0] > 1 else x,
    "matmul": lambda f, x, y: (x @ f.reshape(x, tuple(x.shape)[::-1])) @ f.tanh(x),
    "einsum": lambda f, x, y: f.einsum("ij,kj->ik", x, f.tanh(x)) @ y if y.shape[0] == x.shape[0] else x,
    "softmax": lambda f, x, y: f.softmax(x, 1) - f.log_softmax(x, 0),
    "linear": lambda f, x, y: f.linear(x, f.tanh(x), None, activation="tanh") @ x,
    "bernoulli": lambda f, x, y: f.reshape(f.bernoulli_log_prob(x, f.sigmoid(x)), (x.shape[0], 1)),
    "iwae": lambda f, x, y: f.reshape(f.iwae_bound(x, axis=0), (1, x.shape[1])) * f.importance_weights(x, axis=0)[0],
}  # fmt: skip
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(sorted(INSTRUCTIONS)), st.integers(0, 99), st.integers(0, 99)), min_size=3, max_size=12
)


def execute(program: list[tuple[str, int, int]], f: Any, xs: list[Any]) -> Any:
    """Each instruction reads two earlier values (recent ones count from the end) and appends its result."""
    values = list(xs)
    for name, i, j in program:
        values.append(INSTRUCTIONS[name](f, values[-1 - i % min(4, len(values))], values[-1 - j % len(values)]))
    return values[-1]


@settings(max_examples=100)
@given(program=PROGRAMS, seed=st.integers(0, 2**16))
def test_random_programs(program: list[tuple[str, int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in ((3, 4), (1, 4), (3, 1))]
    torch_xs = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(lambda: execute(program, THEIRS, torch_xs), torch_xs)
    # Programs whose derivatives explode are ill-conditioned: both libraries would be wrong in the same digits.
    assume(all(np.isfinite(a).all() and np.abs(a).max() < 1e4 for level in expected for a in level))
    xs = [gmcore.tensor(a, requires_grad=True) for a in arrays]
    agree(ours(lambda: execute(program, OURS, xs), xs), expected)
