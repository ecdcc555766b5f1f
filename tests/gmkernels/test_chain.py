"""Elementwise chains: every function of a program, special values, broadcasting, the choice of the kernel."""

import numpy as np
import pytest

import gmkernels
from gmkernels import KernelError, registry
from gmkernels.chain import FUNCTIONS, SMALLEST, Program, kernel_spec

BINARY = {"add", "subtract", "multiply", "divide", "power", "maximum", "minimum"}
ANGLES = {"sin", "cos"}
COMPARISONS = {"equal", "greater", "greater_equal", "less", "less_equal", "not_equal"}


def program_of_everything():
    """The sum of every function of x0 and x1, each with a weight of its own; conditions select between x0 and 2."""
    steps, total = [("less", ("x0", "x1")), ("greater", ("x0", 0.5))], 0.0
    for weight, name in enumerate(sorted(FUNCTIONS.keys() - ANGLES), 1):
        if name == "where":
            operands = ("t0", "x0", "x1")
        elif name in ("logical_and", "logical_or"):
            operands = ("t0", "t1")
        else:
            operands = ("t0",) if name == "logical_not" else ("x0", "x1") if name in BINARY | COMPARISONS else ("x0",)
        steps.append((name, operands))
        if name in COMPARISONS or name.startswith(("is", "logical")):
            steps.append(("where", (f"t{len(steps) - 1}", "x0", 2.0)))
        steps.append(("multiply", (f"t{len(steps) - 1}", float(weight))))
        steps.append(("add", (total, f"t{len(steps) - 1}")))
        total = f"t{len(steps) - 1}"
    return Program(2, tuple(steps), (total,))


@pytest.mark.slow
def test_every_function_agrees_with_numpys():
    spec = kernel_spec(program_of_everything())
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.3, 2.0, (2, SMALLEST)).astype(np.float32)
    y[::3] = x[::3]  # ties
    found = gmkernels.run(spec, (x, y), backend="cpu")[0]
    expected = gmkernels.run(spec, (x.astype(float), y.astype(float)), backend="reference")[0]
    # 30 functions with weights up to 30, of values up to 10: a rounding of each by 4 u, and of a sum of 3000 by 32 u.
    np.testing.assert_allclose(found, expected, rtol=4e-6)


@pytest.mark.parametrize("name", sorted(ANGLES))
def test_angles_of_any_size_are_left_to_numpy(name):
    x = np.full(SMALLEST, 1e6)
    (found,) = gmkernels.run(kernel_spec(Program(1, ((name, ("x0",)),), ("t0",))), (x,))
    np.testing.assert_array_equal(found, getattr(np, name)(x))


def test_limits_rows_and_columns():
    steps = (
        ("sign", ("x0",)), ("minimum", ("x0", "x1")), ("maximum", ("t1", -0.5)), ("isinf", ("x0",)),
        ("where", ("t3", "x2", "t2")), ("add", ("t0", "t4")),
    )  # fmt: skip
    spec = kernel_spec(Program(3, steps, ("t5", "t2")))
    rng = np.random.default_rng(1)
    x, row, column = rng.standard_normal((2, 3, 7001)), rng.standard_normal(7001), rng.standard_normal((3, 1))
    x[0, 0, :5] = np.inf, -np.inf, np.nan, 0.0, -0.0
    row[2] = np.nan
    found, expected = (gmkernels.run(spec, (x, row, column), backend=backend) for backend in ("cpu", "reference"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_program_is_one_kernel_that_refuses_what_is_not_worth_compiling():
    program = Program(1, (("exp", ("x0",)),), ("t0",))
    spec = kernel_spec(program)
    assert kernel_spec(Program(1, (("exp", ("x0",)),), ("t0",))) is spec and registry.specs()[program.name] is spec
    assert str(program) == "t0 = exp(x0); return t0" == spec.formula
    small, large = np.ones(SMALLEST - 1, np.float32), np.ones(SMALLEST, np.float32)
    assert gmkernels.explain(spec, small).chosen == "reference"
    assert "is compiled" in gmkernels.explain(spec, small).refusals["cpu"]
    assert gmkernels.explain(spec, large).chosen == "cpu"
    assert gmkernels.run(spec, (np.ones((0, 3)),))[0].shape == (0, 3)


def test_wrong_arguments_are_named():
    spec = kernel_spec(Program(2, (("add", ("x0", "x1")),), ("t0",)))
    with pytest.raises(KernelError, match=r"one floating dtype, got float64\[2\], float32\[2\]"):
        gmkernels.run(spec, (np.ones(2), np.ones(2, np.float32)))
    with pytest.raises(KernelError, match=f"{spec.name}: .*broadcast"):
        gmkernels.run(spec, (np.ones(2), np.ones(3)))
