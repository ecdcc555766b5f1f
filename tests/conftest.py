"""What every test stands on: equal random numbers, no global state left behind, and where the real data lie."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """`shared/data` beside the checkout, or skip."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets (shared/data beside the checkout) are not here")
    return folder
