"""Launch configurations: the choice by GPU and size, and the command that measures them."""

import importlib
import json
import pkgutil

import cupy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gmkernels
from gmkernels import KernelError, KernelSpec, configurations, launch, registry
from gmkernels.cost import Cost
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

pytestmark = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")


@pytest.fixture
def choices(monkeypatch):
    monkeypatch.setattr(launch.Choices, "every", {})
    return launch.Choices("filled.cuda", ({"repeats": 9}, {"repeats": 1}, {"repeats": 5}), (8, 64))


@pytest.fixture
def held(monkeypatch):
    """What the file of configurations is to hold."""
    found = {}
    monkeypatch.setattr(configurations, "measured", lambda path=None: found)
    return found


def test_the_first_candidate_where_nothing_was_measured(choices, held):
    assert all(choices.at(size) is choices.candidates[0] for size in (0, 7, 8, 64, 10**9))
    held["80"] = {"filled.cuda": [2, 2, 2]}
    assert choices.at(100) is choices.candidates[0], "another GPU's"


def test_what_was_measured_by_class(choices, held):
    held["90"] = {"filled.cuda": [1, 0, 2]}
    expected = {0: 1, 7: 1, 8: 0, 63: 0, 64: 2, 10**9: 2}
    assert {size: choices.candidates.index(choices.at(size)) for size in expected} == expected


@given(st.lists(st.integers(1, 2**40), unique=True, max_size=5).map(sorted), st.integers(0, 2**41))
def test_classes_begin_at_their_sizes(starts, size):
    made = launch.Choices("never.cuda", ({}, {}), starts)
    del launch.Choices.every["never.cuda"]
    number = made.class_of(size)
    assert all(start <= size for start in starts[:number]) and all(size < start for start in starts[number:])


@pytest.fixture
def every():
    """All configurations that the kernels of the package have, by name."""
    for module in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
        if module.ispkg:
            importlib.import_module(module.name)  # registers its kernels
    for spec in registry.specs().values():
        for backend in {"triton", "cuda"} & set(registry.entries(spec)):
            registry.entries(spec)[backend].kernel()  # whose module makes its choices
    return launch.Choices.every


def test_every_entry_of_the_shipped_file_is_a_candidate(every):
    for kernels in json.loads(configurations.FILE.read_text()).values():
        for name, numbers in kernels.items():
            choices = every[name]
            assert len(numbers) == len(choices.classes) + 1 and max(numbers) < len(choices.candidates), name


@pytest.fixture
def hollow(monkeypatch):
    """Arrays as large as those that are to be measured, whose memory nothing touches, and launches of nothing."""

    def lend(block, used):
        block.live, block.lent, block.used = True, block.lent + 1, used
        for zone, guard in block._zones():
            zone[:] = np.frombuffer(guard, np.uint8)

    monkeypatch.setattr(cuda_stand_in.Block, "lend", lend)
    monkeypatch.setattr(launch, "triton", lambda *call, **options: None)
    monkeypatch.setattr(launch, "cuda", lambda *call, **options: None)


@pytest.mark.slow
def test_every_class_is_measured_in_a_call(every, hollow):
    missing = []
    for name, choices in every.items():
        for number in range(len(choices.classes) + 1) if len(choices.candidates) > 1 else ():
            wanted = configurations._typical(choices, number)
            found = next(configurations.examples_of(choices, number, wanted), None)
            if found is None or choices.class_of(found.size_for(choices)) != number:
                missing.append((name, number))
    assert every and not missing


def test_calls_whose_only_size_is_an_attribute_are_lengthened(every, hollow):
    choices = every["rng.triton"]
    found = next(configurations.examples_of(choices, 0, 1 << 20))
    assert found.example.attrs["shape"] == (40961,) and found.size_for(choices) == found.longer >= 1 << 18


def test_tune_measures_each_class_and_writes_the_fastest(choices, tmp_path, monkeypatch):
    """A kernel that fills its output as often as its configuration says: fewest repeats win."""
    sizes, refused = [], []

    def filled(inputs, outputs, workspace, attrs):
        repeats = choices.at(inputs[0].size)["repeats"]
        if repeats in refused:
            raise KernelError("a block needs more shared memory than there is")
        sizes.append(inputs[0].size)
        clock[0] += repeats
        outputs[0].fill(1)

    clock = [0.0]
    monkeypatch.setattr(cupy.cuda, "Event", lambda: Moment(clock))
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda start, end: end.at - start.at)
    spec = KernelSpec(
        name="filled", family="outside", inputs=("x", "key"), outputs=("y",),
        infer=lambda x, key: [(x.shape, x.dtype)], cost=lambda x, key: Cost(bytes=x.nbytes),
        examples=lambda rng, dtype: [
            registry.Example((np.ones(shape, dtype), np.zeros(3, np.uint64)), {}) for shape in ((0,), (3, 1), (5, 2))
        ],
        formula="y = 1", source="none", tolerance={"float32": (0, 0), "float64": (0, 0)},
    )  # fmt: skip
    registry.register(spec, "cuda", filled)
    path = tmp_path / "configurations.json"
    path.write_text(json.dumps({"80": {"kept.cuda": [1]}, "90": {"filled.cuda": [0, 0, 0], "kept.cuda": [2]}}))
    try:
        found = list(configurations.tune(path, names=("filled",)))
        assert [m.best for m in found] == [1, 1, 1]
        assert [choices.class_of(m.size) for m in found] == [0, 1, 2]
        assert json.loads(path.read_text()) == {
            "80": {"kept.cuda": [1]}, "90": {"filled.cuda": [1, 1, 1], "kept.cuda": [2]},
        }  # fmt: skip
        refused.append(1)
        found = list(configurations.tune(path, names=("filled",)))
        assert [(m.best, m.seconds[1]) for m in found] == [(2, np.inf)] * 3
        refused.clear()
        sizes.clear()
        with pytest.raises(KernelError, match="^others has no launch .* expected one of .*filled"):
            list(configurations.tune(path, names=("filled", "others")))
        assert not sizes
        monkeypatch.setattr(configurations, "_MOST_ELEMENTS", 1 << 12)
        choices.classes = (8, 64, 1 << 13)  # the last is of longer arrays
        held = path.read_text()
        assert [m.best for m in configurations.tune(path, names=("filled",))] == [1, 1, 1, None]
        assert path.read_text() == held
    finally:
        registry.unregister(spec, "cuda")


class Moment:
    """An event at a time of the clock that the kernel turns."""

    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = self.clock[0]

    def synchronize(self): ...


def test_candidates_as_fast_as_the_first_leave_it(choices):
    assert configurations.Measurement("k", 1, (1.0, 0.99, 1.2)).best == 0
    assert configurations.Measurement("k", 1, (1.0, 0.97, 0.9)).best == 2


def test_tune_without_a_gpu():
    with cuda_stand_in.machine(error=35), pytest.raises(KernelError, match="are measured on a GPU: there is no NVIDIA"):
        next(configurations.tune())
