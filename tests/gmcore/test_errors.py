"""Every function of `gmcore.ops` given what it cannot take: wrong dtypes, wrong shapes, wrong indices.

Each call either gives what NumPy gives for the same arrays, or raises an error of gmcore of the right class whose
text names the function (or the operation inside it that refused), what was given, what was expected and the user's
line. The calls are generated from the examples of the declared ops and of the composed functions, and from
`ELSEWHERE` for the rest.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gmkernels
from gmcore import Tensor, ops
from gmcore.errors import ArgumentError, DtypeError, GmcoreError, ShapeError
from gmcore.op import OPS
from tests.gmcore.test_composed import COMPOSED
from tests.gmcore.test_ops import FORMULAS

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.uniform(0.3, 0.9, shape)


CLASSES = np.array([0, 2])
SIGNS = np.array([1.0, -1.0])
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "adaptive_avg_pool1d": (real(2, 3, 5), 2),
    "adaptive_avg_pool2d": (real(2, 3, 5, 4), 2),
    "avg_pool1d": (real(2, 3, 5), 2),
    "conv1d": (real(2, 3, 5), real(4, 3, 2), real(4)),
    "conv_transpose1d": (real(2, 3, 5), real(3, 4, 2), real(4)),
    "conv_transpose2d": (real(2, 3, 5, 4), real(3, 4, 2, 3), real(4)),
    "max_pool1d": (real(2, 3, 5), 2),
    "max_unpool1d": (real(2, 3, 2), np.array([[[0, 2]] * 3] * 2), 2),
    "max_unpool2d": (real(2, 3, 1, 2), np.array([[[[0, 2]]] * 3] * 2), 2),
    "batch_norm": (real(4, 3), Tensor(real(3)), Tensor(real(3)), real(3), real(3)),
    "contrastive_divergence": (real(4, 3), real(4, 3), real(2, 3), real(3), real(2)),
    "cosine_embedding_loss": (real(2, 3), real(2, 3), SIGNS),
    "cosine_similarity": (real(2, 3), real(2, 3)),
    "cross_entropy": (real(2, 3), CLASSES, real(3)),
    "diag": (real(3),),
    "dot": (real(2, 3), real(3, 2)),
    "einsum": ("ij,jk->ik", real(2, 3), real(3, 2)),
    "gaussian_nll_loss": (real(2, 3), real(2, 3), real(2, 3)),
    "group_norm": (real(2, 4, 3), 2, real(4), real(4)),
    "hinge_embedding_loss": (real(2), SIGNS),
    "hinge_loss": (real(2), SIGNS),
    "huber_loss": (real(2, 3), real(2, 3)),
    "inner": (real(2, 3), real(4, 3)),
    "kl_div": (-real(2, 3), real(2, 3)),
    "l1_loss": (real(2, 3), real(2, 3)),
    "layer_norm": (real(2, 3), (3,), real(3), real(3)),
    "margin_ranking_loss": (real(2), real(2), SIGNS),
    "mse_loss": (real(2, 3), real(2, 3)),
    "multi_margin_loss": (real(2, 3), CLASSES, 1, 1.0, real(3)),
    "nll_loss": (-real(2, 3), CLASSES, real(3)),
    "outer": (real(2), real(3)),
    "poisson_nll_loss": (real(2, 3), real(2, 3)),
    "rms_norm": (real(2, 3), (3,), real(3)),
    "smooth_l1_loss": (real(2, 3), real(2, 3)),
    "softmin": (real(2, 3),),
    "straight_through": (real(2, 3), real(2, 3)),
    "tensordot": (real(2, 3), real(3, 2), 1),
    "to_device": (real(2), "cpu"),
    "trace": (real(3, 3),),
}


class Call(NamedTuple):
    """``function(*args, **kwargs)``, and the same on arrays where there is such a formula."""

    name: str
    function: Callable[..., Any]
    formula: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def values(self) -> list[Any]:
        return [*self.args, *self.kwargs.values()]

    def arrays(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Where the arrays stand among the arguments, some of them in sequences; and the arrays."""
        for i, x in enumerate(self.values()):
            if isinstance(x, (np.ndarray, np.generic, Tensor)):
                yield (i,), np.asarray(x)
            elif isinstance(x, (list, tuple)):
                yield from (((i, j), np.asarray(a)) for j, a in enumerate(x) if isinstance(a, (np.ndarray, np.generic)))

    def replaced(self, place: tuple[int, ...], by: Any) -> "Call":
        values = self.values()
        i, *rest = place
        if isinstance(values[i], Tensor) and not isinstance(by, Tensor) and by.dtype.kind in "fiub":
            by = Tensor(np.asarray(by))
        values[i] = type(values[i])(by if [j] == rest else a for j, a in enumerate(values[i])) if rest else by
        n = len(self.args)
        return self._replace(args=tuple(values[:n]), kwargs=dict(zip(self.kwargs, values[n:], strict=True)))

    def found(self) -> list[np.ndarray]:
        return as_arrays(self.function(*self.args, **self.kwargs))

    def expected(self) -> list[np.ndarray]:
        assert self.formula is not None
        return as_arrays(self.formula(*map(plain, self.args), **{k: plain(v) for k, v in self.kwargs.items()}))

    def refusal(self) -> GmcoreError | None:
        """The error that this call raises, which names a function or operation, and this file; None if there is none.

        Any other exception is one too many.
        """
        try:
            self.found()
        except GmcoreError as error:
            named = re.match(r"\w+", str(error))
            assert named and named[0] in {self.name, *OPS, *ops.__all__}, error
            assert re.search(rf"called at {re.escape(__file__)}:\d+\)", str(error)), error
            return error
        return None


