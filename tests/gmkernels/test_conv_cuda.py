"""Convolution in CUDA C: classes of strides and dilations, tiles, parts of sums, few filters, machine code."""

import itertools
import math

import numpy as np
import pytest

from gmkernels import launch, registry
from gmkernels.conv import cuda, spec
from gmkernels.dense.cuda import ACROSS, ALONG, ELEMENTS, RUNS, Copy, Tile
from tests.support import ahead

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""


def arrays(batch, groups, channels, filters, size, kernel, dtype, seed=0, **options):
    """x, weight and g of a convolution of so many channels and filters a group, and its attributes."""
    attrs = spec.Attrs(groups=groups, **options)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, groups * channels, *size)).astype(dtype)
    weight = rng.standard_normal((groups * filters, channels, *kernel)).astype(dtype)
    out = spec.output_size(size, kernel, attrs.stride, attrs.padding, attrs.dilation)
    return x, weight, rng.standard_normal((batch, groups * filters, *out)).astype(dtype), attrs


def calls(x, weight, g, attrs):
    """The three operations, and how many products each sums."""
    options = attrs._asdict()
    bias = g[0, :, 0, 0].copy()
    return (
        (spec.CONV2D, (x, weight, bias), options, math.prod(weight.shape[1:])),
        (spec.CONV2D, (x, weight), options, math.prod(weight.shape[1:])),
        (spec.CONV2D_BACKWARD_INPUT, (g, weight), {"size": x.shape[2:], **options}, weight[:, 0].size // attrs.groups),
        (spec.CONV2D_BACKWARD_WEIGHT, (g, x), {"size": weight.shape[2:], **options}, g[:, 0].size),
    )


def run(op, inputs, options):
    (out,) = registry.run(op, tuple(map(cupy.asarray, inputs)), options, backend="cuda")
    return out.get()


def check(op, inputs, options, terms):
    """Up to `terms` roundings of sums, in the type that is computed in, and the one to the type that is stored."""
    found, dtype = run(op, inputs, options), inputs[0].dtype.name
    wide = [a.astype(np.float64) for a in inputs]
    (expected,) = registry.run(op, wide, options, backend="reference")
    (size,) = registry.run(op, [np.abs(a) for a in wide], options, backend="reference")
    computed = min(EPSILON[dtype], EPSILON["float32"])
    bound = (terms + 1) * computed * size + 1.01 * EPSILON[dtype] * np.abs(expected)
    assert found.shape == expected.shape and found.dtype == inputs[0].dtype
    excess = np.abs(found.astype(np.float64) - expected) - bound
    assert (excess <= 0).all(), (op.name, options, excess.max())
    return found


def check_all(*shape, **options):
    for call in calls(*arrays(*shape, **options)):
        check(*call)


WINDOWS = [
    ((stride, 5 - stride), (dilation, 1 + stride % 3), ((stride % 3, 1), (dilation % 2, dilation)))
    for stride, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3, 4))
]
"""Strides, dilations and paddings: every residue of the ones modulo the others."""


def test_strides_and_dilations():
    """In one of which not every element of x meets one of the kernel."""
    check_all(2, 1, 3, 5, (8, 7), (3, 3), "float32", stride=(2, 3), dilation=(2, 2), padding=((2, 1), (0, 2)))


def test_a_class_of_no_elements():
    """Of planes narrower than a stride, where a thread makes a sum: a division by its tiles would end the process."""
    x, weight, g, attrs = arrays(2, 1, 2, 3, (5, 3), (3, 1), "float32", stride=(1, 4))
    check(*calls(x, weight, g, attrs)[2])


@pytest.mark.slow
@pytest.mark.parametrize("stride, dilation, padding", WINDOWS)
def test_every_class(stride, dilation, padding):
    shape = (2, 1, 2, 4, (11, 9), (3, 2), "float32")
    check_all(*shape, stride=stride, dilation=dilation, padding=padding)
    if stride[0] == 3:  # one sum a thread, and groups
        check_all(1, 3, 2, 1, (11, 9), (3, 2), "float64", stride=stride, dilation=dilation, padding=padding)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_groups(dtype):
    check_all(3, 2, 3, 18, (5, 6), (3, 3), dtype, padding=((1, 1), (1, 1)))
    check_all(2, 3, 1, 1, (9, 17), (4, 3), dtype, stride=(1, 2))


