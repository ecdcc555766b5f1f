"""All kernels compiled ahead of time: no spills, shared memory that a block can have, wide accesses, and
the budget of instructions of each case.
"""

import importlib.util
from pathlib import Path

import pytest

from tests.support import ahead

FAMILIES = sorted(file.stem for file in (Path(__file__).parent / "ahead").glob("*.py"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the compiler and disassemblers of triton"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_compile_within_their_limits(family):
    results = ahead.compiled(family)
    assert results
    for r in results:
        assert r.spills == 0, r
        assert r.shared <= ahead.SHARED[r.capability], r
        assert r.wide_share >= r.wide, r
        assert r.budget is None or r.per_element <= r.budget, r
