"""Recurrent nets in CUDA C: ways through the steps give the same bits, the rule that picks one, the machine code."""

import dataclasses
import itertools

import numpy as np
import pytest

from gmkernels import cost, launch, registry
from gmkernels.recurrent import cuda, spec
from tests.support import ahead
from tests.support.cells import CELLS, GATES

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

RATES = cost.Device("H200", 4.3e12, 67e12, 33e12, half_factor=11.8, multiprocessors=132)
H200 = cuda.Device(RATES, 227 << 10)
BLOCK, GRID, LAUNCH = cuda.WAYS


def calls(cell, batch_sizes, size, dtype, reverse=False, seed=0):
    """The two calls (spec, inputs, attrs), forward and back; what is saved between them is the reference's."""
    forward, backward, attrs = CELLS[cell]
    attrs = attrs | {"reverse": reverse}
    rng = np.random.default_rng(seed)
    batch, gates, states = batch_sizes[0], GATES[forward.name], 2 if cell == "lstm" else 1
    shapes = [(sum(batch_sizes), gates * size), *[(batch, size)] * states, (gates * size, size)]
    inputs = [rng.standard_normal(shape) for shape in shapes + [(size,)] * (forward is spec.GRU)]
    inputs[1 + states] *= 0.7 / np.sqrt(size)
    inputs = [*(a.astype(dtype) for a in inputs), np.array(batch_sizes, np.int64)]
    outputs = [a.astype(dtype) for a in oracle(forward, inputs, attrs)]
    gradients = [rng.standard_normal(a.shape).astype(dtype) for a in outputs[: 1 + states]]
    saved = [inputs[1 + states], *inputs[1 : 1 + states], outputs[0], *outputs[1 + states :], inputs[-1]]
    return (forward, inputs, attrs), (backward, gradients + saved, attrs)


def oracle(op, inputs, attrs):
    """The float64 reference, on what the inputs hold."""
    wide = [a if a.dtype == np.int64 else a.astype(np.float64) for a in inputs]
    return registry.run(op, wide, attrs, backend="reference")


def run(op, inputs, attrs):
    return [a.get() for a in registry.run(op, [cupy.asarray(a) for a in inputs], attrs, backend="cuda")]


def by(way, monkeypatch, op, inputs, attrs):
    """The results of one of the ways, and its plan."""
    plans, plan = [], cuda.plan
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "WAYS", (way,))
        patch.setattr(cuda, "plan", lambda *a: plans.append(plan(*a)) or plans[-1])
        return run(op, inputs, attrs), plans[0]


def check_ways(monkeypatch, cell, batch_sizes, size, dtype, reverse=False, ways=cuda.WAYS, margin=1):
    """Each way's results are right, up to `margin` tolerances, and have the bits of the others. Gives the plans."""
    plans = []
    for op, inputs, attrs in calls(cell, batch_sizes, size, dtype, reverse):
        expected, first = oracle(op, inputs, attrs), None
        rtol, atol = (margin * t for t in op.tolerance[np.dtype(dtype).name])
        for way in ways:
            found, plan = by(way, monkeypatch, op, inputs, attrs)
            plans.append(plan)
            first = first or found
            for name, a, b, c in zip(op.outputs, found, expected, first, strict=True):
                what = f"{op.name} {name} by {plan}"
                np.testing.assert_allclose(a.astype(np.float64), b, rtol=rtol, atol=atol, err_msg=what)
                assert a.tobytes() == c.tobytes(), what
    return plans


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


RAGGED = (9, 7, 7, 2, 1)
"""Rows of steps: of several blocks of 4 or 8 sequences, and a tile of 8 that is all but empty."""


def test_ways_agree_to_the_last_bit(monkeypatch):
    plans = check_ways(monkeypatch, "lstm", RAGGED, 19, np.float32)
    assert [p.scope for p in plans] == ["BLOCK", "GRID", "LAUNCH"] * 2


