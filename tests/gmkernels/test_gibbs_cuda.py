"""Gibbs sampling in CUDA C: tiles and their edges, both ways to launch a chain, operands in parts, limits of errors."""

import itertools

import numpy as np
import pytest
from scipy import special

from gmkernels import launch, registry
from gmkernels.gibbs import cuda, spec
from gmkernels.registry import KernelError
from tests.support import ahead

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

KEY = np.array([17, 4, 3], np.uint64)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
slow = pytest.mark.slow


def machine(visible, hidden, dtype="float32", dyadic=True, seed=0):
    """Multiples of 1/16, whose sums are exact, or any numbers."""
    rng = np.random.default_rng(seed)
    for shape in ((hidden, visible), (visible,), (hidden,)):
        x = rng.integers(-4, 5, shape) / 16 if dyadic else 0.3 * rng.standard_normal(shape)
        yield x.astype(dtype)


def binary(rows, columns, dtype="float32", seed=1):
    return np.random.default_rng(seed).integers(0, 2, (rows, columns)).astype(dtype)


def run(op, *inputs, **attrs):
    on_device = {id(a): cupy.asarray(a) for a in inputs}  # one array stays one
    outputs = registry.run(registry.specs()[op], [on_device[id(a)] for a in inputs], attrs, backend="cuda")
    return [out.get() for out in outputs]


def expected(op, *inputs, **attrs):
    """The reference in float64."""
    wide = [a.astype(np.float64) if registry.is_float(a.dtype.name) else a for a in inputs]
    if attrs.get("dtype", "uint8") != "uint8":
        attrs["dtype"] = "float64"
    return registry.run(registry.specs()[op], wide, attrs, backend="reference")


def check(found, wanted, atol=1e-6, rtol=0.0):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), atol=atol, rtol=rtol)


@pytest.fixture
def tiles(monkeypatch):
    """Sets the size of all tiles."""

    def choose(size):
        monkeypatch.setattr(cuda, "tile_of", lambda tiles, *shape: tiles[size])

    return choose


# ---------------------------------------------------------------------------------------------------------
# Half-steps
# ---------------------------------------------------------------------------------------------------------

FORMS = [
    ("float32", "uint8"),
    pytest.param("float32", "float32", marks=slow),
    pytest.param("float64", "uint8", marks=slow),
    pytest.param("bfloat16", "uint8", marks=slow),
    pytest.param("float16", "float16", marks=slow),
]


@pytest.mark.parametrize("dtype, states", FORMS)
@pytest.mark.parametrize("turned", [False, True])
def test_half_steps_of_several_tiles(dtype, states, turned):
    rows, inputs, units = 37, 75, 41  # several tiles of 32, and their edges
    weight, _, bias = machine(inputs, units, dtype)
    given = binary(rows, inputs, states)
    laid_out = np.ascontiguousarray(weight.T).T if turned else weight
    mean, sample = run("gibbs_half_step", given, laid_out, bias, KEY, units="bernoulli", dtype=states)
    wide_mean, wide_sample = expected("gibbs_half_step", given, weight, bias, KEY, units="bernoulli", dtype=states)
    np.testing.assert_array_equal(sample.astype(np.float64), wide_sample.astype(np.float64))
    assert sample.dtype == states and mean.dtype == dtype
    np.testing.assert_allclose(mean.astype(np.float64), wide_mean, rtol={2: 2.0**-8, 4: 6e-7, 8: 1e-15}[mean.itemsize])


@slow
@pytest.mark.parametrize("dtype, size", [("float32", 64), ("bfloat16", 64), ("bfloat16", 128)])
def test_tiles_make_no_difference_to_samples(dtype, size, tiles):
    weight, _, bias = machine(70, 133, dtype)
    given = binary(131, 70, "uint8" if dtype != "float32" else "float32")
    attrs = {"units": "bernoulli", "dtype": "uint8"}
    before = run("gibbs_half_step", given, weight, bias, KEY, **attrs)
    tiles(size)
    for x, y in zip(run("gibbs_half_step", given, weight, bias, KEY, **attrs), before, strict=True):
        assert x.tobytes() == y.tobytes()


def test_rows_of_whole_groups_of_the_stream_and_others():
    """Rows of 40 units begin where a group of four words does, unless the key begins elsewhere; those of 41 do not."""
    for units, offset in itertools.product((40, 41), (0, 3)):
        weight, _, bias = machine(5, units)
        given, key = binary(3, 5, "uint8"), np.array([1, 2, offset], np.uint64)
        for op_units, dtype in (("bernoulli", "uint8"), ("gaussian", "float32")):
            attrs = {"units": op_units, "dtype": dtype}
            found = run("gibbs_half_step", given, weight, bias, key, **attrs)
            check(found, expected("gibbs_half_step", given, weight, bias, key, **attrs), 2e-6)


