"""Pooling: PyTorch's windows, adjoint identities, NaN and infinities, errors; test_specs.py does the rest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gmkernels import KernelError, avg_pool2d, avg_pool2d_backward, max_pool2d, plane_gather, plane_scatter
from gmkernels.pooling import spec

BACKENDS = ("reference", "cpu")


@st.composite
def windows(draw: Any) -> tuple[tuple[int, ...], spec.Windows]:
    """The shape of x, and windows on it, of which each holds an element."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilation = pair(1, 4), draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    found = spec.Windows(kernel, pair(1, 4), padding, dilation, draw(st.booleans()))
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *pair(1, 9))
    try:
        spec.check("", shape[2:], found._asdict())
    except KernelError:
        assume(False)
    return shape, found


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30)
@given(case=windows(), include=st.booleans(), divisor=st.sampled_from([None, None, 3]), seed=st.integers(0, 9))
def test_windows_are_torchs(backend: str, case: Any, include: bool, divisor: int | None, seed: int) -> None:
    torch = pytest.importorskip("torch")
    shape, at = case
    x = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.float64)
    y, indices = max_pool2d(x, at.kernel, **{k: v for k, v in at._asdict().items() if k != "kernel"}, backend=backend)
    expected, places = torch.nn.functional.max_pool2d(torch.from_numpy(x), *at, return_indices=True)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, places)
    if at.dilation != (1, 1):
        return
    options: dict[str, Any] = {"stride": at.stride, "padding": at.padding, "ceil_mode": at.ceil_mode}
    y = avg_pool2d(x, at.kernel, **options, count_include_pad=include, divisor=divisor, backend=backend)
    leaf = torch.from_numpy(x).requires_grad_()
    options |= {"count_include_pad": include}
    mean = torch.nn.functional.avg_pool2d(leaf, at.kernel, **options, divisor_override=divisor)
    np.testing.assert_allclose(y, mean.detach(), rtol=1e-13, atol=1e-13)
    g = np.random.default_rng(seed).standard_normal(y.shape)
    found = avg_pool2d_backward(g, at.kernel, size=shape[2:], **options, divisor=divisor, backend=backend)
    mean.backward(torch.from_numpy(g))
    np.testing.assert_allclose(found, leaf.grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathering_is_adjoint_to_scattering(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 2, 7))
    indices = rng.integers(0, 20, g.shape)
    scattered = plane_scatter(g, indices, size=(5, 4), backend=backend)
    assert (plane_gather(x, indices, backend=backend) * g).sum() == pytest.approx((x * scattered).sum(), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_places_outside_the_plane(backend: str) -> None:
    indices = np.array([[[[-1, 0, 6, 5]]]])
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(plane_gather(x, indices, backend=backend), [[[[np.nan, 0, np.nan, 5]]]])
    y = plane_scatter(np.array([[[[1.0, 2.0, 4.0, 8.0]]]]), indices, size=(2, 3), backend=backend)
    np.testing.assert_array_equal(y, [[[[2, 0, 0], [0, 0, 8]]]])


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("shape, at", [
    ((2, 2, 70, 90), spec.Windows((3, 2), (2, 1), (1, 1))),  # several tiles of places, and windows that overhang
    ((1, 2, 70, 90), spec.Windows((2, 3), (1, 3), (0, 1), (2, 5))),
    ((1, 1, 7, 2500), spec.Windows((2, 2), (2, 2))),  # rows longer than a tile
    ((1, 1, 5, 2049), spec.Windows((3, 3), (1, 1), (1, 1))),
    ((1, 1, 60, 60), spec.Windows((4, 4), (5, 5))),  # far apart
    ((3, 3, 14, 14), spec.Windows((2, 2), (2, 2))),
])  # fmt: skip
def test_planes_of_all_sizes(shape: tuple[int, ...], at: spec.Windows) -> None:
    rng = np.random.default_rng(1)
    x = rng.choice([-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN], shape, p=[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    of_max = {name: value for name, value in at._asdict().items() if name != "kernel"}
    for dtype in (np.float32, np.float64):
        expected = max_pool2d(x.astype(dtype), at.kernel, **of_max, backend="reference")
        for found, each in zip(max_pool2d(x.astype(dtype), at.kernel, **of_max, backend="cpu"), expected):
            np.testing.assert_array_equal(found, each)
    if at.dilation != (1, 1):
        return
    x, of_mean = rng.standard_normal(shape), {name: of_max[name] for name in ("stride", "padding", "ceil_mode")}
    for divisor in (None, 3, -3):
        expected = avg_pool2d(x, at.kernel, **of_mean, divisor=divisor, backend="reference")
        found = avg_pool2d(x, at.kernel, **of_mean, divisor=divisor, backend="cpu")
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
        g = rng.standard_normal(found.shape)
        of_g = {**of_mean, "size": shape[2:], "divisor": divisor}
        expected = avg_pool2d_backward(g, at.kernel, **of_g, backend="reference")
        found = avg_pool2d_backward(g, at.kernel, **of_g, backend="cpu")
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row, largest, place", [
    ([1.0, NAN, 3.0], NAN, 1), ([NAN, 1.0, NAN], NAN, 0), ([-INF, -INF, -INF], -INF, 0), ([2.0, 2.0, 1.0], 2.0, 0),
    ([-INF, 1.0, INF], INF, 2), ([INF, NAN, 0.0], NAN, 1),
])  # fmt: skip
def test_maxima_of_special_numbers(row: list[float], largest: float, place: int, backend: str) -> None:
    y, indices = max_pool2d(np.array([[[row]]]), (1, 3), backend=backend)
    np.testing.assert_array_equal(y, [[[[largest]]]])
    assert indices.item() == place


X = np.ones((1, 2, 4, 5))


@pytest.mark.parametrize("call, message", [
    (lambda: max_pool2d(X[0], (2, 2)), r"max_pool2d: expected arrays \(N, C, H, W\)"),
    (lambda: max_pool2d(X.astype(int), (2, 2)), "max_pool2d: expected arrays .* float32 or float64"),
    (lambda: max_pool2d(X, (5, 1)), r"max_pool2d: .* no larger than the padded input; got x float64\[1, 2, 4, 5\]"),
    (lambda: max_pool2d(X, (2, 2), padding=(2, 0)), "a padding of at most half the kernel"),
    (lambda: max_pool2d(X, (2, 2), stride=(0, 1)), "stride and dilation of at least 1"),
    (lambda: max_pool2d(X[:, :, :1], (2, 2), padding=(1, 0), dilation=(2, 1)), "an element of the input in"),
    (lambda: max_pool2d(X, 2), "max_pool2d: expected kernel as a pair of integers; got .* kernel=2"),
    (lambda: max_pool2d(X, (1, 2, 3)), "max_pool2d: expected kernel as a pair of integers"),
    (lambda: avg_pool2d(X, (2, 2), stride=(1.5, 2)), "avg_pool2d: expected stride as a pair of integers"),
    (lambda: plane_scatter(X, np.zeros(X.shape, int), size=(1, 2, 3)), "plane_scatter: expected size as a pair of"),
    (lambda: avg_pool2d(X, (2, 2), divisor=2.5), "avg_pool2d: expected a divisor other than 0, an integer"),
    (lambda: avg_pool2d(X, (2, 2), divisor=0), "avg_pool2d: expected a divisor other than 0"),
    (lambda: avg_pool2d_backward(X, (2, 2), size=(4, 4)), r"avg_pool2d_backward: expected g \(N, C, 2, 2\)"),
    (lambda: plane_gather(X, np.zeros((1, 1, 2, 2), int)), "plane_gather: expected x and indices of the same planes"),
    (lambda: plane_gather(X, np.zeros((1, 2, 2, 2), np.int32)), "plane_gather: expected indices int64"),
    (lambda: plane_scatter(X, np.zeros((1, 2, 2, 2), int), size=(2, 2)), "plane_scatter: expected x and indices of"),
])  # fmt: skip
def test_misfits_are_named(call: Any, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        call()
