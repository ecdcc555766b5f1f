"""float16 and bfloat16 are storage: results are those of float32, rounded once; gradients are of the same type."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Tensor, ops
from gmcore.errors import ArgumentError, DtypeError, GmcoreError
from gmcore.op import OPS, Op
from tests.gmcore.test_errors import CALLS, Call
from tests.gmcore.test_ops import NOT_DIFFERENTIABLE

HALVES = ["float16", "bfloat16"]


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest) -> Any:
    if request.param == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(request.param)


def leaf(x: Any, dtype: Any) -> Tensor:
    return gmcore.tensor(x, dtype, requires_grad=True)


def bits(x: Tensor) -> bytes:
    return x.detach().numpy().tobytes()


def test_sums_products_and_losses_accumulate_in_float32(half: Any) -> None:
    """In the half types 4096 + 1 = 4096 or less, so sums of ones would stop there."""
    ones = gmcore.tensor(np.ones(20_000), half)
    assert ops.sum(ones).item() == float(np.asarray(20_000.0, half)) == ops.sum(ones, axis=0).item()
    assert ops.sum(ops.broadcast_to(ones, (3, 20_000)), axis=1).tolist() == [ops.sum(ones).item()] * 3
    assert (ones @ ones).item() == ops.sum(ones).item()
    assert ops.mean(ones).item() == 1.0
    x = leaf(np.zeros((2, 20_000)), half)
    loss = ops.bernoulli_log_prob(x, ops.broadcast_to(ones, x.shape))
    np.testing.assert_array_equal(loss.astype("float32").detach().numpy(), np.float32(half.type(-20_000 * np.log(2))))


STATISTICS = {"standardize": (1, 2), "batch_norm_training": (1, 2)}
"""Outputs that are float32 for half types too: they would be worse than useless when rounded."""


def of_dtype(call: Call, half: Any, dtype: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The floating arrays of a call, rounded to `half`, as leaves of `dtype`; and what the function makes of them."""
    leaves = []
    for place, x in call.arrays():
        if x.dtype == np.float64:
            leaves.append(Tensor(np.asarray(x.astype(half).astype(dtype)), requires_grad=True))
            call = call.replaced(place, leaves[-1])
    out = call.function(*call.args, **call.kwargs)
    return leaves, list(out) if isinstance(out, (list, tuple)) else [out]


def errors_in_roundings(found: list[Tensor], expected: list[Tensor], half: Any) -> float:
    """Largest difference, in halves of an ulp (2^-11 or 2^-8) of the largest element of all that is expected.

    Of all, because results of one call come from intermediate numbers of one size, which may cancel in one of them.
    """
    ys, es = ([np.asarray(x.detach(), np.float64) for x in xs] for xs in (found, expected))
    largest = max(np.abs(e).max(initial=0.0) for e in es) or 1.0
    worst = max(np.abs(y - e).max(initial=0.0) for y, e in zip(ys, es, strict=True))
    return float(worst / largest * 2.0 ** (11 if half.name == "float16" else 8))


OTHERWISE = {"cast": "its dtype is an argument", "contrastive_divergence": "a rounded mean may turn a sample around"}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(set(CALLS) - set(OTHERWISE)))
def test_every_function_is_that_of_float32_rounded(name: str, half: Any) -> None:
    """A declared operation rounds once, so its results are those of float32, rounded, bit for bit. What is made of
    several rounds as often: up to some ten times, as the rules of the derivatives do."""
    for call in CALLS[name]:
        with gmkernels.use("reference"):  # whose kernels see float32 either way
            xs, ys = of_dtype(call, half, half)
            singles, expected = of_dtype(call, half, np.float32)
            if not xs:
                continue
            for i, (y, e) in enumerate(zip(ys, expected, strict=True)):
                rounds = e.dtype == np.float32 and i not in STATISTICS.get(name, ())
                assert y.dtype == (half if rounds else e.dtype) and y.shape == e.shape
                if name in OPS or not rounds:
                    assert bits(y) == bits(e.astype(half) if rounds else e)
                else:
                    assert errors_in_roundings([y], [e], half) < 10
            if name in NOT_DIFFERENTIABLE and not NOT_DIFFERENTIABLE[name][0] or not any(y.requires_grad for y in ys):
                continue
            pairs = [(y, e) for y, e in zip(ys, expected, strict=True) if y.requires_grad]
            gradients = []
            for outputs, inputs in zip(zip(*pairs, strict=True), (xs, singles), strict=True):
                ones = [np.ones(y.shape, y.dtype) for y in outputs]
                gradients.append(gmcore.grad(outputs, inputs, ones, fill=True))
        for g, x in zip(gradients[0], xs, strict=True):
            assert g.dtype == half and g.shape == x.shape
        assert name not in OPS or errors_in_roundings(*gradients, half) < 10


