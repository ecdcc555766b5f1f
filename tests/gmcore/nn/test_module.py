import copy

import numpy as np
import pytest

from gmcore import manual_seed, nn, optim, tensor
from gmcore.errors import ArgumentError, CheckpointError, GraphError, UnknownNameError


class Block(nn.Module):
    """A parameter, two buffers and a child, the parameter assigned after the child."""

    def __init__(self, size: int = 2):
        self.inner = nn.Linear(size, size)
        self.gain = nn.Parameter(np.ones(size, np.float32))
        self.register_buffer("mean", tensor(np.zeros(size, np.float32)))
        self.register_buffer("scratch", tensor([0.0]), persistent=False)
        self.missing = None

    def forward(self, x, *, shift=0.0):
        return self.inner(x) * self.gain + shift


@pytest.fixture
def tree():
    manual_seed(0)
    return nn.Sequential(Block(), nn.Tanh(), Block())


BLOCK_STATE = ["gain", "mean", "inner.weight", "inner.bias"]


def test_names_follow_attributes(tree):
    names = [f"{i}.{name}" for i in "02" for name in ("gain", "inner.weight", "inner.bias")]
    assert [name for name, _ in tree.named_parameters()] == names
    assert [name for name, _ in tree[0].named_parameters(prefix="m", recurse=False)] == ["m.gain"]
    assert [name for name, _ in tree.named_buffers()] == ["0.mean", "0.scratch", "2.mean", "2.scratch"]
    assert [name for name, _ in tree.named_children()] == ["0", "1", "2"]
    assert [name for name, _ in tree.named_modules()] == ["", "0", "0.inner", "1", "2", "2.inner"]
    assert list(tree.modules()) == [tree, tree[0], tree[0].inner, tree[1], tree[2], tree[2].inner]
    assert list(tree.children()) == list(tree)
    assert [p.shape for p in tree[0].parameters()] == [(2,), (2, 2), (2,)]
    assert len(list(tree.buffers())) == 4
    assert list(tree[0].state_dict()) == BLOCK_STATE
    assert list(tree[0].state_dict(prefix="m")) == [f"m.{name}" for name in BLOCK_STATE]


def test_names_are_those_of_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Sequential(torch.nn.Linear(4, 2)))
    ours = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), value.numpy())
    x = np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(5, 3)
    # Three roundings deep, numbers of order 1.
    np.testing.assert_allclose(ours(x).detach().numpy(), theirs(torch.tensor(x)).detach(), rtol=0, atol=1e-6)
    theirs.load_state_dict({name: torch.tensor(value.numpy()) for name, value in ours.state_dict().items()})


