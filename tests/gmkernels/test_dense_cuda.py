"""Dense layers in CUDA C: ways to copy an operand, tiles, parts of a sum, all activations, the machine code."""

import itertools

import numpy as np
import pytest

from gmkernels import launch, registry
from gmkernels.dense import cuda, spec
from tests.support import ahead

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""


def run(op, inputs, **attrs):
    return [out.get() for out in registry.run(op, inputs, attrs, backend="cuda")]


def device(x, layout):
    """x on the device: rows or columns neighbours in memory, aligned to 16 bytes or not, or neither."""
    rows, columns = x.shape
    if layout == "transposed":
        return device(x.T, "aligned").T
    if layout == "transposed off":
        return device(x.T, "off").T
    if layout in ("aligned", "even"):  # rows of whole 16 bytes, or 2 elements more; they end in what must not be read
        wide = cupy.full((rows, columns + -columns % 8 + 2 * (layout == "even")), np.nan, x.dtype)
        wide[:, :columns] = cupy.asarray(x)
        return wide[:, :columns]
    if layout == "off":
        room = cupy.full(x.size + 1, np.nan, x.dtype)
        room[1:] = cupy.asarray(x).reshape(-1)
        return room[1:].reshape(rows, columns)
    assert layout == "strided"
    room = cupy.full((2 * rows, 3 * columns), np.nan, x.dtype)
    room[::-2, ::3] = cupy.asarray(x)
    return room[::-2, ::3]


LAYOUTS = ("aligned", "off", "transposed", "transposed off", "strided")


def matrices(m, k, n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k)).astype(dtype)
    b = rng.standard_normal((k, n)).astype(dtype)
    return a, b


