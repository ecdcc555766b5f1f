import numpy as np
import pytest

from gmcore import nn, no_grad, ops, optim, tensor
from gmcore.errors import ArgumentError, CheckpointError, DtypeError, GraphError, ShapeError, UnknownNameError

OPTIONS = {
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {},
    "SGD": {"momentum": 0.9},
    "Adagrad": {"initial_accumulator_value": 0.1, "weight_decay": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5, "weight_decay": 0.1},
    "Adadelta": {"weight_decay": 0.1},
}
KINDS = [
    pytest.param(
        lambda params, kind=kind, own=own, **kw: getattr(optim, kind)(params, **{"lr": 0.01, **own, **kw}), id=kind
    )
    for kind, own in OPTIONS.items()
]


def parameters(dtype="float64", shapes=((4, 3), (3,), ())):
    rng = np.random.default_rng(0)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def give_gradients(params, rng):
    for p in params:
        p.grad = tensor(np.asarray(rng.standard_normal(p.shape), p.dtype))


def values(params):
    return [p.detach().numpy().copy() for p in params]


# -- stepping -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", KINDS)
def test_step_writes_in_place_bumps_versions_and_leaves_gradients(make):
    params = parameters()
    optimizer = make(params)
    give_gradients(params, np.random.default_rng(1))
    memory, before, grads = [p._data for p in params], values(params), [p.grad.numpy().copy() for p in params]
    assert optimizer.step() is None
    for p, array, old, g in zip(params, memory, before, grads, strict=True):
        assert p._data is array and p.version == 1 and (p.detach().numpy() != old).all()
        np.testing.assert_array_equal(p.grad.numpy(), g)


@pytest.mark.parametrize("make", KINDS)
def test_backward_through_a_value_saved_before_the_step_is_refused(make):
    (p,) = parameters(shapes=((3,),))
    optimizer = make([p])
    loss = ops.square(p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(GraphError, match="was changed after it was recorded"):
        loss.backward()


@pytest.mark.parametrize("make", KINDS)
def test_parameters_without_a_gradient_do_not_step(make):
    """Each parameter counts its own steps: one that waits ends up as if it had been alone."""
    both, alone = parameters(), parameters()
    optimizer, other = make(both), make([alone[1]])
    rng = np.random.default_rng(1)
    for step in range(5):
        give_gradients(both, rng)
        alone[1].grad = both[1].grad
        if step < 2:
            both[1].grad = None
        else:
            other.step()
        optimizer.step()
        assert both[1].version == max(0, step - 1)
    np.testing.assert_array_equal(both[1].detach().numpy(), alone[1].detach().numpy())
    assert optimizer.state[both[0]]["step"] == 5 and optimizer.state[both[1]]["step"] == 3


@pytest.mark.parametrize("make", KINDS)
def test_a_group_takes_its_own_hyperparameters_and_mixed_dtypes(make):
    a, b, c = parameters(), parameters(), parameters("float32")
    optimizer = make([{"params": a[0], "lr": 0.5}, {"params": [a[1], c[1]]}])
    slow, fast = make([b[1]]), make([b[0]], lr=0.5)
    rng = np.random.default_rng(1)
    for _ in range(3):
        give_gradients(a, rng)
        c[1].grad = tensor(a[1].grad, dtype="float32")
        b[0].grad, b[1].grad = a[0].grad, a[1].grad
        for o in (optimizer, slow, fast):
            o.step()
    np.testing.assert_array_equal(a[0].detach().numpy(), b[0].detach().numpy())
    np.testing.assert_array_equal(a[1].detach().numpy(), b[1].detach().numpy())
    # Three float32 steps on numbers of order 1, each a few roundings.
    np.testing.assert_allclose(c[1].detach().numpy(), b[1].detach().numpy(), rtol=0, atol=1e-6)
    assert c[1].dtype == np.float32


@pytest.mark.parametrize("make", KINDS)
def test_hyperparameters_are_read_at_every_step(make):
    (p,) = parameters(shapes=((3,),))
    optimizer = make([p], weight_decay=0.0)
    give_gradients([p], np.random.default_rng(1))
    before = values([p])[0]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    np.testing.assert_array_equal(p.detach().numpy(), before)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ArgumentError, match="lr must be a number"):
        optimizer.step()


