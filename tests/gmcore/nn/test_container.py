import numpy as np
import pytest

from gmcore import grad, manual_seed, nn, ops, tensor
from gmcore.errors import ArgumentError

ACTIVATIONS = [nn.Identity, nn.Tanh, nn.Sigmoid, nn.ReLU, nn.Softplus]


def ops_on_tape(y):
    """Names of the recorded operations that led to y."""
    names, stack, seen = [], [y._node], set()
    while stack:
        node = stack.pop()
        if hasattr(node, "op") and id(node) not in seen:
            seen.add(id(node))
            names.append(node.op.name)
            stack += [edge[0] for edge in node.edges if edge is not None]
    return names


def one_by_one(model, x):
    for module in model:
        x = module(x)
    return x


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_and_activation_are_one_operation_with_the_same_values_and_gradients(activation):
    manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4, dtype="float64"), activation(), nn.Linear(4, 3, bias=False, dtype="float64"))
    x = tensor(np.random.default_rng(0).standard_normal((7, 5)), requires_grad=True)
    fused, plain = model(x), one_by_one(model, x)
    assert ops_on_tape(fused) == ["linear", "linear"]
    # Numbers of order 1, a few roundings deep, and an activation rounded by another polynomial.
    np.testing.assert_allclose(fused.detach().numpy(), plain.detach().numpy(), rtol=0, atol=1e-14)
    targets = [x, *model.parameters()]
    for a, b in zip(grad(fused.sum(), targets), grad(plain.sum(), targets), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-13)


def test_what_the_kernel_does_not_compute_is_called_as_it_is():
    class Doubled(nn.Tanh):
        def forward(self, input):
            return 2.0 * super().forward(input)

    class Negated(nn.Linear):
        def forward(self, input):
            return -super().forward(input)

    x = np.random.default_rng(0).standard_normal((2, 3))
    for first, second in ((nn.Linear, Doubled()), (Negated, nn.Tanh()), (nn.Linear, nn.Softplus(2.0))):
        model = nn.Sequential(first(3, 3, dtype="float64"), second)
        np.testing.assert_array_equal(model(x).detach().numpy(), one_by_one(model, x).detach().numpy())
    assert ops_on_tape(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))(np.ones((1, 3), np.float32))) == ["linear"] * 2


def test_fusion_reads_the_modules_at_each_call():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    x = np.ones((1, 2), np.float32)
    model(x)
    setattr(model, "1", nn.ReLU())
    np.testing.assert_array_equal(
        model(x).detach().numpy(), ops.linear(x, model[0].weight, model[0].bias, activation="relu").detach().numpy()
    )


def test_empty_is_the_identity():
    x = tensor([1.0])
    assert nn.Sequential()(x) is x and len(nn.Sequential()) == 0


def test_is_a_sequence_of_modules():
    modules = [nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)]
    model = nn.Sequential(*modules)
    assert list(model) == modules and len(model) == 3 and model[-1] is modules[2]
    assert list(model[1:].state_dict()) == ["2.weight", "2.bias"]
    assert model.append(nn.Sigmoid()) is model and isinstance(model[3], nn.Sigmoid)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    shared = nn.Tanh()
    assert list(nn.Sequential(shared, shared)) == [shared, shared]
    with pytest.raises(IndexError):
        model[9]


def test_names_from_a_mapping():
    model = nn.Sequential({"encode": nn.Linear(2, 1), "squash": nn.Sigmoid()})
    assert list(model.state_dict()) == ["encode.weight", "encode.bias"] and model.squash is model[1]


def test_refuses_what_is_no_module():
    with pytest.raises(ArgumentError, match="expected a Module for '1'"):
        nn.Sequential(nn.Tanh(), nn.Tanh)
    with pytest.raises(ArgumentError, match="'forward' already"):
        nn.Sequential({"forward": nn.Tanh()})


def test_float32_stays_float32():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(2.0), nn.Linear(4, 2), nn.Sigmoid())
    x = tensor(np.ones((2, 3), np.float32), requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert {t.dtype for t in (y, x.grad, *(p.grad for p in model.parameters()))} == {np.dtype(np.float32)}


# -- lists and dictionaries ----------------------------------------------------------------------------------------
KINDS = [
    (nn.ModuleList, nn.ModuleDict, lambda i: nn.Linear(1, i + 1)),
    (nn.ParameterList, nn.ParameterDict, lambda i: nn.Parameter([float(i)])),
]


@pytest.mark.parametrize(("kind", "_", "make"), KINDS)
def test_a_list_is_a_list(kind, _, make):
    a, b, c, d = (make(i) for i in range(4))
    held, plain = kind([a, b]), [a, b]
    assert held.append(c) is held and held.extend([d]) is held
    plain += [c, d]
    for change in (lambda x: x.insert(1, d), lambda x: x.pop(0), lambda x: x.pop(), lambda x: x.__delitem__(0),
                   lambda x: x.__setitem__(-1, a), lambda x: x.extend([b, c])):  # fmt: skip
        found, expected = change(held), change(plain)
        assert found is expected or found is held  # extend returns the list here
        assert len(held) == len(plain) and all(x is y for x, y in zip(held, plain, strict=True))
        assert [name for name in vars(held) if name.isdigit()] == [str(i) for i in range(len(plain))]
    assert held[-1] is c and type(held[1:]) is kind and held[1:][0] is plain[1]
    with pytest.raises(IndexError):
        held[9]


@pytest.mark.parametrize(("_", "kind", "make"), KINDS)
def test_a_dictionary_is_a_dictionary(_, kind, make):
    a, b, c = (make(i) for i in range(3))
    held, plain = kind({"x": a, "y": b}), {"x": a, "y": b}
    for change in (lambda d: d.update({"z": c, "x": b}), lambda d: d.pop("y"), lambda d: d.__delitem__("x"),
                   lambda d: d.__setitem__("x", a)):  # fmt: skip
        change(held)
        change(plain)
        assert list(held) == list(held.keys()) == list(plain) and len(held) == len(plain)
        assert all(x is y for x, y in zip(held.values(), plain.values(), strict=True))
        assert all(held[name] is value and name in held for name, value in plain.items())
        assert [(k, id(v)) for k, v in held.items()] == [(k, id(v)) for k, v in plain.items()]
    assert "y" not in held
    with pytest.raises(KeyError):
        held["y"]
    held.clear()
    assert len(held) == 0
    with pytest.raises(ArgumentError, match="'keys' already"):
        held["keys"] = a


def test_lists_of_parameters_make_them():
    held = nn.ParameterList([np.ones(2), tensor([1.0])])
    assert all(type(p) is nn.Parameter for p in held) and [n for n, _ in held.named_parameters()] == ["0", "1"]
    assert type(nn.ParameterDict({"a": np.ones(2)})["a"]) is nn.Parameter
    with pytest.raises(ArgumentError, match="expected a Module for '0'"):
        nn.ModuleList([np.tanh])


def test_parameters_of_the_tree():
    model = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(1, 1)]), "b": nn.Linear(1, 1, bias=False)})
    assert list(model.state_dict()) == ["a.0.weight", "a.0.bias", "b.weight"]


def test_a_sequential_can_be_changed():
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    model.insert(1, nn.Tanh())
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    model[1] = nn.ReLU()
    del model[2]
    assert repr(model[1]) == "ReLU()" and model(np.ones((4, 1), np.float32)).shape == (4, 2)