def plain(x: Any) -> Any:
    return x.numpy() if isinstance(x, Tensor) else x


def as_arrays(out: Any) -> list[np.ndarray]:
    return [np.asarray(plain(y)) for y in (out if isinstance(out, (list, tuple)) else [out])]


def calls() -> Iterator[Call]:
    for op in OPS.values():
        if op.name != "checkpoint":  # it calls a function of the user's, which says what it takes
            formula = op.forward if isinstance(op.forward, np.ufunc) else FORMULAS[op.name]
            for args, kwargs in op.examples(np.random.default_rng(0)):
                yield Call(op.name, op.public, formula, args, kwargs)
    for name, composed in COMPOSED.items():
        for args, kwargs in composed.examples:
            yield Call(name, getattr(ops, name), composed.formula, args, kwargs)
    for name, args in ELSEWHERE.items():
        yield Call(name, getattr(ops, name), None, args, {})


CALLS: dict[str, list[Call]] = {}
"""By function: a call without arrays of no dimensions or no elements if there is one, and the last one."""
for _call in calls():
    _known = CALLS.setdefault(_call.name, [])
    if not _known or not all(a.ndim and a.size for _, a in _known[0].arrays()):
        _known[:] = [_call]
    else:
        _known[1:] = [_call]

each_function = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def by_reference() -> Iterator[None]:
    """Nothing is compiled for what should be refused before a kernel is called; and ones are poles of functions."""
    with gmkernels.use("reference"), np.errstate(all="ignore"):
        yield


def test_every_function_is_called() -> None:
    assert set(CALLS) == set(OPS) - {"checkpoint"} | set(ops.__all__) - {"ACTIVATIONS"}


# -- dtypes ----------------------------------------------------------------------------------------------------
NUMBERS = ("int64", "bool", "float32", "longdouble")
NEVER = ("complex128", "U9", "object", "datetime64[s]")
VALUES = {
    "binary_cross_entropy": "integers beyond 1 are no probabilities: an ArgumentError",
    "contrastive_divergence": "nor are they states of units",
    "gibbs_half_step": "states are floating or uint8",
    "gibbs_chain": "likewise, and not beyond 1",
    "boltzmann_sweep": "likewise",
    "free_energy": "likewise",
    "sum_to": "the adjoint of broadcast_to keeps the dtype, so booleans stay booleans",
    "topk": "equal integers have no order",
    "where": "of two dtypes",
}
"""Functions of which integers and booleans are not simply floating numbers with these values, and why."""


