import inspect

import numpy as np
import pytest

from gmcore import nn, optim, tensor
from gmcore.errors import ArgumentError, CheckpointError
from gmcore.optim import lr_scheduler as ours


def optimizer(lib=optim, parameter=None):
    make = parameter or (lambda: nn.Parameter(np.ones(2)))
    return lib.SGD([{"params": [make()], "lr": 0.1}, {"params": [make()], "lr": 0.03}])


SCHEDULES = {
    "lambda": lambda s, o: s.LambdaLR(o, lambda epoch: 0.95**epoch),
    "lambdas": lambda s, o: s.LambdaLR(o, [lambda epoch: 0.95**epoch, lambda epoch: 1.0 / (1 + epoch)]),
    "step": lambda s, o: s.StepLR(o, 4, gamma=0.5),
    "multistep": lambda s, o: s.MultiStepLR(o, [10, 3, 3, 17]),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 10, eta_min=0.01),  # also after T_max
    "cosine to 0": lambda s, o: s.CosineAnnealingLR(o, 30),
    "linear": lambda s, o: s.LinearLR(o),
    "linear down": lambda s, o: s.LinearLR(o, 1.0, 0.1, 12),
    "sequential": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.ExponentialLR(o, 0.9), s.StepLR(o, 2)], [5, 12]
    ),
    "warm-up and cosine": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.CosineAnnealingLR(o, 20)], [5]
    ),
}


def rates(o):
    return [group["lr"] for group in o.param_groups]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of its own deprecated epoch argument and step order
@pytest.mark.parametrize("name", SCHEDULES)
def test_sequence_is_that_of_pytorch(name):
    torch = pytest.importorskip("torch")
    o = optimizer()
    p = optimizer(torch.optim, lambda: torch.nn.Parameter(torch.ones(2)))
    schedule, peer = SCHEDULES[name](ours, o), SCHEDULES[name](torch.optim.lr_scheduler, p)
    for epoch in range(25):
        assert schedule.last_epoch == epoch
        # PyTorch multiplies from epoch to epoch: 25 roundings or so.
        np.testing.assert_allclose(rates(o), rates(p), rtol=1e-14, atol=1e-17)
        assert schedule.get_last_lr() == rates(o)
        p.step()
        schedule.step()
        peer.step()


@pytest.mark.parametrize("name", [*SCHEDULES, "iwae"])
def test_resume_goes_on_where_it_was(name):
    make = SCHEDULES.get(name, lambda s, o: s.IWAELR(o))
    straight, before, after = optimizer(), optimizer(), optimizer()
    one, two = make(ours, straight), make(ours, before)
    for _ in range(15):
        one.step()
    for _ in range(7):
        two.step()
    for group in after.param_groups:
        group["lr"] = 77.0
    three = make(ours, after)
    after.load_state_dict(before.state_dict())
    three.load_state_dict(two.state_dict())
    assert rates(after) == rates(before)
    for _ in range(8):
        three.step()
    assert rates(after) == rates(straight) and three.last_epoch == 15
    for array in one.state_dict().values():
        assert isinstance(array, np.ndarray) and array.dtype.kind in "fi"


def test_iwae_schedule_has_eight_stages_of_3_to_the_i_epochs():
    o = optim.Adam([nn.Parameter(np.ones(2))], lr=1e-3)
    schedule = ours.IWAELR(o)
    found = []
    for _ in range(3300):
        found.append(rates(o)[0])
        schedule.step()
    stages = [0.001 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(stages) == 3280
    np.testing.assert_allclose(found, [*stages, *[1e-4] * 20], rtol=1e-14)
    # The table printed in the authors' code, in units of 1e-4.
    np.testing.assert_allclose(sorted(set(np.round(1e4 * np.array(found), 1)), reverse=True),
                               [10.0, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4, 1.0])  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 0, "factor": 0.5, "cooldown": 2},
        {"mode": "max", "patience": 1, "threshold": 0.05},
        {"threshold_mode": "abs", "threshold": 0.3, "patience": 2},
        {"mode": "max", "threshold_mode": "abs", "threshold": 0.3, "patience": 1, "min_lr": [0.01, 0.005]},
        {"patience": 0, "eps": 1e-2},
    ],
    ids=str,
)
def test_plateau_is_that_of_pytorch(options):
    torch = pytest.importorskip("torch")
    o = optimizer()
    p = optimizer(torch.optim, lambda: torch.nn.Parameter(torch.ones(2)))
    schedule = ours.ReduceLROnPlateau(o, **options)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(p, **options)
    rng = np.random.default_rng(0)
    fewer = False
    for epoch in range(120):
        measure = np.nan if epoch == 30 else 3.0 * 0.9**epoch + 0.3 * rng.standard_normal()
        schedule.step(tensor(measure, dtype="float64"))
        peer.step(measure)
        assert rates(o) == rates(p) == schedule.get_last_lr()
        assert (schedule.best, schedule.num_bad_epochs) == (peer.best, peer.num_bad_epochs)
        assert (schedule.cooldown_counter, schedule.last_epoch) == (peer.cooldown_counter, peer.last_epoch)
        fewer = fewer or rates(o)[0] < 0.1
        other = ours.ReduceLROnPlateau(optimizer(), **options)
        other.load_state_dict(schedule.state_dict())
        assert other.best == schedule.best and other.num_bad_epochs == schedule.num_bad_epochs
    assert fewer


