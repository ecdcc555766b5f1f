"""Which kernel and which of its variants a call takes by itself, on a device with the attributes of an H200."""

import ml_dtypes
import numpy as np
import pytest

from gmkernels import cost, launch, registry
from gmkernels.bench import KernelReport
from gmkernels.gibbs import spec
from gmkernels.recurrent import cuda as recurrent
from gmkernels.recurrent.spec import LSTM, LSTM_BACKWARD
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

cupy = pytest.importorskip("cupy")
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")

KEY = np.array([17, 4, 3], np.uint64)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(autouse=True)
def h200():
    """What is asked of a device once is asked anew, and again after the test."""
    asked = (cost.nominal_gpu, launch._multiprocessors, recurrent._device)
    for function in asked:
        function.cache_clear()
    with cuda_stand_in.machine(multiprocessors=132):
        yield
    for function in asked:
        function.cache_clear()


def machine(visible, hidden, dtype):
    return [cupy.empty(shape, dtype) for shape in ((hidden, visible), (visible,), (hidden,))]


def gibbs(op, rows, dtype, visible=784, hidden=500, units="bernoulli"):
    """A chain or contrastive divergence of 25 steps, or annealing with as many, by the kernel that is chosen."""
    states, (weight, c, b) = cupy.empty((rows, visible), dtype), machine(visible, hidden, dtype)
    inputs, attrs = {
        spec.GIBBS_CHAIN: ((states, weight, c, b, KEY), {"steps": 25}),
        spec.CONTRASTIVE_DIVERGENCE: ((states, states, weight, c, b, KEY), {"steps": 25}),
        spec.ANNEALED_IMPORTANCE_SAMPLING: ((states, weight, c, b, c, np.linspace(0, 1, 26), KEY), {}),
    }[op]
    return inputs, attrs | {"units": units}


CHAINS = (spec.GIBBS_CHAIN, spec.CONTRASTIVE_DIVERGENCE, spec.ANNEALED_IMPORTANCE_SAMPLING)


# ---------------------------------------------------------------------------------------------------------
# Gibbs sampling
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [100, 512, 2000, 5000])
@pytest.mark.parametrize("op", CHAINS)
def test_chains_are_one_cooperative_launch(op, rows, dtype):
    inputs, attrs = gibbs(op, rows, DTYPES[dtype])
    found = registry.explain(op, *inputs, **attrs)
    half_steps = 51 if op is spec.CONTRASTIVE_DIVERGENCE else 50
    assert found.chosen == "cuda" and "cheapest by the cost model" in found.why
    assert "one cooperative launch of" in found.why and f"for {half_steps} half-steps" in found.why
    # The other backend launches each.
    assert found.estimates["triton"] > half_steps * (cost.LAUNCH + cost.STEP)
    assert half_steps * (cost.BARRIER + cost.STEP) < found.estimates["cuda"] < found.estimates["triton"]


def test_a_large_machine_takes_a_launch_for_each_half_step():
    inputs, attrs = gibbs(spec.GIBBS_CHAIN, 2048, DTYPES["bfloat16"], 2048, 2048)
    found = registry.explain(spec.GIBBS_CHAIN, *inputs, **attrs)
    assert found.chosen == "triton" and "a launch for each of 50 half-steps" in found.why


def test_a_small_machine_waits_for_no_other_block():
    inputs, attrs = gibbs(spec.GIBBS_CHAIN, 100, DTYPES["float32"], 64, 64)
    found = registry.explain(spec.GIBBS_CHAIN, *inputs, **attrs)
    assert found.chosen == "triton" and "all steps in one launch" in found.why