def test_a_number_rounds_as_often_as_it_is_computed_with(half: Any) -> None:
    x = gmcore.tensor(np.random.default_rng(0).uniform(0.5, 2.0, (5, 4)), half)
    once = (x.astype("float32") * 3).astype(half)
    assert bits(1.5 - x * 3) == bits((1.5 - once.astype("float32")).astype(half))


def test_nan_to_num_has_the_limits_of_the_type(half: Any) -> None:
    x = leaf([np.nan, np.inf, -np.inf, 2.0], half)
    y = ops.nan_to_num(x)
    largest = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}[half.name]
    assert y.dtype == half and y.tolist() == [0.0, largest, -largest, 2.0]
    assert gmcore.grad(ops.sum(y), x).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_noise_is_that_of_float32_rounded(half: Any) -> None:
    key = Tensor(np.array((7, 3, 0), np.uint64))
    for draw in (ops.normal, ops.uniform):
        assert bits(draw((9,), dtype=half, key=key)) == bits(draw((9,), key=key).astype(half))


def test_gradients_are_of_the_same_type(half: Any) -> None:
    rng = np.random.default_rng(0)
    w, b, x = (leaf(rng.standard_normal(s), half) for s in ((3, 4), (3,), (5, 4)))
    ops.mean(ops.square(ops.linear(x, w, b, activation="tanh")) * 2.0).backward()
    exact = [gmcore.tensor(np.asarray(t.detach(), np.float64), requires_grad=True) for t in (w, b, x)]
    ops.mean(ops.square(ops.linear(exact[2], exact[0], exact[1], activation="tanh")) * 2.0).backward()
    for t, e in zip((w, b, x), exact, strict=True):
        assert t.grad is not None and e.grad is not None and t.grad.dtype == half and t.grad.shape == t.shape
        # Some ten roundings on the way, each of half an ulp: 2^-11 or 2^-8 relative to the largest element.
        eps = 2.0 ** (-11 if half.name == "float16" else -8)
        error = np.abs(np.asarray(t.grad, np.float64) - e.grad.numpy()).max()
        assert error < 10 * eps * np.abs(e.grad.numpy()).max()


def test_higher_derivatives(half: Any) -> None:
    x = leaf([0.5, 2.0], half)
    g = gmcore.grad(ops.sum(x * x * x), x, create_graph=True)
    h = gmcore.grad(ops.sum(g), x)
    assert g.dtype == h.dtype == half and h.tolist() == [3.0, 12.0]


def test_casts_have_gradients_both_ways(half: Any) -> None:
    x = leaf([1.0, 3.0], "float32")
    y = x.astype(half)
    assert y.dtype == half and y.requires_grad
    ops.sum(y.astype("float64") * 0.1).backward()
    assert x.grad is not None and x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.numpy(), np.float32(np.asarray(0.1, half)))


def test_mixing(half: Any) -> None:
    """Promotion as NumPy's; a fused operation wants one dtype; two half types have no common one."""
    x = leaf(np.ones((2, 2)), half)
    y = x * np.ones(2, np.float32)
    assert y.dtype == np.float32
    ops.sum(y).backward()
    assert x.grad is not None and x.grad.dtype == half
    with pytest.raises(GmcoreError, match=f"linear.*{half.name}.*float32"):
        ops.linear(x, np.ones((2, 2), np.float32))


def test_batch_norm_with_statistics_of_float32(half: Any) -> None:
    """In training and afterwards the result is of the input's type; parameters of another are refused."""
    x, mean, var = leaf(np.arange(6.0).reshape(3, 2), half), gmcore.tensor([0.5, 2.0]), gmcore.tensor([1.0, 2.0])
    for training in (True, False):
        y = ops.batch_norm(x, mean, var, training=training)
        assert y.dtype == half and gmcore.grad(ops.sum(y * y), x).dtype == half
    with pytest.raises(DtypeError, match=f"batch_norm_training.*{half.name}.*float32"):
        ops.batch_norm(x, mean, var, np.ones(2, np.float32), training=True)


def test_bfloat16_and_float16_meet_in_float32() -> None:
    pytest.importorskip("ml_dtypes")
    x, y = leaf([1.5], "float16"), leaf([3.0], "bfloat16")
    z = x * y
    z.backward()
    assert x.grad is not None and y.grad is not None
    assert [t.dtype.name for t in (z, x.grad, y.grad)] == ["float32", "float16", "bfloat16"]


def test_two_byte_integers_are_no_half_type() -> None:
    x = gmcore.tensor(np.array([300, 400], np.int16))
    assert (x + x).dtype == np.int16 and ops.sum(x).item() == 700


