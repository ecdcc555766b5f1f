"""Products over axes: einsum in all its forms, tensordot, dot, inner, outer, and how matmul treats stacks."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmcore
from gmcore import ops
from gmcore.errors import ArgumentError, GmcoreError, ShapeError

EINSUMS: dict[str, tuple[tuple[int, ...], ...]] = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "ij,jk": ((2, 3), (3, 4)),
    "bij,bjk->bik": ((2, 2, 3), (2, 3, 2)),
    "bthd,bshd->bhts": ((2, 2, 1, 3), (2, 2, 1, 3)),
    "i,j->ij": ((2,), (3,)),
    "a,a,a->a": ((3,), (3,), (3,)),
    "abc,cd,dae->be": ((2, 3, 2), (2, 3), (3, 2, 2)),
    "ij->ji": ((2, 3),),
    "ba": ((2, 3),),
    "ij->": ((2, 3),),
    "ii->i": ((3, 3),),
    "ii": ((3, 3),),
    "iji->j": ((2, 3, 2),),
    "iii->i": ((2, 2, 2),),
    "iij,jk->k": ((3, 3, 2), (2, 2)),
    "...ij,...jk->...ik": ((2, 1, 2, 3), (2, 3, 2)),
    "i...->...": ((2, 3),),
    "...,...": ((3,), (2, 1)),
    "ij,ij": ((2, 3), (2, 1)),
    "a,a->": ((1,), (3,)),
    "ab,b->a": ((2, 1), (3,)),
    ",i->i": ((), (3,)),
    "i,i->": ((0,), (0,)),
    "i,ij->j": ((0,), (0, 2)),
}


def arrays_of(shapes: Any, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum_is_its_formula(subscripts: str, is_its_formula: Any) -> None:
    is_its_formula(
        lambda *xs: ops.einsum(subscripts, *xs),
        lambda *xs: np.einsum(subscripts, *xs),
        arrays_of(EINSUMS[subscripts]),
        order=3,
    )


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum_agrees_with_torch(subscripts: str, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    agrees_with_torch(
        lambda *xs: ops.einsum(subscripts, *xs),
        lambda *xs: torch.einsum(subscripts, *xs),
        arrays_of(EINSUMS[subscripts]),
    )


@st.composite
def subscripts_and_shapes(draw: Any) -> tuple[str, list[tuple[int, ...]]]:
    lengths = {letter: draw(st.integers(0, 3)) for letter in "abcd"}
    terms = draw(st.lists(st.text("abcd", max_size=3), min_size=1, max_size=4))
    present = sorted(set("".join(terms)))
    result = draw(st.permutations(present))[: draw(st.integers(0, len(present)))]
    # A length of 1 may broadcast in any term, but for a letter that the term repeats.
    shapes = [
        tuple(1 if t.count(c) == 1 and draw(st.booleans()) else lengths[c] for c in t) for t in terms
    ]  # fmt: skip
    return ",".join(terms) + "->" + "".join(result), shapes


@settings(max_examples=150)
@given(subscripts_and_shapes())
def test_einsum_is_numpys(case: tuple[str, list[tuple[int, ...]]]) -> None:
    subscripts, shapes = case
    arrays = arrays_of(shapes)
    expected = np.einsum(subscripts, *arrays)
    found = ops.einsum(subscripts, *arrays).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)  # sums of at most 81 products


def test_a_batched_product_is_one_op(calls_of: Any) -> None:
    calls, moves = calls_of("matmul"), [calls_of(name) for name in ("transpose", "reshape")]
    ops.einsum("bij,bjk->bik", *arrays_of(((2, 3, 4), (2, 4, 5))))
    assert calls == [[(2, 3, 4), (2, 4, 5)]] and moves == [[], []]


def test_many_operands_take_the_cheap_order() -> None:
    """A chain that ends in a vector is done from the vector: from the other end it would need n^2 numbers, 32 MB."""
    n = 2000
    operands = np.ones((n, 1)), np.ones((1, n)), np.ones(n)
    ops.einsum("ij,jk,k->i", *operands)  # load what is loaded once
    tracemalloc.start()
    try:
        out = ops.einsum("ij,jk,k->i", *operands)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(out.numpy(), np.full(n, float(n)))


X, Y = np.ones((2, 3)), np.ones((3, 4))
BAD = {
    "count": (lambda: ops.einsum("ij", X, Y), r"einsum: 'ij' for shapes \(2, 3\), \(3, 4\): 1 subscripts for 2"),
    "axes": (lambda: ops.einsum("ijk->k", X), r"'ijk' does not name the axes of \(2, 3\)"),
    "too few": (lambda: ops.einsum("i->i", X), r"'i' does not name the axes of \(2, 3\)"),
    "lengths": (lambda: ops.einsum("ij,ik", X, Y), "axes of lengths 2 and 3 have one letter"),
    "result": (lambda: ops.einsum("ij->ik", X), "the result 'ik' repeats an axis, or has one that no operand has"),
    "repeated": (lambda: ops.einsum("ij->ii", X), "the result 'ii' repeats"),
    "letters": (lambda: ops.einsum("i1", X), "'i1' is not letters"),
    "ellipsis": (lambda: ops.einsum("...j->j", X), "the operands have an ellipsis, the result has none"),
    "tensordot": (lambda: ops.tensordot(X, Y, 2), r"tensordot: shapes \(2, 3\) and \(3, 4\)"),
    "dot": (lambda: ops.dot(X, X), r"dot: shapes \(2, 3\) and \(2, 3\)"),
    "inner": (lambda: ops.inner(X, Y), r"inner: shapes \(2, 3\) and \(3, 4\)"),
}


@pytest.mark.parametrize("call, text", BAD.values(), ids=BAD)
def test_misfits_are_named(call: Any, text: str) -> None:
    with pytest.raises(ShapeError, match=text) as caught:
        call()
    assert __file__ in str(caught.value)


def test_subscripts_are_a_string() -> None:
    with pytest.raises(ArgumentError, match="einsum: expected subscripts like 'ij,jk->ik' first, got ndarray"):
        ops.einsum(X, [0, 1])


@pytest.mark.parametrize("axes", [([0], [2]), ([0, 0], [0, 0]), ([0], [0, 1]), 3, -1, ([0],)])
def test_tensordot_axes_out_of_range(axes: Any) -> None:
    with pytest.raises(ArgumentError, match="tensordot: axes"):
        ops.tensordot(X, Y, axes)


@pytest.mark.parametrize(
    "a, b, axes",
    [((2, 3), (2, 3), 2), ((2, 3), (3, 2), 1), ((2,), (3,), 0), ((2, 3, 4), (4, 2), ([0, 2], [1, 0])),
     ((2, 3), (4, 3), ([-1], [-1])), ((2, 3), (4, 3), (1, 1))],
)  # fmt: skip
def test_tensordot(a: Any, b: Any, axes: Any, is_its_formula: Any) -> None:
    is_its_formula(
        lambda x, y: ops.tensordot(x, y, axes), lambda x, y: np.tensordot(x, y, axes), arrays_of((a, b)), order=3
    )


@pytest.mark.parametrize("name", ["dot", "inner", "outer"])
@pytest.mark.parametrize("a, b", [((3,), (3,)), ((), (2, 3)), ((2, 3), (3,)), ((3,), ()), ((2, 3, 3), (4, 3, 3))])
def test_dot_inner_outer(name: str, a: Any, b: Any, is_its_formula: Any) -> None:
    is_its_formula(getattr(ops, name), getattr(np, name), arrays_of((a, b)))


@pytest.mark.parametrize("a, b", [((2, 3, 4), (4, 5)), ((2, 3, 4), (4,)), ((0, 3, 4), (4, 2)), ((2, 0, 4), (4, 2)),
                                  ((2, 3, 0), (0, 2)), ((4, 3), (2, 3, 2)), ((3,), (2, 3, 2))])  # fmt: skip
def test_matmul_of_stacks(a: Any, b: Any, is_its_formula: Any) -> None:
    is_its_formula(ops.matmul, np.matmul, arrays_of((a, b)))


def test_one_matrix_against_a_stack_is_one_product_in_both_directions(calls_of: Any) -> None:
    """No gradient of the stack's size times that of the matrix is made and summed."""
    calls = calls_of("matmul")
    x, y = (gmcore.tensor(a, requires_grad=True) for a in arrays_of(((5, 3, 4), (4, 2))))
    gmcore.grad(ops.sum(ops.matmul(x, y)), (x, y))
    assert sorted(calls) == [[(4, 15), (15, 2)], [(15, 2), (2, 4)], [(15, 4), (4, 2)]]


