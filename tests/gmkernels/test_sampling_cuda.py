"""The random stream and sampling on a GPU, beyond the specs' examples: bits of the stream on both backends; of CUDA C
shapes, alignment, splits, machine code."""

import functools
import importlib.util

import cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import launch, registry
from gmkernels.rng import key_array
from gmkernels.sampling import cuda as sampling_cuda
from tests.support import ahead
from tests.support.cupy_stand_in import has_gpu

SPECS = registry.specs()
SEED, DRAW = 0x0123456789ABCDEF, 2**33 + 7


def run(name, inputs, backend="cuda", **attrs):
    """On the host; kernels of a GPU get arrays of the device."""
    if backend in GPU:
        return [a.get() for a in registry.run(SPECS[name], tuple(map(cupy.asarray, inputs)), attrs, backend=backend)]
    return registry.run(SPECS[name], inputs, attrs, backend=backend)


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


GPU = ("cuda", "triton")
FILLS = [("random_words", {}), *((name, {"dtype": d}) for name in ("uniform", "normal") for d in registry.FLOATS)]


@pytest.mark.parametrize("backend, block", [("cuda", 4096), ("triton", 1024)])
@pytest.mark.parametrize("name, attrs", FILLS)
@pytest.mark.parametrize("offset", [0, 1, 6, 2**64 - 1024 - 3])
def test_fills_have_the_bits_of_the_reference(name, attrs, offset, backend, block):
    """Three blocks, of which the last is short; at every lane, and where the index wraps around."""
    key, shape = key_array(SEED, DRAW, offset), (2 * block + 3,)
    expected = run(name, (key,), "reference", shape=shape, **attrs)
    assert_same_bits(run(name, (key,), backend, shape=shape, **attrs), expected)


@pytest.mark.parametrize("backend", ["cpu", *GPU])
@pytest.mark.parametrize("dtype", registry.FLOATS)
@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("offset", [0, 2**64 - 1001])
def test_samples_have_the_normals_of_the_reference_bit_for_bit(samples, offset, dtype, backend):
    """Of a standard normal distribution: rows that begin at every lane, and the index wraps around in one."""
    key, shape = key_array(SEED, DRAW, offset), (7, 145)
    zeros = np.zeros(shape, dtype)
    z = run("gaussian_sample", (zeros, zeros, key), backend, samples=samples)[0]
    expected = run("normal", (key,), "reference", shape=z.shape, dtype=dtype)
    assert_same_bits([z], expected)


def test_fills_of_memory_that_is_not_aligned():
    key = key_array(SEED, DRAW)
    for begin in (1, 2, 3):
        out = cupy.zeros(64, "float32")
        registry.run(SPECS["normal"], (cupy.asarray(key),), {"shape": (50,), "dtype": "float32"},
                     outputs=(out[begin : begin + 50],), backend="cuda")  # fmt: skip
        expected = run("normal", (key,), "reference", shape=(50,), dtype="float32")[0]
        assert_same_bits([out.get()], [np.concatenate([np.zeros(begin), expected, np.zeros(14 - begin)]).astype("f4")])


def arguments(shape, samples, dtype, offset=0):
    rng = np.random.default_rng(shape[-1])
    mu, logvar = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).clip(-2, 2).astype(dtype)
    z = shape if samples is None else (samples, *shape)
    gradients = [np.asarray(rng.standard_normal(s), dtype) for s in (z, shape[:-1], z[:-1])]
    key = key_array(SEED, DRAW, offset)
    return {
        "gaussian_sample": (mu, logvar, key),
        "gaussian_sample_backward": (*gradients, mu, logvar, key),
        "bernoulli_sample": (np.abs(np.tanh(mu)), key),
    }


def assert_agrees(name, inputs, samples):
    wide = tuple(a.astype(np.float64) if a.dtype.kind == "f" else a for a in inputs)
    rtol, atol = SPECS[name].tolerance["float32"]
    actual, expected = run(name, inputs, samples=samples), run(name, wide, "reference", samples=samples)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol, atol)


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 70), st.just(1050))),
    samples=st.one_of(st.none(), st.integers(1, 9)),
    offset=st.integers(0, 5),
)
def test_any_shape(shape, samples, offset):
    """Rows at every lane of the stream; in the backward pass samples whose lanes differ, shared by several teams."""
    for name, inputs in arguments(shape, samples, np.float32, offset).items():
        assert_agrees(name, inputs, samples)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 12), (4, 30), (2, 1100)])
