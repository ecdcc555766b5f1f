"""Convolution: SciPy's correlation, the adjoint identities, tiles of every kind, infinities, workspace, errors."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from gmkernels import KernelError, conv2d, conv2d_backward_input, conv2d_backward_weight, registry
from gmkernels.conv import spec

BACKENDS = ("reference", "cpu")
SPECS = (spec.CONV2D, spec.CONV2D_BACKWARD_INPUT, spec.CONV2D_BACKWARD_WEIGHT)


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_correlation_of_scipy(backend: str) -> None:
    x, weight, bias = numbers((2, 3, 6, 7)), numbers((4, 3, 3, 2), 1), numbers((4,), 2)
    y = conv2d(x, weight, bias, backend=backend)
    for n, o in np.ndindex(2, 4):
        expected = sum(signal.correlate(x[n, c], weight[o, c], "valid") for c in range(3)) + bias[o]
        np.testing.assert_allclose(y[n, o], expected, rtol=0, atol=1e-13)


@st.composite
def geometries(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], spec.Attrs]:
    """Shapes of x and weight, and attributes that fit them."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.integers(1, 3))
    batch, channels, filters = draw(st.integers(0, 4)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 31]))
    kernel, stride, dilation, padding = pair(1, 4), pair(1, 4), pair(1, 3), (pair(0, 3), pair(0, 3))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding)]
    size = [n + draw(st.integers(0, 6)) for n in least]
    attrs = spec.Attrs(stride, padding, dilation, groups)
    return (batch, channels * groups, *size), (filters * groups, channels, *kernel), attrs


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30)
@given(geometry=geometries(), seed=st.integers(0, 9))
def test_gradients_are_adjoint(backend: str, geometry: Any, seed: int) -> None:
    """<conv(x, w), g> = <x, backward_input(g, w)> = <w, backward_weight(g, x)>, and the backends agree."""
    x_shape, w_shape, attrs = geometry
    x, weight, options = numbers(x_shape, seed), numbers(w_shape, seed + 10), attrs._asdict()
    y = conv2d(x, weight, backend=backend, **options)
    g = numbers(y.shape, seed + 20)
    d_x = conv2d_backward_input(g, weight, size=x_shape[2:], backend=backend, **options)
    d_weight = conv2d_backward_weight(g, x, size=w_shape[2:], backend=backend, **options)
    # At most 4 * 10^3 products of numbers of order 1, each rounded a few times.
    np.testing.assert_allclose([(x * d_x).sum(), (weight * d_weight).sum()], (y * g).sum(), rtol=0, atol=1e-10)
    for found, expected in (
        (y, conv2d(x, weight, backend="reference", **options)),
        (d_x, conv2d_backward_input(g, weight, size=x_shape[2:], backend="reference", **options)),
        (d_weight, conv2d_backward_weight(g, x, size=w_shape[2:], backend="reference", **options)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def calls(x: np.ndarray, weight: np.ndarray, g: np.ndarray, attrs: spec.Attrs) -> list[tuple[Any, Any, dict[str, Any]]]:
    options = attrs._asdict()
    return [
        (spec.CONV2D, (x, weight), options),
        (spec.CONV2D_BACKWARD_INPUT, (g, weight), {"size": x.shape[2:], **options}),
        (spec.CONV2D_BACKWARD_WEIGHT, (g, x), {"size": weight.shape[2:], **options}),
    ]


def direct(of: Any, inputs: Any, options: dict[str, Any], backend: str = "cpu") -> np.ndarray:
    """The kernel itself: `run` keeps the workspace that it found for such a call."""
    outputs = [np.full(shape, np.nan, dtype) for shape, dtype in of.infer(*inputs, **options)]
    workspace = [
        np.full(shape, np.nan if dtype.kind == "f" else -1, dtype) for shape, dtype in of.workspace(*inputs, **options)
    ]
    registry.entries(of)[backend].kernel()(inputs, outputs, workspace, options)
    return outputs[0]


@pytest.mark.parametrize("positions", [4, 13, 30, 400])
@pytest.mark.parametrize("attrs", [
    spec.Attrs((1, 1), ((1, 1), (1, 1))), spec.Attrs((2, 3), ((0, 1), (2, 0)), (1, 2), 2),
])  # fmt: skip
@pytest.mark.parametrize("filters", [3, 33])
def test_tiles_of_columns_rows_and_images(
    filters: int, positions: int, attrs: spec.Attrs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks as small as they get: the result is that of one."""
    x, weight = numbers((37, 4, 9, 11)), numbers((filters * attrs.groups, 4 // attrs.groups, 3, 3), 1)
    g = numbers(conv2d(x, weight, **attrs._asdict()).shape, 2)
    expected = [direct(*call, backend="reference") for call in calls(x, weight, g, attrs)]
    monkeypatch.setattr(spec, "MIN_POSITIONS", 1)
    monkeypatch.setattr(spec, "MAX_POSITIONS", positions)
    monkeypatch.setattr(spec, "LANE_FLOPS", 1)
    spec.plan.cache_clear()
    try:
        p = spec.forward_plan(x, weight, attrs)
        assert p.lanes(p.tiles) > 1 and p.positions <= max(positions, p.cols)
        for call, reference in zip(calls(x, weight, g, attrs), expected, strict=True):
            np.testing.assert_allclose(direct(*call), reference, rtol=0, atol=1e-12)
    finally:
        spec.plan.cache_clear()


def test_the_positions_above_make_tiles_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()
    monkeypatch.setattr(spec, "MIN_POSITIONS", 1)
    for positions in (4, 13, 30, 400):
        monkeypatch.setattr(spec, "MAX_POSITIONS", positions)
        p = spec.plan.__wrapped__((37, 4, 9, 11), (6, 4, 3, 3), (9, 11), spec.Attrs((1, 1), ((1, 1), (1, 1))))
        kinds.add((p.images > 1, p.rows > 1, p.cols < 11))
    assert {(False, False, True), (False, True, False), (True, True, False)} <= kinds


@pytest.mark.parametrize("place", [(0, 0), (0, 5), (2, 3), (4, 0), (4, 5)])
def test_an_infinity_reaches_what_it_meets_and_nothing_else(place: tuple[int, int]) -> None:
    """The columns of a tile that are no positions hold elements of the next row: they must not be counted."""
    attrs = spec.Attrs((2, 1), ((1, 1), (1, 2)))
    for hit in range(3):
        x, weight = numbers((3, 2, 5, 6)), numbers((4, 2, 3, 3), 1)
        g = numbers((3, 4, 3, 7), 2)
        (x, weight, g)[hit][1, 1, min(place[0], 2), min(place[1], 2 if hit == 1 else 5)] = np.inf
        for call in calls(x, weight, g, attrs):
            with np.errstate(invalid="ignore"):
                expected, found = direct(*call, backend="reference"), direct(*call)
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


def test_workspace_does_not_grow_with_the_batch() -> None:
    def sizes(batch: int) -> list[Any]:
        x, weight, attrs = np.empty((batch, 8, 28, 28), "f"), np.empty((16, 8, 3, 3), "f"), spec.Attrs()
        g = np.empty((batch, 16, 26, 26), "f")
        return [of.workspace(*inputs, **options) for of, inputs, options in calls(x, weight, g, attrs)]

    assert sizes(64) == sizes(640)
    plane = np.empty((1, 3, 4096, 4096), "b")
    p = spec.plan(plane.shape, (8, 3, 5, 5), (4092, 4092), spec.Attrs())
    assert p.taps * p.positions < 2 * spec.TILE and p.window < spec.TILE  # nor with the plane


X, W = np.ones((2, 4, 5, 5)), np.ones((6, 2, 3, 3))
MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"x": X[0]}, "x and weight of four axes"),
    ({"weight": W[0]}, "x and weight of four axes"),
    ({"groups": 1}, r"O a multiple of groups; got x float64\[2, 4, 5, 5\], weight float64\[6, 2, 3, 3\]"),
    ({"weight": W[:5]}, "O a multiple of groups"),
    ({"groups": 0}, "at least one group"),
    ({"stride": (0, 1)}, r"a stride of at least 1; .* stride=\(0, 1\)"),
    ({"dilation": (1, 0)}, "a dilation of at least 1"),
    ({"padding": ((0, 0), (0, -1))}, "a padding of at least 0"),
    ({"dilation": (3, 1)}, "kernel no larger than the padded input"),
    ({"weight": np.ones((6, 2, 0, 3))}, "a kernel of at least one element"),
    ({"weight": W.astype("f")}, "arrays of one dtype"),
    ({"x": X.astype(int), "weight": W.astype(int)}, "float32 or float64"),
    ({"bias": np.ones(5)}, r"a bias \(O,\)"),
]


@pytest.mark.parametrize("wrong, message", MISFITS)
def test_misfits_are_named(wrong: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": W, "groups": 2, **wrong}
    with pytest.raises(KernelError, match=f"conv2d: expected .*{message}"):
        conv2d(arguments.pop("x"), arguments.pop("weight"), arguments.pop("bias", None), **arguments)


def test_gradients_that_do_not_fit_are_named() -> None:
    g = np.ones((2, 6, 3, 3))
    with pytest.raises(KernelError, match=r"conv2d_backward_input: expected g \(N, 6, 4, 3\) for planes of size"):
        conv2d_backward_input(g, W, size=(6, 5), groups=2)
    with pytest.raises(KernelError, match=r"conv2d_backward_weight: expected g \(2, O, 4, 3\) for a kernel of size"):
        conv2d_backward_weight(g, X, size=(2, 3), groups=2)