@pytest.mark.slow
def test_channels_last(monkeypatch):
    used, defines = [], launch.cuda_source
    monkeypatch.setattr(launch, "cuda_source", lambda *a, **o: used.append(o["defines"]) or defines(*a, **o))
    monkeypatch.setattr(launch, "_cuda_kernels", {})
    monkeypatch.setattr(launch, "_cuda_modules", {})
    check_all(3, 1, 8, 16, (7, 9), (3, 2), "bfloat16", stride=(1, 2), padding=((1, 0), (2, 1)))
    check_all(2, 2, 24, 8, (6, 5), (3, 3), "bfloat16", stride=(2, 3), dilation=(1, 2), padding=((2, 2), (1, 3)))
    check_all(2, 1, 8, 40, (6, 7), (1, 1), "bfloat16")
    assert {d[0] for d in used if "LAST=1" in d} == {"FORWARD=1", "BACKWARD_INPUT=1", "BACKWARD_WEIGHT=1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, sizes",
    [
        ("float32", [(32, 128), (64, 128)]),
        ("float64", [(16, 64), (64, 64)]),
        ("float16", [(16, 128), (64, 128)]),
        ("channels last", [(16, 128), (128, 128)]),
    ],
)
def test_tiles_make_no_difference(dtype, sizes, monkeypatch):
    """Not even to the last bit: what an element adds follows from its dtype and the parts of its sum."""
    last = dtype == "channels last"
    channels, filters = (8, 24) if last else (9, 20)
    tiles, dtype = (cuda._LAST, "float16") if last else (cuda._TILES[dtype], dtype)
    made = calls(*arrays(2, 1, channels, filters, (9, 9), (3, 3), dtype, padding=((1, 1), (1, 1))))
    expected = None
    for tile in (tiles[size] for size in sizes):
        monkeypatch.setattr(cuda, "_tile", lambda *shape, tile=tile: tile)
        if expected is None:
            expected = [check(*call) for call in made]
        for call, before in zip(made, expected, strict=True):
            np.testing.assert_array_equal(run(*call[:3]), before, f"{call[0].name} {tile}")


def test_parts_of_sums():
    """Sums that are cut, whose last part is shorter."""
    for shape in ((3, 1, 29, 4, (4, 3), (3, 3), "float32"), (1, 1, 33, 1, (4, 4), (3, 3), "float32")):
        x, weight, g, attrs = arrays(*shape)
        p = spec.forward_plan(x, weight, attrs)
        assert spec.forward_parts(p) > 1
        for call in calls(x, weight, g, attrs)[:2]:
            check(*call)
    x, weight, g, attrs = arrays(7, 1, 2, 5, (9, 8), (2, 2), "float32")
    assert spec.weight_parts(spec.weight_plan(g, x, (2, 2), attrs)) > 1
    check(*calls(x, weight, g, attrs)[3])


@pytest.mark.slow
def test_parts_of_sums_of_every_kind():
    check_all(5, 1, 31, 33, (7, 7), (3, 3), "float32", stride=(2, 2), padding=((1, 1), (1, 1)))
    check_all(40, 2, 1, 1, (5, 4), (3, 3), "bfloat16")
    check_all(4, 1, 3, 150, (6, 6), (3, 3), "float16", stride=(2, 1))
    shape = (4, 1, 3, 150, (6, 6), (3, 3), "float32")
    x, weight, g, _ = arrays(*shape)
    assert spec.input_parts(spec.input_plan(g, weight, (6, 6), spec.Attrs())) > 1
    check_all(*shape)


@pytest.mark.slow
def test_many_tiles():
    """Several along both sides of a product, in groups of 8 rows of tiles."""
    check_all(3, 1, 4, 70, (9, 31), (2, 3), "float32", padding=((1, 0), (1, 1)))
    check_all(1, 1, 2, 600, (9, 9), (1, 1), "float32")


def test_what_lies_beside_a_plane_is_not_multiplied():
    x, weight = np.full((2, 6, 3, 4), np.inf, np.float32), np.ones((6, 3, 3, 3), np.float32)
    x[1, 3:] = 1
    y = run(spec.CONV2D, (x, weight), {"padding": ((2, 2), (2, 2)), "groups": 2})
    (expected,) = registry.run(spec.CONV2D, (x[1:, 3:], weight[3:]), {"padding": ((2, 2), (2, 2))}, backend="reference")
    np.testing.assert_array_equal(y[1:, 3:], expected)


@pytest.mark.slow
def test_indices_of_64_bits(monkeypatch):
    used, source = [], launch.cuda_source
    monkeypatch.setattr(
        launch, "cuda_source", lambda *a, **options: used.append(options["wide"]) or source(*a, **options)
    )
    monkeypatch.setattr(launch, "LARGEST_SIZE", 0)  # of arrays that 32 bits suffice for
    check_all(2, 1, 17, 5, (7, 6), (3, 3), "float32", stride=(2, 1), padding=((1, 2), (0, 1)))
    check_all(2, 2, 1, 1, (7, 6), (3, 3), "float32")
    assert used and all(used)


