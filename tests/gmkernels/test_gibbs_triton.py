"""Gibbs sampling in Triton: several tiles with ragged edges, weights in two parts, and all steps in one launch.

Weights, biases and states are multiples of 1/16 where samples are compared: then means and samples do not depend on the
order of sums.

Run as a program, this file compiles large half-steps and prints what the test of their machine code reads: a process in
which Triton interprets cannot compile.
"""

import contextlib
import functools
import importlib
import json
import sys

import numpy as np
import pytest

from gmkernels import launch, registry
from gmkernels.gibbs import spec
from tests.support import ahead

cupy = pytest.importorskip("cupy")
gibbs = pytest.importorskip("gmkernels.gibbs.triton")

KEY = np.array([17, 4, 3], np.uint64)
"""Its offset makes rows of odd length begin at every lane of a group of words."""


def dyadic(rng, *shape):
    return (rng.integers(-4, 5, shape) / 16).astype(np.float32)


def machine(visible, hidden, seed=0):
    """weight, visible_bias, hidden_bias"""
    rng = np.random.default_rng(seed)
    return dyadic(rng, hidden, visible), dyadic(rng, visible), dyadic(rng, hidden)


def binary(*shape):
    return np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8)


def on_device(inputs):
    """The arrays on the device; one that comes twice is one array there."""
    made = {id(a): cupy.asarray(a) for a in inputs}
    return tuple(made[id(a)] for a in inputs)


def run(op, inputs, **attrs):
    return [out.get() for out in registry.run(op, on_device(inputs), attrs, backend="triton")]


def check(op, inputs, **attrs):
    """Check that the results are those of the reference in float64."""
    found = run(op, inputs, **attrs)
    wide = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs)
    attrs = {name: "float64" if value == "float32" else value for name, value in attrs.items()}
    expected = registry.run(op, wide, attrs, backend="reference")
    rtol, atol = op.tolerance["float32"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@contextlib.contextmanager
def small_tiles():
    """Tiles of 32 x 64, in groups of two rows of them, each finished in two parts."""
    with contextlib.ExitStack() as stack:
        for (_, many), choices in gibbs.CHOICES.items():
            if not many:
                stack.enter_context(choices.trying(gibbs.tile(32, 64, 16, 1, 2, group=2)))
        yield


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "rows, outputs, dtype", [(5, 69, "uint8"), slow(67, 69, "uint8"), slow(67, 68, "float32"), slow(5, 68, "float32")]
)
def test_tiles_of_a_half_step(rows, outputs, dtype):
    """Ragged along all three axes, and with rows that begin in the middle of a group of words."""
    rng = np.random.default_rng(0)
    weight, bias = dyadic(rng, outputs, 37), dyadic(rng, outputs)
    with small_tiles():
        check(spec.GIBBS_HALF_STEP, (binary(rows, 37).astype(dtype), weight, bias, KEY), units="bernoulli", dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [68, 69])
def test_gaussian_units_of_a_half_step(outputs):
    """Normals have the bits of the reference in float32: added to the same mean they are the same sample."""
    rng = np.random.default_rng(0)
    inputs = (binary(5, 37), dyadic(rng, outputs, 37), dyadic(rng, outputs), KEY)
    with small_tiles():
        mean, sample = run(spec.GIBBS_HALF_STEP, inputs, units="gaussian", dtype="float32")
    expected = registry.run(
        spec.GIBBS_HALF_STEP, inputs, {"units": "gaussian", "dtype": "float32"}, backend="reference"
    )
    np.testing.assert_array_equal(mean, expected[0])
    np.testing.assert_array_equal(sample, expected[1])


def test_a_weight_in_two_parts_has_17_bits():
    """Inputs of units from uint8 and float32 are within 2^-18 sum |x w| of exact ones, and roundings of a sum.

    One part alone would miss that by far: it is off by up to 2^-9 |w| (2^-12 where Triton interprets).
    """
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (16, 40)).astype(np.uint8), rng.standard_normal((16, 40)).astype(np.float32)
    inputs = (x, weight, np.zeros(16, np.float32), KEY)
    mean, _ = run(spec.GIBBS_HALF_STEP, inputs, units="gaussian", dtype="float32")
    exact, size = x @ weight.T.astype(np.float64), x @ np.abs(weight.T).astype(np.float64)
    assert (np.abs(mean - exact) <= (2.0**-18 + 80 * 2.0**-23) * size).all()  # a tensor core cuts off each sum


