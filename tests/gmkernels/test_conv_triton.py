"""Convolution in Triton: several tiles and blocks, ragged edges, every class of positions, parts of sums, wide indices.

Run as a program, this file compiles kernels and prints what the test of their machine code reads: a process in which
Triton interprets cannot compile.
"""

import contextlib
import itertools
import json
import re
import sys

import numpy as np
import pytest

from gmkernels import launch, registry
from gmkernels.conv import spec
from tests.support import ahead

OPS = (spec.CONV2D, spec.CONV2D_BACKWARD_INPUT, spec.CONV2D_BACKWARD_WEIGHT)
SMALL = {"positions": 16, "elements": 16, "filters": 16, "k": 16, "warps": 4, "stages": 3}
"""A tile as small as they get, so that small planes have several."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    pytest.importorskip("triton")
    from gmkernels.conv import triton as conv

    monkeypatch.setattr(conv, "_THIN", {**conv._THIN, "positions": 16})
    with contextlib.ExitStack() as stack:
        for choices in (*conv.CHOICES.values(), *conv.WEIGHT_CHOICES.values()):
            stack.enter_context(choices.trying(SMALL))
        yield


def calls(x_shape, w_shape, attrs, dtype=np.float64):
    """The three operations on such shapes: inputs and attributes. Sums have variance 1."""
    rng = np.random.default_rng(3)
    size = spec.output_size(x_shape[2:], w_shape[2:], *attrs[:3])
    x, weight = rng.standard_normal(x_shape), rng.standard_normal(w_shape) / np.sqrt(np.prod(w_shape[1:]))
    g = rng.standard_normal((x_shape[0], w_shape[0], *size)) / np.sqrt(x_shape[0] * np.prod(size))
    x, weight, g = (a.astype(dtype) for a in (x, weight, g))
    options = attrs._asdict()
    yield OPS[0], (x, weight, weight[:, 0, 0, 0].copy()), options
    yield OPS[1], (g, weight), {"size": x_shape[2:], **options}
    yield OPS[2], (g, x), {"size": w_shape[2:], **options}


def run(op, inputs, attrs):
    import cupy

    return registry.run(op, tuple(map(cupy.asarray, inputs)), attrs, backend="triton")[0].get()


def check(x_shape, w_shape, attrs, dtype=np.float64, ops=OPS):
    """Against the reference in float64: sums of up to 1000 products round as in the specs' examples."""
    for op, inputs, options in calls(x_shape, w_shape, attrs, dtype):
        if op not in ops:
            continue
        (expected,) = registry.run(op, [a.astype(np.float64) for a in inputs], options, backend="reference")
        found = run(op, inputs, options)
        rtol = 2.0**-10 if dtype is np.float16 else 0.0  # one rounding at the end
        atol = op.tolerance["float64" if dtype is np.float64 else "float32"][1]
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=f"{op.name} {options}")


