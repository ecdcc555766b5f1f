import numpy as np
import pytest

from gmcore import nn, tensor
from gmcore.errors import ArgumentError, CheckpointError
from gmcore.optim import EMA


def moved(params, rng):
    for p in params:
        p.copy_(np.asarray(p._data + rng.standard_normal(p.shape), p.dtype))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-14)])
def test_average_is_that_of_pytorch(dtype, tolerance):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    layer = nn.Linear(3, 2)
    params = [nn.Parameter(p.detach().numpy().astype(dtype)) for p in layer.parameters()]
    peer = torch.nn.Linear(3, 2, dtype=getattr(torch, dtype))

    def copy():
        with torch.no_grad():
            for p, q in zip(params, peer.parameters(), strict=True):
                q.copy_(torch.tensor(p.detach().numpy().copy()))

    copy()
    ema, averaged = EMA(params, 0.9), AveragedModel(peer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(peer)  # PyTorch's first update copies, which is our construction
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved(params, rng)
        copy()
        ema.update()
        averaged.update_parameters(peer)
    for a, q in zip(ema.averages.values(), averaged.module.parameters(), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance)
    assert ema.updates == 20


def test_a_constant_is_its_own_average_and_the_start_is_forgotten_at_the_decay():
    p, still = nn.Parameter(np.zeros(3)), nn.Parameter(np.array(7.0, np.float32))
    ema = EMA([p, still], decay=0.75)
    p.copy_(np.ones(3))
    for n in range(1, 6):
        ema.update()
        np.testing.assert_allclose(ema.averages["0"].numpy(), 1 - 0.75**n, rtol=1e-14)
        assert ema.averages["1"].item() == 7.0


def test_applied_puts_the_parameters_back_also_after_an_error():
    layer = nn.Linear(3, 2)
    ema = EMA(layer, decay=0.5)
    assert list(ema.averages) == ["weight", "bias"]
    moved(list(layer.parameters()), np.random.default_rng(0))
    ema.update()
    own = {name: p.detach().numpy().copy() for name, p in layer.named_parameters()}

    def check(expected):
        for name, p in layer.named_parameters():
            np.testing.assert_array_equal(p.detach().numpy(), expected[name])

    averages = {name: a.numpy().copy() for name, a in ema.averages.items()}
    with ema.applied():
        check(averages)
    check(own)
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    check(own)
    version = layer.weight.version
    ema.copy_to()
    check(averages)
    assert layer.weight.version == version + 1
    layer.weight.copy_(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(ema.averages["weight"].numpy(), averages["weight"])


def test_resume_is_exact():
    from safetensors.numpy import load, save

    def run(ema, params, rng, steps):
        for _ in range(steps):
            moved(params, rng)
            ema.update()

    straight, before = [nn.Parameter(np.ones(5))], [nn.Parameter(np.ones(5))]
    one, two = EMA(straight, 0.9), EMA(before, 0.9)
    run(one, straight, np.random.default_rng(0), 6)
    rng = np.random.default_rng(0)
    run(two, before, rng, 3)
    saved = load(save({name: np.array(a) for name, a in two.state_dict().items()}))
    after = [nn.Parameter(before[0])]
    three = EMA(after, 0.9)
    three.load_state_dict(saved)
    run(three, after, rng, 3)
    np.testing.assert_array_equal(three.averages["0"].numpy(), one.averages["0"].numpy())
    assert three.updates == one.updates == 6
    with pytest.raises(CheckpointError) as error:
        EMA({"params": nn.Linear(2, 2)}["params"]).load_state_dict(
            {"updates": np.array(1), "averages.bias": np.zeros(3), "averages.wait": np.zeros(2)}
        )
    for text in ("averages.weight is missing", "averages.wait is unexpected", "(3,), expected (2,)"):
        assert text in str(error.value)


def test_state_dict_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        EMA([nn.Parameter(np.ones(2))]).state_dict()["averages.0"][0] = 1.0


@pytest.mark.parametrize(
    ("params", "decay", "message"),
    [
        ([], 0.9, "params is empty"),
        (tensor([1.0]), 0.9, "params is one tensor"),
        ([tensor([1])], 0.9, "parameter 0 is a int64, expected a floating tensor"),
        ([tensor([1.0]), 2.0], 0.9, "parameter 1 is a float,"),
        ([tensor([1.0])], 1.1, r"decay must be a number in \[0, 1\]"),
        ([tensor([1.0])], -0.1, "decay must be a number"),
        ([tensor([1.0])], float("nan"), "decay must be a number"),
    ],
)
def test_constructor_refuses(params, decay, message):
    with pytest.raises(ArgumentError, match=f"EMA: {message}"):
        EMA(params, decay)