@pytest.mark.parametrize("states", ["uint8", pytest.param("float32", marks=slow)])
def test_nan_is_a_sample_of_its_own(states):
    weight, _, bias = machine(5, 9)
    bias[[1, 8]] = np.nan
    given = binary(4, 5, states)
    mean, sample = run("gibbs_half_step", given, weight, bias, KEY, units="bernoulli", dtype=states)
    assert (np.isnan(mean) == np.isnan(bias)).all()
    kept = np.isnan(sample) if states == "float32" else sample == 0
    assert kept[:, [1, 8]].all()


def test_a_machine_of_one_visible_unit_whose_weight_was_turned():
    """It is C-contiguous, whatever the stride of an axis of size 1 says."""
    weight, visible_bias, hidden_bias = machine(1, 9)
    turned, given = cupy.asarray(weight.T).T, binary(3, 1)
    assert turned.flags.c_contiguous and turned.strides[0] == turned.itemsize != turned.strides[1]
    biases = visible_bias, hidden_bias
    for op, rest, attrs in (("free_energy", (), {}), ("gibbs_chain", (KEY,), {"steps": 2})):
        inputs = [cupy.asarray(given), turned, *map(cupy.asarray, (*biases, *rest))]
        found = registry.run(registry.specs()[op], inputs, {"units": "bernoulli", **attrs}, backend="cuda")
        wanted = expected(op, given, weight, *biases, *rest, units="bernoulli", **attrs)
        check([a.get() for a in found], wanted, 2e-6)


# ---------------------------------------------------------------------------------------------------------
# The weight in two parts
# ---------------------------------------------------------------------------------------------------------


def logit(p):
    return np.log(p) - np.log1p(-p)


def test_error_of_a_weight_in_two_parts():
    """The input of a unit is off by at most 2^-17 sum |w s|, and as float32 sums and a sigmoid round."""
    weight, _, bias = machine(99, 40, dyadic=False)
    weight *= 2.0 ** np.random.default_rng(5).integers(-6, 1, weight.shape).astype(np.float32)
    given = np.random.default_rng(6).integers(0, 2, (33, 99)).astype(np.uint8)
    mean, _ = run("gibbs_half_step", given, weight, bias, KEY, units="gaussian", dtype="float32")
    wide = given.astype(np.float64)
    exact = wide @ weight.T.astype(np.float64) + bias
    scale = wide @ np.abs(weight.T.astype(np.float64))
    bound = 2.0**-17 * scale + 99 * 2.0**-24 * (scale + np.abs(bias))
    error = np.abs(mean - exact)
    assert (error <= bound).all()
    # Of one part alone it would be 2^-9 sum |w s|, of a random sign each.
    assert error.max() < 2.0**-17 * scale.max()


def test_all_bytes_are_exact_states():
    weight, _, bias = machine(256, 9)
    given = np.arange(256, dtype=np.uint8)[None]
    mean, _ = run("gibbs_half_step", given, weight, bias, KEY, units="gaussian", dtype="float32")
    np.testing.assert_array_equal(mean, given.astype(np.float64) @ weight.T.astype(np.float64) + bias)


@slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flip_rate(dtype):
    """A sample differs where a word lies between two means: in a share of E|difference of means| of all.

    The inputs of a float32 weight are off by 2^-17 of sums of |w| below 20, and means by a quarter of it: a share below
    4e-5, 4 of 100,000; of one part of the weight it would be 2^-9 of sqrt(64) 0.3 at random, 100 or so. Those of a
    bfloat16 weight, which is exact, round as sums and sigmoids of float32 do: below 1e-6.
    """
    weight, _, bias = machine(64, 500, dtype, dyadic=False)
    given = binary(200, 64, "uint8")
    _, sample = run("gibbs_half_step", given, weight, bias, KEY, units="bernoulli", dtype="uint8")
    mean = special.expit(given.astype(np.float64) @ weight.T.astype(np.float64) + bias.astype(np.float64))
    words = run("random_words", KEY, shape=mean.shape)[0]
    flips = (sample != (words < np.floor(mean * 2.0**32))).sum()
    assert flips <= {"float32": 4, "bfloat16": 1}[dtype]


# ---------------------------------------------------------------------------------------------------------
# Chains
# ---------------------------------------------------------------------------------------------------------


