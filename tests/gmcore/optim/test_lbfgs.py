import inspect

import numpy as np
import pytest

from gmcore import grad, gradcheck, nn, ops, optim, tensor
from gmcore.errors import ArgumentError, CheckpointError, ShapeError
from gmcore.optim.lbfgs import _Trial, _turn, strong_wolfe

STARTS = (np.array([-1.2, 1.0, 0.5, -0.7]), np.array(1.5))


def rosenbrock(x, y):
    """Of five numbers, in two parameters: minimal, 0, where all are 1."""
    return (100.0 * (x[1:] - x[:-1] ** 2.0) ** 2.0).sum() + 100.0 * (y - x[3] ** 2.0) ** 2.0 + ((1.0 - x) ** 2.0).sum()


def minimise(lib, make_parameter, losses, steps, **options):
    params = [make_parameter(x) for x in STARTS]
    optimizer = lib.LBFGS(params, **options)

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(*params)
        loss.backward()
        losses.append(loss.item())
        return loss

    results = [optimizer.step(closure).item() for _ in range(steps)]
    return params, optimizer, closure, results


@pytest.mark.parametrize(
    "options",
    [
        {"line_search_fn": "strong_wolfe"},
        {"line_search_fn": "strong_wolfe", "history_size": 2, "max_iter": 7},
        {"line_search_fn": "strong_wolfe", "history_size": 1, "max_iter": 7, "max_eval": 5, "lr": 0.5},
        {"lr": 1e-3, "history_size": 3},
    ],
    ids=str,
)
def test_evaluations_are_those_of_pytorch(options):
    torch = pytest.importorskip("torch")
    ours, theirs = [], []
    _, _, _, results = minimise(optim, nn.Parameter, ours, 4, **options)
    _, _, _, expected = minimise(torch.optim, lambda x: torch.nn.Parameter(torch.tensor(x)), theirs, 4, **options)
    # Two runs part where rounding is amplified by the condition number, 2.5e3 at the minimum, again and again on the
    # way through a curved valley: the first 20 evaluations have turned u = 1e-16 by it twice at most.
    np.testing.assert_allclose(ours[:20], theirs[:20], rtol=1e-9)
    assert results[0] == pytest.approx(expected[0], rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_minimises_rosenbrock(dtype):
    losses = []
    params, optimizer, closure, _ = minimise(
        optim, lambda x: nn.Parameter(x.astype(dtype)), losses, 8, line_search_fn="strong_wolfe"
    )
    # It stops where the loss changes by less than 1e-9, which it then is itself, as the iteration is superlinear: with
    # a smallest curvature of 0.1 that is |x - 1| <= sqrt(2e-9 / 0.1) = 1.4e-4. In float32 the gradient, with terms of
    # 400, rounds by 400 u = 2.4e-5, which moves its root by 10 times that.
    tolerance = 2e-4 if dtype == "float64" else 5e-4
    for p in params:
        assert p.dtype == dtype
        np.testing.assert_allclose(p.detach().numpy(), 1.0, atol=tolerance)
    assert len(losses) == optimizer.state[params[0]]["func_evals"] < 200


def test_minimises_a_quadratic_in_as_many_steps_as_it_has_dimensions():
    """With an exact line search L-BFGS is the conjugate gradient method (Nocedal & Wright, section 7.2)."""
    curvature = np.array([1.0, 3.0, 10.0])
    p = nn.Parameter(np.array([1.0, -2.0, 0.5]))
    optimizer = optim.LBFGS([p], max_iter=1, line_search_fn=None)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (tensor(curvature) * ops.square(p)).sum()
        loss.backward()
        return loss

    for _ in range(3):  # set lr to the exact step along the direction that will be taken
        x, state = p.detach().numpy().copy(), optimizer.state.get(p)
        gradient = curvature * x
        direction = -gradient
        if state is not None:
            direction = _turn(state, tensor(gradient), 100)["d"].numpy()
        exact = -(gradient @ direction) / (direction @ (curvature * direction))
        first = min(1.0, 1.0 / np.abs(gradient).sum()) if state is None else 1.0
        optimizer.param_groups[0]["lr"] = exact / first
        optimizer.step(closure)
    np.testing.assert_allclose(p.detach().numpy(), 0.0, atol=1e-12)


@pytest.mark.parametrize("first", [1e-3, 0.3, 1.0, 50.0])
@pytest.mark.parametrize(
    "phi",
    [
        lambda t: (-t / (t * t + 2.0), (t * t - 2.0) / (t * t + 2.0) ** 2),  # More & Thuente 1994, (5.1) with beta = 2
        lambda t: ((t - 3.0) ** 4, 4.0 * (t - 3.0) ** 3),
        lambda t: (np.cosh(t - 1.0), np.sinh(t - 1.0)) if t < 20 else (np.nan, np.nan),  # undefined far out
    ],
)
def test_strong_wolfe_conditions_hold(phi, first):
    def at(t):
        loss, slope = phi(t)
        return _Trial(t, float(loss), None, float(slope))

    start = at(0.0)
    found = strong_wolfe(at, start, first, tolerance=1e-9, trials=25)
    assert found.loss <= start.loss + 1e-4 * found.t * start.slope
    assert abs(found.slope) <= 0.9 * abs(start.slope)
    assert found == at(found.t)


def test_resume_is_exact():
    from safetensors.numpy import load, save

    options = {"line_search_fn": "strong_wolfe", "max_iter": 4, "history_size": 3}
    straight, _, _, _ = minimise(optim, nn.Parameter, [], 6, **options)
    params, optimizer, _, _ = minimise(optim, nn.Parameter, [], 3, **options)
    saved = load(save({name: np.array(a) for name, a in optimizer.state_dict().items()}))
    after = [nn.Parameter(p) for p in params]
    other = optim.LBFGS(after, **options)
    other.load_state_dict(saved)

    def closure():
        other.zero_grad()
        loss = rosenbrock(*after)
        loss.backward()
        return loss

    for _ in range(3):
        other.step(closure)
    for p, q in zip(after, straight, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())
    with pytest.raises(CheckpointError, match=r"state.0.d has shape \(5,\), expected \(4,\)"):
        optim.LBFGS([nn.Parameter(STARTS[0])]).load_state_dict(
            {**saved, "param_groups.0.params": np.zeros(1, np.int64)}
        )


def test_stops_at_a_stationary_point_and_where_there_are_no_gradients():
    p = nn.Parameter(np.zeros(3))
    optimizer = optim.LBFGS([p, nn.Parameter(np.ones(2))])
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = ops.square(p).sum()
        loss.backward()
        calls.append(1)
        return loss

    assert optimizer.step(closure).item() == 0.0 and len(calls) == 1
    fresh = optim.LBFGS([p, nn.Parameter(np.ones(2))])
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state[p] == {"n_iter": 0, "func_evals": 1}


def test_constructor_has_the_arguments_of_pytorch():
    torch = pytest.importorskip("torch")

    def arguments(optimizer):
        return [(p.name, p.kind, p.default) for p in inspect.signature(optimizer).parameters.values()]

    assert arguments(optim.LBFGS) == arguments(torch.optim.LBFGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a number"),
        ({"tolerance_grad": -1.0}, "tolerance_grad must be a number"),
        ({"tolerance_change": float("nan")}, "tolerance_change must be a number"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1, got 0"),
        ({"max_eval": 2.5}, "max_eval must be an integer"),
        ({"history_size": -1}, "history_size must be an integer"),
        ({"line_search_fn": "armijo"}, "line_search_fn must be 'strong_wolfe' or None"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises(ArgumentError, match=f"LBFGS: {message}"):
        optim.LBFGS([nn.Parameter([1.0])], **options)


def test_refuses_groups_mixed_dtypes_and_steps_without_a_closure():
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2, np.float32))
    with pytest.raises(ArgumentError, match="give them in one group"):
        optim.LBFGS([{"params": [p]}, {"params": [nn.Parameter(np.ones(2))]}])
    with pytest.raises(ArgumentError, match="one dtype, got float32, float64"):
        optim.LBFGS([p, q])
    with pytest.raises(ArgumentError, match="needs a closure"):
        optim.LBFGS([p]).step()

    def closure():
        p.grad = tensor(np.ones((1, 2)))
        return 1.0

    with pytest.raises(ShapeError, match=r"shape \(1, 2\), expected its parameter's shape \(2,\)"):
        optim.LBFGS([p]).step(closure)


def test_10_iterations_on_a_convex_function_equal_pytorch():
    """Where rounding is not amplified, all of it is: parameters, state and number of evaluations."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    centre, matrix = rng.standard_normal(12), rng.standard_normal((12, 12))
    for options in ({"line_search_fn": "strong_wolfe", "history_size": 5}, {"lr": 0.3, "history_size": 4}):
        p, q = nn.Parameter(np.zeros(12)), torch.nn.Parameter(torch.zeros(12, dtype=torch.float64))
        tolerances = {"max_iter": 5, "tolerance_grad": 0.0, "tolerance_change": 0.0}
        ours, theirs = optim.LBFGS([p], **tolerances, **options), torch.optim.LBFGS([q], **tolerances, **options)

        def loss_of(x, lib, array):
            return (array(matrix) @ (x - array(centre))).sum() + (lib.exp(array(matrix) @ x)).sum() + (x * x).sum()

        def our_closure(p=p, ours=ours):
            ours.zero_grad()
            loss = loss_of(p, ops, tensor)
            loss.backward()
            return loss

        def their_closure(q=q, theirs=theirs):
            theirs.zero_grad()
            loss = loss_of(q, torch, torch.tensor)
            loss.backward()
            return loss

        for _ in range(2):
            ours.step(our_closure)
            theirs.step(their_closure)
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-9)
        state, peer = ours.state[p], theirs.state[q]
        assert (state["n_iter"], state["func_evals"]) == (peer["n_iter"], peer["func_evals"])
        np.testing.assert_allclose(state["old_dirs"].numpy(), [y.numpy() for y in peer["old_dirs"]], rtol=0, atol=1e-8)


@pytest.mark.parametrize("first", [1e-3, 0.3, 1.0, 50.0])
@pytest.mark.parametrize(
    "phi",
    [
        lambda t: (-t / (t * t + 2.0), (t * t - 2.0) / (t * t + 2.0) ** 2),
        lambda t: ((t - 3.0) ** 4, 4.0 * (t - 3.0) ** 3),
        lambda t: (0.1 * (t - 9.0) ** 2 + np.sin(4.0 * t), 0.2 * (t - 9.0) + 4.0 * np.cos(4.0 * t) - 4.5),
        lambda t: (abs(t - 0.7) ** 1.1, 1.1 * abs(t - 0.7) ** 0.1 * np.sign(t - 0.7)),
    ],
)
def test_line_search_tries_the_steps_of_pytorch(phi, first):
    """Also where the slope is not that of the loss, as with noise: the search must end, and as PyTorch's does."""
    torch = pytest.importorskip("torch")
    from torch.optim.lbfgs import _strong_wolfe

    tried, expected = [], []

    def at(t):
        tried.append(t)
        loss, slope = phi(t)
        return _Trial(t, float(loss), None, float(slope))

    def objective(x, t, d):
        expected.append(float(t))
        loss, slope = phi(float(t))
        return float(loss), torch.tensor([float(slope)], dtype=torch.float64)

    start = _Trial(0.0, float(phi(0.0)[0]), None, float(phi(0.0)[1]))
    one = torch.ones(1, dtype=torch.float64)
    slope = torch.tensor([start.slope], dtype=torch.float64)
    found = strong_wolfe(at, start, first, tolerance=1e-9, trials=25)
    _, _, t, _ = _strong_wolfe(objective, None, first, one, start.loss, slope, slope[0])
    # A trial is a few roundings of differences of losses of order 1, divided by brackets down to 1e-9.
    np.testing.assert_allclose(tried, expected, rtol=1e-6)
    assert found.t == pytest.approx(float(t), rel=1e-6)


# -- the pure update -------------------------------------------------------------------------------------------
def convex(lib, x, y):
    """Of a matrix and a number, strictly convex, with curvatures from 2 to about 20."""
    return lib.exp(x.sum() + y) + (lib.exp(x) + x * x).sum() + lib.exp(0.5 * y) + y * y - 2.0 * x[0, 1]


CONVEX_STARTS = (np.array([[0.5, -0.3, 0.2], [-1.0, 0.1, 0.4]]), np.array(0.7))


def iterate(lib, functions, make_parameter, steps, **options):
    """`steps` iterations of one evaluation or search each; the parameters, the optimizer and the lengths taken."""
    params = [make_parameter(x) for x in CONVEX_STARTS]
    options = {"max_iter": 1, "max_eval": 20, "tolerance_grad": 0.0, "tolerance_change": 0.0, **options}
    optimizer = lib.LBFGS(params, **options)

    def closure():
        optimizer.zero_grad()
        loss = convex(functions, *params)
        loss.backward()
        return loss

    lengths = []
    for _ in range(steps):
        optimizer.step(closure)
        lengths.append(optimizer.state[params[0]]["t"])
    return params, optimizer, lengths


def unroll(params, hyper, lengths):
    state = {}
    for t in lengths:
        params = [p.detach().requires_grad_() for p in params]
        params, state = optim.LBFGS.update(params, grad(convex(ops, *params), params), state, hyper, t)
    return params, state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{"lr": 0.05, "history_size": 4}, {"lr": 0.05, "history_size": 4, "line_search_fn": "strong_wolfe"}],
    ids=str,
)
def test_the_update_is_that_of_the_step(options, dtype):
    """The same numbers, bit for bit, as they are the same operations; given the lengths that a search found, too."""
    steps = 8 if "line_search_fn" in options else 100
    params, optimizer, found = iterate(optim, ops, lambda x: nn.Parameter(x.astype(dtype)), steps, **options)
    lengths = found if "line_search_fn" in options else [None] * steps
    assert any(t > 0.05 for t in found) == ("line_search_fn" in options)
    starts = [tensor(x, dtype) for x in CONVEX_STARTS]
    others, state = unroll(starts, optimizer.param_groups[0], lengths)
    for p, q in zip(params, others, strict=True):
        assert q.dtype == dtype
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())
    expected = optimizer.state[params[0]]
    assert expected.keys() - state.keys() == {"func_evals", "prev_loss"}
    for name, value in state.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[name]), err_msg=name)
    # and it goes on from the optimizer's own state
    gradients = grad(convex(ops, *params), params)
    for p, q in zip(
        optim.LBFGS.update(params, gradients, expected, {"lr": 0.1, "history_size": 4})[0],
        optim.LBFGS.update(params, gradients, state, {"lr": 0.1, "history_size": 4})[0],
        strict=True,
    ):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())