SLOW = [
    (cell, reverse, dtype)
    for cell, reverse, dtype in itertools.product(CELLS, (False, True), ("float32",))
    if (cell, reverse) != ("relu", False)
]


@pytest.mark.slow
@pytest.mark.parametrize("cell, reverse, dtype", [*SLOW, ("gru", True, "float64"), ("gru_before", True, "bfloat16")])
def test_every_cell_in_both_directions(cell, reverse, dtype, monkeypatch):
    check_ways(monkeypatch, cell, RAGGED, 19, dtype_of(dtype), reverse)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_in_registers(dtype, monkeypatch):
    plans = check_ways(monkeypatch, "lstm", RAGGED, 40, dtype, ways=(BLOCK, GRID))
    assert {p.weights for p in plans} == {"IN_REGISTERS"}


@pytest.mark.slow
def test_columns_of_a_block(monkeypatch):
    """Blocks of three columns of warps, of which the last has two."""
    work = cuda.Work("RNN", False, 4, 70, 11)
    few = cuda.Device(dataclasses.replace(RATES, multiprocessors=4), 227 << 10)
    monkeypatch.setattr(cuda, "_current", lambda: few)
    plans = check_ways(monkeypatch, "tanh", (11, 11, 3), 70, np.float32)
    assert {(p.columns, p.grid(work)) for p in plans if p.scope == "GRID"} == {(3, (2, 2))} and work.columns == 5


@pytest.mark.slow
def test_sums_in_more_parts_than_a_lane_has_numbers(monkeypatch):
    monkeypatch.setattr(cuda, "_BLOCK_WEIGHTS", 0)
    assert cuda.Work("LSTM", True, 4, 64, 9).parts == 8
    plans = check_ways(monkeypatch, "lstm", (9, 2), 64, np.float32, ways=(GRID, LAUNCH))
    assert {p.tiles for p in plans} == {2}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [64, 128, 768])
def test_sizes_that_are_measured(size, dtype, monkeypatch):
    """On the device alone: a barrier between many blocks, and weights that stay where they are."""
    works = [cuda.Work("LSTM", backward, 2 if dtype == "bfloat16" else 4, size, 16) for backward in (False, True)]
    ways = [way for way in cuda.WAYS if all(isinstance(way(work, H200), cuda.Plan) for work in works)]
    check_ways(monkeypatch, "lstm", (16,) * 30 + (5, 3), size, dtype_of(dtype), ways=ways, margin=4)


def test_lengths_are_read_when_the_kernel_runs():
    """A graph is launched again with other lengths of the same sum."""
    (op, inputs, attrs), _ = calls("lstm", (3, 3, 1), 5, np.float32)
    inputs = [cupy.asarray(a) for a in inputs]
    kernel = registry.entries(op)["cuda"].kernel()
    outputs, workspace = ([cupy.empty(*a) for a in made(*inputs, **attrs)] for made in (op.infer, op.workspace))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        kernel(inputs, outputs, workspace, attrs)  # compiles, too
        stream.begin_capture()
        kernel(inputs, outputs, workspace, attrs)
        graph = stream.end_capture()
        inputs[-1][...] = cupy.asarray(np.array([3, 2, 2]))
        graph.launch(stream)
    stream.synchronize()
    for a, b in zip(outputs, registry.run(op, [a.get() for a in inputs], attrs, backend="reference"), strict=True):
        np.testing.assert_allclose(a.get(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(2**40, -5, 7), (0, 3, 3), (-1, -1, -1), (3, 2**62, 2**62)])
def test_no_sizes_lead_outside_of_the_arrays(sizes):
    """They cannot be refused there; the emulation would tell."""
    for op, inputs, attrs in calls("lstm", (3, 3, 1), 5, np.float32):
        run(op, [*inputs[:-1], np.array(sizes)], attrs)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_sequences(cell):
    for op, inputs, attrs in calls(cell, (0, 0), 5, np.float32):
        for a, b in zip(run(op, inputs, attrs), oracle(op, inputs, attrs), strict=True):
            np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------