def check(c, a, b, dtype):
    """c = a b up to k roundings of sums, in the type that is computed in, and the one to the type that is stored."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    computed = min(EPSILON[dtype], EPSILON["float32"])
    bound = (a.shape[1] + 1) * computed * (np.abs(a) @ np.abs(b)) + 1.01 * EPSILON[dtype] * np.abs(a @ b)
    assert (np.abs(c.astype(np.float64) - a @ b) <= bound).all()


NAMES = ("ELEMENTS", "RUNS", "ACROSS", "ALONG")
PAIRS = {  # layouts of a and b, and how cuda.cu then copies them: each way for both
    ("aligned", "off"): "ALONG ELEMENTS",
    ("off", "transposed"): "RUNS ALONG",
    ("transposed", "transposed off"): "ACROSS RUNS",
    ("transposed off", "strided"): "ELEMENTS ELEMENTS",
    ("strided", "aligned"): "ELEMENTS ACROSS",
    ("even", "even"): "ALONG ACROSS",
}
TOGETHER = {"aligned": 16, "transposed": 16, "even": 4}  # bytes of a copy, for types of 2; otherwise 2
FLOAT_PAIRS = {  # few, as each pair is compiled
    ("aligned", "transposed"): "RUNS RUNS",
    ("transposed", "aligned"): "ACROSS ACROSS",
    ("strided", "off"): "ELEMENTS ELEMENTS",
}


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])])
def test_layouts_make_no_difference(dtype, monkeypatch):
    """Not even to the last bit: they change how elements come into shared memory, not what is added to what."""
    a, b = matrices(37, 75, 41, dtype)
    seen, results = [], []
    defines = cuda.Tile.defines
    monkeypatch.setattr(cuda.Tile, "defines", lambda tile, *copies: seen.append(copies) or defines(tile, *copies))
    pairs = FLOAT_PAIRS if dtype == "float32" else PAIRS
    for layouts in pairs:
        results += run(spec.MATMUL, tuple(map(device, (a, b), layouts)))
    check(results[0], a, b, dtype)
    for c, layouts in zip(results, pairs, strict=True):
        np.testing.assert_array_equal(c, results[0], str(layouts))
    assert [" ".join(NAMES[copy.way] for copy in copies) for copies in seen] == list(pairs.values())
    if a.itemsize == 2:
        together = [[TOGETHER.get(layout, 2) for layout in layouts] for layouts in pairs]
        assert [[copy.together for copy in copies] for copies in seen] == together


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_tiles_make_no_difference(dtype, monkeypatch):
    a, b = matrices(131, 70, 133, dtype)  # more than a tile of 128, and its edges
    operands = device(a, "off"), device(b, "aligned")
    (expected,) = run(spec.MATMUL, operands)
    check(expected, a, b, dtype)
    for size in (64, 128):
        monkeypatch.setattr(cuda, "tile_of", lambda tiles, *shape, size=size: tiles[size])
        np.testing.assert_array_equal(run(spec.MATMUL, operands)[0], expected, f"tiles of {size}")


def test_many_tiles():
    a, b = matrices(600, 3, 70, "float32")  # 19 by 3 tiles, in groups of 8 rows of tiles
    (c,) = run(spec.MATMUL, (device(a, "aligned"), device(b, "transposed")))
    check(c, a, b, "float32")


def test_parts_of_a_sum_are_added_in_order():
    a, b = matrices(33, 600, 35, "float32")
    parts = spec.splits(33, 600, 35)
    assert parts > 1
    length = -(-600 // (16 * parts)) * 16
    bias = np.linspace(-3, 3, 70, dtype=np.float32)
    expected = np.zeros((33, 35), np.float32)
    for k in range(0, 600, length):
        (part,) = run(spec.MATMUL, (device(a[:, k : k + length], "aligned"), device(b[k : k + length], "transposed")))
        expected += part
    (c,) = run(spec.MATMUL, (device(a, "aligned"), device(b, "transposed")))
    np.testing.assert_array_equal(c, expected)
    x, weight = device(a, "aligned"), device(b.T, "aligned")
    (y,) = run(spec.LINEAR, (x, weight, cupy.asarray(bias)[::2]), activation="tanh")
    np.testing.assert_allclose(y, np.tanh(expected + bias[::2]), rtol=1e-5, atol=1e-7)
    (y,) = run(spec.LINEAR, (x, weight), activation="identity")
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("activation", spec.ACTIVATIONS)
def test_activations_of_every_size(activation):
    """Relative errors of a few units of float32, from numbers that underflow to those that overflow, and NaN."""
    values = np.array([-np.inf, -200, -87, -20, -1, -1e-3, -1e-20, 0, 1e-20, 1e-3, 1, 20, 88, 200, np.inf, np.nan])
    bias = values.astype(np.float32)
    x, weight = cupy.ones((3, 1), np.float32), cupy.zeros((bias.size, 1), np.float32)
    (y,) = run(spec.LINEAR, (x, weight, cupy.asarray(bias)), activation=activation)
    wide = [np.ones((3, 1)), np.zeros((bias.size, 1)), bias.astype(np.float64)]
    (expected,) = registry.run(spec.LINEAR, tuple(wide), {"activation": activation}, backend="reference")
    # exp(-|x|) of the smallest normal numbers is off by 2^-23 |x|; below them, results are lost.
    np.testing.assert_allclose(y, expected, rtol=5e-7, atol=2.0**-126)


def test_what_lies_beyond_a_matrix_is_not_multiplied():
    a, b = np.full((5, 19), np.inf, np.float32), np.ones((19, 6), np.float32)
    for layouts in FLOAT_PAIRS:  # `device` puts NaN beside what it can
        (c,) = run(spec.MATMUL, tuple(map(device, (a, b), layouts)))
        np.testing.assert_array_equal(c, np.inf)


@pytest.mark.slow
def test_indices_of_64_bits(monkeypatch):
    used, source = [], launch.cuda_source
    monkeypatch.setattr(
        launch, "cuda_source", lambda *a, **options: used.append(options["wide"]) or source(*a, **options)
    )
    monkeypatch.setattr(launch, "LARGEST_SIZE", 0)  # of arrays that 32 bits suffice for
    a, b = matrices(37, 300, 41, "float32")
    (c,) = run(spec.MATMUL, (device(a, "aligned"), device(b, "aligned")))
    check(c, a, b, "float32")
    d_pre, d_bias = run(spec.ACTIVATION_BACKWARD, (device(a, "off"), device(a, "off")), activation="relu")
    np.testing.assert_array_equal(d_pre, a * (a > 0))
    np.testing.assert_allclose(d_bias, (a * (a > 0)).sum(0), rtol=1e-5)
    assert used and all(used)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shift, pitch", list(itertools.product([0, 1, 2, 4, 8], [16, 17, 18, 20])))
def test_copies_are_as_long_as_alignment_allows(dtype, shift, pitch):
    itemsize = np.dtype(dtype).itemsize
    x = cupy.zeros(400, dtype)[shift : shift + 8 * pitch].reshape(8, pitch)[:, :9]
    allowed = max(n for n in (16, 8, 4, 2) if shift * itemsize % n == 0 and pitch * itemsize % n == 0)
    for across, along in ((1, pitch), (pitch, 1)):
        way, together = cuda.copy_of(x, across, along)
        if allowed < 4 or allowed <= itemsize or (dtype == "float32" and along == 1):
            assert NAMES[way] == ("RUNS" if along == 1 else "ELEMENTS") and together == itemsize
        else:
            assert NAMES[way] == ("ALONG" if along == 1 else "ACROSS") and together == allowed


def test_leading_axes_of_strided_input():
    x, weight = matrices(24, 7, 5, "float32")
    laid_out = cupy.asarray(x.reshape(2, 3, 4, 7)).transpose(2, 0, 1, 3)
    (y,) = run(spec.LINEAR, (laid_out, cupy.asarray(weight).T))
    expected = x.reshape(2, 3, 4, 7).transpose(2, 0, 1, 3) @ weight
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_gradient_by_vectors_or_by_elements(activation):
    g, y = matrices(70, 70, 132, "float32")[1], np.tanh(matrices(1, 70, 132, "float32", seed=1)[1])
    aligned = [cupy.asarray(a) for a in (g, y)]
    off = [device(a, "off") for a in (g, y)]
    assert off[0].flags.c_contiguous and off[0].data.ptr % 16
    for vectors, elements in zip(
        run(spec.ACTIVATION_BACKWARD, aligned, activation=activation),
        run(spec.ACTIVATION_BACKWARD, off, activation=activation),
        strict=True,
    ):
        np.testing.assert_array_equal(vectors, elements)


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------

COMPILED = [  # a few of each dtype: tile, copies, capability
    ("float32", 128, "RUNS RUNS", 90),
    ("float32", 128, "RUNS ACROSS", 80),
    ("float32", 64, "ACROSS ACROSS", 90),
    ("float64", 128, "ALONG ACROSS", 90),
    ("float16", 128, "ALONG ALONG", 90),
    ("bfloat16", 64, "ALONG ACROSS", 80),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype, size, ways, capability", COMPILED)
def test_machine_code(dtype, size, ways, capability):
    tile = cuda.TILES[dtype][size]
    copies = [cuda.Copy(NAMES.index(way), 4 if way == "RUNS" else 16) for way in ways.split()]
    reports = ahead.cuda("dense", dtype, capability=capability, defines=tile.defines(*copies))
    report = reports["product"]
    assert report.spills == 0
    assert report.registers * tile.threads * tile.blocks <= 65536, "fewer blocks run at once than intended"
    steps = report.hottest
    assert set(steps.loads) == {8 * copy.together for copy in copies}
    if dtype == "float32":  # loads of the operands are 5 % of the instructions, or 8; all else 10
        multiply_adds = tile.warp_m // 4 * tile.warp_n // 8 * tile.k
        assert multiply_adds / steps.instructions >= (0.85 if size == 128 else 0.78)
    vectors = reports["backward_vectors"]
    assert vectors.spills == reports["backward"].spills == reports["add_parts"].spills == 0
    assert vectors.hottest.wide_share == 1


def test_shared_memory_fits_the_smaller_devices():
    for dtype, itemsize in (("float32", 4), ("float64", 8), ("float16", 2)):
        for tile in cuda.TILES[dtype].values():
            ways = [cuda.Copy(way, itemsize) for way in range(4)]
            assert max(tile.shared(a, b, itemsize) for a in ways for b in ways) <= 99 << 10
