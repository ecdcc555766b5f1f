"""Weights cross between these modules and PyTorch's by safetensors, both ways, and give the same outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from gmcore import grad, io, manual_seed, nn, tensor
from gmcore.nn.utils import parametrizations as ours

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
theirs = torch.nn.utils.parametrizations


class Pair(NamedTuple):
    """One module, written once for both libraries, and shapes (or arrays) of its inputs."""

    make: Callable[[Any, Any], Any]
    """From the namespaces ``nn`` and ``nn.utils.parametrizations`` of a library."""
    inputs: tuple[Any, ...]


def joined(nn: Any, module: Any) -> Any:
    """A module that makes one tensor of what a recurrent layer or cell returns: output + h_n c_n, say."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: Any) -> Any:
            found = self.layer(x)
            output, last = found if isinstance(found, tuple) else (found, found)
            if "Cell" in type(self.layer).__name__:
                return output * last
            return output.sum(-1) + (last[0][-1] * last[1][-1] if isinstance(last, tuple) else last[0]).sum()

    return Joined()


NUMBERS = np.array([[0, 3, 4], [4, 4, 2]])
PAIRS = {
    "Linear": Pair(lambda nn, p: nn.Linear(4, 3), ((5, 4),)),
    "Linear without bias": Pair(lambda nn, p: nn.Linear(4, 3, bias=False), ((2, 5, 4),)),
    "Bilinear": Pair(lambda nn, p: nn.Bilinear(4, 3, 2), ((5, 4), (5, 3))),
    "Bilinear without bias": Pair(lambda nn, p: nn.Bilinear(4, 3, 2, bias=False), ((4,), (3,))),
    "Embedding": Pair(lambda nn, p: nn.Embedding(5, 3), (NUMBERS,)),
    "Embedding with padding": Pair(lambda nn, p: nn.Embedding(5, 3, padding_idx=-1), (NUMBERS,)),
    "LayerNorm": Pair(lambda nn, p: nn.LayerNorm(4), ((5, 4),)),
    "LayerNorm of two axes": Pair(lambda nn, p: nn.LayerNorm((3, 4), eps=0.1, bias=False), ((2, 3, 4),)),
    "LayerNorm without weights": Pair(lambda nn, p: nn.LayerNorm(4, elementwise_affine=False), ((5, 4),)),
    "RMSNorm": Pair(lambda nn, p: nn.RMSNorm(4), ((5, 4),)),
    "GroupNorm": Pair(lambda nn, p: nn.GroupNorm(2, 6), ((3, 6, 4),)),
    "BatchNorm1d": Pair(lambda nn, p: nn.BatchNorm1d(4), ((6, 4),)),
    "BatchNorm1d of sequences": Pair(lambda nn, p: nn.BatchNorm1d(4, eps=0.1, momentum=0.3), ((3, 4, 5),)),
    "BatchNorm1d averaging": Pair(lambda nn, p: nn.BatchNorm1d(4, momentum=None, affine=False), ((6, 4),)),
    "BatchNorm1d untracked": Pair(lambda nn, p: nn.BatchNorm1d(4, track_running_stats=False), ((6, 4),)),
    "BatchNorm2d": Pair(lambda nn, p: nn.BatchNorm2d(3), ((4, 3, 2, 5),)),
    "BatchNorm2d averaging": Pair(lambda nn, p: nn.BatchNorm2d(3, 0.1, None, False), ((4, 3, 2, 5),)),
    "BatchNorm2d untracked": Pair(lambda nn, p: nn.BatchNorm2d(3, track_running_stats=False), ((4, 3, 2, 5),)),
    "Conv1d": Pair(lambda nn, p: nn.Conv1d(4, 6, 3, 2, 1, 2, 2), ((3, 4, 9),)),
    "Conv1d circular": Pair(lambda nn, p: nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), ((2, 5),)),
    "Conv2d": Pair(lambda nn, p: nn.Conv2d(2, 3, (3, 2)), ((2, 2, 4, 5),)),
    "Conv2d with all": Pair(
        lambda nn, p: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False),
        ((2, 4, 7, 5),),
    ),
    "Conv2d reflecting": Pair(
        lambda nn, p: nn.Conv2d(2, 1, 3, padding=(2, 1), padding_mode="reflect"), ((2, 2, 4, 3),)
    ),
    "Conv2d replicating": Pair(lambda nn, p: nn.Conv2d(2, 1, 3, padding=1, padding_mode="replicate"), ((2, 4, 3),)),
    "ConvTranspose1d": Pair(lambda nn, p: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, False, 2), ((3, 4, 5),)),
    "ConvTranspose2d": Pair(lambda nn, p: nn.ConvTranspose2d(2, 3, 3, (2, 3), 1, (1, 0)), ((2, 2, 4, 3),)),
    "pooling": Pair(
        lambda nn, p: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 1)), nn.Dropout2d(0.0)
        ),
        ((2, 1, 8, 7),),
    ),
    "pooling of sequences": Pair(
        lambda nn, p: nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.MaxPool1d(2, 1, 1), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)
        ),
        ((2, 1, 9),),
    ),
    "a convolutional network": Pair(
        lambda nn, p: nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 4, 2, 1),
            nn.ConvTranspose2d(3, 2, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1),
        ),
        ((3, 1, 8, 8),),
    ),
    "weight norm": Pair(lambda nn, p: p.weight_norm(nn.Linear(4, 3)), ((5, 4),)),
    "weight norm of columns": Pair(lambda nn, p: p.weight_norm(nn.Linear(4, 3), dim=1), ((5, 4),)),
    "weight norm of all": Pair(lambda nn, p: p.weight_norm(nn.Linear(4, 3), dim=None), ((5, 4),)),
    "spectral norm": Pair(lambda nn, p: p.spectral_norm(nn.Linear(4, 3), n_power_iterations=3), ((5, 4),)),
    "spectral norm of a bilinear": Pair(lambda nn, p: p.spectral_norm(nn.Bilinear(4, 3, 2)), ((5, 4), (5, 3))),
    "spectral norm of a vector": Pair(lambda nn, p: p.spectral_norm(nn.Linear(4, 3), "bias"), ((5, 4),)),
    "two norms in one module": Pair(
        lambda nn, p: p.spectral_norm(p.weight_norm(nn.Linear(4, 3)), "bias"), ((5, 4),)
    ),
    "RNN": Pair(lambda nn, p: joined(nn, nn.RNN(4, 3, 2, bias=False)), ((5, 2, 4),)),
    "RNN with relu": Pair(lambda nn, p: joined(nn, nn.RNN(4, 3, 1, "relu", batch_first=True)), ((2, 5, 4),)),
    "LSTM": Pair(lambda nn, p: joined(nn, nn.LSTM(4, 3, 2, bidirectional=True)), ((5, 2, 4),)),
    "LSTM of one sequence": Pair(lambda nn, p: joined(nn, nn.LSTM(4, 3, bias=False)), ((5, 4),)),
    "GRU": Pair(lambda nn, p: joined(nn, nn.GRU(4, 3, 2, True, True, 0.0, True)), ((2, 5, 4),)),
    "GRU without bias": Pair(lambda nn, p: joined(nn, nn.GRU(4, 3, bias=False)), ((5, 2, 4),)),
    "RNNCell": Pair(lambda nn, p: joined(nn, nn.RNNCell(4, 3, nonlinearity="relu")), ((5, 4),)),
    "LSTMCell": Pair(lambda nn, p: joined(nn, nn.LSTMCell(4, 3)), ((5, 4),)),
    "GRUCell": Pair(lambda nn, p: joined(nn, nn.GRUCell(4, 3)), ((4,),)),
    "Dropout": Pair(lambda nn, p: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), ((5, 4),)),
    "Flatten": Pair(lambda nn, p: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), ((5, 2, 3),)),
    "Unflatten": Pair(lambda nn, p: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(-1, (2, 3))), ((5, 4),)),
    "ModuleList": Pair(lambda nn, p: nn.Sequential(*nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])), ((5, 4),)),
    "a network": Pair(
        lambda nn, p: nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), p.weight_norm(nn.Linear(6, 6)), nn.LayerNorm(6),
            nn.Sequential(nn.Linear(6, 2), nn.Softplus()),
        ),
        ((5, 4),),
    ),
    "PReLU": Pair(lambda nn, p: nn.PReLU(4, 0.1), ((3, 4),)),
}  # fmt: skip
WITHOUT_STATE = {
    **{name: Pair(lambda nn, p, name=name: getattr(nn, name)(), ((3, 4),)) for name in (
        "ELU", "GELU", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "ReLU", "SELU", "Sigmoid", "SiLU", "Softplus",
        "Softsign", "Tanh", "CELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Mish", "ReLU6", "Softshrink",
        "Tanhshrink",
    )},
    "GLU": Pair(lambda nn, p: nn.GLU(1), ((3, 4),)),
    "Threshold": Pair(lambda nn, p: nn.Threshold(0.1, 2.0), ((3, 4),)),
    "ELU(0.5)": Pair(lambda nn, p: nn.ELU(0.5, False), ((3, 4),)),
    "GELU tanh": Pair(lambda nn, p: nn.GELU("tanh"), ((3, 4),)),
    "Hardtanh(-0.5, 0.2)": Pair(lambda nn, p: nn.Hardtanh(-0.5, max_val=0.2, inplace=False), ((3, 4),)),
    "LeakyReLU(0.3)": Pair(lambda nn, p: nn.LeakyReLU(0.3), ((3, 4),)),
    "Softplus(2)": Pair(lambda nn, p: nn.Softplus(2.0), ((3, 4),)),
    **{f"{name}({dim})": Pair(lambda nn, p, name=name, dim=dim: getattr(nn, name)(dim=dim), ((3, 4),))
       for name in ("Softmax", "LogSoftmax", "Softmin") for dim in (0, -1)},
}  # fmt: skip
UNIT = np.random.default_rng(1).uniform(0.1, 0.9, (3, 4)).astype(np.float32)
CLASSES = np.array([2, 0, 3])
SIGNS = np.array([1.0, -1.0, 1.0], np.float32)
LOSSES = {
    "BCELoss": Pair(lambda nn, p: nn.BCELoss(), (UNIT, UNIT.T.reshape(3, 4).copy())),
    "BCEWithLogitsLoss": Pair(lambda nn, p: nn.BCEWithLogitsLoss(reduction="sum"), ((3, 4), UNIT)),
    "CosineEmbeddingLoss": Pair(lambda nn, p: nn.CosineEmbeddingLoss(0.1), ((3, 4), (3, 4), SIGNS)),
    "CrossEntropyLoss": Pair(lambda nn, p: nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1), ((3, 4), CLASSES)),
    "GaussianNLLLoss": Pair(lambda nn, p: nn.GaussianNLLLoss(full=True), ((3, 4), (3, 4), UNIT)),
    "HingeEmbeddingLoss": Pair(lambda nn, p: nn.HingeEmbeddingLoss(0.5), ((3,), SIGNS)),
    "HuberLoss": Pair(lambda nn, p: nn.HuberLoss("sum", 0.5), ((3, 4), (3, 4))),
    "KLDivLoss": Pair(lambda nn, p: nn.KLDivLoss(reduction="batchmean", log_target=True), ((3, 4), (3, 4))),
    "L1Loss": Pair(lambda nn, p: nn.L1Loss(reduction="none"), ((3, 4), (3, 4))),
    "MarginRankingLoss": Pair(lambda nn, p: nn.MarginRankingLoss(0.2), ((3,), (3,), SIGNS)),
    "MSELoss": Pair(lambda nn, p: nn.MSELoss(), ((3, 4), (3, 4))),
    "MultiMarginLoss": Pair(lambda nn, p: nn.MultiMarginLoss(2, 0.5), ((3, 4), CLASSES)),
    "NLLLoss": Pair(lambda nn, p: nn.NLLLoss(), ((3, 4), CLASSES)),
    "PoissonNLLLoss": Pair(lambda nn, p: nn.PoissonNLLLoss(full=True, eps=0.1), ((3, 4), UNIT)),
    "SmoothL1Loss": Pair(lambda nn, p: nn.SmoothL1Loss(beta=0.3), ((3, 4), (3, 4))),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
