"""A package outside the tree declares an op and a kernel through public calls only."""

import subprocess
import sys
from pathlib import Path

import gmcore

ROOT = Path(gmcore.__file__).parents[1]

PACKAGE = '''
"""swish(x) = x sigmoid(x), with a Numba kernel."""

import numba
import numpy as np

import gmkernels
from gmcore import ops
from gmcore.op import Op, kernel


@numba.njit(cache=False)
def _loop(x, out):
    for i in range(x.size):
        out[i] = x[i] / (1 + np.exp(-x[i]))


def swish_cpu(inputs, outputs, workspace, attrs):
    _loop(inputs[0].reshape(-1), outputs[0].reshape(-1))


def swish_reference(inputs, outputs, workspace, attrs):
    outputs[0][...] = inputs[0] / (1 + np.exp(-inputs[0]))


def examples(rng, dtype):
    for shape in ((), (0,), (3, 5)):
        yield gmkernels.Example((np.asarray(rng.standard_normal(shape), dtype),), {})


SWISH = gmkernels.KernelSpec(
    name="swish", family="outside", inputs=("x",), outputs=("out",),
    infer=lambda x: [(x.shape, x.dtype)],
    cost=lambda x: gmkernels.Cost(bytes=2 * x.nbytes, flops=4 * x.size),
    examples=examples, formula="x / (1 + e^-x)", source="Ramachandran, Zoph & Le 2017",
    tolerance={"float32": (1e-6, 1e-6), "float64": (1e-14, 1e-14)},
)
gmkernels.register(SWISH, "reference", swish_reference)
gmkernels.register(SWISH, "cpu", "swish_package:swish_cpu", overhead=1e-6)


def rule(g, x, out):
    s = ops.sigmoid(x)
    return g * (s + out * (1.0 - s))


swish = Op("swish", "x", forward=kernel(SWISH), vjp=[rule], formula=SWISH.formula,
           examples=lambda rng: [((rng.standard_normal((2, 3)),), {})])
'''

USE = """
import numpy as np
import gmcore, gmkernels
from gmcore import explain
from swish_package import SWISH, swish

x = np.linspace(-2.0, 2.0, 12).reshape(3, 4)
assert gmcore.gradcheck(swish, [x], order=3)
t = gmcore.tensor(x, "float32", requires_grad=True)
with explain.recording():
    y = swish(t)
y.sum().backward()
assert t.grad.dtype == np.float32
assert explain.tape(y).entries[0].note.kernels == ("swish: cpu",)
np.testing.assert_allclose(y.detach().numpy(), x / (1 + np.exp(-x)), rtol=1e-5)
h = swish(gmcore.tensor(x, "float16"))
assert h.dtype == np.float16
with gmkernels.use("reference"):
    np.testing.assert_allclose(swish(t).detach().numpy(), y.detach().numpy(), rtol=1e-5)
for example in SWISH.examples(np.random.default_rng(0), np.float64):
    a, b = (gmkernels.run(SWISH, example.inputs, backend=name)[0] for name in ("cpu", "reference"))
    np.testing.assert_allclose(a, b, *SWISH.tolerance["float64"])
print(swish.show())
"""


def test_an_op_with_a_kernel_from_outside(tmp_path: Path) -> None:
    (tmp_path / "swish_package.py").write_text(PACKAGE)
    paths = [str(tmp_path), str(ROOT), str(ROOT / "kernels")]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{USE}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "kernels: swish: reference (float32, float64), cpu" in run.stdout and "s = ops.sigmoid(x)" in run.stdout
