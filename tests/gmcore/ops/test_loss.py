"""Losses against formulas written a second time, and against PyTorch to second order."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

import gmcore
from gmcore import ops
from gmcore.errors import ArgumentError, DtypeError, GmcoreError, ShapeError

REDUCTIONS = ("none", "mean", "sum")


def real(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def probabilities(*shape: int) -> np.ndarray:
    return special.softmax(real(*shape, seed=9), -1)


def signs(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).choice([-1.0, 1.0], shape)


def one_hot(classes: np.ndarray, n: int) -> np.ndarray:
    """Rows of the identity, with the class axis where PyTorch has it; a zero row for a class out of range."""
    rows = np.where((classes >= 0) & (classes < n), 1.0, 0.0)[..., None] * (classes[..., None] == np.arange(n))
    return np.moveaxis(rows, -1, min(1, rows.ndim - 1))


def classes_axis(x: np.ndarray) -> int:
    return min(1, x.ndim - 1)


# -- independent formulas ------------------------------------------------------------------------------------------
def _by_class(w: Any, x: np.ndarray) -> np.ndarray:
    """Class weights along the class axis of x."""
    w = np.ones(x.shape[classes_axis(x)]) if w is None else w
    return w.reshape((-1,) + (1,) * (x.ndim - 1 - classes_axis(x)))


def _nll(
    x: np.ndarray, target: np.ndarray, weight: Any = None, ignore_index: int = -100, smoothing: float = 0.0
) -> tuple[np.ndarray, float]:
    """(elements, what their mean is divided by) as a sum over all classes of one-hot rows."""
    n, axis = x.shape[classes_axis(x)], classes_axis(x)
    hot = one_hot(np.where(target == ignore_index, -1, target), n)
    kept = np.expand_dims(target != ignore_index, axis)
    smooth = (1 - smoothing) * hot + smoothing / n * kept
    w = _by_class(weight, x)
    return -(smooth * w * x).sum(axis), (hot * w).sum()


def _reduced(elements: np.ndarray, reduction: str, divisor: float) -> np.ndarray:
    return {"none": elements, "sum": elements.sum(), "mean": elements.sum() / divisor}[reduction]


def _cosine(a: np.ndarray, b: np.ndarray, axis: int = -1, added: float = 0.0) -> np.ndarray:
    return (a * b).sum(axis) / np.sqrt(((a * a).sum(axis) + added) * ((b * b).sum(axis) + added))


def _cosine_embedding(a: np.ndarray, b: np.ndarray, y: np.ndarray, margin: float = 0.0) -> np.ndarray:
    cosine = _cosine(a, b, added=1e-12)
    return np.where(y == 1, 1 - cosine, np.maximum(0, cosine - margin))


def _multi_margin(x: np.ndarray, t: np.ndarray, p: int, margin: float, w: Any) -> np.ndarray:
    rows, t = np.atleast_2d(x), np.atleast_1d(t)
    w = np.ones(rows.shape[1]) if w is None else w
    loss = [
        w[c] / len(row) * sum(max(0.0, margin - row[c] + row[j]) ** p for j in range(len(row)) if j != c)
        for row, c in zip(rows, t, strict=True)
    ]
    return np.array(loss).reshape(x.shape[:-1])


T = np.array([2, 0, 1, 2])
T2 = np.array([[2, 0, -100], [1, -100, 2]])
W = np.array([0.5, 1.0, 2.0])
COUNTS = np.array([0.0, 1.0, 2.0, 5.0])
SIGNS, MORE = signs(4), np.array([1.0, -1.0, 1.0, -1.0])

# loss, the arrays that are differentiated, the arguments after them, keywords, and the formula of the elements (and
# of what their mean is divided by, where that is not their number).
LOSSES: dict[str, tuple[str, list[np.ndarray], tuple[Any, ...], dict[str, Any], Callable[..., Any]]] = {
    "mse": ("mse_loss", [real(3, 2), real(3, 2, seed=1)], (), {}, lambda x, t: (x - t) ** 2),
    "l1": ("l1_loss", [real(3, 2), real(3, 2, seed=1)], (), {}, lambda x, t: abs(x - t)),
    "huber": ("huber_loss", [3 * real(7), real(7, seed=1)], (), {"delta": 1.5},
              lambda x, t: special.huber(1.5, x - t)),
    "smooth_l1": ("smooth_l1_loss", [3 * real(7), real(7, seed=1)], (), {"beta": 0.5},
                  lambda x, t: special.huber(0.5, x - t) / 0.5),
    "smooth_l1 at 0": ("smooth_l1_loss", [real(7), real(7, seed=1)], (), {"beta": 0.0}, lambda x, t: abs(x - t)),
    "bce": ("binary_cross_entropy", [special.expit(real(3, 2)), probabilities(3, 2)], (), {},
            lambda p, t: -t * np.log(p) - (1 - t) * np.log(1 - p)),
    "bce logits": ("binary_cross_entropy_with_logits", [real(3, 2), probabilities(3, 2)], (), {},
                   lambda x, t: np.logaddexp(0, x) - t * x),
    "bce logits weighted": (
        "binary_cross_entropy_with_logits", [real(3, 2), probabilities(3, 2)], (np.array([[0.5], [1.0], [3.0]]),),
        {"pos_weight": np.array([2.0, 0.5])},
        lambda x, t, w, pos_weight: -w * (pos_weight * t * special.log_expit(x) + (1 - t) * special.log_expit(-x))),
    "nll": ("nll_loss", [real(4, 3)], (T,), {}, _nll),
    "nll of one": ("nll_loss", [real(3)], (np.array(1),), {}, _nll),
    "nll weighted": ("nll_loss", [real(2, 3, 3)], (T2, W), {}, _nll),
    "nll ignoring 1": ("nll_loss", [real(4, 3)], (T, W), {"ignore_index": 1}, _nll),
    "cross entropy": ("cross_entropy", [real(4, 3)], (T,), {}, lambda x, t: _nll(special.log_softmax(x, -1), t)),
    "cross entropy of one": ("cross_entropy", [real(3)], (np.array(1),), {},
                             lambda x, t: _nll(special.log_softmax(x, -1), t)),
    "cross entropy smoothed": ("cross_entropy", [real(4, 3)], (T,), {"label_smoothing": 0.2},
                               lambda x, t, label_smoothing: _nll(special.log_softmax(x, -1), t, smoothing=0.2)),
    "cross entropy, all of it": (
        "cross_entropy", [real(2, 3, 3)], (T2, W), {"label_smoothing": 0.1},
        lambda x, t, w, label_smoothing: _nll(special.log_softmax(x, 1), t, w, smoothing=0.1)),
    "cross entropy of probabilities": (
        "cross_entropy", [real(4, 3), probabilities(4, 3)], (), {},
        lambda x, q: -(q * special.log_softmax(x, 1)).sum(1)),
    "cross entropy of probabilities, all of it": (
        "cross_entropy", [real(2, 3, 2), np.moveaxis(probabilities(2, 2, 3), -1, 1)], (W,), {"label_smoothing": 0.3},
        lambda x, q, w, label_smoothing:
            -((0.7 * q + 0.1) * _by_class(w, x) * special.log_softmax(x, 1)).sum(1)),
    "multi margin": ("multi_margin_loss", [real(4, 3)], (T, 2, 0.7, W), {}, _multi_margin),
    "multi margin of one": ("multi_margin_loss", [real(3)], (np.array(2), 1, 1.0, None), {}, _multi_margin),
    "kl": ("kl_div", [np.log(probabilities(3, 4)), special.softmax(real(3, 4), 1)], (), {},
           lambda x, t: special.rel_entr(t, np.exp(x))),
    "kl of logarithms": ("kl_div", [np.log(probabilities(3, 4)), real(3, 4)], (), {"log_target": True},
                         lambda x, t, log_target: special.rel_entr(np.exp(t), np.exp(x))),
    "gaussian": ("gaussian_nll_loss", [real(3, 2), real(3, 2, seed=1), probabilities(3, 2)], (), {"full": True},
                 lambda x, t, v, full: -stats.norm.logpdf(t, x, np.sqrt(v))),
    "gaussian of rows": ("gaussian_nll_loss", [real(3, 2), real(3, 2, seed=1), probabilities(3)], (), {},
                         lambda x, t, v: -stats.norm.logpdf(t, x, np.sqrt(v)[:, None]) - np.log(2 * np.pi) / 2),
    "gaussian of columns": ("gaussian_nll_loss", [real(3, 2), real(3, 2, seed=1), probabilities(3)[:, None]], (), {},
                            lambda x, t, v: -stats.norm.logpdf(t, x, np.sqrt(v)) - np.log(2 * np.pi) / 2),
    "poisson": ("poisson_nll_loss", [real(4)], (COUNTS,), {},
                lambda x, t: -stats.poisson.logpmf(t, np.exp(x)) - special.gammaln(t + 1)),
    "poisson rate": ("poisson_nll_loss", [np.exp(real(4))], (COUNTS, False), {"eps": 0.01},
                     lambda r, t, log_input, eps: r - t * np.log(r + eps)),
    "poisson full": ("poisson_nll_loss", [real(4)], (COUNTS,), {"full": True},
                     lambda x, t, full: np.exp(x) - t * x + np.where(
                         t > 1, t * np.log(t.clip(1)) - t + np.log(2 * np.pi * t.clip(1)) / 2, 0)),
    "hinge embedding": ("hinge_embedding_loss", [real(4)], (MORE, 0.7), {},
                        lambda x, y, m: np.where(y == 1, x, np.maximum(0, m - x))),
    "margin ranking": ("margin_ranking_loss", [real(4), real(4, seed=1)], (SIGNS, 0.3), {},
                       lambda a, b, y, m: np.maximum(0, m - y * (a - b))),
    "cosine embedding": ("cosine_embedding_loss", [real(4, 3), real(4, 3, seed=1)], (MORE, -0.6), {},
                         _cosine_embedding),
    "cosine embedding of one": ("cosine_embedding_loss", [real(3), real(3, seed=1)], (np.array(1.0),), {},
                                _cosine_embedding),
}  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", LOSSES)
def test_loss_is_its_formula(case: str, reduction: str, is_its_formula: Any) -> None:
    name, arrays, rest, options, formula = LOSSES[case]

    def loss(*xs: Any) -> Any:
        own = [a.astype(xs[0].dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in rest]
        keys = {k: v.astype(xs[0].dtype) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        return getattr(ops, name)(*xs, *own, **keys, reduction=reduction)

    def expected(*xs: Any) -> Any:
        # What is given by name and the formula does not vary goes by the same name.
        given = {k: v for k, v in options.items() if k in formula.__code__.co_varnames}
        elements = formula(*xs, *rest, **given)
        if not isinstance(elements, tuple):
            elements = (elements, elements.size)
        return _reduced(elements[0], reduction, elements[1])

    is_its_formula(loss, expected, arrays)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", LOSSES)
def test_loss_agrees_with_torch(case: str, reduction: str, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    name, arrays, rest, options, _ = LOSSES[case]

    def give(value: Any) -> Any:
        return torch.from_numpy(np.asarray(value)) if isinstance(value, np.ndarray) else value

    # After its deprecated arguments PyTorch takes by name what we take by place.
    named = {"multi_margin_loss": ("p", "margin", "weight")}.get(name)
    places, names = (rest[:1], dict(zip(named, rest[1:]))) if named else (rest, {})
    counterpart = getattr(torch.nn.functional, name)
    agrees_with_torch(
        lambda *xs: getattr(ops, name)(*xs, *rest, **options, reduction=reduction),
        lambda *xs: counterpart(
            *xs, *map(give, places), **{k: give(v) for k, v in (names | options).items()}, reduction=reduction
        ),
        arrays,
        order=1 if named else 2,  # PyTorch has no second derivative of multi_margin_loss
    )


@pytest.mark.parametrize("axis, shapes", [(1, ((3, 4), (3, 4))), (-1, ((2, 3), (3,))), (0, ((3, 1), (3, 2)))])
def test_cosine_similarity(axis: int, shapes: Any, is_its_formula: Any, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = [real(*shape, seed=i) for i, shape in enumerate(shapes)]
    is_its_formula(
        lambda a, b: ops.cosine_similarity(a, b, axis),
        lambda a, b: _cosine(*np.broadcast_arrays(a, b), axis=axis),
        arrays,
    )
    agrees_with_torch(
        lambda a, b: ops.cosine_similarity(a, b, axis),
        lambda a, b: torch.nn.functional.cosine_similarity(a, b, axis),
        arrays,
    )


def test_cosine_similarity_of_zero_vectors_is_zero_with_a_finite_gradient() -> None:
    a, b = gmcore.tensor(np.zeros((2, 3)), requires_grad=True), real(2, 3)
    out = ops.cosine_similarity(a, b)
    assert out.tolist() == [0.0, 0.0]
    assert np.isfinite(gmcore.grad(ops.sum(out), a).numpy()).all()


def test_hinge_loss(is_its_formula: Any) -> None:
    y = signs(5)
    for reduction in REDUCTIONS:
        is_its_formula(
            lambda x, r=reduction: ops.hinge_loss(x, y.astype(x.dtype), reduction=r),
            lambda x, r=reduction: _reduced(np.maximum(0, 1 - y * x), r, 5),
            [2 * real(5)],
        )


def test_batchmean_is_the_divergence(is_its_formula: Any, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = [np.log(probabilities(3, 4)), special.softmax(real(3, 4), 1)]
    is_its_formula(
        lambda x, t: ops.kl_div(x, t, reduction="batchmean"),
        lambda x, t: stats.entropy(t, np.exp(x), axis=1).mean(),
        arrays,
    )
    agrees_with_torch(
        lambda x, t: ops.kl_div(x, t, reduction="batchmean"),
        lambda x, t: torch.nn.functional.kl_div(x, t, reduction="batchmean"),
        arrays,
    )


# -- limits ---------------------------------------------------------------------------------------------------------
def test_zero_probabilities_add_nothing() -> None:
    x = gmcore.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = ops.kl_div(x, np.array([[0.0, 1.0]], np.float32), reduction="sum")
    assert loss.item() == 2.0 and gmcore.grad(loss, x).tolist() == [[0.0, -1.0]]
    t = gmcore.tensor([0.0], requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert gmcore.grad(ops.sum(ops.kl_div(np.zeros(1, np.float32), t, reduction="none")), t).tolist() == [-np.inf]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_neither_distribution_has_adds_nothing() -> None:
    """A class whose probability is 0 in the model, too: 0 times infinity is no term."""
    x, t = gmcore.tensor([-np.inf, 0.0], requires_grad=True), np.array([0.0, 1.0], np.float32)
    for target, log_target in ((t, False), (np.log(t), True)):
        loss = ops.kl_div(x, target, reduction="none", log_target=log_target)
        assert loss.tolist() == [0.0, 0.0] and gmcore.grad(ops.sum(loss), x).tolist() == [0.0, -1.0]
    assert ops.kl_div(x, t[::-1].copy(), reduction="none").tolist() == [np.inf, 0.0]


def test_a_masked_class_costs_infinity_only_where_it_is_the_target() -> None:
    x = gmcore.tensor([[0.0, -np.inf], [0.0, -np.inf]], requires_grad=True)
    loss = ops.cross_entropy(x, np.array([0, -100]), reduction="none")
    assert loss.tolist() == [0.0, 0.0]
    assert np.isfinite(gmcore.grad(ops.sum(loss), x).numpy()).all()
    assert ops.cross_entropy(x, np.array([1, 0]), reduction="none").tolist() == [np.inf, 0.0]


def test_cross_entropy_does_not_overflow() -> None:
    x = gmcore.tensor([[1e4, -1e4]], requires_grad=True)
    loss = ops.cross_entropy(x, np.array([1]))
    assert loss.item() == 2e4 and gmcore.grad(loss, x).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("name", ["hinge_loss", "mse_loss", "binary_cross_entropy_with_logits", "poisson_nll_loss"])
def test_integer_targets_leave_float32_alone(name: str) -> None:
    x = gmcore.tensor([0.5, -1.5], requires_grad=True)
    loss = getattr(ops, name)(x, np.array([0, 1]))
    assert loss.dtype == gmcore.grad(loss, x).dtype == np.float32
    np.testing.assert_array_equal(loss.detach(), getattr(ops, name)(x, np.array([0, 1], np.float32)).detach())


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_logits_keep_their_digits_on_both_sides(target: float) -> None:
    """At logit 20 on the right side the loss is e^-20, which 20 - 20 + ... would round away in float32."""
    x = np.array([20.0 if target else -20.0], np.float32)
    loss = ops.binary_cross_entropy_with_logits(x, np.array([target], np.float32)).item()
    assert loss == pytest.approx(np.exp(-20.0), rel=1e-5)


def test_small_variances_are_clamped_and_keep_their_gradient(agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = [real(3), real(3, seed=1), np.array([0.0, 0.05, 2.0])]
    agrees_with_torch(
        lambda x, t, v: ops.gaussian_nll_loss(x, t, v, eps=0.1),
        lambda x, t, v: torch.nn.functional.gaussian_nll_loss(x, t, v, eps=0.1),
        arrays,
    )


def test_second_derivative_of_quadratic_losses_at_zero() -> None:
    for loss in (ops.huber_loss, ops.smooth_l1_loss, ops.mse_loss):
        x = gmcore.tensor(np.zeros(1), requires_grad=True)
        first = gmcore.grad(loss(x, np.zeros(1)), x, create_graph=True)
        assert gmcore.grad(ops.sum(first), x).item() == (2.0 if loss is ops.mse_loss else 1.0)


# -- errors -----------------------------------------------------------------------------------------------------------
X, EMPTY = real(4, 3), np.ones((0, 3))
PAIRS = [
    "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy",
    "kl_div", "poisson_nll_loss", "hinge_loss", "hinge_embedding_loss",
]  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_bad_pairs_and_reductions_are_named(name: str) -> None:
    loss, x = getattr(ops, name), probabilities(4, 3)
    with pytest.raises(ShapeError, match=rf"{name}: .*\(4, 3\).*\(4,\)") as caught:
        loss(x, x[:, 0])
    assert __file__ in str(caught.value)
    with pytest.raises(ArgumentError, match=f"{name}: reduction 'avg'; expected one of mean, sum, none"):
        loss(x, x, reduction="avg")
    with pytest.raises(ArgumentError, match=rf"{name}: no elements .*\(0, 3\)"):
        loss(EMPTY, EMPTY)
    assert loss(EMPTY, EMPTY, reduction="sum").item() == 0


BAD: dict[str, tuple[Callable[[], Any], type[GmcoreError], str]] = {
    "class": (lambda: ops.cross_entropy(X, np.array([0, 1, 3, 0])), ArgumentError,
              r"cross_entropy: target \(2,\) is 3; expected a class in 0..2 or ignore_index -100"),
    "negative class": (lambda: ops.nll_loss(X, np.array([0, -1, 2, 0])), ArgumentError, r"target \(1,\) is -1"),
    "margin class": (lambda: ops.multi_margin_loss(X, np.array([0, 1, 5, 0])), ArgumentError, r"target \(2,\) is 5"),
    "target shape": (lambda: ops.cross_entropy(X, np.array([0, 1])), ShapeError, r"expected target \(4,\).*\(2,\)"),
    "probability shape": (lambda: ops.cross_entropy(X, X[:2]), ShapeError, r"cross_entropy: .*\(4, 3\).*\[2, 3\]"),
    "target dtype": (lambda: ops.nll_loss(X, np.ones(4)), DtypeError, "nll_loss: expected class indices.*float64"),
    "class weight": (lambda: ops.cross_entropy(X, T, np.ones(4)), ShapeError, r"weight \(4,\), expected .* 3 classes"),
    "no input": (lambda: ops.cross_entropy(np.ones(()), np.array(0)), ShapeError, r"cross_entropy: expected input"),
    "all ignored": (lambda: ops.cross_entropy(X, np.full(4, -100)), ArgumentError, "nothing but ignore_index -100"),
    "smoothing": (lambda: ops.cross_entropy(X, T, label_smoothing=1.5), ArgumentError, r"label_smoothing .* got 1.5"),
    "probability": (lambda: ops.binary_cross_entropy(X, X), ArgumentError, r"expected .* in \[0, 1\], .*with_logits"),
    "weight": (lambda: ops.binary_cross_entropy(probabilities(4, 3), probabilities(4, 3), np.ones(4)), ShapeError,
               r"weight \(4,\) does not broadcast to input \(4, 3\)"),
    "pos_weight": (lambda: ops.binary_cross_entropy_with_logits(X, X, pos_weight=np.ones((2, 4, 3))), ShapeError,
                   r"pos_weight \(2, 4, 3\)"),
    "delta": (lambda: ops.huber_loss(X, X, delta=0.0), ArgumentError, "huber_loss: delta must be positive, got 0.0"),
    "beta": (lambda: ops.smooth_l1_loss(X, X, beta=-1.0), ArgumentError, "beta must not be negative, got -1.0"),
    "p": (lambda: ops.multi_margin_loss(X, T, p=3), ArgumentError, "p must be 1 or 2, got 3"),
    "variance": (lambda: ops.gaussian_nll_loss(X, X, -np.ones((4, 3))), ArgumentError, "expected var >= 0, .* is -1"),
    "variance shape": (lambda: ops.gaussian_nll_loss(X, X, np.ones(3)), ShapeError, r"var \(3,\) does .*\(4, 3\)"),
    "eps": (lambda: ops.gaussian_nll_loss(X, X, np.ones((4, 3)), eps=0.0), ArgumentError, "eps must be positive"),
    "ranking": (lambda: ops.margin_ranking_loss(X, X, X[0]), ShapeError, r"input1 \(4, 3\).*target \(3,\)"),
    "cosine target": (lambda: ops.cosine_embedding_loss(X, X, np.ones(3)), ShapeError, r"target \(N,\).*\(3,\)"),
    "cosine axis": (lambda: ops.cosine_similarity(X, X, 2), ArgumentError, r"cosine_similarity: axis 2 .*\(4, 3\)"),
    "batchmean": (lambda: ops.kl_div(EMPTY, EMPTY, reduction="batchmean"), ArgumentError, r"kl_div: no batch .*\(0, "),
    "batchmean of another": (lambda: ops.mse_loss(X, X, reduction="batchmean"), ArgumentError, "mse_loss: reduction"),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, text", BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[GmcoreError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    assert __file__ in str(caught.value)