def test_schedules_have_the_arguments_of_pytorch():
    torch = pytest.importorskip("torch")
    names = ["LambdaLR", "StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "LinearLR", "SequentialLR"]
    for name in [*names, "ReduceLROnPlateau"]:
        found, expected = (
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(lib, name)).parameters.values()]
            for lib in (ours, torch.optim.lr_scheduler)
        )
        assert found == expected, name


def test_a_group_added_later_starts_at_its_own_rate():
    o = optimizer()
    schedule = ours.StepLR(o, 2, gamma=0.5)
    schedule.step()
    o.add_param_group({"params": [nn.Parameter(np.ones(2))], "lr": 8.0})
    schedule.step()
    np.testing.assert_allclose(rates(o), [0.05, 0.015, 4.0], rtol=1e-15)


def test_a_rate_that_something_else_has_changed_is_refused():
    o = optimizer()
    first, second = ours.ExponentialLR(o, 0.9), ours.LinearLR(o)
    second.step()
    with pytest.raises(ArgumentError, match="ExponentialLR: the rate of group 0 is .* do not chain; use SequentialLR"):
        first.step()


def test_refusals():
    o = optimizer()
    cases = [
        (lambda: ours.StepLR(o, 0), "StepLR: step_size must be an integer of at least 1"),
        (lambda: ours.StepLR(o, 2.5), "step_size must be an integer"),
        (lambda: ours.StepLR(o, 2, gamma=-1.0), "gamma must be a number"),
        (lambda: ours.StepLR(o, 2, last_epoch=3), "last_epoch=3 is not supported.*load_state_dict"),
        (lambda: ours.StepLR([1.0], 2), "expected an optimizer, got a list"),
        (lambda: ours.ReduceLROnPlateau(None), "expected an optimizer, got a NoneType"),
        (lambda: ours.MultiStepLR(o, [3, -1]), "a milestone must be an integer"),
        (lambda: ours.ExponentialLR(o, float("nan")), "gamma must be a number"),
        (lambda: ours.CosineAnnealingLR(o, 0), "T_max must be an integer"),
        (lambda: ours.LinearLR(o, start_factor=0.0), r"start_factor must be a number in \(0, 1\]"),
        (lambda: ours.LinearLR(o, end_factor=1.5), "end_factor must be a number in"),
        (lambda: ours.LinearLR(o, total_iters=0), "total_iters must be an integer"),
        (lambda: ours.LambdaLR(o, [lambda epoch: 1.0]), "1 functions for 2 parameter groups"),
        (lambda: ours.SequentialLR(o, [], []), "expected one less"),
        (lambda: ours.SequentialLR(o, [ours.StepLR(o, 1)], [3]), "1 milestones for 1 schedules"),
        (lambda: ours.SequentialLR(o, [ours.StepLR(optimizer(), 1)], []), "schedule 0 is no schedule of this"),
        (lambda: ours.SequentialLR(o, [ours.ReduceLROnPlateau(o)], []), "schedule 0 is no schedule of this"),
        (lambda: ours.SequentialLR(o, [ours.StepLR(o, 1)] * 3, [4, 4]), "milestones must increase"),
        (lambda: ours.ReduceLROnPlateau(o, "least"), "mode must be 'min' or 'max'"),
        (lambda: ours.ReduceLROnPlateau(o, threshold_mode="x"), "threshold_mode must be 'rel' or 'abs'"),
        (lambda: ours.ReduceLROnPlateau(o, factor=1.0), r"factor must be a number in \[0, 1\)"),
        (lambda: ours.ReduceLROnPlateau(o, min_lr=[0.1]), "1 lowest rates for 2 parameter groups"),
    ]
    for make, message in cases:
        with pytest.raises(ArgumentError, match=message):
            make()
    with pytest.raises(CheckpointError, match="does not fit this StepLR"):
        ours.StepLR(o, 1).load_state_dict({"last_epoch": 3})
    with pytest.raises(NotImplementedError, match="neither factor"):
        ours.LRScheduler(o)