def test_100_steps_equal_pytorch():
    """At lr = 0.05 the distance of 2 to the minimum shrinks to 0.95^100 of it, 0.01: pairs are differences of numbers
    of order 1 that keep two digits in the end, and the iteration contracts the errors of 100 u they leave."""
    torch = pytest.importorskip("torch")
    options = {"lr": 0.05, "history_size": 4}
    params, _, _ = iterate(optim, ops, nn.Parameter, 100, **options)
    theirs, _, _ = iterate(torch.optim, torch, lambda x: torch.nn.Parameter(torch.tensor(x)), 100, **options)
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-11)
    moved = [np.abs(p.detach().numpy() - x).max() for p, x in zip(params, CONVEX_STARTS, strict=True)]
    assert min(moved) > 0.1


@pytest.mark.parametrize("history_size", [1, 3])
def test_unrolled_iterations_differentiate_to_second_order(history_size):
    """As a function of where they start, of a number a in the loss e^(a (x1 + x2 + y)) + |x|^2 + e^y, and of lr."""

    def unrolled(x, y, a, lr):
        state = {}
        for _ in range(4):
            common = a * ops.exp(a * (ops.sum(x) + y))
            gradients = [common + 2.0 * x, common + ops.exp(y)]
            (x, y), state = optim.LBFGS.update([x, y], gradients, state, {"lr": lr, "history_size": history_size})
        assert state["old_stps"].shape == (history_size, 3)
        return x, y

    start = [np.array([0.5, -0.3]), np.array(0.2), np.array(0.8), np.array(0.4)]
    assert gradcheck(unrolled, start, order=2)