def test_mixed_dtypes_promote() -> None:
    single, double = gmcore.tensor(np.ones((2, 3), np.float32), requires_grad=True), np.ones((3, 2))
    out = ops.einsum("ij,jk->ik", single, double)
    assert out.dtype == np.float64
    assert gmcore.grad(ops.sum(out), single).dtype == np.float32
    with pytest.raises(GmcoreError, match="matmul"):
        ops.matmul(single, np.ones((2, 2)))


@pytest.mark.parametrize("gap", [2, -1])
@pytest.mark.parametrize("op", ["matmul", "linear", "gibbs_half_step"])
def test_a_captured_step_packs_what_blas_cannot_read_each_time_anew(op, gap):
    """Matrices whose rows and columns both have gaps, or run backwards: BLAS gets a copy."""
    draw = np.random.default_rng(0).standard_normal
    weight, bias, key = draw((5, 12), np.float32), np.zeros(5, np.float32), np.array([1, 2, 0], np.uint64)

    def step(x, y):
        x, y = x[:, ::gap], y[:, ::gap]
        if op == "matmul":
            return ops.matmul(x, ops.transpose(y))
        return ops.linear(x, y, bias) if op == "linear" else ops.gibbs_half_step(x, y, bias, key=gmcore.tensor(key))[0]

    captured = gmcore.capture(step)
    for i in range(4):
        x, y = draw((4, 12), np.float32), weight * np.float32(i)
        assert captured(x, y).numpy().tobytes() == step(*map(gmcore.tensor, (x, y))).numpy().tobytes()
