"""Contracts of what optimisers do to many arrays at once: updates, running averages, the norm of gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float

CHUNK = 16384  # elements of a block


@functools.lru_cache(64)
def chunks(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(array, start, size) of every chunk, and the first chunk of every block and the end.

    A block takes as many consecutive chunks as CHUNK elements hold, so small arrays share one.
    """
    rows = [(i, start, min(CHUNK, size - start)) for i, size in enumerate(sizes) for start in range(0, size, CHUNK)]
    first, held = [], CHUNK
    for row, (_, _, size) in enumerate(rows):
        if held + size > CHUNK:
            first.append(row)
            held = 0
        held += size
    return np.array(rows, np.int64).reshape(-1, 3), np.array([*first, len(rows)], np.int64)


def _require_one_float(op: str, arrays: Sequence[Array]) -> None:
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) > 1 or not all(is_float(d.name) for d in dtypes):
        names = ", ".join(sorted(d.name for d in dtypes))
        raise KernelError(f"{op}: expected gradients of one floating dtype, got {names}")


def _size(arrays: tuple[Array, ...], *rest: Any, **attrs: Any) -> int:
    return sum(a.size for a in arrays)


# ---------------------------------------------------------------------------------------------------------
# Updates
# ---------------------------------------------------------------------------------------------------------


def check_updated(spec: KernelSpec, given: Sequence[Array], outputs: Sequence[Sequence[Array]]) -> None:
    """Refuse outputs of an update that do not match its input arrays (`infer` does not see the outputs)."""
    for name, arrays in zip(spec.outputs, outputs, strict=True):
        if len(arrays) != len(given):
            raise KernelError(f"{spec.name}: expected {len(given)} arrays in {name}, got {len(arrays)}")
        for i, (a, g) in enumerate(zip(arrays, given, strict=True)):
            flags = a.flags
            if a.shape != g.shape or a.dtype != g.dtype or not flags.c_contiguous or not (on_gpu(a) or flags.writeable):
                raise KernelError(
                    f"{spec.name}: expected {name[1:]}[{i}] like {spec.inputs[0][1:]}[{i}], {g.dtype}{list(g.shape)}, "
                    f"C-contiguous and writable, got {a.dtype}{list(a.shape)} with strides {a.strides}"
                )


_SHAPES = ([(5, 3), (3,)], [(0,), (1,), (127, 129)], [(1023,), (2, 3, 5), (40, 1021)])


def _update(
    name: str,
    hyper_names: tuple[str, ...],
    states: dict[str, Callable[[Array], Array]],
    hypers: Sequence[Sequence[float]],
    given: str = "grads",
    changed: str = "params",
    needed: Mapping[str, str] = {},
    **contract: Any,
) -> KernelSpec:
    """The spec of an update of `changed` and of `states` by the arrays `given` and a float64 array of numbers.

    The numbers are an array so that a captured step can read new ones. `states` says how each state is made, for the
    examples, of a normal sample; `hypers` are the examples' numbers. `needed` names the number of which a state is used
    only where it is not 0.
    """
    conditions = [hyper_names.index(number) for number in needed.values()]

    def infer(arrays: tuple[Array, ...], hyper: Array) -> Layout:
        if hyper.dtype != np.float64 or hyper.shape != (len(hyper_names),):
            raise KernelError(
                f"{name}: expected hyper float64[{len(hyper_names)}] ({', '.join(hyper_names)}), "
                f"got hyper {hyper.dtype}{list(hyper.shape)}"
            )
        _require_one_float(name, arrays)
        return []

    def cost(arrays: tuple[Array, ...], hyper: Array) -> Cost:
        # A GPU would have to be waited for to know which states are used: all, then.
        used = len(states) - (0 if on_gpu(hyper) else sum(hyper[i] == 0 for i in conditions))
        moved = 3.0 + 2.0 * used  # the input is read, the parameter and each state are read and written
        return Cost(sum(moved * a.nbytes for a in arrays), 0, 4.0 * (1 + used) * _size(arrays))

    def examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
        for shapes in _SHAPES:
            for hyper in hypers:
                samples = [[rng.standard_normal(s) for s in shapes] for _ in range(2 + len(states))]
                made: list[Callable[[Array], Array]] = [lambda x: x, lambda x: x, *states.values()]
                arrays = [tuple(np.array(f(x), dtype) for x in xs) for f, xs in zip(made, samples, strict=True)]
                yield Example((arrays[0], np.array(hyper, np.float64)), {}, tuple(arrays[1:]))

    return KernelSpec(
        name=name,
        family="optim",
        inputs=(f"*{given}", "hyper"),
        outputs=(f"*{changed}", *(f"*{state}" for state in states)),
        infer=infer,
        cost=cost,
        examples=examples,
        # The result is the parameter plus a step of at most 0.1 to 3: a few roundings of numbers of order 1.
        tolerance={"float32": (2e-6, 2e-6), "float64": (4e-15, 4e-15)},
        size=_size,
        updates=True,
        **contract,
    )


