import math

import numpy as np
import pytest

from gmcore import Generator, default_generator, manual_seed, nn, tensor
from gmcore.errors import ArgumentError, GraphError, ShapeError, UnknownNameError
from gmcore.nn import init

SHAPE = (120, 90, 3)  # fan_in 270, fan_out 360
GAIN = math.sqrt(2.0 / (1.0 + 0.5**2))


def filled(function, *args, shape=SHAPE, dtype="float64", **kwargs):
    p = nn.Parameter(np.full(shape, np.nan, dtype))
    assert function(p, *args, generator=Generator(7), **kwargs) is p
    assert p.version == 1 and p.dtype == dtype
    return p.detach().numpy()


@pytest.mark.parametrize(
    ("function", "args", "std"),
    [
        (init.xavier_uniform_, (1.5,), 1.5 * math.sqrt(2 / 630)),
        (init.xavier_normal_, (1.5,), 1.5 * math.sqrt(2 / 630)),
        (init.kaiming_uniform_, (0.5,), GAIN / math.sqrt(270)),
        (init.kaiming_normal_, (0.5, "fan_out"), GAIN / math.sqrt(360)),
        (init.kaiming_normal_, (0.0, "fan_in", "relu"), math.sqrt(2 / 270)),
        (init.kaiming_uniform_, (0.0, "fan_in", "tanh"), 5 / 3 / math.sqrt(270)),
    ],
)
def test_standard_deviation_and_support(function, args, std):
    x = filled(function, *args) / std
    # n = 32400: the standard error of the mean is 1 / sqrt(n), of the variance at most sqrt(2 / n).
    assert abs(x.mean()) < 5 / math.sqrt(x.size) and abs(x.var() - 1) < 5 * math.sqrt(2 / x.size)
    uniform = "uniform" in function.__name__
    assert (np.abs(x).max() <= math.sqrt(3) * (1 + 1e-12)) == uniform


def test_uniform_and_normal_take_their_parameters():
    x = filled(init.uniform_, 2.0, 5.0)
    assert x.min() > 2.0 and x.max() <= 5.0 and abs(x.mean() - 3.5) < 5 * 0.87 / math.sqrt(x.size)
    y = filled(init.normal_, 2.0, 3.0)
    assert abs(y.mean() - 2) < 15 / math.sqrt(y.size) and abs(y.std() - 3) < 15 / math.sqrt(2 * y.size)


@pytest.mark.parametrize("function", [init.uniform_, init.normal_, init.xavier_uniform_, init.kaiming_normal_])
def test_one_draw_of_the_generator_and_float64_refines_float32(function):
    generator = manual_seed(7)
    p = function(nn.Parameter(np.zeros(SHAPE, np.float32)))
    assert default_generator() is generator and generator.state == (7, 1)
    # Uniforms and normals of the two precisions come from the same words; float32 rounds within 1e-6 of scale 5.
    np.testing.assert_allclose(p.detach().numpy(), filled(function), rtol=0, atol=5e-6)


def test_constants():
    p = nn.Parameter(np.full((2, 3), np.nan, np.float32))
    for function, args, value in ((init.zeros_, (), 0), (init.ones_, (), 1), (init.constant_, (2.5,), 2.5)):
        assert function(p, *args) is p and p.dtype == np.float32
        np.testing.assert_array_equal(p.detach().numpy(), np.full((2, 3), value))


def test_weights_without_elements_are_left():
    for shape in ((0, 3), (3, 0), (0, 0)):
        for function in (init.kaiming_uniform_, init.xavier_normal_):
            assert filled(function, shape=shape).shape == shape