def test_shared_tensors_appear_once_as_parameters_and_by_every_name_in_the_state():
    shared = nn.Linear(2, 2)
    module = nn.Sequential(shared, nn.Linear(2, 2), shared)
    module[1].weight = shared.weight
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert [name for name, _ in module.named_modules()] == ["", "0", "1"]
    everything = [f"{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert [name for name, _ in module.named_parameters(remove_duplicate=False)] == everything
    assert list(module.state_dict()) == everything


def test_call_passes_arguments_to_forward(tree):
    x = np.ones((3, 2), np.float32)
    plain, shifted = tree[0](x), tree[0](x, shift=1.0)
    np.testing.assert_allclose(shifted.detach().numpy(), plain.detach().numpy() + 1.0, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        nn.Module()(x)


def test_gradients_reach_every_parameter_and_are_forgotten(tree):
    tree(np.ones((3, 2), np.float32)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in tree.parameters())
    tree.zero_grad()
    assert all(p.grad is None for p in tree.parameters())


def test_state_dict_shares_memory_and_is_numpy_readable(tree):
    state = tree.state_dict()
    assert not any(t.requires_grad for t in state.values())
    tree[0].gain.copy_([3.0, 4.0])
    np.testing.assert_array_equal(state["0.gain"].numpy(), [3.0, 4.0])


def test_state_round_trip_restores_parameters_and_buffers(tree):
    state = {name: value.numpy().copy() for name, value in tree.state_dict().items()}
    other = nn.Sequential(Block(), nn.Tanh(), Block())
    tree[0].mean.copy_([7.0, 8.0])
    versions = [p.version for p in other.parameters()]
    assert other.load_state_dict(tree.state_dict()) == ([], [])
    for name, value in other.state_dict().items():
        expected = [7.0, 8.0] if name == "0.mean" else state[name]
        np.testing.assert_array_equal(value.numpy(), expected)
    assert [p.version for p in other.parameters()] == [v + 1 for v in versions]


def test_load_state_dict_names_everything_that_does_not_fit_and_writes_nothing(tree):
    block = tree[0]
    before = {name: value.numpy().copy() for name, value in block.state_dict().items()}
    state = {"gain": np.full(2, 9.0), "mean": np.zeros(3), "inner.weight": np.array([["a", "b"]] * 2), "extra": 1.0}
    with pytest.raises(CheckpointError) as error:
        block.load_state_dict(state)
    message = str(error.value)
    assert "Block" in message and "missing inner.bias" in message and "unexpected extra" in message
    assert "mean is float64[3], expected float32[2]" in message and "inner.weight is <U1[2, 2]" in message
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_load_state_dict_not_strict_loads_what_fits_but_never_another_shape(tree):
    block = tree[0]
    result = block.load_state_dict({"gain": np.full(2, 9.0), "extra": np.zeros(1)}, strict=False)
    assert result.missing_keys == BLOCK_STATE[1:] and result.unexpected_keys == ["extra"]
    np.testing.assert_array_equal(block.gain.detach().numpy(), [9.0, 9.0])
    assert block.gain.dtype == np.float32
    with pytest.raises(CheckpointError, match="gain is float64"):
        block.load_state_dict({"gain": np.zeros(1)}, strict=False)


def test_train_and_eval_reach_every_module(tree):
    assert tree.training and tree.eval() is tree
    assert not any(m.training for m in tree.modules())
    assert all(m.training for m in tree.train().modules())


def test_requires_grad_freezes(tree):
    tree[0].requires_grad_(False)
    tree(np.ones((1, 2), np.float32)).sum().backward()
    assert all(p.grad is None for p in tree[0].parameters())
    assert all(p.grad is not None for p in tree[2].parameters())


def test_apply_visits_children_first(tree):
    seen = []
    assert tree.apply(seen.append) is tree
    assert seen == [tree[0].inner, tree[0], tree[1], tree[2].inner, tree[2], tree]


def test_attributes_keep_their_kind(tree):
    block = tree[0]
    with pytest.raises(ArgumentError, match=r"Block\.gain is a Parameter.*got Tensor.*copy_"):
        block.gain = block.gain * 2.0
    with pytest.raises(ArgumentError, match=r"Block\.inner is a Module"):
        block.inner = np.tanh
    with pytest.raises(ArgumentError, match=r"Block\.mean is a buffer"):
        block.mean = nn.Parameter([1.0, 2.0])
    block.mean = tensor([1.0, 2.0])
    block.gain = None
    assert "gain" not in dict(block.named_parameters()) and "mean" in block.state_dict()
    del block.inner
    assert list(block.state_dict()) == ["mean"]


def test_registering_checks_names_and_kinds(tree):
    block = tree[0]
    for name in ("", "a.b", 3):
        with pytest.raises(ArgumentError, match="non-empty string without '.'"):
            block.register_buffer(name, tensor([1.0]))
    for taken in ("forward", "gain", "training"):
        with pytest.raises(ArgumentError, match=f"has an attribute '{taken}' already"):
            block.add_module(taken, nn.Tanh())
    with pytest.raises(ArgumentError, match="expected a Module for 'act'"):
        block.add_module("act", nn.Tanh)
    with pytest.raises(ArgumentError, match="running is a buffer"):
        block.register_buffer("running", np.zeros(2))
    assert "running" not in dict(block.named_buffers())
    block.register_buffer("mean", None)
    assert "mean" not in block.state_dict()


def test_buffers_of_one_module_are_not_those_of_another():
    class Plain(nn.Module):
        pass

    a, b = Plain(), Plain()
    a.register_buffer("x", tensor([1.0]))
    assert list(a.state_dict()) == ["x"] and list(b.state_dict()) == []


def test_deepcopy_is_apart(tree):
    other = copy.deepcopy(tree)
    other[0].gain.copy_([5.0, 5.0])
    assert list(other.state_dict()) == list(tree.state_dict())
    np.testing.assert_array_equal(tree[0].gain.detach().numpy(), [1.0, 1.0])


def test_repr_shows_the_tree(tree):
    assert repr(tree[:2]) == (
        "Sequential(\n"
        "  (0): Block(\n"
        "    (inner): Linear(in_features=2, out_features=2, bias=True)\n"
        "  )\n"
        "  (1): Tanh()\n"
        ")"
    )


# -- hooks -------------------------------------------------------------------------------------------------------
def test_forward_hooks_see_and_change_what_goes_through():
    layer, seen = nn.Identity(), []
    x = tensor([1.0])
    pre = layer.register_forward_pre_hook(lambda module, args: seen.append((module, args)))
    post = layer.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    assert layer(x) is x and seen == [(layer, (x,)), ((x,), x)]
    pre.remove()
    post.remove()
    post.remove()
    assert layer(x) is x and len(seen) == 2
    with layer.register_forward_pre_hook(lambda module, args: args[0] * 2.0):
        with layer.register_forward_hook(lambda module, args, output: output + args[0]):
            assert layer(x).tolist() == [4.0]
        assert layer(x).tolist() == [2.0]
    assert layer(x).tolist() == [1.0]


def test_hooks_run_in_their_order_and_take_keywords():
    block, order = Block(), []
    block.register_forward_hook(lambda *_: order.append("a"))
    block.register_forward_hook(lambda *_: order.append("b"))
    block.register_forward_hook(lambda *_: order.append("c"), prepend=True)
    block.register_forward_pre_hook(lambda *_: order.append("p"))
    block.register_forward_pre_hook(lambda m, args, kwargs: (args, {"shift": 5.0}), with_kwargs=True)
    block.register_forward_hook(lambda m, args, kwargs, out: order.append(kwargs), with_kwargs=True)
    x = np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(block(x, shift=1.0).detach().numpy(), block.forward(x, shift=5.0).detach().numpy())
    assert order == ["p", "c", "a", "b", {"shift": 5.0}]
    with pytest.raises(ArgumentError, match="always_call=True is not supported"):
        block.register_forward_hook(print, always_call=True)


def test_hooks_of_one_module_are_not_those_of_another():
    a, b = nn.Identity(), nn.Identity()
    a.register_forward_hook(lambda *_: 1)
    assert a(tensor([0.0])) == 1 and b(tensor([0.0])).tolist() == [0.0]


@pytest.mark.parametrize("hooked", [0, 1])
def test_a_hook_keeps_layers_from_being_fused(hooked):
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), []
    model[hooked].register_forward_hook(lambda module, args, output: seen.append(module))
    model(np.ones((1, 2), np.float32))
    assert seen == [model[hooked]]
    seen.clear()
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model[hooked].register_full_backward_hook(lambda module, before, after: seen.append(module))
    model(np.ones((1, 2), np.float32)).sum().backward()
    assert seen == [model[hooked]]


# -- conversion --------------------------------------------------------------------------------------------------
def test_to_converts_in_place_what_is_floating(tree):
    tree[0].register_buffer("count", tensor(3))
    parameters = list(tree.parameters())
    y = tree(np.ones((1, 2), np.float32)).sum()
    tree(np.ones((1, 2), np.float32)).sum().backward()
    assert tree.double() is tree
    assert [id(p) for p in tree.parameters()] == [id(p) for p in parameters]
    assert {p.dtype.name for p in parameters} == {p.grad.dtype.name for p in parameters} == {"float64"}
    assert tree[0].mean.dtype == np.float64 and tree[0].count.dtype == np.int64
    with pytest.raises(GraphError, match="changed after it was recorded"):
        y.backward()
    tree(np.ones((1, 2))).sum().backward()
    assert all(p.dtype == np.float32 for p in tree.float().parameters())
    assert all(p.dtype == np.float16 for p in tree.half().parameters())
    for arguments in (("cpu",), ("cpu", "float64"), (tensor(np.ones(1)),), (np.float64,)):
        assert tree.to(*arguments) is tree
    assert tree.to(device="cpu", dtype="float64")[0].gain.dtype == np.float64
    for arguments, match in ((("cpu:0",), "device 'cpu:0'; expected"), (("int64",), "floating dtype")):
        with pytest.raises(ArgumentError, match=match):
            tree.to(*arguments)


def test_zero_grad(tree):
    x = np.ones((1, 2), np.float32)
    tree(x).sum().backward()
    tree.zero_grad(set_to_none=False)
    assert all(not p.grad.numpy().any() for p in tree.parameters())
    tree.zero_grad()
    assert all(p.grad is None for p in tree.parameters())


# -- paths -------------------------------------------------------------------------------------------------------
def test_what_is_at_a_path(tree):
    assert tree.get_submodule("") is tree and tree.get_submodule("0.inner") is tree[0].inner
    assert tree.get_parameter("0.inner.weight") is tree[0].inner.weight
    assert tree.get_buffer("2.mean") is tree[2].mean
    for get, path in ((tree.get_submodule, "0.iner"), (tree.get_parameter, "0.gian"), (tree.get_buffer, "0.mena")):
        with pytest.raises(UnknownNameError, match=f"of this Sequential '{path}'; did you mean"):
            get(path)
    with pytest.raises(UnknownNameError):
        tree.get_submodule("0.gain")


def test_register_parameter():
    module = nn.Identity()
    module.register_parameter("w", nn.Parameter([1.0]))
    module.register_parameter("b", None)
    assert list(module.state_dict()) == ["w"] and module.b is None
    with pytest.raises(ArgumentError, match="expected a Parameter for 'c', got Tensor"):
        module.register_parameter("c", tensor([1.0]))
    with pytest.raises(ArgumentError, match="has an attribute 'w' already"):
        module.register_parameter("w", None)


def test_a_shared_parameter_is_optimised_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().numpy().copy()
    model(np.ones((1, 2), np.float32)).sum().backward()
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    assert len(optimizer.param_groups[0]["params"]) == 1
    optimizer.step()
    np.testing.assert_allclose(model[1].weight.detach().numpy(), before - 0.5 * model[0].weight.grad.numpy(), rtol=1e-6)
