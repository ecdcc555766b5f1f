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