each_function = pytest.mark.parametrize("pair", {**WITHOUT_STATE, **LOSSES}.values(), ids={**WITHOUT_STATE, **LOSSES})


def inputs(pair: Pair) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [x if isinstance(x, np.ndarray) else rng.standard_normal(x).astype(np.float32) for x in pair.inputs]


def modules(pair: Pair) -> tuple[nn.Module, Any]:
    """Both modules, with weights that are not those they start with."""
    manual_seed(1)
    torch.manual_seed(2)
    pairs = pair.make(nn, ours), pair.make(torch.nn, theirs)
    rng = np.random.default_rng(3)
    for name, p in pairs[0].named_parameters():
        p.copy_(rng.uniform(0.5, 1.5, p.shape) * (1 if "norm" in name else rng.choice([-1, 1], p.shape)))
    with torch.no_grad():
        for p in pairs[1].parameters():
            p += torch.rand(p.shape)
    return pairs


def close(y: Any, reference: Any) -> None:
    assert y.dtype == np.float32 or y.dtype.kind == "i"
    expected = reference.detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-5 * max(1.0, abs(expected).max()))


def agree(mine: nn.Module, other: Any, pair: Pair) -> None:
    """Outputs, gradients and buffers, in training twice and in evaluation."""
    arrays = inputs(pair)
    for training in (True, True, False):
        mine.train(training)
        other.train(training)
        xs = [tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        torch_xs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        y, reference = mine(*xs), other(*torch_xs)
        close(y, reference)
        weight = np.random.default_rng(4).standard_normal(y.shape).astype(np.float32)
        mine.zero_grad()
        other.zero_grad()
        (y * weight).sum().backward()
        (reference * torch.from_numpy(np.asarray(weight))).sum().backward()
        for x, torch_x in zip(xs, torch_xs, strict=True):
            if x.requires_grad and torch_x.grad is not None:
                close(x.grad, torch_x.grad)
        parameters = dict(other.named_parameters())
        for name, p in mine.named_parameters():
            close(p.grad, parameters[name].grad)
    for name, buffer in other.named_buffers():
        close(dict(mine.named_buffers())[name], buffer)


EVERY = {**PAIRS, **WITHOUT_STATE, **LOSSES}
DERIVATIVES = {"Hardsigmoid": 0, "MultiMarginLoss": 1}
"""How many PyTorch has, where not two; hardsigmoid's has 1/6 of float32 in it."""


def _weight_norm(v: Any, g: Any, dim: int) -> Any:
    """The formula: PyTorch's fused one has a wrong second derivative on the CPU (2.13: off by 150 where it is 1)."""
    axes = [axis for axis in range(v.ndim) if axis != dim]
    return g * v / v.square().sum(axes, keepdim=True).sqrt()


@pytest.mark.parametrize("name", EVERY)
def test_values_and_two_derivatives_equal_those_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the cubes of the gradients, of the inputs and the parameters, to 1e-9."""
    monkeypatch.setattr(torch, "_weight_norm", _weight_norm)
    pair = EVERY[name]
    mine, other = (module.double() for module in modules(pair))
    mine.load_state_dict({name: value.numpy() for name, value in other.state_dict().items()})
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in inputs(pair)]
    xs = [tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    torch_xs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, reference = mine(*xs), other(*torch_xs)
    weight = np.random.default_rng(4).standard_normal(y.shape)
    parameters = dict(other.named_parameters())
    leaves = [x for x in xs if x.requires_grad] + [p for _, p in mine.named_parameters()]
    torch_leaves = [x for x in torch_xs if x.requires_grad] + [parameters[name] for name, _ in mine.named_parameters()]

    def torch_grad(value: Any, graph: bool) -> list[Any]:
        if not value.requires_grad:  # the gradient is constant
            return [torch.zeros_like(x) for x in torch_leaves]
        found = torch.autograd.grad(value, torch_leaves, create_graph=graph, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(torch_leaves, found, strict=True)]

    first = grad((y * weight).sum(), leaves, create_graph=True, fill=True)
    torch_first = torch_grad((reference * torch.from_numpy(np.asarray(weight))).sum(), True)
    cubes = sum([(g * g * g).sum() for g in first], tensor(0.0))
    second = grad(cubes, leaves, fill=True) if cubes.requires_grad else [0.0 * x.detach() for x in leaves]
    found = ([y], first, second)
    expected_of = [[reference], torch_first]
    if DERIVATIVES.get(name, 2) == 2:
        expected_of.append(torch_grad(sum((g**3).sum() for g in torch_first), False))
    for order in range(DERIVATIVES.get(name, 2) + 1):
        for value, expected in zip(found[order], expected_of[order], strict=True):
            assert value.dtype == np.float64
            expected = expected.detach().numpy(force=True)
            scale = max(1.0, abs(expected).max(initial=0.0))
            np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9, atol=1e-9 * scale)


@each_pair
def test_weights_of_torch_load_here(pair: Pair, tmp_path: Any) -> None:
    mine, other = modules(pair)
    safetensors.save_file(other.state_dict(), tmp_path / "a")
    mine.load_state_dict(io.load(tmp_path / "a")[0])
    agree(mine, other, pair)


@each_pair
def test_weights_saved_here_load_in_torch(pair: Pair, tmp_path: Any) -> None:
    mine, other = modules(pair)
    io.save(tmp_path / "a", mine.state_dict())
    other.load_state_dict(safetensors.load_file(tmp_path / "a"))
    agree(mine, other, pair)


@each_function
def test_functions_agree_with_those_of_torch(pair: Pair) -> None:
    mine, other = pair.make(nn, ours), pair.make(torch.nn, theirs)
    assert list(mine.state_dict()) == list(other.state_dict()) == []
    agree(mine, other, pair)


@pytest.mark.parametrize(
    ("name", "arguments", "arrays"),
    [
        ("BCELoss", {"weight": UNIT}, (UNIT, UNIT)),
        ("BCEWithLogitsLoss", {"weight": UNIT, "pos_weight": UNIT[0]}, (UNIT, UNIT)),
        ("CrossEntropyLoss", {"weight": UNIT[0]}, (UNIT, CLASSES)),
        ("NLLLoss", {"weight": UNIT[0]}, (UNIT, CLASSES)),
        ("MultiMarginLoss", {"weight": UNIT[0]}, (UNIT, CLASSES)),
    ],
)
def test_weights_of_losses_are_torch_buffers(name: str, arguments: dict[str, Any], arrays: tuple[Any, ...]) -> None:
    mine = getattr(nn, name)(**arguments)
    other = getattr(torch.nn, name)(**{key: torch.from_numpy(value.copy()) for key, value in arguments.items()})
    assert list(mine.state_dict()) == list(other.state_dict()) == list(arguments)
    close(mine(*map(tensor, arrays)), other(*[torch.from_numpy(a.copy()) for a in arrays]))


def test_every_module_is_compared_with_torch() -> None:
    """All that are exported and that PyTorch has, except containers and the base."""
    exported = {name for name in nn.__all__ if hasattr(torch.nn, name) and name[0].isupper()}
    compared = " ".join(repr(pair.make(nn, ours)) for pair in EVERY.values())
    elsewhere = {"MaxUnpool1d", "MaxUnpool2d", "Module", "ModuleList", "Parameter", "ParameterDict", "ParameterList"}
    assert {name for name in exported if f"{name}(" not in compared} == elsewhere


def test_shared_parameters_have_the_names_of_torch_and_one_gradient() -> None:
    def make(nn: Any) -> Any:
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        getattr(model, "2").weight = getattr(model, "0").weight
        return model

    mine, other = make(nn), make(torch.nn)
    assert list(mine.state_dict()) == list(other.state_dict())
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in other.named_parameters()]
    mine.load_state_dict({name: t.numpy() for name, t in other.state_dict().items()})
    agree(mine, other, Pair(make, ((2, 3),)))