@pytest.mark.parametrize("make", KINDS)
def test_broadcast_transposed_and_shared_gradients(make):
    """Gradients arrive as the backward pass left them: views, read-only, or one array for two parameters."""
    shared = tensor(np.full((3,), 0.5))
    turned = tensor(np.random.default_rng(1).standard_normal((3, 4)).T)
    assert not turned._data.flags.c_contiguous
    for grads in ((ops.broadcast_to(tensor([[0.5]], dtype="float64"), (4, 3)), shared), (turned, shared)):
        params, packed = parameters(shapes=((4, 3), (3,), (3,))), parameters(shapes=((4, 3), (3,), (3,)))
        for p, q, g in zip(params, packed, (*grads, grads[1]), strict=True):
            p.grad, q.grad = g, tensor(np.ascontiguousarray(g.numpy()))
        make(params).step()
        make(packed).step()
        for p, q in zip(params, packed, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())


@pytest.mark.parametrize("make", KINDS)
def test_closure_is_run_with_recording_on_and_its_loss_returned(make):
    (p,) = parameters(shapes=((3,),))
    optimizer = make([p])

    def closure():
        optimizer.zero_grad()
        loss = ops.square(p).sum()
        loss.backward()
        return loss

    expected = float(np.sum(values([p])[0] ** 2))
    with no_grad():
        assert optimizer.step(closure).item() == pytest.approx(expected, rel=1e-14)
    assert p.version == 1


def test_zero_grad():
    params = parameters()
    optimizer = optim.SGD(params)
    give_gradients(params[:2], np.random.default_rng(1))
    optimizer.zero_grad(set_to_none=False)
    assert params[2].grad is None
    for p in params[:2]:
        np.testing.assert_array_equal(p.grad.numpy(), np.zeros(p.shape))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_wrong_gradients_are_refused():
    first, p = parameters(shapes=((3,), (3,)))
    optimizer = optim.Adam([first, p])
    first.grad = tensor(np.ones(3))
    p.grad = tensor(np.zeros((1, 3)))
    with pytest.raises(ShapeError, match=r"shape \(1, 3\), expected its parameter's shape \(3,\)"):
        optimizer.step()
    p.grad = tensor(np.zeros(3, np.float32))
    with pytest.raises(DtypeError, match="float32, expected its parameter's dtype float64"):
        optimizer.step()
    assert p.version == first.version == 0 and optimizer.state == {}