# Which way
# ---------------------------------------------------------------------------------------------------------

WORK = [
    cuda.Work(cell, backward, itemsize, size, batch)
    for cell in ("RNN", "LSTM", "GRU_AFTER", "GRU_BEFORE")
    for backward in (False, True)
    for itemsize in (2, 4, 8)
    for size in (1, 7, 16, 33, 64, 100, 128, 256, 511, 768, 1024, 2048)
    for batch in (1, 9, 16, 64, 1000)
]


@pytest.mark.parametrize("way", cuda.WAYS)
def test_plans_fit_the_device(way):
    for work in WORK:
        plan = way(work, H200)
        if isinstance(plan, str):
            continue
        assert plan.shared(work) <= H200.shared and 32 <= plan.threads(work) <= 32 * work.most_warps, work
        down, across = plan.grid(work)
        assert across * plan.columns >= work.columns and down * plan.tiles * plan.sequences >= work.batch, work
        assert plan.scope != "GRID" or across * down <= RATES.multiprocessors, work
        assert plan.tiles * 8 <= spec.GPU_ROWS, work


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_workspace_holds_what_is_packed_into_it(cell, dtype):
    forward, backward, attrs = CELLS[cell]
    for op, size in itertools.product((forward, backward), (1, 7, 15, 16, 17, 31, 33, 100, 1000)):
        named = {"h0": (5, size), "weight": (GATES[forward.name] * size, size)}
        rows, gates = (10, size), (10, GATES[forward.name] * size)
        named |= {"x": gates, "gates": gates, "c0": (5, size), "g_hn": (5, size), "g_cn": (5, size), "bias_n": (size,)}
        inputs = [ahead.Virtual(named.get(name, rows), dtype) for name in op.inputs[:-1]]
        layout = op.workspace(*inputs, ahead.Virtual((2,), np.int64), **attrs)
        (_, _, (_, batch, inner), panels, *_) = [shape for shape, _ in layout]
        work = cuda._work(op.name, inputs[op.inputs.index("h0")], attrs)
        assert work.weight_bytes(work.columns) <= panels[0] * work.itemsize, work
        lengths = [work.padded(n) for _, n in work.products]
        assert batch % spec.GPU_ROWS == 0 and sum(lengths * (3 - len(lengths))) <= 2 * inner, work


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_indices_of_64_bits_make_no_difference(cell, monkeypatch):
    before = [run(*call) for call in calls(cell, RAGGED, 19, np.float32)]
    used, source = [], launch.cuda_source
    monkeypatch.setattr(
        launch, "cuda_source", lambda *a, **options: used.append(options["wide"]) or source(*a, **options)
    )
    monkeypatch.setattr(launch, "LARGEST_SIZE", -1)  # of arrays that 32 bits suffice for
    for call, wanted in zip(calls(cell, RAGGED, 19, np.float32), before, strict=True):
        for a, b in zip(run(*call), wanted, strict=True):
            assert a.tobytes() == b.tobytes(), call[0].name
    assert used and all(used)


def test_the_rule_picks_by_shape():
    """The sizes at which recurrent nets are measured, and what no chip holds."""
    for size, itemsize, scope in ((64, 2, "BLOCK"), (64, 4, "BLOCK"), (128, 2, "BLOCK"), (128, 4, "GRID"),
                                  (768, 2, "GRID"), (768, 4, "GRID"), (4096, 2, "LAUNCH")):  # fmt: skip
        for backward in (False, True):
            assert cuda.plan(cuda.Work("LSTM", backward, itemsize, size, 16), H200).scope == scope, (size, itemsize)
    small = cuda.Device(dataclasses.replace(RATES, multiprocessors=4), 99 << 10)
    found = cuda.plan(cuda.Work("LSTM", False, 4, 512, 16), small)
    assert found.scope == "LAUNCH" and "16 warps of a block" in found.why and "4 multiprocessors hold" in found.why