def test_tiles_fit_devices_and_filters():
    for dtype, tiles in (*cuda._TILES.items(), ("float16", cuda._LAST)):
        itemsize = np.dtype(dtype).itemsize
        for (m, n), tile in tiles.items():
            assert (tile.m, tile.n) == (m, n)
            longest = max(tile.shared(Copy(way, itemsize), Copy(ELEMENTS, itemsize), itemsize) for way in range(4))
            places = 16 * (tile.m + tile.n + 2 * tile.stages * tile.k)
            assert longest + places <= 99 << 10
            # What is not asked for must fit beside the places.
            assert longest > launch.USUAL_SHARED or longest + places <= 48 << 10
    assert isinstance(cuda._tile(cuda._SINGLE, 1, 1, 1), Tile)
    assert cuda._tile(cuda._SINGLE, 16, 10**6, 1).m == 16
    assert (cuda._tile(cuda._LAST, 256, 10**6, 1).m, cuda._tile(cuda._LAST, 192, 10**6, 1).m) == (128, 64)
    assert cuda._tile(cuda._SINGLE, 256, 10**6, 1).m == 64


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------

COMPILED = [  # some tiles of each dtype; in float32 the least share of multiply-adds in the instructions of a step
    ("forward", "float32", (64, 128), 90, 0.75),
    ("forward", "float32", (32, 128), 80, 0.65),
    ("backward_input", "float32", (64, 128), 80, 0.75),
    ("backward_weight", "float32", (64, 64), 90, 0.65),
    ("backward_input", "float16", (64, 64), 80, None),
    ("forward", "channels last", (128, 128), 80, None),
    ("backward_input", "channels last", (128, 128), 90, None),
    ("backward_weight", "channels last", (64, 128), 90, None),
    ("backward_input", "float64", (64, 64), 90, None),
]


@pytest.mark.slow
@pytest.mark.parametrize("kernel, dtype, size, capability, share", COMPILED)
def test_machine_code(kernel, dtype, size, capability, share):
    last = dtype == "channels last"
    tile, dtype = (cuda._LAST[size], "float16") if last else (cuda._TILES[dtype][size], dtype)
    itemsize = np.dtype(dtype).itemsize
    gathered = Copy(ELEMENTS, 16 if last else itemsize)
    weight = {"forward": Copy(RUNS, 4) if itemsize == 4 else Copy(ALONG, 16), "backward_input": Copy(ACROSS, 16)}
    copy = weight.get(kernel, gathered)
    defines = (f"{kernel.upper()}=1", *tile.defines(copy, gathered), *(("LAST=1",) if last else ()))
    report = ahead.cuda("conv", dtype, capability=capability, defines=defines)[kernel]
    assert report.spills == 0
    assert report.registers * tile.threads * tile.blocks <= 65536, "fewer blocks run at once than intended"
    step = report.hottest
    assert set(step.loads) == {8 * copy.together, 8 * gathered.together}
    products = tile.warp_m * tile.warp_n // 32 * tile.k
    if share is not None:
        assert products / step.instructions >= share
    else:  # far fewer instructions than products: tensor cores make them
        assert step.instructions <= (0.25 if last else 0.6) * products


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "backward_input", "backward_weight"])
def test_machine_code_of_sums_of_few_filters(kernel):
    reports = ahead.cuda("conv", "float32", defines=(f"{kernel.upper()}=1",))
    assert reports[kernel].spills == 0 and reports[kernel].registers <= 80
    # A product is a load, with its address and whether it exists; the places come from shared memory.
    step = reports[kernel].hottest
    assert step.instructions / step.loads[32] <= 15


def test_explain_says_how_a_call_is_cut():
    def why(op, *shapes, dtype="float32", **options):
        inputs = [cupy.empty(shape, dtype) for shape in shapes]
        return registry.explain(op, *inputs, backend="cuda", **options).why

    assert "tiles of 64 by 128" in why("conv2d", (64, 64, 28, 28), (64, 64, 3, 3), padding=((1, 1), (1, 1)))
    assert "channels last" in why("conv2d_backward_input", (1, 8, 3, 3), (8, 8, 1, 1), dtype="float16", size=(3, 3))
    assert "few filters" in why("conv2d_backward_weight", (1, 4, 3, 3), (1, 4, 3, 3), size=(1, 1), groups=4)
    assert "parts" in why("conv2d_backward_weight", (64, 32, 9, 9), (64, 8, 9, 9), size=(1, 1))