def chain_of(visible=70, hidden=41, rows=35, dtype="float32", states="uint8", steps=2, **attrs):
    weight, c, b = machine(visible, hidden, dtype)
    given = binary(rows, visible, states)
    return ("gibbs_chain", given, weight, c, b, KEY), {"steps": steps, "units": "bernoulli"} | attrs


@pytest.mark.parametrize("dtype, states", FORMS)
def test_chains_of_several_tiles(dtype, states):
    call, attrs = chain_of(dtype=dtype, states=states)
    found, wanted = run(*call, **attrs), expected(*call, **attrs)
    for i in (0, 2):
        np.testing.assert_array_equal(found[i].astype(np.float64), wanted[i].astype(np.float64))
    check(found[1:2], wanted[1:2], *((2.0**-9,) if found[1].itemsize == 2 else (1e-6,)))


def launched(monkeypatch):
    kept, cuda_launch = [], launch.cuda

    def noted(*arguments, **options):
        kept.append((arguments[1], arguments[3], options.get("cooperative", False)))
        cuda_launch(*arguments, **options)

    monkeypatch.setattr(launch, "cuda", noted)
    return kept


def test_one_launch_or_one_for_each_half_step(monkeypatch):
    """The same bits, on however many blocks; a device that holds none gets a launch for each half-step."""
    call, attrs = chain_of()
    kept = launched(monkeypatch)
    one = run(*call, **attrs)
    assert [name for name, *_ in kept] == ["make_operands", "half_steps"] and kept[1][2]
    for held in (1, 0):
        kept.clear()
        monkeypatch.setattr(launch, "held", lambda blocks, shared, held=held: held)
        for x, y in zip(run(*call, **attrs), one, strict=True):
            assert x.tobytes() == y.tobytes()
        grids = [(grid, together) for name, grid, together in kept if name == "half_steps"]
        assert grids == [((1,), True)] if held else [((4,), False), ((6,), False)] * 2
    found = str(registry.explain(spec.GIBBS_CHAIN, *map(cupy.asarray, call[1:]), **attrs, backend="cuda"))
    assert "4 launches, as no block of a cooperative one fits" in found


def test_explain_says_how_a_chain_runs():
    call, attrs = chain_of()
    found = str(registry.explain(spec.GIBBS_CHAIN, *map(cupy.asarray, call[1:]), **attrs, backend="cuda"))
    assert "in two parts of bfloat16, on tensor cores; one cooperative launch of 6 blocks for 4 half-steps" in found
    shapes = (2300, 2048), (2100, 2048), (2048,), (2100,)
    large = [cupy.empty(shape, np.float32) for shape in shapes]
    found = str(registry.explain(spec.GIBBS_CHAIN, *large, KEY, **attrs, backend="cuda"))
    assert "4 launches, as the 306 tiles of a half-step fill the device, of 128 by 128" in found
    states, weight, bias = cupy.zeros((7, 5)), cupy.zeros((9, 5)), cupy.zeros(9)
    found = registry.explain(
        spec.GIBBS_HALF_STEP, states, weight, bias, KEY, units="bernoulli", dtype="uint8", backend="cuda"
    )
    assert "float64 on tensor cores; tiles of 32 by 32" in str(found)


@slow
def test_real_states_come_in_two_parts():
    """The hidden means of the first half-step, by the statistics of a chain that is the data."""
    weight, c, b = machine(70, 41, dyadic=False)
    data = np.random.default_rng(3).uniform(size=(35, 70)).astype(np.float32)
    call = ("contrastive_divergence", data, data, weight, c, b, KEY)
    *found, end, loss = run(*call, steps=1, units="bernoulli")
    wide = [a.astype(np.float64) for a in (data, end, weight, c, b)]
    hidden, after = (special.expit(v @ wide[2].T + wide[4]) for v in wide[:2])
    statistics = (
        after.T @ wide[1] / 35 - hidden.T @ wide[0] / 35, wide[1].mean(0) - wide[0].mean(0),
        after.mean(0) - hidden.mean(0),
    )  # fmt: skip
    # Inputs are off by 2^-15 of sums of |w v| below 20, means by a quarter of that; means in two parts by 2^-17.
    check(found, statistics, 2.0**-15 * 5 + 2.0**-16)
    check([d[:, :3] for d in found[:1]], [statistics[0][:, :3]], 2.0**-15 * 5)
    energies = [
        -v @ wide[3] - np.logaddexp(0, v @ wide[2].T + wide[4]).sum(1) for v in wide[:2]
    ]  # fmt: skip
    np.testing.assert_allclose(loss, energies[0].mean() - energies[1].mean(), atol=41 * 20 * 2.0**-15)
    assert abs(loss - (energies[0].mean() - energies[1].mean())) < 1e-3


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence, annealing
# ---------------------------------------------------------------------------------------------------------


