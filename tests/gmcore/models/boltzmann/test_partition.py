"""Partition functions: enumeration against the joint and closed forms, annealing against enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from gmcore import Generator
from gmcore.errors import ArgumentError
from gmcore.models.boltzmann.partition import anneal, annealing_schedule, enumerable, exact_partition


def machine(visible, hidden, scale=1.0, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    shapes = (hidden, visible), (visible,), (hidden,)
    return tuple((scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def states(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)))


# -- enumeration ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("visible, hidden", [(5, 4), (3, 6), (1, 1), (13, 2), (2, 13)])
def test_enumeration_sums_the_joint(visible, hidden):
    weight, c, b = machine(visible, hidden)
    v, h = states(visible), states(hidden)
    expected = special.logsumexp(h @ weight @ v.T + v @ c + (h @ b)[:, None])
    found = exact_partition((weight, c, b))
    assert found.log_z == pytest.approx(expected, rel=1e-12)
    assert found.interval == (found.log_z, found.log_z) and found.runs is None


def test_enumeration_goes_over_either_layer():
    """2^13 states of the 13 units of one layer are more than one block; 30 units of the other are summed out."""
    weight, c, b = machine(30, 13, 0.3)
    tall, wide = exact_partition((weight, c, b)), exact_partition((weight.T, b, c))
    assert tall.log_z == pytest.approx(wide.log_z, rel=1e-13)


def test_gaussian_units_are_integrated_out():
    """Against the integral of exp(-F(v)) over two visible units, on a grid: exact to rounding for smooth functions."""
    weight, c, b = machine(2, 3)
    axis = np.linspace(-14, 14, 281)
    v = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    minus_f = np.logaddexp(0, v @ weight.T + b).sum(1) - ((v - c) ** 2).sum(1) / 2
    expected = special.logsumexp(minus_f) + 2 * math.log(axis[1] - axis[0])
    assert exact_partition((weight, c, b), "gaussian").log_z == pytest.approx(expected, rel=1e-12)


def test_two_hidden_units_make_a_mixture_of_four_normal_distributions():
    """exp(-F(v)) / Z is the mixture's density, and Z has a closed form."""
    weight, c, b = machine(3, 2)
    h = states(2)
    means = h @ weight + c
    log_share = h @ b + (means**2).sum(1) / 2 - (c**2).sum() / 2
    log_z = math.log(2 * math.pi) * 3 / 2 + special.logsumexp(log_share)
    assert exact_partition((weight, c, b), "gaussian").log_z == pytest.approx(log_z, rel=1e-13)
    v = np.random.default_rng(1).standard_normal((50, 3))
    minus_f = np.logaddexp(0, v @ weight.T + b).sum(1) - ((v - c) ** 2).sum(1) / 2
    densities = np.stack([stats.norm.logpdf(v, mean).sum(1) for mean in means])
    mixture = special.logsumexp(densities + special.log_softmax(log_share)[:, None], axis=0)
    np.testing.assert_allclose(minus_f - log_z, mixture, rtol=1e-11)


def test_too_many_states_are_refused():
    assert enumerable((20, 500)) and enumerable((500, 20)) and not enumerable((21, 21))
    assert not enumerable((500, 20), "gaussian")
    with pytest.raises(ArgumentError, match="21 visible .* and 22 hidden units has too many states.*annealing"):
        exact_partition(machine(21, 22))


# -- annealing -----------------------------------------------------------------------------------------------
def test_schedule_of_salakhutdinov_and_murray():
    betas = annealing_schedule()
    assert len(betas) == 14_500 and betas[0] == 0 and betas[-1] == 1
    counts = [np.count_nonzero((betas >= low) & (betas < high)) for low, high in ((0, 0.5), (0.5, 0.9), (0.9, 2))]
    assert counts == [500, 4_000, 10_000]
    for temperatures in (2, 3, 10, 251, 1000):
        betas = annealing_schedule(temperatures)
        assert len(betas) == temperatures and betas[0] == 0 and betas[-1] == 1 and (np.diff(betas) > 0).all()


@pytest.mark.parametrize(
    "visible, hidden, units",
    [(4, 4, "bernoulli"), (8, 16, "bernoulli"), (20, 12, "bernoulli"), (4, 4, "gaussian"), (8, 16, "gaussian")],
)
def test_annealing_is_within_a_hundredth_of_enumeration(visible, hidden, units):
    """The interval is narrower than that too: the figure is no luck."""
    parameters = machine(visible, hidden, 0.5 if units == "bernoulli" else 0.2, dtype="float32")
    exact = exact_partition(parameters, units).log_z
    found, _ = anneal(
        parameters, units, base_bias=parameters[1], betas=annealing_schedule(1000), runs=1000, generator=Generator(7)
    )
    low, high = found.interval
    assert abs(found.log_z - exact) < 0.01 and high - low < 0.02
    assert found.runs == found.temperatures == 1000 and 900 < found.effective_runs <= 1000


def test_weights_are_unbiased_and_intervals_cover():
    """With few temperatures: 40,000 runs estimate Z without bias, and 300 estimates of 100 runs cover it as promised.

    Of 300 intervals, 95 % +- 1.3 % cover; those of 100 skewed weights somewhat less.
    """
    parameters = machine(6, 5, 0.7)
    exact = exact_partition(parameters).log_z
    betas = np.linspace(0, 1, 12)
    found, log_weights = anneal(parameters, betas=betas, runs=40_000, generator=Generator(3))
    w = np.exp(log_weights + (found.log_z - special.logsumexp(log_weights - math.log(40_000))) - exact)
    assert abs(w.mean() - 1) < 4 * w.std() / 200
    assert w.std() > 0.1  # they do vary
    noise = Generator(4)
    estimates = [anneal(parameters, betas=betas, runs=100, generator=noise)[0].interval for _ in range(300)]
    assert 0.88 < np.mean([low < exact < high for low, high in estimates]) < 0.99


def test_a_machine_of_base_rates_is_exact_at_once():
    _, c, _ = machine(7, 5)
    found, log_weights = anneal((np.zeros((5, 7)), c, np.zeros(5)), base_bias=c, betas=np.array([0, 1]), runs=3)
    assert found.log_z == pytest.approx(5 * math.log(2) + np.logaddexp(0, c).sum(), rel=1e-14)
    np.testing.assert_allclose(log_weights, 0, atol=1e-12)


def test_one_run_has_no_interval():
    found, _ = anneal(machine(3, 2), betas=np.array([0, 0.5, 1]), runs=1)
    assert found.interval[0] == -math.inf and found.interval[1] == math.inf


def test_runs_repeat_and_report():
    seen = []
    found = [
        anneal(machine(3, 2), betas=annealing_schedule(600), runs=5, generator=Generator(1), report=report)[0]
        for report in (None, lambda done, total: seen.append((done, total)))
    ]
    assert found[0] == found[1] and seen == [(250, 599), (500, 599), (599, 599)]


@pytest.mark.parametrize("betas", [[0, 0.5], [0.1, 1], [0, 0.6, 0.5, 1], [0, 0, 1], [1], [[0, 1]]])
def test_schedules_that_do_not_rise_from_0_to_1_are_refused(betas):
    with pytest.raises(ArgumentError, match="betas must increase from 0 to 1"):
        anneal(machine(3, 2), betas=np.array(betas, float))


def test_bad_numbers_are_refused():
    with pytest.raises(ArgumentError, match="runs must be a positive integer, got 0"):
        anneal(machine(3, 2), betas=np.array([0, 1]), runs=0)
    with pytest.raises(ArgumentError, match="temperatures must be at least 2, got 1"):
        annealing_schedule(1)
