"""What every test stands on: equal random numbers, and no global state left behind."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import cuda_stand_in, cupy_stand_in
from tests.support.selection import is_on_gpu

EMULATION = Path(cupy_stand_in.__file__).parent
HAS_GPU = cupy_stand_in.has_gpu()
if not HAS_GPU:  # CuPy then is its stand-in, also where CuPy is installed, and Triton interprets
    cupy_stand_in.install()
# Several processes of tests share the cores: threads that wait may not spin. Read when Numba starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
# Tests and compiled kernels are millions of objects that stay: the garbage collector would take a twentieth of the time
# to go through them. Tests of what is collected call it.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Take Ctrl-C even where a shell that started the tests in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HAS_GPU and is_on_gpu(item):
            item.add_marker(pytest.mark.gpu)
        elif not HAS_GPU and "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def sound_memory() -> Iterator[None]:
    """Fail a test in which something wrote outside its memory on the emulated device."""
    yield
    cuda_stand_in.check_guards()


@pytest.fixture(autouse=True)
def selected_on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that uses the emulated device though ``-m gpu`` would not select it on a machine that has one.

    Those of the emulation itself, beside it, have no need of a GPU.
    """
    with cuda_stand_in.counting() as asked:
        yield
    is_seen = HAS_GPU or not asked or is_on_gpu(request.node) or request.path.parent == EMULATION
    assert is_seen, f"tests.support.selection does not see its {dict(asked)}"


@pytest.fixture(autouse=True)
def unchanged_globals() -> Iterator[None]:
    """Seed the default generator, and fail a test that leaves a flag switched or an op declared.

    Only what a test module has imported is looked at: the kernels are tested without gmcore.
    """
    gmcore = sys.modules.get("gmcore")
    if gmcore is None:
        yield
        return
    from gmcore.op import OPS

    gmcore.manual_seed(0)
    declared = set(OPS)
    yield
    recording = gmcore.is_grad_enabled()
    assert recording, "the test left gradient recording switched off"
    assert set(OPS) == declared, f"the test left ops behind: {set(OPS) ^ declared}"