def wrong_dtypes(x: np.ndarray) -> Iterator[np.ndarray]:
    """Integers in place of booleans, and the reverse, are left out: they are another kind of index."""
    for dtype in (*NUMBERS, "float64", *NEVER):
        if dtype != x.dtype and not (x.dtype.kind in "biu" and np.dtype(dtype).kind in "bi"):
            yield np.rint(3 * x).astype(dtype) if x.dtype.kind == "f" and dtype in NUMBERS[:2] else x.astype(dtype)


@each_function
def test_wrong_dtypes(name: str) -> None:
    """Complex numbers, text, objects and dates are refused, also as indices; others are too, or give the numbers that
    floating numbers of their values give."""
    for call in CALLS[name]:
        for place, x in call.arrays():
            for wrong in wrong_dtypes(x):
                given = call.replaced(place, wrong)
                error = given.refusal()
                if error is not None:
                    assert isinstance(error, DtypeError) or name in VALUES and isinstance(error, ArgumentError), error
                    assert str(wrong.dtype) in str(error) or not isinstance(error, DtypeError), error
                    assert re.search("expected|must be", str(error)), error
                    continue
                assert wrong.dtype.kind in "fiub", f"{name} took {wrong.dtype} for {x.dtype}"
                if name in VALUES:
                    continue
                assert x.dtype.kind == "f" or wrong.dtype.kind in "iub", f"{name} took {wrong.dtype} for {x.dtype}"
                if isinstance(call.formula, np.ufunc):
                    continue
                floats = call.replaced(place, wrong.astype(x.dtype))
                expected = floats.expected() if call.formula else floats.found()
                for y, e in zip(given.found(), expected, strict=True):
                    # NumPy's functions give float16 for booleans.
                    tolerance = 2e-3 if y.dtype == np.float16 else 1e-5
                    np.testing.assert_allclose(y.astype(float), e, rtol=tolerance, atol=tolerance, err_msg=name)


# -- shapes ----------------------------------------------------------------------------------------------------
def wrong_shapes(x: np.ndarray) -> Iterator[np.ndarray]:
    """`x` with an axis more at either end, without one of its axes, and one longer along each of them."""
    yield x[None]
    yield x[..., None]
    for i in range(x.ndim if x.size else 0):
        yield x.take(0, i)
        last = x.take([-1], i)
        yield np.concatenate([x, 0.9 * last if x.dtype.kind == "f" else last], i)


@each_function
def test_wrong_shapes(name: str) -> None:
    """A misshapen array is refused, or gives what NumPy gives for it. A function of several arrays refuses some."""
    refused, several = 0, False
    for call in CALLS[name]:
        several |= len(list(call.arrays())) > 1
        for place, x in call.arrays():
            for wrong in wrong_shapes(x):
                given = call.replaced(place, wrong)
                error = given.refusal()
                if error is not None:
                    refused += 1
                    assert isinstance(error, (ShapeError, ArgumentError)), error
                    # An operation that got what was made of it names that; a value is looked at where its shape fits.
                    inside = not str(error).startswith(name) or name in VALUES and isinstance(error, ArgumentError)
                    assert inside or any(str(s) in str(error) for s in (wrong.shape, list(wrong.shape))), error
                elif call.formula is not None and wrong.size:
                    for y, e in zip(given.found(), given.expected(), strict=True):
                        assert y.shape == e.shape
                        np.testing.assert_allclose(y, e, rtol=1e-9, atol=1e-9, err_msg=name)
    assert refused or not several or name in {"outer", "meshgrid"}
