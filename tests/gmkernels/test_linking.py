"""Kernels compiled whole: what they share with other compiled code still works there, and Numba is left as it was."""

import numba
import numpy as np
import pytest
from numba.core import codegen
from numba.core.registry import cpu_target
from numba.extending import register_jitable

from gmkernels.pool import block_kernel, jitable


def test_what_a_kernel_calls_is_linked_and_not_compiled(monkeypatch):
    """And other code can link it afterwards."""
    emitted, emit = [], codegen.JITCodeLibrary._finalize_specific
    monkeypatch.setattr(
        codegen.JITCodeLibrary, "_finalize_specific", lambda self: (emitted.append(self.name), emit(self))
    )

    @jitable
    def twice(x):
        return 2 * x

    @register_jitable
    def thrice(x):
        return twice(x) + x

    @block_kernel
    def fill(block, x, y):
        y[0] = thrice(x[0])

    y = np.zeros(1)
    fill(1, np.array([1.5]), y)
    assert y[0] == 4.5
    assert any("fill" in name for name in emitted)
    assert not any("twice" in name or "thrice" in name for name in emitted)
    assert numba.njit(lambda x: thrice(x))(1.5) == 4.5


def test_numba_is_as_before_a_kernel_also_after_an_error():
    generator, typing = cpu_target.target_context.codegen(), cpu_target.typing_context
    before = dict(vars(generator)), dict(vars(typing))

    @block_kernel
    def wrong(block, x):
        x[0] = "text"

    with pytest.raises(numba.TypingError):
        wrong(1, np.zeros(1))
    assert vars(generator).keys() == before[0].keys() and vars(typing).keys() == before[1].keys()