@pytest.mark.slow
def test_the_means_of_nan_and_of_certain_units():
    bias = np.array([np.nan, 200, -200, 0, np.nan], np.float32)
    states, weight = np.zeros((33, 2), np.float32), np.ones((5, 2), np.float32)
    mean, sample = run(spec.GIBBS_HALF_STEP, (states, weight, bias, KEY), units="bernoulli", dtype="float32")
    assert np.isnan(mean[:, [0, 4]]).all() and np.isnan(sample[:, [0, 4]]).all()
    assert (sample[:, 1] == 1).all() and (sample[:, 2] == 0).all() and 0 < sample[:, 3].mean() < 1
    _, kept = run(spec.GIBBS_HALF_STEP, (states, weight, bias, KEY), units="bernoulli", dtype="uint8")
    np.testing.assert_array_equal(kept, np.nan_to_num(sample))


# 70 units are two tiles of a chain's program, and two steps of its sums.
@pytest.mark.parametrize("units", ["bernoulli", slow("gaussian")])
@pytest.mark.parametrize("rows, in_one_launch", [(5, True), slow(18, True), slow(18, False)])
def test_a_chain_in_one_launch_or_many(monkeypatch, units, rows, in_one_launch):
    start = binary(rows, 9) if units == "bernoulli" else dyadic(np.random.default_rng(2), rows, 9)
    if not in_one_launch:
        monkeypatch.setattr(gibbs, "SMALL_WEIGHT", 0)
    steps = 2 if units == "bernoulli" else 1  # of one, as the examples
    check(spec.GIBBS_CHAIN, (start, *machine(9, 70), KEY), steps=steps, units=units)