# -- saving ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", KINDS)
def test_resume_is_exact_and_goes_through_safetensors(make, tmp_path):
    from safetensors.numpy import load_file, save_file

    straight, before = parameters(), parameters()
    rng = np.random.default_rng(1)
    gradients = [[np.asarray(rng.standard_normal(p.shape)) for p in straight] for _ in range(6)]

    def train(optimizer, params, some):
        for grads in some:
            for p, g in zip(params, grads, strict=True):
                p.grad = tensor(g)
            optimizer.step()

    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:], "lr": 0.3, "weight_decay": 0}]

    train(make(groups(straight)), straight, gradients)
    first = make(groups(before))
    train(first, before, gradients[:3])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    after = [nn.Parameter(p) for p in before]
    second = make(groups(after), lr=77.0)
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert [g["lr"] for g in second.param_groups] == [0.01, 0.3]
    assert second.param_groups[0].keys() == first.param_groups[0].keys()
    train(second, after, gradients[3:])
    for a, b in zip(after, straight, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    for name, array in second.state_dict().items():
        assert isinstance(array, np.ndarray) and array.dtype.kind in "fib", name


def test_state_of_parameters_that_never_stepped_is_absent_and_loads():
    params, others = parameters(), parameters()
    optimizer, other = optim.Adam(params), optim.Adam(others)
    params[1].grad = tensor(np.ones(3))
    optimizer.step()
    state = optimizer.state_dict()
    assert {name for name in state if name.startswith("state")} == {
        "state.1.step", "state.1.exp_avg", "state.1.exp_avg_sq",
    }  # fmt: skip
    other.load_state_dict(state)
    assert list(other.state) == [others[1]]
    np.testing.assert_array_equal(other.state[others[1]]["exp_avg"].numpy(), state["state.1.exp_avg"])
    # The loaded state has memory of its own.
    optimizer.step()
    assert other.state[others[1]]["step"] == 1
    assert not np.shares_memory(other.state[others[1]]["exp_avg"]._data, state["state.1.exp_avg"])


def test_state_dict_arrays_are_read_only():
    (p,) = parameters(shapes=((3,),))
    optimizer = optim.Adam([p])
    p.grad = tensor(np.ones(3))
    optimizer.step()
    with pytest.raises(ValueError, match="read-only"):
        optimizer.state_dict()["state.0.exp_avg"][0] = 1.0


def test_a_state_that_does_not_fit_is_named_and_changes_nothing():
    params = parameters()
    optimizer = optim.Adam(params)
    give_gradients(params, np.random.default_rng(1))
    optimizer.step()
    good = {name: array.copy() for name, array in optimizer.state_dict().items()}
    bad = dict(good)
    del bad["param_groups.0.lr"], bad["state.1.step"]
    bad["state.0.exp_avg"] = np.zeros((3, 4))
    bad["state.9.exp_avg"] = np.zeros(3)
    with pytest.raises(CheckpointError) as error:
        optimizer.load_state_dict(bad)
    message = str(error.value)
    assert "this Adam" in message and "param_groups.0.lr is missing" in message and "state.1.step is missing" in message
    assert "state.0.exp_avg has shape (3, 4), expected (4, 3)" in message and "state.9.exp_avg is unexpected" in message
    with pytest.raises(CheckpointError, match=r"param_groups.0.params has shape \(3,\), expected \(2,\)"):
        optim.Adam(params[:2]).load_state_dict(good)
    with pytest.raises(CheckpointError, match="param_groups.0.momentum is missing"):
        optim.SGD(params).load_state_dict(good)
    with pytest.raises(ArgumentError, match="lr must be a number"):
        optimizer.load_state_dict({**good, "param_groups.0.lr": np.array(-1.0)})
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, good[name])


# -- construction ---------------------------------------------------------------------------------------------
def test_constructor_takes_parameters_of_a_module_and_plain_leaves():
    layer = nn.Linear(2, 3)
    leaf = tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([*layer.parameters(), leaf])
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(3, 2), (3,), (1,)]
    assert repr(optimizer).splitlines()[1].strip().startswith("group 0: 3 parameters, lr=0.001, momentum=0")


def test_constructor_refuses():
    p, q = parameters(shapes=((2,), (2,)))
    transposed = tensor(np.asfortranarray(np.ones((2, 3))), requires_grad=True)
    cases = [
        ([], ArgumentError, "params is empty"),
        (p, ArgumentError, "put it in a list"),
        ({"params": [p]}, ArgumentError, "put it in a list"),
        ([p, 3.0], ArgumentError, "parameter 1 is a float"),
        ([p * 2.0], ArgumentError, "parameter 0 is no floating leaf"),
        ([tensor([1, 2])], ArgumentError, "parameter 0 is no floating leaf"),
        ([p, p], ArgumentError, r"parameter 1 \(shape \(2,\)\) is given twice"),
        ([{"params": [p]}, {"params": [q, p]}], ArgumentError, "parameter 1 .* given twice"),
        ([{"lr": 1.0}], ArgumentError, "a mapping with 'params'"),
        ([{"params": [p]}, q], ArgumentError, "a mapping with 'params'"),
        ([{"params": [p], "weight_dacay": 0.1}], UnknownNameError, "did you mean 'weight_decay'"),
        ([{"params": [p], "lr": -0.1}], ArgumentError, "lr must be a number"),
        ([transposed], ArgumentError, "not C-contiguous; make it a gmcore.nn.Parameter"),
    ]
    for params, error, message in cases:
        for kind in (optim.Adam, optim.SGD):
            with pytest.raises(error, match=message):
                kind(params)


def test_base_cannot_be_used_by_itself():
    with pytest.raises(TypeError, match="abstract"):
        optim.Optimizer(parameters(), {})
