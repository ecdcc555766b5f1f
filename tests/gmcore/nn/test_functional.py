"""Modules made of functions: their arguments, which PyTorch's constructors take, are taken or refused by name."""

import inspect

import numpy as np
import pytest

from gmcore import nn, ops, tensor
from gmcore.errors import ArgumentError, ShapeError

MADE = [m for m in vars(nn).values() if inspect.isclass(m) and issubclass(m, nn.Functional) and m is not nn.Functional]


@pytest.mark.parametrize("module", MADE, ids=lambda m: m.__name__)
def test_every_argument_of_torch_is_taken_or_refused_by_name(module):
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.nn, module.__name__)).parameters
    theirs = {name: p for name, p in theirs.items() if name not in ("args", "kwargs")}  # of no constructor at all
    ours = inspect.signature(module).parameters
    assert set(theirs) - set(ours) <= {"min_value", "max_value"}  # deprecated names of Hardtanh's limits
    for name, parameter in ours.items():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == theirs[name].default
    required = {name: 1 for name, parameter in ours.items() if parameter.default is inspect.Parameter.empty}
    for name in set(ours) & {"inplace", "size_average", "reduce"}:
        with pytest.raises(ArgumentError, match=rf"{module.__name__}: {name}=True is not supported, .*leave it out"):
            module(**required, **{name: True})
    with pytest.raises(ArgumentError, match=rf"{module.__name__}: .*unknown.*expected {module.__name__}\("):
        module(**required, unknown=1)
    assert module.__doc__


def test_positions_are_those_of_the_function():
    assert nn.LeakyReLU(0.2, False).negative_slope == 0.2
    assert repr(nn.HuberLoss("sum", delta=0.5)) == "HuberLoss(reduction='sum', delta=0.5)"
    assert repr(nn.ReLU()) == "ReLU()" and repr(nn.Softmax(1)) == "Softmax(dim=1)"
    with pytest.raises(ArgumentError, match="missing a required argument: 'dim'"):
        nn.Softmax()


def test_options_can_be_changed_and_subclasses_made():
    loss = nn.MSELoss()
    loss.reduction = "sum"
    assert loss(tensor([1.0, 2.0]), tensor([0.0, 0.0])).item() == 5.0

    class Halved(nn.MSELoss):
        def forward(self, input, target):
            return 0.5 * super().forward(input, target)

    assert Halved(reduction="sum")(tensor([1.0, 2.0]), tensor([0.0, 0.0])).item() == 2.5


def test_weights_follow_the_module():
    loss = nn.CrossEntropyLoss(weight=np.array([1.0, 2.0]))
    assert [name for name, _ in loss.named_buffers()] == ["weight"]
    assert loss.to("float32").weight.dtype == np.float32


def test_a_function_of_ones_own():
    class Scaled(nn.Functional, function=lambda x, factor=2.0: ops.multiply(x, factor)):
        """factor x."""

    assert Scaled()(tensor([3.0])).tolist() == [6.0] and Scaled(0.5)(tensor([3.0])).tolist() == [1.5]


def test_errors_of_the_function_come_through():
    with pytest.raises(ShapeError, match="mse_loss: expected one shape"):
        nn.MSELoss()(tensor([1.0]), tensor([[1.0]]))