def test_half_steps_are_rated_by_what_they_multiply():
    """Not by the inverse temperatures, which are of float64; a float32 weight beside bytes is two parts of bfloat16."""
    annealing, chain = spec.ANNEALED_IMPORTANCE_SAMPLING, spec.GIBBS_CHAIN
    floors = {}
    for name, dtype in (*DTYPES.items(), ("float64", np.dtype(np.float64))):
        for op in (annealing, chain):
            inputs, attrs = gibbs(op, 1000, dtype)
            floors[op, name] = registry.explain(op, *inputs, **attrs).floor
            report = KernelReport.of(op, inputs, attrs, "cuda", seconds=1.0, device=cost.nominal_gpu(0))
            assert report.floor == floors[op, name]
    for name in DTYPES:
        assert floors[chain, name] <= floors[annealing, name] < 2 * floors[chain, name]
    assert 1.2 * floors[annealing, "bfloat16"] < floors[annealing, "float32"] < floors[annealing, "float64"] / 4

    weight, _, b = machine(784, 500, np.float32)
    attrs = {"units": "bernoulli", "dtype": "uint8"}
    products = 2 * 100 * 784 * 500
    for dtype, flops, itemsize in ((np.uint8, 2 * products, 2), (np.float32, products, 4)):
        found = spec.GIBBS_HALF_STEP.cost(cupy.empty((100, 784), dtype), weight, b, KEY, **attrs)
        assert (found.flops, found.itemsize) == (flops, itemsize)
    here = [a.get() for a in (weight, b)]
    found = spec.GIBBS_HALF_STEP.cost(np.zeros((100, 784), np.uint8), *here, KEY, **attrs)
    assert (found.flops, found.itemsize) == (products, 4), "on the CPU"
    inputs, attrs = gibbs(chain, 100, DTYPES["float32"], units="gaussian")
    assert chain.cost(*inputs, **attrs).itemsize == 4, "states that are no integers"


# ---------------------------------------------------------------------------------------------------------
# Recurrent nets
# ---------------------------------------------------------------------------------------------------------


def lstm(size, batch, dtype, steps, backward=False):
    rows = steps * batch
    shapes = {"x": (rows, 4 * size), "h0": (batch, size), "c0": (batch, size), "weight": (4 * size, size)}
    shapes |= {"g_h": (rows, size), "g_hn": (batch, size), "g_cn": (batch, size), "h": (rows, size), "c": (rows, size)}
    shapes["gates"] = (rows, 4 * size)
    op = LSTM_BACKWARD if backward else LSTM
    arrays = [cupy.empty(shapes[name], DTYPES[dtype]) for name in op.inputs[:-1]]
    return registry.explain(op, *arrays, cupy.ones(steps, np.int64), reverse=False)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "size, batch, dtype, backend, way",
    [
        (64, 16, "float32", "cuda", "one kernel for all steps, a block for 4 sequences"),
        (128, 16, "bfloat16", "cuda", "one kernel for all steps, a block for 4 sequences"),
        (128, 16, "float32", "cuda", "blocks that wait for each other"),
        (768, 16, "bfloat16", "cuda", "blocks that wait for each other"),
        (16, 100, "bfloat16", "triton", "all steps in one launch"),
        (1024, 64, "float32", "triton", "a launch a step"),
        (64, 5000, "float32", "triton", "a launch a step"),
    ],
)
def test_the_estimate_picks_the_variant(size, batch, dtype, backend, way, backward):
    found = lstm(size, batch, dtype, 64 if batch == 16 else 4, backward)
    first, *_ = found.why.removeprefix("cheapest by the cost model; ").split("; ")
    assert found.chosen == backend and way in first and " us " in first, str(found)
    assert found.estimates["triton"] != found.estimates["cuda"]


def test_steps_take_their_time():
    """The floor of bytes, products and slots says nothing of 1024 steps that wait for each other."""
    few, many = (lstm(64, 16, "float32", steps) for steps in (4, 1024))
    for backend in ("cuda", "triton"):
        assert 1020 * cost.STEP < many.estimates[backend] - few.estimates[backend] < 1020 * (cost.STEP + cost.LAUNCH)
    assert many.floor < 0.01 * many.estimates["cuda"]


# ---------------------------------------------------------------------------------------------------------
# Any shapes
# ---------------------------------------------------------------------------------------------------------

FAMILIES = [op for op in registry.specs().values() if op.family in ("gibbs", "recurrent")]


@pytest.mark.parametrize("op", FAMILIES, ids=lambda op: op.name)
def test_all_shapes_have_estimates(op):
    """Also of no rows, no units, no steps."""
    for example in op.examples(np.random.default_rng(0), np.float32):
        found = registry.explain(op, *map(cupy.asarray, example.inputs), **example.attrs)
        times = [found.estimates[backend] for backend in ("cuda", "triton")]
        assert np.isfinite(times).all() and min(times) > 0, str(found)


@pytest.mark.parametrize("size, batch, steps", [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0)])
def test_empty_sequences_have_estimates(size, batch, steps):
    assert set(lstm(size, batch, "float32", steps).estimates) == {"reference", "triton", "cuda"}
