"""Dense layers in Triton: layouts, parts of a sum, units of vectors, and the instructions of the products.

Run as a program, this file compiles products and prints what the test of their machine code reads: a process in which
Triton interprets cannot compile.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.dense import spec
from tests.support import ahead

TENSOR_CORES = {
    ("*bf16", 80): "HMMA.16816.F32.BF16", ("*fp32", 80): "HMMA.1688.F32.TF32", ("*fp64", 80): "DMMA",
    ("*bf16", 90): "HGMMA", ("*fp32", 90): "HGMMA", ("*fp64", 90): "DMMA",
}  # fmt: skip


def run(op, inputs, **attrs):
    return [out.get() for out in registry.run(op, inputs, attrs, backend="triton")]


def on_device(x, layout):
    """x on the device: rows or columns neighbours, in rows that end in what must not be read, or with gaps."""
    import cupy

    if layout == "column":
        return on_device(x.T, "row").T
    rows, columns = x.shape
    if layout == "row":
        wide = cupy.full((rows, columns + -columns % 4), np.nan, x.dtype)
        wide[:, :columns] = cupy.asarray(x)
        return wide[:, :columns]
    room = cupy.full((2 * rows, 3 * columns), np.nan, x.dtype)
    room[::-2, ::3] = cupy.asarray(x)
    return room[::-2, ::3]


@pytest.mark.parametrize("m, k, n", [(5, 33, 12), (1, 40, 7), (8, 300, 3)])
def test_layouts_make_no_difference(m, k, n):
    """Not even to the last bit: they change addresses only. The last has parts of a sum, which a launch adds."""
    pytest.importorskip("triton")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    assert (spec.splits(m, k, n) > 1) == (k == 300)
    made = [
        run(spec.MATMUL, (on_device(a, x), on_device(b, y)))[0]
        for x, y in itertools.product(("row", "column", "any"), repeat=2)
    ]
    # A sum of k terms rounds k times at most.
    bound = k * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b))
    assert (np.abs(made[0] - a.astype(np.float64) @ b) <= bound).all()
    for c in made[1:]:
        np.testing.assert_array_equal(c, made[0])


@pytest.mark.parametrize("activation", spec.ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_parts_of_a_sum_meet_bias_and_activation_once(activation, with_bias):
    cupy = pytest.importorskip("cupy")
    pytest.importorskip("triton")
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((3, 300)), rng.standard_normal((5, 300)) / 17
    arrays = (x, weight, rng.standard_normal(5))[: 2 + with_bias]
    assert spec.splits(3, 300, 5) > 1
    (y,) = run(spec.LINEAR, tuple(cupy.asarray(a, np.float32) for a in arrays), activation=activation)
    (expected,) = registry.run(spec.LINEAR, arrays, {"activation": activation}, backend="reference")
    np.testing.assert_allclose(y, expected, rtol=0, atol=spec.LINEAR.tolerance["float32"][1])


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------


def compiled_product(kind, layouts, many, capability):
    """The opcodes of a product of aligned operands in the configuration that ships, and what its code takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gmkernels import configurations
    from gmkernels.dense import triton as dense

    size = {"*fp16": 2, "*bf16": 2, "*fp32": 4, "*fp64": 8}[kind]
    choices = dense.CHOICES[size, many]
    shipped = configurations.measured().get(str(capability), {}).get(choices.name, [0])
    choice = choices.candidates[shipped[-1]]
    kernel = dense.product
    constants = {
        "A": layouts[0], "B": layouts[1], "BLOCK_M": choice["m"], "BLOCK_N": choice["n"], "BLOCK_K": choice["k"],
        "GROUP": choice["group"], "PRECISION": dense.precision(size), "ACTIVATION": "tanh",
    }  # fmt: skip
    constants |= {f"{name}_UNIT": 16 // size for name in "MNKAB"}
    signature = {name: "i32" for name in kernel.arg_names} | dict.fromkeys(("a", "b", "bias", "c"), kind)
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in ("a", "b", "bias", "c")}
    binary = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": choice["warps"], "num_stages": choice["stages"], "enable_fp_fusion": False},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        code = subprocess.run(
            [ahead._tool("cuobjdump"), "-sass", file.name], check=True, capture_output=True, text=True
        ).stdout
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)", code)
    return sorted(set(opcodes)), binary.metadata.shared


def main():
    found = [
        (kind, capability, *compiled_product(kind, ("row", "column"), True, capability))
        for kind, capability in TENSOR_CORES
    ]
    json.dump(found, sys.stdout)


@pytest.mark.slow
def test_products_run_on_tensor_cores():
    """A large layer: without spills, with 128-bit copies into shared memory, and as much of that as the device has."""
    pytest.importorskip("triton")
    for kind, capability, opcodes, shared in ahead.printed_by(__file__):
        what = f"{kind} on {capability}: {opcodes}"
        assert any(code.startswith(TENSOR_CORES[kind, capability]) for code in opcodes), what
        assert not any(code.startswith(("LDL", "STL")) for code in opcodes), what
        assert all(code.endswith("128") for code in opcodes if code.startswith("LDGSTS")), what
        assert any(code.startswith("LDGSTS") for code in opcodes), what
        assert shared <= {80: 163 << 10, 90: 227 << 10}[capability], what


if __name__ == "__main__":
    main()