def test_gains_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for name in ("linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(torch.nn.init.calculate_gain("leaky_relu", 0.3))


def test_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        init.calculate_gain("rellu")
    p = nn.Parameter(np.zeros(3))
    for function in (init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_, init.kaiming_normal_):
        with pytest.raises(ShapeError, match="two or more axes"):
            function(p)
    with pytest.raises(ArgumentError, match="mode must be 'fan_in' or 'fan_out', got 'fan'"):
        init.kaiming_normal_(nn.Parameter(np.zeros((2, 2))), mode="fan")
    with pytest.raises(GraphError, match="leaves only"):
        init.zeros_(tensor([1.0], requires_grad=True) * 2.0)


def test_trunc_normal_is_the_normal_between_the_limits():
    stats = pytest.importorskip("scipy.stats")
    for mean, std, a, b in ((0.0, 1.0, -2.0, 2.0), (1.0, 0.5, 1.0, 9.0), (0.0, 1.0, 9.0, 11.0), (0.0, 1.0, -8.0, -6.0)):
        x = filled(init.trunc_normal_, mean, std, a, b, shape=(40, 50)).ravel()
        law = stats.truncnorm((a - mean) / std, (b - mean) / std, loc=mean, scale=std)
        assert x.min() >= a and x.max() <= b
        # Kolmogorov's distance of n draws exceeds 2.3 / sqrt(n) with probability 5e-5.
        assert stats.kstest(x, law.cdf).statistic < 2.3 / math.sqrt(x.size)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (4, 2, 3), (3, 2, 2, 2)])
def test_orthogonal(shape):
    w = filled(init.orthogonal_, 2.0, shape=shape).reshape(shape[0], -1)
    w = w if w.shape[0] <= w.shape[1] else w.T
    np.testing.assert_allclose(w @ w.T, 4.0 * np.eye(len(w)), rtol=0, atol=1e-14)


def test_orthogonal_matrices_are_uniform():
    """Each element has mean 0 and variance 1 / n, and the determinant either sign."""
    generator, n = Generator(7), 400
    found = np.stack([
        init.orthogonal_(nn.Parameter(np.zeros((3, 3))), generator=generator).detach().numpy() for _ in range(n)
    ])  # fmt: skip
    assert np.abs(found.mean(0)).max() < 5 * math.sqrt(1 / 3 / n)
    assert np.abs(found.var(0) - 1 / 3).max() < 5 * math.sqrt(4 / 45 / n)  # of a coordinate squared on the sphere
    assert abs((np.linalg.det(found) > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)


def test_eye_and_dirac_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for shape in ((3, 5), (5, 3)):
        np.testing.assert_array_equal(
            filled(lambda p, generator: init.eye_(p), shape=shape), torch.nn.init.eye_(torch.empty(shape))
        )
    for shape, groups in (((4, 2, 3), 1), ((4, 2, 3), 2), ((2, 4, 3, 4), 1), ((6, 3, 1, 2, 3), 3)):
        found = filled(lambda p, groups, generator: init.dirac_(p, groups), groups, shape=shape)
        np.testing.assert_array_equal(found, torch.nn.init.dirac_(torch.empty(shape), groups))


def test_sparse_has_as_many_zeros_in_each_column():
    x = filled(init.sparse_, 0.21, 0.5, shape=(100, 60))
    assert ((x == 0).sum(0) == 21).all() and len({tuple(column) for column in (x == 0).T}) > 1
    kept = x[x != 0]
    assert abs(kept.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * kept.size)


def test_errors_of_the_others():
    square, vector = nn.Parameter(np.zeros((2, 2))), nn.Parameter(np.zeros(3))
    for call, error, match in (
        (lambda: init.eye_(vector), ShapeError, r"eye_: expected a matrix, got shape \(3,\)"),
        (lambda: init.dirac_(square), ShapeError, "dirac_: expected a weight"),
        (lambda: init.dirac_(nn.Parameter(np.zeros((3, 2, 2))), 2), ShapeError, "multiple of groups=2"),
        (lambda: init.orthogonal_(vector), ShapeError, "orthogonal_: expected a weight of two or more axes"),
        (lambda: init.sparse_(vector, 0.5), ShapeError, "sparse_: expected a matrix"),
        (lambda: init.sparse_(square, 1.5), ArgumentError, r"sparsity must be in \[0, 1\], got 1.5"),
        (lambda: init.trunc_normal_(square, a=1.0, b=1.0), ArgumentError, "expected a < b and std > 0"),
    ):
        with pytest.raises(error, match=match):
            call()