def test_the_fastest_way_is_picked():
    """Many sequences go round the multiprocessors where a block takes them through all steps."""
    for batch, scope in ((500, "BLOCK"), (1500, "GRID"), (5000, "LAUNCH")):
        work = cuda.Work("LSTM", False, 2, 64, batch)
        found = [plan for way in cuda.WAYS if isinstance(plan := way(work, H200), cuda.Plan)]
        plan = cuda.plan(work, H200)
        assert plan.scope == scope and BLOCK(work, H200) in found
        assert plan.seconds(work, RATES) == min(each.seconds(work, RATES) for each in found)
        assert [text in plan.why for text in ("a block for", "a launch for each step")] == [True, True]


@pytest.mark.parametrize("way", [BLOCK, GRID])
def test_blocks_that_stay_fit_in_little_shared_memory(way):
    """What shares sums there too, where the weight is in registers: such a block would not run, nor wait for others."""
    small = cuda.Device(RATES, 6 << 10)
    plans = [(way(work, small), work) for work in WORK]
    assert any(isinstance(way(work, H200), cuda.Plan) and isinstance(plan, str) for plan, work in plans)
    assert all(isinstance(plan, str) or plan.shared(work) <= small.shared for plan, work in plans)


def test_explain_says_which_way():
    (op, inputs, attrs), _ = calls("lstm", (3, 3, 1), 5, np.float32)
    told = str(registry.explain(op, *[cupy.asarray(a) for a in inputs], backend="cuda", **attrs))
    assert "one kernel for all steps, a block for 4 sequences" in told


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
COMPILED = [  # cell, direction, dtype, H, way, capability
    ("LSTM", "forward", "bfloat16", 64, BLOCK, 90),
    ("LSTM", "backward", "bfloat16", 128, BLOCK, 90),
    ("LSTM", "forward", "float32", 64, BLOCK, 80),
    ("LSTM", "backward", "bfloat16", 768, GRID, 90),
    ("LSTM", "forward", "float32", 768, GRID, 90),
    ("GRU_BEFORE", "backward", "float32", 64, BLOCK, 90),
    ("GRU_AFTER", "forward", "float64", 512, LAUNCH, 80),
    ("LSTM", "forward", "bfloat16", 1024, LAUNCH, 90),
    ("LSTM", "backward", "float16", 64, BLOCK, 90),
    ("GRU_AFTER", "backward", "float64", 128, GRID, 90),
]
STEP = {"forward": 1.96e-6, "backward": 3.1e-6}
"""Seconds of cuDNN for a step of an LSTM of 768 and 16 sequences in bfloat16, by FlashRNN's chart."""
CLOCK = 1.755e9
"""Of an H200, of which each multiprocessor issues 4 instructions a cycle."""


def step_budget(work, plan, direction):
    """Instructions that a warp may take for a step: what is issued in cuDNN's time, or 60 % of it multiply-adds."""
    issued = STEP[direction] * CLOCK * 4 * 32 / plan.threads(work)
    halves = work.groups * (1 if direction == "backward" else 4)  # of an LSTM
    multiplications = plan.kept * plan.tiles * plan.sequences * halves * (16 // work.itemsize)
    return max(issued, multiplications / 0.6 if work.itemsize > 2 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("cell, direction, dtype, size, way, capability", COMPILED)
def test_machine_code(cell, direction, dtype, size, way, capability):
    work = cuda.Work(cell, direction == "backward", DTYPES[dtype], size, 16)
    plan = way(work, H200)
    assert isinstance(plan, cuda.Plan)
    reports = ahead.cuda("recurrent", dtype, capability=capability, defines=plan.defines(work))
    report = reports[direction]
    assert report.spills == 0
    assert report.registers * plan.threads(work) <= 65536
    # The path has what is done once, one step, and of products that read shared memory alone the shortest way.
    assert report.path.instructions <= step_budget(work, plan, direction)
    if cell == "LSTM" and way is LAUNCH:
        loop = report.hottest  # two steps along the sums: all weights, and the operands of both tiles
        assert set(loop.loads) == {128} and loop.wide_share == 1