def test_a_chain_that_begins_at_the_data_shares_its_first_half_step_with_them(monkeypatch):
    """Also if the data are told by another array on the same memory, as in a captured step."""
    kept = launched(monkeypatch)
    data, *rest = map(cupy.asarray, (binary(5, 7, "uint8"), *machine(7, 6), KEY))
    names, results = [], []
    for chain in (data, data.view(), data.copy()):
        kept.clear()
        inputs = (data, chain, *rest)
        found = registry.run(
            spec.CONTRASTIVE_DIVERGENCE, inputs, {"steps": 1, "units": "bernoulli"}, backend="cuda"
        )  # fmt: skip
        names.append([name for name, *_ in kept])
        results.append([out.get().tobytes() for out in found])
    shared = ["make_operands", "half_steps", "statistics", "add_loss"]
    assert names == [shared, shared, [shared[0], "half_steps", *shared[1:]]]
    assert results[0] == results[1] == results[2]


@slow
@pytest.mark.parametrize("dtype, states", [("float32", "uint8"), ("float64", "float64"), ("bfloat16", "uint8")])
@pytest.mark.parametrize("persistent", [False, True])
def test_statistics_of_several_tiles(dtype, states, persistent):
    weight, c, b = machine(70, 41, dtype)
    data = binary(35, 70, states)
    chain = binary(67, 70, "uint8", seed=4) if persistent else data
    call = ("contrastive_divergence", data, chain, weight, c, b, KEY)
    *found, visible, loss = run(*call, steps=2, units="bernoulli")
    *wanted, wide_visible, wide_loss = expected(*call, steps=2, units="bernoulli")
    np.testing.assert_array_equal(visible.astype(np.float64), wide_visible.astype(np.float64))
    rounding = 2.0**-8 if weight.itemsize == 2 else 0.0
    check(found, wanted, 2.0**-16, rounding)
    np.testing.assert_allclose(float(loss), wide_loss, rtol=max(rounding, 1e-6), atol=1e-4)


@slow
@pytest.mark.parametrize("units, size", [("bernoulli", 128), ("gaussian", 32)])
def test_statistics_of_gaussian_units_and_of_larger_tiles(units, size, tiles):
    weight, c, b = machine(70, 131)
    data = binary(67, 70, "float32")
    call = ("contrastive_divergence", data, data, weight, c, b, KEY)
    tiles(size)
    *found, _, loss = run(*call, steps=1, units=units)
    *wanted, _, wide_loss = expected(*call, steps=1, units=units)
    check(found, wanted, 2e-5)
    np.testing.assert_allclose(loss, wide_loss, rtol=1e-5, atol=1e-3)


@slow
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_annealing_over_several_tiles(units):
    weight, c, b = machine(70, 41)
    base = np.linspace(-1, 1, 70, dtype=np.float32)
    steps = np.array([0, 0.25, 0.5, 1]) if units == "bernoulli" else np.array([0.5, 1])
    states = binary(35, 70, "uint8" if units == "bernoulli" else "float32")
    call = ("annealed_importance_sampling", states, weight, c, b, base, steps, KEY)
    found, wanted = run(*call, units=units), expected(*call, units=units)
    # Some of 70 by 35 by 3 means round to another side of their word where biases are not multiples of 1/16.
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[1].astype(float), wanted[1].astype(float), atol=1e-5)


@slow
def test_annealing_of_thousands_of_chains():
    weight, c, b = machine(9, 6)
    base, betas = np.linspace(-1, 1, 9, dtype=np.float32), np.array([0, 0.5, 1])
    call = ("annealed_importance_sampling", binary(2011, 9, "uint8"), weight, c, b, base, betas, KEY)
    found, wanted = run(*call, units="bernoulli"), expected(*call, units="bernoulli")
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[1], wanted[1])


# ---------------------------------------------------------------------------------------------------------
# General machines
# ---------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("units, sweeps", [(300, 2), (1100, 1)])
def test_sweeps_of_more_units_than_threads(units, sweeps, monkeypatch):
    """More than a thread has at once, more than it loads ahead; with their inputs in shared memory and elsewhere."""
    upper = np.triu(np.random.default_rng(0).integers(-4, 5, (units, units)) / 16, 1).astype(np.float32)
    _, bias, _ = machine(units, 1)
    states, clamped = binary(1, units, "uint8"), np.random.default_rng(2).random(units) < 0.2
    call = ("boltzmann_sweep", states, upper + upper.T, bias, clamped, KEY)
    wanted = expected(*call, sweeps=sweeps)
    np.testing.assert_array_equal(run(*call, sweeps=sweeps)[0], wanted[0])
    monkeypatch.setattr(spec, "SWEEP_SHARED", 0)
    registry._plans.clear()
    np.testing.assert_array_equal(run(*call, sweeps=sweeps)[0], wanted[0])
    registry._plans.clear()