@pytest.mark.slow
def test_chains_of_a_launch_are_those_of_many(monkeypatch):
    """Bit for bit: both begin with the same rows, and a row does not depend on its neighbours."""
    inputs = (binary(18, 66), *machine(66, 33), KEY)
    found = run(spec.GIBBS_CHAIN, inputs, steps=2, units="bernoulli")
    monkeypatch.setattr(gibbs, "SMALL_WEIGHT", 0)
    for a, b in zip(found, run(spec.GIBBS_CHAIN, inputs, steps=2, units="bernoulli"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("units", spec.UNITS)
def test_free_energies_of_several_tiles(units):
    states = binary(21, 150) if units == "bernoulli" else dyadic(np.random.default_rng(2), 21, 150)
    check(spec.FREE_ENERGY, (states, *machine(150, 70)), units=units)


@pytest.mark.parametrize("from_data", [True, slow(False)])
def test_statistics_of_several_tiles(from_data):
    data = binary(5, 66)
    chain = data if from_data else binary(9, 66)
    check(spec.CONTRASTIVE_DIVERGENCE, (data, chain, *machine(66, 33), KEY), steps=1, units="bernoulli")


@pytest.mark.slow
@pytest.mark.parametrize("from_data, in_one_launch", [(True, True), (False, False)])
def test_statistics_after_several_steps(monkeypatch, from_data, in_one_launch):
    """More rows than a step of the sums over them has."""
    if not in_one_launch:
        monkeypatch.setattr(gibbs, "SMALL_WEIGHT", 0)
    data = binary(70, 34)
    chain = data if from_data else binary(33, 34).astype(np.float32)
    check(spec.CONTRASTIVE_DIVERGENCE, (data, chain, *machine(34, 37), KEY), steps=2, units="bernoulli")


def test_annealing_over_several_tiles():
    betas = np.array([0, 0.25, 1])
    inputs = (binary(3, 36), *machine(36, 20), dyadic(np.random.default_rng(3), 36), betas, KEY)
    check(spec.ANNEALED_IMPORTANCE_SAMPLING, inputs, units="bernoulli")


@pytest.mark.slow
def test_annealing_of_thousands_of_chains():
    inputs = (binary(2011, 9), *machine(9, 6), dyadic(np.random.default_rng(3), 9), np.array([0, 0.5, 1]), KEY)
    check(spec.ANNEALED_IMPORTANCE_SAMPLING, inputs, units="bernoulli")


@pytest.mark.parametrize("rows", [5, slow(17)])
def test_a_sweep_over_several_blocks(rows):
    rng = np.random.default_rng(0)
    upper = np.triu(dyadic(rng, 67, 67), 1)
    inputs = (binary(rows, 67), upper + upper.T, dyadic(rng, 67), rng.random(67) < 0.8, KEY)
    check(spec.BOLTZMANN_SWEEP, inputs, sweeps=2)


@pytest.mark.slow
def test_indices_of_64_bits_make_no_difference(monkeypatch):
    weight, c, b = machine(36, 33)
    data, betas = binary(35, 36), np.array([0, 0.5, 1])
    calls = [
        ("gibbs_half_step", (data, weight, b, KEY), {"units": "bernoulli", "dtype": "uint8"}),
        ("contrastive_divergence", (data, data, weight, c, b, KEY), {"steps": 2, "units": "bernoulli"}),
        ("free_energy", (data, weight, c, b), {"units": "bernoulli"}),
        ("annealed_importance_sampling", (data, weight, c, b, c, betas, KEY), {"units": "bernoulli"}),
    ]
    before = [run(registry.specs()[op], inputs, **attrs) for op, inputs, attrs in calls]
    monkeypatch.setattr(launch, "LARGEST_SIZE", -1)  # of arrays that 32 bits suffice for
    for (op, inputs, attrs), wanted in zip(calls, before, strict=True):
        for x, y in zip(run(registry.specs()[op], inputs, **attrs), wanted, strict=True):
            assert x.tobytes() == y.tobytes(), op


def test_explain_says_how_chains_run():
    def why(hidden):
        inputs = (binary(4, 64), *machine(64, hidden), KEY)
        return registry.explain(spec.GIBBS_CHAIN, *on_device(inputs), backend="triton", steps=2, units="bernoulli").why

    assert "all steps in one launch" in why(512)
    assert "a launch for each of 4 half-steps: a weight of 131328 bytes, above 131072" in why(513)


@pytest.mark.parametrize(
    "op, attrs, note",
    [
        (spec.GIBBS_HALF_STEP, {"dtype": "uint8"}, "in two parts of bfloat16, on tensor cores; one launch, in tiles"),
        (spec.FREE_ENERGY, {}, "three products in tf32, on tensor cores; one launch, in tiles"),
        (spec.CONTRASTIVE_DIVERGENCE, {"steps": 3}, "all steps in one launch"),
        (spec.ANNEALED_IMPORTANCE_SAMPLING, {}, "a launch for each of 6 half-steps, in tiles of"),
        (spec.BOLTZMANN_SWEEP, {"sweeps": 2}, "a program for 16 chains and all their sweeps"),
    ],
)
def test_explain_says_how_each_call_runs(op, attrs, note):
    states, (weight, c, b) = binary(4, 64).astype(np.float32), machine(64, 64)
    inputs = {
        spec.GIBBS_HALF_STEP: (states.astype(np.uint8), weight, b, KEY),
        spec.FREE_ENERGY: (states, weight, c, b),
        spec.CONTRASTIVE_DIVERGENCE: (states, states, weight, c, b, KEY),
        spec.ANNEALED_IMPORTANCE_SAMPLING: (states, weight, c, b, c, np.linspace(0, 1, 4), KEY),
        spec.BOLTZMANN_SWEEP: (states, weight, c, np.zeros(64, bool), KEY),
    }[op]
    attrs = attrs if op is spec.BOLTZMANN_SWEEP else attrs | {"units": "bernoulli"}
    assert note in registry.explain(op, *on_device(inputs), backend="triton", **attrs).why


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------


def main():
    """What the code of a large half-step has, of float32 (in two parts) and bfloat16 weights with states of uint8."""
    (case,) = (c for c in importlib.import_module("tests.gmkernels.ahead.gibbs").CASES if c.op == "gibbs_half_step")
    outputs = case.inputs[0].shape[0] * case.inputs[1][0]
    found = []
    for dtype, capability in (("float32", 80), ("float32", 90), ("bfloat16", 90)):
        (launched,) = ahead.launches(case, "triton", dtype, capability)
        instructions = launched.threads * launched.report.path.instructions / outputs
        found.append((dtype, capability, launched.report.tensor, instructions))
    json.dump(found, sys.stdout)


@pytest.mark.slow
def test_half_steps_run_on_the_tensor_cores_of_bfloat16():
    """A weight in two parts takes two products of each block, one in bfloat16 one; and what all else of a unit takes.

    The H200 issues 307 instructions for a unit in the time of its 4096 multiply-adds in bfloat16.
    """
    # An instruction of Hopper's multiplies 64 rows of a group of four warps, along 16 of a block of 32 or 64.
    expected = {
        ("float32", 90): {"HGMMA.64x128x16.F32.BF16": 2 * 2},
        ("bfloat16", 90): {"HGMMA.64x256x16.F32.BF16": 4},
    }
    for dtype, capability, tensor, instructions in ahead.printed_by(__file__):
        if capability == 80:
            assert list(tensor) == ["HMMA.16816.F32.BF16"]
        else:
            assert tensor == expected[dtype, capability]
        assert instructions <= 70


if __name__ == "__main__":
    main()