# What is common to the formulas below.
_GRADIENT = "g = (-g if maximize else g) + weight_decay p; "


def _signed(x: Array) -> Array:
    return 0.3 * x


def _positive(x: Array) -> Array:
    return 2.0 + abs(x)  # above the square of what _signed gives, as a mean of squares is above that of the mean


SGD = _update(
    "sgd",
    ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize", "step"),
    {"momentum_buffer": _signed},
    [
        (0.1, 0, 0, 0, 0.1, 0, 1), (0.1, 0.9, 0.5, 1, 0.01, 0, 1), (0.1, 0.9, 0.3, 0, 0, 1, 5),
        (0.1, 0.9, 0, 1, 0.1, 0, 2),
    ],
    formula=(
        _GRADIENT + "if momentum: b = g at step 1, momentum b + (1 - dampening) g later; g = g + momentum b if "
        "nesterov else b; p -= lr g. The first step is 1; without momentum the buffers are left alone"
    ),
    needed={"momentum_buffer": "momentum"},
    source="Sutskever, Martens, Dahl & Hinton, ICML 2013; as torch.optim.SGD",
)  # fmt: skip

ADAM = _update(
    "adam",
    ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "amsgrad", "maximize", "step"),
    {"exp_avg": _signed, "exp_avg_sq": _positive, "max_exp_avg_sq": _positive},
    [
        (1e-3, 0.9, 0.999, 1e-8, 0, 0, 0, 0, 1), (0.05, 0.5, 0.99, 1e-6, 0.01, 0, 1, 0, 700),
        (0.05, 0.9, 0.99, 1e-6, 0.1, 1, 0, 1, 3),
    ],
    formula=(
        "decoupled: p -= lr weight_decay p and g = (-g if maximize else g); else " + _GRADIENT +
        "m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; amsgrad: w = max(w, v), else w is v and the third "
        "state is left alone; p -= lr / (1 - beta1^step) m / (sqrt(w / (1 - beta2^step)) + eps). The first step is 1"
    ),
    needed={"max_exp_avg_sq": "amsgrad"},
    source=(
        "Kingma & Ba, ICLR 2015, Algorithm 1; decoupled: Loshchilov & Hutter, ICLR 2019, Algorithm 2; amsgrad: Reddi, "
        "Kale & Kumar, ICLR 2018, Algorithm 2; as torch.optim.Adam"
    ),
)  # fmt: skip

ADAGRAD = _update(
    "adagrad",
    ("lr", "lr_decay", "eps", "weight_decay", "maximize", "step"),
    {"sum": _positive},
    [(0.1, 0, 1e-10, 0, 0, 1), (0.1, 0.3, 1e-3, 0.1, 1, 7)],
    formula=_GRADIENT + "s += g^2; p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps). The first step is 1",
    source="Duchi, Hazan & Singer, JMLR 12, 2011, Figure 1 with the diagonal matrix; as torch.optim.Adagrad",
)