# ---------------------------------------------------------------------------------------------------------
# Indices of 64 bits
# ---------------------------------------------------------------------------------------------------------


@slow
def test_indices_of_64_bits_make_no_difference(monkeypatch):
    weight, c, b = machine(41, 37)
    data, betas, none = binary(35, 41), np.array([0, 0.5, 1]), np.zeros(41, bool)
    upper = np.triu(weight[:, :37], 1)
    calls = [
        (("gibbs_half_step", binary(35, 41, "uint8"), weight, b, KEY), {"units": "bernoulli", "dtype": "uint8"}),
        (("contrastive_divergence", data, data, weight, c, b, KEY), {"steps": 2, "units": "bernoulli"}),
        (("free_energy", data, weight, c, b), {"units": "bernoulli"}),
        (("annealed_importance_sampling", data, weight, c, b, c, betas, KEY), {"units": "bernoulli"}),
        (("boltzmann_sweep", data[:, :37], upper + upper.T, b, none[:37], KEY), {"sweeps": 2}),
    ]
    before = [run(*call, **attrs) for call, attrs in calls]
    used, source = [], launch.cuda_source
    monkeypatch.setattr(
        launch, "cuda_source", lambda *a, **options: used.append(options["wide"]) or source(*a, **options)
    )
    monkeypatch.setattr(launch, "LARGEST_SIZE", -1)  # of arrays that 32 bits suffice for
    for (call, attrs), wanted in zip(calls, before, strict=True):
        for a, b in zip(run(*call, **attrs), wanted, strict=True):
            assert a.tobytes() == b.tobytes(), call[0]
    assert used and all(used)


# ---------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------


def test_a_cooperative_grid_larger_than_the_device_is_refused(monkeypatch):
    """What the launcher would not ask for. The error names the operation, the backend and a remedy."""
    monkeypatch.setattr(launch, "held", lambda blocks, shared: 10**6)
    call, attrs = chain_of(rows=3000, steps=1)
    message = (
        r"^gibbs_chain \(backend 'cuda'\): half_steps: .* blocks of 128 threads .* wait for each other, "
        "and cuda:0 runs .* at once; ask for backend='triton'"
    )
    with pytest.raises(KernelError, match=message):
        run(*call, **attrs)


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------

COMPILED = [  # operand, others, size, capability, instructions of a step and its multiplications
    ("bfloat16", (), 128, 90, 4 / 1),
    ("float32", (), 64, 90, 1 / 0.7),
    ("float64", (), 32, 80, None),
]
"""Besides those of ``ahead/gibbs.py``."""
PRODUCT_SLOTS = {"bfloat16": 307, "float32": 4096, "float64": 4096}
"""Instructions that an H200 issues in the time of a unit's product with 4096 inputs: at 790 Tflop/s, or one for each
multiply-add."""


@slow
@pytest.mark.parametrize("dtype, others, size, capability, per_multiplication", COMPILED)
def test_machine_code(dtype, others, size, capability, per_multiplication):
    tile = cuda.TILES[dtype][size]
    report = ahead.cuda("gibbs", dtype, capability=capability, defines=(*others, *tile.defines()))["half_steps"]
    assert report.spills == 0
    assert report.registers * tile.threads * tile.blocks <= 65536, "fewer blocks run at once than intended"
    widths = {32, 128} if dtype == "float32" else {128}  # rows of float are copied element by element
    steps = [loop for loop in report.loops if loop.loads and set(loop.loads) <= widths and not loop.stores]
    assert len(steps) >= 2, "one for the rows of the weight, one for its columns"
    # A thread makes a vector of units at a time. The path goes through all that accesses memory for it, and besides
    # through the product and what is done once.
    assert report.path.instructions <= PRODUCT_SLOTS[dtype] * 16 // np.dtype(dtype).itemsize
    if per_multiplication is not None:
        mma = tile.warp_m // 16 * tile.warp_n // 8 * tile.k // 16
        fma = tile.warp_m // 4 * tile.warp_n // 8 * tile.k
        budget = per_multiplication * (fma if dtype == "float32" else mma)
        assert all(loop.instructions <= budget for loop in steps)