@pytest.mark.parametrize("samples", [None, 3])
def test_how_rows_are_split_does_not_matter(shape, samples, monkeypatch):
    """z has the same bits with teams of any size, alone or several times; sums and gradients are right."""
    kept = sampling_cuda.split
    found = []
    for team in (1, 2, 8, 64, 256):
        for repeats in (1, 3):

            def chosen(rows, width, *options, team=team, repeats=repeats):
                how, _ = kept(rows, width, *options)
                slices = options[1] if len(options) == 2 else 1
                own = how._replace(team=min(team, sampling_cuda.THREADS // slices), repeats=repeats)
                return own, -(-rows * own.pieces * own.team * slices // (sampling_cuda.THREADS * repeats))

            monkeypatch.setattr(sampling_cuda, "split", chosen)
            for name, inputs in arguments(shape, samples, np.float32).items():
                assert_agrees(name, inputs, samples)
            inputs = arguments(shape, samples, np.float32)["gaussian_sample"]
            found.append(run("gaussian_sample", inputs, samples=samples))
    for z, *_ in found[1:]:
        assert_same_bits([z], [found[0][0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    ["cuda", pytest.param("triton", marks=pytest.mark.skipif(not has_gpu(), reason="its interpreter fuses nothing"))],
)
def test_fused_normals_are_within_an_ulp(backend, monkeypatch):
    """Where compilers may fuse, words and uniforms keep their bits, and normals move by an ulp at most."""
    calls = [(name, (key_array(SEED, DRAW),), {"shape": (65536,), **attrs}) for name, attrs in FILLS[:4]]
    exact = [run(name, inputs, backend, **attrs) for name, inputs, attrs in calls]
    monkeypatch.setattr(launch, "FUSION", True)
    for cache in ("_cuda_kernels", "_cuda_modules", "_binaries"):
        monkeypatch.setattr(launch, cache, {})
    words, uniforms, wide_uniforms, (z,) = (run(name, inputs, backend, **attrs) for name, inputs, attrs in calls)
    assert_same_bits([*words, *uniforms, *wide_uniforms], [a for (a,) in exact[:3]])
    expected = exact[3][0]
    assert (np.abs(z - expected) <= 3e-7 * np.maximum(1, np.abs(expected))).all()
    assert (z != expected).any(), "nothing was fused"


@pytest.mark.slow
def test_indices_of_64_bits(monkeypatch):
    calls = [(name, inputs, {"samples": 2}) for name, inputs in arguments((3, 1050), 2, np.float32, 1).items()]
    calls += [(name, (key_array(SEED, DRAW, 6),), {"shape": (8195,), **attrs}) for name, attrs in FILLS]
    for name, inputs, attrs in calls:
        narrow = run(name, inputs, **attrs)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "LARGEST_INT", 1000)  # as if arrays of more elements needed them
            assert_same_bits(run(name, inputs, **attrs), narrow)


@pytest.mark.parametrize("rows, width", [(1, 1), (1, 10**9), (10**6, 100), (10**9, 3), (7, 16385), (128, 784), (1, 0)])
@pytest.mark.parametrize("slices", [1, 16])
def test_splits_cover_every_piece(rows, width, slices):
    for chunk in (sampling_cuda.CHUNK, 1024):
        how, blocks = sampling_cuda.split(rows, width, chunk, slices)
        teams = sampling_cuda.THREADS // (how.team * slices)
        assert sampling_cuda.THREADS % (how.team * slices) == 0 and how.pieces * chunk >= width
        assert (blocks - 1) * how.repeats * teams < rows * how.pieces <= blocks * how.repeats * teams


def test_extreme_standard_deviations():
    """exp(logvar / 2) keeps the contract up to |logvar| = 110, and has the right limits."""
    logvar = np.linspace(-110, 110, 1024, dtype=np.float32)[None]
    z = run("gaussian_sample", (0 * logvar, logvar, key_array(SEED)), samples=None)[0]
    exact = (np.zeros_like(logvar, np.float64), logvar.astype(np.float64), key_array(SEED))
    expected = run("gaussian_sample", exact, "reference", samples=None)[0]
    np.testing.assert_allclose(z, expected, SPECS["gaussian_sample"].tolerance["float32"][0], 0)
    mu, logvar = np.ones((1, 4), np.float32), np.array([[np.inf, -np.inf, 300, -300]], np.float32)
    z = run("gaussian_sample", (mu, logvar, key_array(SEED)), samples=None)[0]
    assert np.isinf(z[0, [0, 2]]).all() and (z[0, [1, 3]] == 1).all()


def test_results_repeat_bit_for_bit():
    again = functools.partial(run, "gaussian_sample", arguments((3, 1050), 2, np.float32)["gaussian_sample"], samples=2)
    assert_same_bits(again(), again())


BUDGETS = {  # instructions an element, of which a GPU issues 93 in the time of 12 bytes
    "gaussian_sample": 60, "gaussian_sample_backward": 60, "bernoulli_sample": 30, "bernoulli_sample_logits": 51,
    "dropout": 27, "random_words": 18, "uniform_fill": 19, "normal_fill": 53,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the disassemblers come with triton")
def test_machine_code():
    """Whole groups move in 128 bits, within the budget; nothing spills, not with wide indices either."""
    for family in ("rng", "sampling"):
        for name, report in ahead.cuda(family, "float32").items():
            assert not report.spills, (name, report)
            if name in BUDGETS:
                (whole,) = [loop for loop in report.loops if loop.bytes and loop.wide_share == 1 and loop.stores]
                assert whole.instructions <= 4 * BUDGETS[name], (name, whole)
    assert not any(report.spills for report in ahead.cuda("sampling", "float32", wide=True).values())