def test_training_keeps_float32_parameters(half: Any) -> None:
    """A step of 1e-4 of the parameter: lost in a half type, kept by its float32 master."""
    with pytest.raises(ArgumentError, match=f"parameter 0 is {half.name}, .*optimise a float32 parameter"):
        gmcore.optim.SGD([leaf([1.0], half)], lr=1e-4)
    master = leaf([1.0], "float32")
    optimizer = gmcore.optim.SGD([master], lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        ops.sum(master.astype(half) * gmcore.tensor([1.0], half)).backward()
        optimizer.step()
    np.testing.assert_allclose(master.detach().numpy(), [1.0 - 3e-4], rtol=1e-6)


def test_what_is_printed_and_taken(half: Any) -> None:
    x = leaf([1.5, 2.0], half)
    assert repr(x) == f"tensor({x.detach().numpy()}, dtype={half.name}, requires_grad=True)".replace(" 2", ", 2")
    assert gmcore.as_tensor(np.ones(2, half)).dtype == half and (x > 1.75).tolist() == [False, True]
    assert gmcore.nn.Parameter(np.ones(2, half)).requires_grad
    for dtype in ("complex64", "V2", "nonsense"):
        with pytest.raises(DtypeError):
            gmcore.tensor([1.0], dtype)


def test_exact_ops_keep_the_bits(half: Any) -> None:
    """A NaN's payload, minus zero: what only moves elements does not go through float32."""
    x = gmcore.tensor(np.array([0.0, -0.0, np.inf, 1e-7]), half)
    for op in (o for o in OPS.values() if o.view):
        assert op.exact
    assert bits(ops.reshape(x, (2, 2))) == bits(x)


def test_an_op_from_outside_is_given_float32(half: Any) -> None:
    seen = []
    op = Op("outside_half", "x n", "a b", forward=lambda x, n: (seen.append(x.dtype), (x * 2, n))[1],
            vjp=None, formula="", examples=lambda rng: [])  # fmt: skip
    try:
        a, n = op(gmcore.tensor([1.0], half), np.array([3]))
    finally:
        del OPS["outside_half"]
    assert seen == [np.float32] and a.dtype == half and n.dtype == np.int64


def test_bfloat16_without_its_package() -> None:
    root = Path(gmcore.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'kernels')!r}]; sys.modules['ml_dtypes'] = None\n"
        "import gmcore\n"
        "try: gmcore.tensor([1.0], 'bfloat16')\n"
        "except gmcore.errors.MissingPackageError as error: print(error)\n"
        "print((gmcore.tensor([1.0], 'float16') * 2.0).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'bfloat16 needs ml_dtypes, which is not installed: pip install "gmcore[bfloat16]"' in out and "[2.0]" in out


BEYOND = {
    "mean": lambda t: ops.mean(ops.broadcast_to(t[:, :1], (300, 400))),  # whose sum is 3.6e7
    "var": lambda t: ops.var(t / 2.0),
    "std": ops.std,
    "norm": ops.norm,
    "norm of small ones": lambda t: ops.norm(t * 2.0**-20) * 2.0**10,
    "norm to 3": lambda t: ops.norm(t, 3),
    "rms_norm": lambda t: ops.rms_norm(t, 3),
    "cosine_similarity": lambda t: ops.cosine_similarity(t, t[:, ::-1]),
    "cosine_similarity of zeros": lambda t: t + ops.cosine_similarity(t, np.zeros((1, 3), t.dtype)),
    "cosine_embedding_loss": lambda t: ops.cosine_embedding_loss(t, t[:, ::-1], gmcore.tensor([1])),
    "cross_entropy": lambda t: ops.cross_entropy(ops.broadcast_to(t / 100.0, (70_000, 3)), np.zeros(70_000, int)),
    "kl_div": lambda t: ops.kl_div(ops.broadcast_to(t, (400, 3)), np.ones((400, 3), t.dtype), reduction="batchmean"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", BEYOND)
def test_what_is_summed_or_squared_on_the_way_may_be_beyond_the_type(name: str, half: Any) -> None:
    """Beyond 65504, or below 6e-8, in float16: infinities and zeros where the result is an ordinary number."""
    x, single = (leaf([[300.0, -200.0, 250.0]], dtype) for dtype in (half, "float32"))
    y, expected = BEYOND[name](x), BEYOND[name](single)
    assert y.dtype == half
    assert errors_in_roundings([y], [expected], half) < 2
    assert errors_in_roundings([gmcore.grad(ops.sum(y), x)], [gmcore.grad(ops.sum(expected), single)], half) < 10