@pytest.mark.parametrize(
    "x_shape, w_shape, attrs",
    [
        # Channels and filters that fill no tile, and two blocks of them.
        pytest.param((2, 19, 4, 5), (17, 19, 2, 1), spec.Attrs(padding=((1, 0), (0, 0))), marks=pytest.mark.slow),
        # Few channels; along one axis half of the classes meet no element, along the other all; groups.
        ((1, 10, 5, 5), (12, 5, 2, 3), spec.Attrs((2, 2), ((1, 0), (2, 1)), (2, 1), 2)),
    ],
)
def test_tiles_blocks_and_classes(x_shape, w_shape, attrs):
    check(x_shape, w_shape, attrs, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("stride, dilation", list(itertools.product((1, 2, 3, 4), repeat=2)))
def test_every_stride_meets_every_dilation(stride, dilation):
    """Of elements left out, padding on one side or the other, and planes shorter than the stride."""
    channels = 16 if (stride + dilation) % 3 == 0 else 5
    for padding, kernel, rest in (((0, 2), 3, 2), ((3, 0), 2, 0)):
        length = max(1, dilation * (kernel - 1) + 1 - sum(padding)) + rest
        attrs = spec.Attrs((1, stride), ((0, 0), padding), (1, dilation))
        check((2, channels, 1, length), (5, channels, 1, kernel), attrs)
    attrs = spec.Attrs((stride, 1), (padding, (0, 0)), (dilation, 1))
    check((2, channels, length, 1), (5, channels, kernel, 1), attrs, ops=OPS[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups(groups):
    """Of one channel each: d_x has one filter for each group, and y has too in the last."""
    filters = {1: 5, 2: 6, 5: 1}[groups]
    check((2, groups, 4, 5), (filters * groups, 1, 3, 2), spec.Attrs((1, 2), ((1, 1), (0, 1)), groups=groups))


@pytest.mark.slow
@pytest.mark.parametrize(
    "x_shape, w_shape, of",
    [
        ((1, 100, 2, 2), (16, 100, 2, 2), 0),
        ((1, 9, 5, 9), (9, 9, 5, 9), 0),
        ((1, 16, 2, 2), (100, 16, 2, 2), 1),
        ((1, 9, 4, 9), (12, 9, 4, 9), 1),
        ((14, 2, 6, 7), (3, 2, 2, 2), 2),
    ],
)
def test_parts_of_a_sum(x_shape, w_shape, of):
    """The last is shorter than the others; they begin inside of filters, or of planes."""
    import cupy

    op, inputs, options = list(calls(x_shape, w_shape, spec.Attrs()))[of]
    (*_, (parts, _)) = op.workspace(*map(cupy.asarray, inputs), **options)
    assert parts[0] > 2
    check(x_shape, w_shape, spec.Attrs(), ops=(op,))


@pytest.mark.slow
def test_copies_that_others_make_are_no_parts():
    """Half types have workspaces for them."""
    check((1, 8, 2, 3), (8, 8, 1, 2), spec.Attrs(), np.float16)


def test_indices_of_64_bits_make_no_difference(monkeypatch):
    shapes = (1, 5, 3, 4), (3, 5, 2, 2), spec.Attrs((1, 2), ((0, 1), (1, 0)))
    expected = [run(*call) for call in calls(*shapes)]
    monkeypatch.setattr(launch, "wide", lambda *arrays: True)
    for call, before in zip(calls(*shapes), expected, strict=True):
        np.testing.assert_array_equal(run(*call), before)


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------


INSTRUCTIONS = {
    ("conv2d", "float32", 80): 900, ("conv2d", "float32", 90): 500,
    ("conv2d_backward_input", "float32", 90): 500, ("conv2d_backward_weight", "float32", 90): 550,
    ("conv2d", "bfloat16", 90): 420, ("conv2d_backward_weight", "bfloat16", 90): 260,
}  # fmt: skip
"""Most of a thread in the loop over a sum, for one block of it. The tiles of 64 filters that ship take 128 positions,
or 64 elements, and blocks of 32, or 64 with halves: an H200 multiplies such blocks of float32 in 768 and 384 cycles, in
which it issues as many instructions of 4 warps."""


def main():
    """Of the kernels above: their instructions in the loop, their intermediate code, and PTX."""
    import triton

    from tests.gmkernels.ahead.conv import CASES

    compile_, made, found = triton.compile, [], []
    triton.compile = lambda *given, **options: made.append(compile_(*given, **options)) or made[-1]
    for op, dtype, capability in INSTRUCTIONS:
        made.clear()
        case = next(case for case in CASES if case.op == op)
        first, *_ = ahead.launches(case, "triton", dtype, capability)
        loop = first.report.hottest.instructions
        found.append(((op, dtype, capability), loop, made[0].asm["ttgir"], made[0].asm["ptx"]))
    json.dump(found, sys.stdout)


@pytest.mark.slow
def test_machine_code():
    """Products run on tensor cores, and warps go along planes."""
    for what, loop, code, instructions in ahead.printed_by(__file__):
        assert {80: "mma.sync", 90: "wgmma.mma_async"}[what[2]] in instructions, what
        assert loop <= INSTRUCTIONS[tuple(what)], (what, loop)
        fastest = dict(re.findall(r"^#(\w+) = #ttg.blocked<\{.*order = \[(\d), \d\]\}>", code, re.M))
        used = re.findall(r"(?:async_copy_global|tt\.load|tt\.store).*tensor<\d+x\d+x!tt\.ptr<\w+>, #(\w+)>", code)
        assert len(used) >= 3 and {fastest[layout] for layout in used} == {"0"}, (what, used, fastest)


if __name__ == "__main__":
    main()