RMSPROP = _update(
    "rmsprop",
    ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"),
    {"square_avg": _positive, "grad_avg": _signed, "momentum_buffer": _signed},
    [
        (0.01, 0.9, 1e-8, 0, 0, 0, 0), (0.01, 0.95, 1e-4, 0.1, 0, 1, 0), (0.01, 0.9, 1e-8, 0, 0.9, 0, 1),
        (0.01, 0.9, 1e-6, 0.1, 0.5, 1, 1),
    ],
    formula=(
        _GRADIENT + "v = alpha v + (1 - alpha) g^2; centered: m = alpha m + (1 - alpha) g and w = max(v - m^2, 0), "
        "else w = v; d = g / (sqrt(w) + eps); momentum: b = momentum b + d and d = b; p -= lr d. States that "
        "are not used are left alone"
    ),
    needed={"grad_avg": "centered", "momentum_buffer": "momentum"},
    source=(
        "Tieleman & Hinton, lecture 6.5 of Neural networks for machine learning, 2012; centered: Graves, "
        "arXiv:1308.0850, eq. 38-45; as torch.optim.RMSprop"
    ),
)  # fmt: skip

ADADELTA = _update(
    "adadelta",
    ("lr", "rho", "eps", "weight_decay", "maximize"),
    {"square_avg": _positive, "acc_delta": _positive},
    [(1.0, 0.9, 1e-6, 0, 0), (0.1, 0.5, 1e-3, 0.1, 1)],
    formula=(
        _GRADIENT
        + "v = rho v + (1 - rho) g^2; d = sqrt(u + eps) / sqrt(v + eps) g; u = rho u + (1 - rho) d^2; p -= lr d"
    ),
    source="Zeiler, arXiv:1212.5701, Algorithm 1; as torch.optim.Adadelta",
)

AVERAGE = _update(
    "average",
    ("decay",),
    {},
    [(0.9,), (0.0,), (1.0,)],
    given="params",
    changed="averages",
    formula="a += (1 - decay) (p - a)",
    source="Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992, with exponential weights",
)


# ---------------------------------------------------------------------------------------------------------
# The norm of all gradients
# ---------------------------------------------------------------------------------------------------------


def _norm_infer(grads: tuple[Array, ...], *, norm_type: float) -> Layout:
    if not norm_type > 0:
        raise KernelError(f"total_norm: norm_type must be a positive number or inf, got {norm_type!r}")
    _require_one_float("total_norm", grads)
    return [((), np.dtype("float64"))]


def _norm_workspace(grads: tuple[Array, ...], *, norm_type: float) -> Layout:
    if any(map(on_gpu, grads)):  # small arrays share no block
        return [((sum(-(-g.size // CHUNK) for g in grads),), np.dtype("float64"))]
    return [((len(chunks(tuple([g.size for g in grads]))[1]) - 1,), np.dtype("float64"))]


def _norm_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shapes in _SHAPES:
        for norm_type in (1.0, 2.0, 3.5, float("inf")):
            yield Example((tuple(rng.standard_normal(s).astype(dtype) for s in shapes),), {"norm_type": norm_type})


TOTAL_NORM = KernelSpec(
    name="total_norm",
    family="optim",
    inputs=("*grads",),
    outputs=("norm",),
    infer=_norm_infer,
    workspace=_norm_workspace,
    cost=lambda grads, norm_type: Cost(sum(g.nbytes for g in grads), 0, 4.0 * _size(grads)),
    examples=_norm_examples,
    formula="norm = (sum of |g|^norm_type over all arrays)^(1 / norm_type), in float64; inf: the largest",
    source="Pascanu, Mikolov & Bengio, ICML 2013, Algorithm 1",
    # Terms are added one after another within a block of at most CHUNK, then the blocks' sums: 16384 u and a few u.
    tolerance={"float32": (2e-12, 0.0), "float64": (2e-12, 0.0)},
    size=_size,
)