def test_a_pair_without_curvature_is_left_out():
    """Along a line of constant slope y = 0: the direction stays the steepest, and has a finite derivative."""
    g = tensor(np.array([1.0, -2.0]), requires_grad=True)
    params, state = [tensor(np.zeros(2))], {}
    for _ in range(3):
        params, state = optim.LBFGS.update(params, [g], state, {"lr": 0.5, "history_size": 5})
    assert state["old_stps"].shape == (0, 2)
    np.testing.assert_allclose(params[0].detach().numpy(), -(0.5 / 3 + 0.5 + 0.5) * np.array([1.0, -2.0]), rtol=1e-15)
    # d/dg of -(1/2) g / (|g1| + |g2|) - g, summed: the first term has -(1/2) (1/3 - sign(g) sum(g) / 9)
    expected = -0.5 * (1 / 3 + np.sign([1.0, -2.0]) / 9) - 1.0
    np.testing.assert_allclose(grad(params[0].sum(), g).numpy(), expected, rtol=1e-14)


def test_the_update_at_a_stationary_point_stays_with_a_finite_derivative():
    g = tensor(np.zeros(2), requires_grad=True)
    params, _ = optim.LBFGS.update([tensor(np.ones(2))], [g], {}, {"lr": 0.5, "history_size": 5})
    np.testing.assert_array_equal(params[0].detach().numpy(), 1.0)
    np.testing.assert_allclose(grad(params[0].sum(), g).numpy(), -0.5)


def test_the_update_takes_sequences():
    with pytest.raises(ArgumentError, match=r"LBFGS.update: params or grads is one tensor, expected sequences"):
        optim.LBFGS.update(tensor([1.0]), tensor([1.0]), {}, {"lr": 0.5, "history_size": 5})
