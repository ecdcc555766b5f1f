"""peak_memory measures what NumPy allocates inside a block."""

import tracemalloc

import numpy as np

import gmcore

MB = 1 << 20


def test_the_peak_of_a_block_and_of_the_blocks_in_it() -> None:
    assert not tracemalloc.is_tracing()
    before = np.ones(4 * MB, np.uint8)
    with gmcore.peak_memory() as outer:
        a = np.ones(3 * MB, np.uint8)
        with gmcore.peak_memory() as inner:
            b = np.ones(2 * MB, np.uint8)
            del b
        del a
        c = np.ones(1 * MB, np.uint8)
        with gmcore.peak_memory() as last:
            pass
    # beside the arrays: Python's own objects, some kilobytes
    assert 5 * MB <= outer.peak < 5.1 * MB and 2 * MB <= inner.peak < 2.1 * MB and last.peak < 0.1 * MB
    assert before.size + c.size and not tracemalloc.is_tracing()


def test_tracing_that_was_on_stays_on() -> None:
    tracemalloc.start()
    try:
        with gmcore.peak_memory():
            pass
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
