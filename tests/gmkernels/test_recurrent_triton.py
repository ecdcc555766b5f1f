"""Recurrent nets in Triton: each variant over several programs and ragged lengths, sizes read on the device, and what
the machine code of the shipped sizes takes.

Run as a program, this file compiles kernels and prints what the tests of their machine code read: a process in which
Triton interprets cannot compile.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.recurrent import spec
from tests.support import ahead
from tests.support.cells import CELLS, GATES

pytest.importorskip("triton")

RAGGED = (17, 9, 2)
"""Rows of steps: sequences of several programs, which end in every step."""
UNITS = 9
"""More than a tile of a step has, and no power of two."""


@pytest.fixture(params=["whole", "steps"])
def variant(request, monkeypatch):
    from gmkernels.recurrent import triton

    if request.param == "steps":
        monkeypatch.setattr(triton, "_RESIDENT", -1)
    return request.param


def forward_inputs(op, batch_sizes, size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    gates, batch = GATES[op.name], batch_sizes[0]
    states = 2 if op.name == "lstm" else 1
    found = [rng.standard_normal((sum(batch_sizes), gates * size))]
    found += [rng.standard_normal((batch, size)) for _ in range(states)]
    found += [rng.standard_normal((gates * size, size)) * 0.7 / np.sqrt(size)]
    found += [rng.standard_normal(size)] if op.name == "gru" else []
    return [a.astype(dtype) for a in found] + [np.array(batch_sizes, np.int64)]


def backward_inputs(op, inputs, outputs, seed=1):
    """Of the gradient, from what the forward reference made of its inputs."""
    rng = np.random.default_rng(seed)
    states = 2 if op.name == "lstm" else 1
    h, saved = outputs[0], outputs[1 + states :]
    gradients = [rng.standard_normal(a.shape).astype(a.dtype) for a in outputs[: 1 + states]]
    return [*gradients, inputs[1 + states], *inputs[1 : 1 + states], h, *saved, inputs[-1]]


def run(op, inputs, attrs, backend):
    import cupy

    if backend == "triton":
        return [a.get() for a in registry.run(op, [cupy.asarray(a) for a in inputs], attrs, backend=backend)]
    return list(registry.run(op, inputs, attrs, backend=backend))


def wide(inputs):
    return [a.astype(np.float64) if a.dtype != np.int64 else a for a in inputs]


def check(op, inputs, attrs):
    dtype = inputs[0].dtype
    found = run(op, inputs, attrs, "triton")
    rtol, atol = op.tolerance[dtype.name]
    for name, a, b in zip(op.outputs, found, run(op, wide(inputs), attrs, "reference"), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=rtol, atol=atol, err_msg=f"{op.name} {name}")


def check_both(cell, batch_sizes, size, reverse, dtype=np.float32):
    forward, backward, attrs = CELLS[cell]
    attrs = attrs | {"reverse": reverse}
    inputs = forward_inputs(forward, batch_sizes, size, dtype)
    check(forward, inputs, attrs)
    outputs = [a.astype(dtype) for a in run(forward, wide(inputs), attrs, "reference")]
    check(backward, backward_inputs(forward, inputs, outputs), attrs)


@pytest.mark.parametrize(
    "cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS if cell != "lstm")]
)
def test_ragged_sequences_over_several_programs(cell, variant):
    check_both(cell, RAGGED, UNITS, reverse=(variant == "steps") == (cell in ("lstm", "relu", "gru_before")))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_indices_of_64_bits(cell, variant, monkeypatch):
    from gmkernels import launch

    monkeypatch.setattr(launch, "LARGEST_SIZE", -1)  # of arrays that 32 bits suffice for
    check_both(cell, RAGGED, UNITS, reverse=False)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_before"])
def test_many_sequences_have_larger_tiles(cell, monkeypatch):
    from gmkernels.recurrent import triton

    monkeypatch.setattr(triton, "_RESIDENT", -1)
    assert triton.CHOICES[4, "forward", True].candidates[0]["rows"] == 64
    check_both(cell, (65, 33), 3, reverse=cell == "gru")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_types(dtype, variant):
    """In float16 the running cells and the gradients of states are kept in float32."""
    check_both("lstm", (3, 2), 5, False, np.dtype(dtype))
    check_both("gru_before", (3, 2), 5, True, np.dtype(dtype))


def test_a_graph_reads_the_sizes_of_its_steps_at_each_launch(variant):
    """Sizes are in the device's memory: 4 + 2 + 1 rows, then 3 + 2 + 2 of the same arrays."""
    import cupy

    op, attrs = spec.RNN, {"nonlinearity": "tanh", "reverse": True}
    inputs = [cupy.asarray(a) for a in forward_inputs(op, (4, 2, 1), 3, np.float32)]
    outputs, workspace = ([cupy.zeros(*o) for o in f(*inputs, **attrs)] for f in (op.infer, op.workspace))
    kernel = registry.entries(op)["triton"].kernel()
    kernel(inputs, outputs, workspace, attrs)  # compiles, on a GPU
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        kernel(inputs, outputs, workspace, attrs)
        graph = stream.end_capture()
    for sizes in ((4, 2, 1), (3, 2, 2)):
        inputs[3].set(np.array(sizes, np.int64))
        graph.launch(stream)
        stream.synchronize()
        x, h0, weight = (a.get() for a in inputs[:3])
        h, _ = registry.run(op, (x, h0[: sizes[0]], weight, np.array(sizes, np.int64)), attrs, backend="reference")
        np.testing.assert_allclose(outputs[0].get(), h, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("sizes", [(-3, 1 << 40, 2), (1, 5, 5)])
def test_sizes_that_do_not_fit_touch_no_memory_but_the_arrays(sizes, variant):
    """Each test fails if something was written outside of them. Here all that rows lead to is finite."""
    import cupy

    op, attrs = spec.RNN, {"nonlinearity": "tanh", "reverse": False}
    inputs = forward_inputs(op, (3, 2, 1), 3, np.float32)
    inputs[3] = np.array(sizes, np.int64)
    h, _ = run(op, inputs, attrs, "triton")
    gradients = [np.ones((6, 3), np.float32), np.ones((3, 3), np.float32)]
    backward = [*gradients, inputs[2], inputs[1], h, inputs[3]]
    d_x, *_ = registry.run(
        spec.RNN_BACKWARD, [cupy.asarray(a) for a in backward], attrs, backend="triton"
    )  # fmt: skip
    known = np.cumsum(np.clip(sizes, 0, 3))
    assert np.isfinite(h[: min(6, known[-1])]).all() and np.isfinite(d_x.get()[: min(6, known[-1])]).all()


@pytest.mark.parametrize(
    "size, dtype, variant",
    [
        (128, "float16", "all steps in one launch"),
        (128, "float32", "a launch a step"),
        (768, "float16", "a launch a step"),
    ],
)
def test_explain_tells_the_variant(size, dtype, variant):
    import cupy

    arrays = [cupy.zeros(shape, dtype) for shape in ((1, 4 * size), (1, size), (1, size), (4 * size, size))]
    said = str(registry.explain(spec.LSTM, *arrays, cupy.ones(1, np.int64), backend="triton", reverse=False))
    assert variant in said and "KiB on chip" in said


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------

ABSENT = {"lstm": ("bias_n", "reset", "d_product"), "gru": ("c0", "c_n", "c", "g_cn", "d_c0")}
SHARED = {80: 163 << 10, 90: 227 << 10}
COMPILED = [
    ("_sequence", "bf16", "lstm", 128, 80), ("_sequence", "bf16", "lstm", 128, 90),
    ("_sequence", "fp32", "gru", 64, 90), ("_step", "fp32", "lstm", 768, 90),
    ("_sequence_backward", "bf16", "lstm", 128, 80), ("_sequence_backward", "bf16", "lstm", 128, 90),
    ("_sequence_backward", "fp32", "lstm", 64, 90), ("_step", "bf16", "lstm", 768, 90),
    ("_step_backward", "bf16", "lstm", 768, 90), ("_sequence", "fp16", "gru", 128, 90),
    ("_sequence_backward", "fp16", "lstm", 128, 90), ("_step", "fp16", "lstm", 768, 90),
    ("_sequence", "fp64", "lstm", 32, 90), ("_step", "fp64", "lstm", 256, 90),
    ("_step_backward", "fp64", "gru", 256, 90),
]  # fmt: skip
BUDGET = {
    ("_sequence", 80): 145, ("_sequence", 90): 145, ("_sequence_backward", 80): 150, ("_sequence_backward", 90): 180,
}  # fmt: skip
"""Instructions of all threads for a number of the states at a step, of an LSTM in bfloat16: 90 are the cell's. The last
takes 131 where Triton multiplies by `mma`, and 177 by `wgmma`, which takes operands from shared memory."""


def compiled(name, kind, cell, size, capability):
    """What the code of a kernel has, in the configuration that ships: opcodes, spills, shared memory, instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gmkernels.dense.triton import precision
    from gmkernels.recurrent import triton as recurrent

    kernel, itemsize = getattr(recurrent, name), {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}[kind]
    constants = {
        "CELL": cell, "GATES": recurrent._GATES[cell], "REVERSE": False, "UNIT": 16 // itemsize, "WIDE": False,
        "PRECISION": precision(itemsize), "PART": "all",
    }  # fmt: skip
    if name.startswith("_sequence"):
        units = recurrent._units(size)
        constants |= {"ROWS": recurrent._ROWS, "UNITS": units}
        warps, stages = recurrent._whole_warps(units, itemsize)
    else:
        direction = "backward" if name.endswith("backward") else "forward"
        many = kind == "fp32"  # the larger tile takes more registers
        tile = recurrent.CHOICES[itemsize, direction, many].candidates[0]
        warps, stages = tile["warps"], tile["stages"]
        constants |= {key.upper(): tile[key] for key in ("rows", "units", "depth", "parts")}
    constants |= dict.fromkeys(ABSENT[cell])
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {"starts": "*i64", "state": "*fp32"} | dict.fromkeys(("t", "steps", "batch", "size"), "i32")
    signature = {
        key: "constexpr" if key in constants else types.get(key, f"*{kind}") for key in kernel.arg_names
    }  # fmt: skip
    aligned = {
        (kernel.arg_names.index(key),): [["tt.divisibility", 16]] for key, t in signature.items() if t.startswith("*")
    }
    binary = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False},
    )
    (report,) = ahead.read(binary.asm["cubin"], capability).values()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        code = subprocess.run(
            [ahead._tool("cuobjdump"), "-sass", file.name], check=True, capture_output=True, text=True
        ).stdout
    opcodes = sorted(set(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)", code)))
    each = report.hottest.instructions * warps * 32 / (constants["ROWS"] * constants["UNITS"])
    return opcodes, report.spills, binary.metadata.shared, each


@functools.cache
def machine_code():
    return ahead.printed_by(__file__)


@pytest.mark.slow
def test_products_run_on_tensor_cores_without_spills():
    """The weight fits where it stays, also on an A100; tiles of a step come by 128-bit copies into shared memory."""
    for (name, kind, cell, size, capability), (opcodes, spills, shared, each) in zip(
        COMPILED, machine_code(), strict=True
    ):
        what = f"{name} {kind} {cell} {size} on {capability}: {opcodes}"
        assert spills == 0, what
        assert shared <= SHARED[capability], what
        assert any(code.startswith(("HMMA", "HGMMA", "DMMA")) for code in opcodes), what
        assert "LDG.E.128" in opcodes or "LDGSTS.E.BYPASS.128" in opcodes, what
        if kind == "bf16" and (name, capability) in BUDGET:
            assert each <= BUDGET[name, capability], (each, what)


if __name__ == "__main__":
    json.dump([compiled(*case) for case in COMPILED], sys.stdout)
