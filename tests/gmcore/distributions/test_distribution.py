import numpy as np
import pytest

from gmcore import Generator, gradcheck, ops, tensor
from gmcore.distributions import Bernoulli, Distribution, Normal, constraints
from gmcore.errors import ArgumentError, DtypeError, ShapeError


class Exponential(Distribution):
    """A distribution from outside the package: what the base asks for, and gives."""

    arg_constraints = {"rate": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, rate, validate_args=None):
        self.rate = rate
        super().__init__(rate.shape, validate_args=validate_args)

    @property
    def mean(self):
        return 1.0 / self.rate

    @property
    def variance(self):
        return 1.0 / ops.square(self.rate)

    def rsample(self, sample_shape=(), generator=None):
        u = ops.uniform(self._extended_shape(sample_shape), dtype=self.rate.dtype, generator=generator)
        return -ops.log(u) / self.rate

    def log_prob(self, value):
        return ops.log(self.rate) - self.rate * self._as_value(value)

    def entropy(self):
        return 1.0 - ops.log(self.rate)


def test_a_distribution_of_ones_own():
    d = Exponential(tensor([1.0, 2.0], requires_grad=True))
    assert repr(d) == "Exponential(rate: (2,))" and d.batch_shape == (2,) and d.event_shape == ()
    assert d.rsample((3,)).requires_grad and not d.sample((3,)).requires_grad
    np.testing.assert_allclose(d.stddev.detach().numpy(), [1.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(d.sample((4,), Generator(1)).numpy(), d.rsample((4,), Generator(1)).detach().numpy())
    assert gradcheck(lambda rate: Exponential(rate).rsample((3,), Generator(2)), [np.array([1.0, 2.0])], order=2)
    with pytest.raises(ArgumentError, match=r"Exponential: rate must be positive and finite, got 0.0 at index \(1,\)"):
        Exponential(tensor([1.0, 0.0]))
    with pytest.raises(ArgumentError, match="Exponential: value must be positive and finite, got -1.0"):
        d.log_prob(-1.0)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Distribution()


CASES = [
    pytest.param(lambda x: Normal(x, 1.0), id="loc"),
    pytest.param(lambda x: Normal(0.0, x), id="scale"),
    pytest.param(lambda x: Bernoulli(x), id="probs"),
    pytest.param(lambda x: Bernoulli(logits=x), id="logits"),
]


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (4,), (0,), (5, 2)])
def test_shapes_are_sample_then_batch(make, batch, sample_shape):
    d = make(tensor(np.full(batch, 0.5)))
    assert d.batch_shape == batch and d.event_shape == ()
    x = d.sample(sample_shape)
    assert x.shape == (*sample_shape, *batch) and not x.requires_grad
    assert d.log_prob(x).shape == x.shape
    for statistic in (d.mean, d.variance, d.stddev, d.entropy()):
        assert statistic.shape == batch


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept_with_values_of_any_kind(make, dtype):
    parameter = tensor(np.full((3,), 0.5, dtype), requires_grad=True)
    d = make(parameter)
    values = [1, 1.0, True, [0, 1, 1], np.array([0, 1, 1]), np.array([0, 1, 1], np.uint8), np.ones(3, bool)]
    for value in [*values, d.sample()]:
        log_prob = d.log_prob(value)
        assert log_prob.dtype == dtype
        parameter.grad = None
        log_prob.sum().backward()
        assert parameter.grad.dtype == dtype
    assert {t.dtype.name for t in (d.sample((2,)), d.mean, d.variance, d.stddev, d.entropy())} == {dtype}
    assert make(0.5).sample().dtype == np.float32


@pytest.mark.parametrize("make", CASES)
def test_samples_are_fixed_by_the_generator_and_take_one_draw(make):
    d = make(tensor(np.full((7,), 0.3)))
    generator = Generator(5)
    first, second = d.sample((20,), generator), d.sample((20,), generator)
    assert generator.state == (5, 2)
    np.testing.assert_array_equal(first.numpy(), d.sample((20,), Generator(5)).numpy())
    assert (first.numpy() != second.numpy()).any()


def test_python_numbers_do_not_lose_precision_in_float64():
    d = Normal(tensor(np.zeros(1)), 0.1)
    assert d.scale.item() == 0.1
    assert d.log_prob(0.1).item() == pytest.approx(-0.5 - np.log(0.1) - 0.5 * np.log(2 * np.pi), rel=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: Normal(tensor([0.0, np.nan]), 1.0, v), r"Normal: loc must be finite, got nan at index \(1,\)"),
        (lambda v: Normal(np.inf, 1.0, v), "Normal: loc must be finite, got inf"),
        (lambda v: Normal(0.0, tensor([[1.0, 0.0]]), v), r"Normal: scale must be positive .* 0.0 at index \(0, 1\)"),
        (lambda v: Normal(0.0, np.nan, v), "Normal: scale must be positive and finite, got nan"),
        (lambda v: Bernoulli(1.5, validate_args=v), r"Bernoulli: probs must be in \[0, 1\], got 1.5"),
        (lambda v: Bernoulli(tensor([-0.1]), validate_args=v), r"Bernoulli: probs must be in \[0, 1\], got -0.1"),
        (lambda v: Bernoulli(np.nan, validate_args=v), r"Bernoulli: probs must be in \[0, 1\], got nan"),
        (lambda v: Bernoulli(logits=np.inf, validate_args=v), "Bernoulli: logits must be finite, got inf"),
        (lambda v: Normal(0.0, 1.0, v).log_prob(np.nan), "Normal: value must be finite, got nan"),
        (lambda v: Bernoulli(0.5, validate_args=v).log_prob(0.5), "Bernoulli: value must be 0 or 1, got 0.5"),
    ],
)
def test_validation_names_the_parameter_and_can_be_left_out(make, message):
    for validate in (None, True):
        with pytest.raises(ArgumentError, match=message):
            make(validate)
    make(False)


def test_shape_and_dtype_errors():
    with pytest.raises(ShapeError, match=r"do not broadcast with each other: loc \(2,\), scale \(3,\)"):
        Normal(np.zeros(2), np.ones(3))
    with pytest.raises(ShapeError, match=r"Normal: a value of shape \(2,\) does not broadcast .* shape \(3,\)"):
        Normal(np.zeros(3), 1.0).log_prob(np.zeros(2))
    for make in (lambda: Normal(tensor([1, 2]), 1.0), lambda: Normal(0.0, np.ones(2, bool))):
        with pytest.raises(DtypeError, match="expected floating numbers"):
            make()
    with pytest.raises(DtypeError, match="logits is int64"):
        Bernoulli(logits=np.array([1]))


def test_parameters_keep_their_path_through_no_grad():
    """What is derived inside no_grad (a sample) must not cut the tape for what comes after."""
    from gmcore import no_grad

    logits = tensor([0.3], requires_grad=True)
    d = Bernoulli(logits=logits)
    with no_grad():
        assert not d.probs.requires_grad
    d.probs.sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), d.variance.detach().numpy(), rtol=1e-6)
